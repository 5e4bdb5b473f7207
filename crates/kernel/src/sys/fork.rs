//! What happens in a child between fork and exec: only system calls on memory that was ready before the fork. Another
//! thread may have held any lock, the allocator's too, when the process was copied.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use super::check;

/// One step of a child.
#[derive(Debug)]
pub(crate) enum Step {
    /// Enter the namespace of kind `.1`.
    Enter(OwnedFd, i32),
    /// New namespaces.
    Unshare(i32),
    /// Mounts of the parent come in here, ours do not go out.
    Slave,
    /// Mount `.0` (or a file system of type `.2`) at `.1` with flags `.3`.
    Mount(CString, CString, Option<CString>, libc::c_ulong),
    /// Set the host name of a new UTS namespace.
    Hostname(CString),
    /// Become the first process of the new PID namespace; the process the parent knows waits for it, hands signals on
    /// and ends as it ends.
    First,
    /// Lead a new session.
    Session,
    /// End with the thread that forked, whose process id this is.
    DieWithParent(libc::pid_t),
    /// Change directory.
    Directory(CString),
}

/// Makes `command` take `steps` in its child.
pub(crate) fn prepare(command: &mut Command, steps: Vec<Step>) {
    let run = move || steps.iter().try_for_each(step);
    // SAFETY: `run` makes system calls only, on memory owned by `steps`, which the closure holds; errors are made from
    // errno without allocating.
    unsafe { command.pre_exec(run) };
}

fn step(s: &Step) -> io::Result<()> {
    match s {
        // SAFETY: no pointers.
        Step::Enter(fd, kind) => check(unsafe { libc::setns(fd.as_raw_fd(), *kind) }).map(drop),
        // SAFETY: no pointers.
        Step::Unshare(flags) => check(unsafe { libc::unshare(*flags) }).map(drop),
        Step::Slave => {
            let flags = libc::MS_REC | libc::MS_SLAVE;
            // SAFETY: the target is a static C string; the others may be null for a change of propagation.
            check(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()) }).map(drop)
        }
        Step::Mount(source, target, fstype, flags) => {
            let kind = fstype.as_ref().map_or(ptr::null(), |f| f.as_ptr());
            // SAFETY: all are C strings owned by the step, or null where the kernel takes null.
            check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, *flags, ptr::null()) })?;
            // A bind mount takes read-only only in a second call (mount(2)).
            if flags & libc::MS_BIND != 0 && flags & libc::MS_RDONLY != 0 {
                let flags = flags | libc::MS_REMOUNT;
                // SAFETY: as above.
                check(unsafe { libc::mount(ptr::null(), target.as_ptr(), ptr::null(), flags, ptr::null()) })?;
            }
            Ok(())
        }
        Step::Hostname(name) => {
            let b = name.as_bytes();
            // SAFETY: the bytes are live and their length given.
            check(unsafe { libc::sethostname(b.as_ptr().cast(), b.len() as _) }).map(drop)
        }
        Step::First => first(),
        // SAFETY: no pointers.
        Step::Session => check(unsafe { libc::setsid() }).map(drop),
        Step::DieWithParent(parent) => {
            // SAFETY: no pointers.
            check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
            // The parent may have ended before the call above.
            // SAFETY: no pointers.
            if unsafe { libc::getppid() } != *parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        }
        // SAFETY: a C string owned by the step.
        Step::Directory(d) => check(unsafe { libc::chdir(d.as_ptr()) }).map(drop),
    }
}

/// Sends `message` to the kernel on `socket` from a process of its own, which holds `keep` until the kernel is done with
/// it and has nothing else of this process open. The process is nobody's child once this one ends; nobody hears of a
/// refusal.
pub(crate) fn send_apart(socket: BorrowedFd<'_>, message: &[u8], keep: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let keep = keep.map_or(-1, |k| k.as_raw_fd());
    // SAFETY: no pointers. The raw clone runs no handlers of the C library, as fork() would.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid != 0 {
        return check(libc::c_int::try_from(pid).unwrap_or(-1)).map(drop);
    }
    // SAFETY: system calls only, on memory that was ready before the fork. Who reads the standard output of this process
    // waits until nobody has it open.
    unsafe {
        libc::setsid();
        let socket = libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD, 3);
        libc::dup2(keep, 1);
        libc::dup2(socket, 0);
        libc::syscall(libc::SYS_close_range, if keep < 0 { 1 } else { 2 }, libc::c_uint::MAX, 0);
        libc::send(0, message.as_ptr().cast(), message.len(), 0);
        libc::_exit(0)
    }
}

/// Starts a process that keeps a copy of `fd` until this process has ended or all its copies of the pipe's end that this
/// leaves open are closed: the last to close `fd` is that process.
pub(crate) fn close_apart(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut pipe = [-1; 2];
    // SAFETY: the array has room for two descriptors.
    check(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: no pointers. The raw clone runs no handlers of the C library, as fork() would.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid != 0 {
        // The other end stays open until this process ends.
        // SAFETY: nobody else knows this descriptor.
        unsafe { libc::close(pipe[0]) };
        return check(libc::c_int::try_from(pid).unwrap_or(-1)).map(drop);
    }
    // SAFETY: system calls only, on memory that was ready before the fork.
    unsafe {
        libc::setsid();
        let kept = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, 3);
        libc::dup2(pipe[0], 0);
        libc::dup2(kept, 1);
        libc::syscall(libc::SYS_close_range, 2, libc::c_uint::MAX, 0);
        let mut nothing = 0u8;
        libc::read(0, (&raw mut nothing).cast(), 1);
        libc::_exit(0)
    }
}

/// Forks once more; returns in the child. The parent never returns.
fn first() -> io::Result<()> {
    // SAFETY: sigset_t is plain data that sigfillset fills; every pointer is to a live local. The raw clone runs no
    // handlers of the C library, as fork() would.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
        check(libc::sigfillset(&raw mut all))?;
        // Blocked before the child is there, so that its end is not missed.
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before))?;
        let pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid > 0 {
            attend(pid as libc::pid_t, &all);
        }
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()))?;
    }
    Ok(())
}

/// Waits for `pid`, hands signals on, ends as it ended: with its code, or 128 and its signal's number.
fn attend(pid: libc::pid_t, all: &libc::sigset_t) -> ! {
    // SAFETY: no pointers but to live locals. Closing everything from 3 on lets the parent's pipe see the exec.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        loop {
            let signal = libc::sigwaitinfo(all, ptr::null_mut());
            if signal > 0 && signal != libc::SIGCHLD {
                libc::kill(pid, signal);
                continue;
            }
            let mut status = 0;
            let r = libc::waitpid(pid, &raw mut status, libc::WNOHANG);
            if r == pid {
                if libc::WIFEXITED(status) {
                    libc::_exit(libc::WEXITSTATUS(status));
                }
                if libc::WIFSIGNALED(status) {
                    libc::_exit(128 + libc::WTERMSIG(status));
                }
            } else if r < 0 && *libc::__errno_location() != libc::EINTR {
                libc::_exit(255);
            }
        }
    }
}
