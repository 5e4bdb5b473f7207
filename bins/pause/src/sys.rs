//! The six system calls of the program and its first instruction. Written out here, as the one place beside crate
//! `kernel` with unsafe code: that crate needs the C library, whose start alone is several times as large as this program
//! may be.
#![allow(unsafe_code)]

use core::arch::asm;

/// Interrupt, as of Ctrl-C (signal(7); the same number on every architecture here).
pub const SIGINT: i32 = 2;
/// The polite request to end.
pub const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
/// `include/uapi/asm-generic/errno-base.h`
const EINTR: isize = -4;
/// `include/uapi/linux/wait.h`
const WNOHANG: usize = 1;
/// `include/uapi/asm-generic/signal-defs.h`
const SIG_BLOCK: usize = 0;
/// Bytes of a kernel's set of signals.
const SET: usize = 8;

/// Numbers of system calls, `arch/x86/entry/syscalls/syscall_64.tbl`.
#[cfg(target_arch = "x86_64")]
mod nr {
    pub const WRITE: usize = 1;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const GETPID: usize = 39;
    pub const WAIT4: usize = 61;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

/// Numbers of system calls, `include/uapi/asm-generic/unistd.h`.
#[cfg(target_arch = "aarch64")]
mod nr {
    pub const WRITE: usize = 64;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const GETPID: usize = 172;
    pub const WAIT4: usize = 260;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

/// A system call: its result, or the error's number below zero.
///
/// # Safety
/// As the system call demands of its arguments.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the registers of the ABI (syscall(2)); the kernel changes rcx, r11 and memory of the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// A system call: its result, or the error's number below zero.
///
/// # Safety
/// As the system call demands of its arguments.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the registers of the ABI (syscall(2)); the kernel changes x0 and memory of the arguments.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            options(nostack));
    }
    result
}

/// Writes all bytes; whether that worked.
pub fn write(fd: i32, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        // SAFETY: the bytes are live and their number given.
        let n = unsafe { call(nr::WRITE, fd as usize, bytes.as_ptr().addr(), bytes.len(), 0) };
        match bytes.get(n.unsigned_abs()..) {
            Some(rest) if n > 0 => bytes = rest,
            _ if n == EINTR => {}
            _ => return false,
        }
    }
    true
}

/// The process id, as in its own PID namespace.
pub fn pid() -> isize {
    // SAFETY: no arguments.
    unsafe { call(nr::GETPID, 0, 0, 0, 0) }
}

/// Takes the status of every child that has ended.
pub fn reap() {
    // SAFETY: no pointers: neither status nor usage is asked for. -1 is any child.
    while unsafe { call(nr::WAIT4, usize::MAX, 0, WNOHANG, 0) } > 0 {}
}

/// Ends the process.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: no pointers. It does not return.
        unsafe { call(nr::EXIT_GROUP, code as usize, 0, 0, 0) };
    }
}

/// SIGINT, SIGTERM and SIGCHLD, blocked: they wait to be asked for. A blocked signal reaches PID 1 of a namespace as it
/// reaches any other (kernel/signal.c `sig_ignored`), and no handler means no code that runs in between.
pub struct Signals(u64);

impl Signals {
    /// Blocks them; `None` when the kernel refuses.
    pub fn block() -> Option<Self> {
        let set = [SIGINT, SIGTERM, SIGCHLD].iter().fold(0u64, |set, s| set | 1 << (s - 1));
        // SAFETY: the set is live and its size given; no old set is asked for.
        let r = unsafe { call(nr::RT_SIGPROCMASK, SIG_BLOCK, (&raw const set).addr(), 0, SET) };
        (r == 0).then_some(Self(set))
    }

    /// Waits for one of them: its number, or zero after another signal's stop and continuation. `None` when the kernel
    /// refuses.
    pub fn wait(&self) -> Option<i32> {
        // SAFETY: the set is live and its size given; no details are asked for, and no time limit.
        match unsafe { call(nr::RT_SIGTIMEDWAIT, (&raw const self.0).addr(), 0, 0, SET) } {
            EINTR => Some(0),
            r => i32::try_from(r).ok().filter(|s| *s > 0),
        }
    }
}

// The first instruction: the kernel leaves the number of arguments and pointers to them on the stack
// (fs/binfmt_elf.c `create_elf_tables`).
#[cfg(all(panic = "abort", target_arch = "x86_64"))]
core::arch::global_asm!(
    ".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {begin}", "ud2", begin = sym begin
);
#[cfg(all(panic = "abort", target_arch = "aarch64"))]
core::arch::global_asm!(
    ".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "mov x0, sp", "bl {begin}", "brk 1", begin = sym begin
);

/// What follows the first instruction.
///
/// # Safety
/// `stack` is the stack pointer as the kernel set it.
#[cfg(panic = "abort")]
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    let arg = |n: usize| {
        // SAFETY: the stack has the number of arguments, then so many pointers to strings that end with NUL and stay.
        // Volatile, since the compiler turns a plain loop into a call of strlen, which is in no library here.
        unsafe {
            let start: *const u8 = stack.add(1 + n).read() as *const u8;
            let mut end = start;
            while end.read_volatile() != 0 {
                end = end.add(1);
            }
            core::slice::from_raw_parts(start, end.addr() - start.addr())
        }
    };
    // SAFETY: as above.
    let count = unsafe { stack.read() };
    crate::run((1..count).map(arg))
}
