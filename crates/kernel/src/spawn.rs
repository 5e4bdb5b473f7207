//! Processes inside namespaces: of a node, of a pod, beside a running one.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::netns::Netns;
use crate::sys::fork::{self, Step};

/// A process to start. Everything is prepared before the fork; the child then enters or makes its namespaces in this
/// order: network, mounts, UTS, PID.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let ns = kernel::Netns::open("/run/netns/blue")?;
/// let mut child = kernel::Spawn::new("ip").args(["address"]).netns(&ns).bind("/tmp/hosts", "/etc/hosts").spawn()?;
/// child.wait()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Spawn {
    command: Command,
    netns: Option<Netns>,
    mounts: Vec<Mount>,
    own_mounts: bool,
    own_pids: bool,
    hostname: Option<OsString>,
    session: bool,
    die_with_parent: bool,
    directory: Option<PathBuf>,
    join: Option<u32>,
}

#[derive(Debug)]
enum Mount {
    Bind { source: PathBuf, target: PathBuf, read_only: bool },
    Tmpfs(PathBuf),
}

impl Spawn {
    /// A process of `program`, searched in PATH when it has no slash. Standard input is empty, output and errors are
    /// this process's.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self {
            command,
            netns: None,
            mounts: Vec::new(),
            own_mounts: false,
            own_pids: false,
            hostname: None,
            session: false,
            die_with_parent: false,
            directory: None,
            join: None,
        }
    }

    /// Arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// One variable of its environment.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts from an empty environment; call before [`Spawn::env`].
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Standard input.
    #[must_use]
    pub fn stdin(mut self, from: impl Into<Stdio>) -> Self {
        self.command.stdin(from);
        self
    }

    /// Standard output: a [`File`], a pipe, `Stdio::null()`.
    #[must_use]
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stdout(to);
        self
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stderr(to);
        self
    }

    /// The network namespace it runs in.
    #[must_use]
    pub fn netns(mut self, ns: &Netns) -> Self {
        self.netns = Some(ns.clone());
        self
    }

    /// Gives it a mount namespace of its own, where mounts of this one still arrive and leave.
    #[must_use]
    pub fn own_mounts(mut self) -> Self {
        self.own_mounts = true;
        self
    }

    /// Shows it `source` at `target`, which must exist. Implies [`Spawn::own_mounts`].
    #[must_use]
    pub fn bind(self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.mount(Mount::Bind { source: source.into(), target: target.into(), read_only: false })
    }

    /// The same, not to be written.
    #[must_use]
    pub fn bind_read_only(self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.mount(Mount::Bind { source: source.into(), target: target.into(), read_only: true })
    }

    /// An empty file system of its own at `target`. Implies [`Spawn::own_mounts`].
    #[must_use]
    pub fn tmpfs(self, target: impl Into<PathBuf>) -> Self {
        self.mount(Mount::Tmpfs(target.into()))
    }

    fn mount(mut self, m: Mount) -> Self {
        self.mounts.push(m);
        self.own_mounts = true;
        self
    }

    /// Gives it a PID namespace of its own with a fresh /proc. The process id that the parent gets is of a process
    /// that waits for it, hands signals on, and ends as it ends; killing that one (SIGKILL) ends the whole namespace.
    /// As the first in its namespace it gets only the signals it handles, and SIGKILL. Implies [`Spawn::own_mounts`].
    #[must_use]
    pub fn own_pids(mut self) -> Self {
        self.own_pids = true;
        self.own_mounts = true;
        self
    }

    /// Gives it a host name of its own (a new UTS namespace), at most 64 bytes.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<OsString>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// Lets it lead a session: no terminal's signals reach it.
    #[must_use]
    pub fn session(mut self) -> Self {
        self.session = true;
        self
    }

    /// Ends it (SIGKILL) when the *thread* that starts it ends.
    #[must_use]
    pub fn die_with_parent(mut self) -> Self {
        self.die_with_parent = true;
        self
    }

    /// Its working directory, as it sees it.
    #[must_use]
    pub fn directory(mut self, dir: impl Into<PathBuf>) -> Self {
        self.directory = Some(dir.into());
        self
    }

    /// Puts it beside the running process `pid`: into its network, mount, UTS and PID namespaces, as `nsenter` does.
    /// Give the process inside, not the one that attends it ([`crate::process::inner`]).
    #[must_use]
    pub fn beside(mut self, pid: u32) -> Self {
        self.join = Some(pid);
        self
    }

    /// The command with all of it prepared, for those who start it themselves (an async runtime).
    ///
    /// # Errors
    /// When a text holds a NUL, or the process to be beside of has gone.
    pub fn into_command(mut self) -> io::Result<Command> {
        let mut steps = Vec::new();
        let mut inside_pids = self.own_pids;
        if self.die_with_parent {
            // First: later steps may make the parent's id unreadable.
            steps.push(Step::DieWithParent(std::process::id().cast_signed()));
        }
        if let Some(pid) = self.join {
            // Opened before any is entered, since /proc is another one after.
            for (name, kind) in [
                ("net", libc::CLONE_NEWNET),
                ("uts", libc::CLONE_NEWUTS),
                ("pid", libc::CLONE_NEWPID),
                ("mnt", libc::CLONE_NEWNS),
            ] {
                let theirs = format!("/proc/{pid}/ns/{name}");
                let same = std::fs::read_link(&theirs)? == std::fs::read_link(format!("/proc/self/ns/{name}"))?;
                if !same {
                    steps.push(Step::Enter(File::open(theirs)?.into(), kind));
                    inside_pids |= kind == libc::CLONE_NEWPID;
                }
            }
        }
        if let Some(ns) = &self.netns {
            let fd = std::os::fd::AsFd::as_fd(ns).try_clone_to_owned()?;
            steps.push(Step::Enter(fd, libc::CLONE_NEWNET));
        }
        let new = [
            (self.own_mounts, libc::CLONE_NEWNS),
            (self.hostname.is_some(), libc::CLONE_NEWUTS),
            (self.own_pids, libc::CLONE_NEWPID),
        ];
        let flags = new.iter().filter(|(on, _)| *on).fold(0, |f, (_, bit)| f | bit);
        if flags != 0 {
            steps.push(Step::Unshare(flags));
        }
        if self.own_mounts {
            steps.push(Step::Slave);
        }
        for m in &self.mounts {
            steps.push(match m {
                Mount::Bind { source, target, read_only } => {
                    let flags = libc::MS_BIND | if *read_only { libc::MS_RDONLY } else { 0 };
                    Step::Mount(c(source)?, c(target)?, None, flags)
                }
                Mount::Tmpfs(target) => {
                    let flags = libc::MS_NOSUID | libc::MS_NODEV;
                    Step::Mount(c"tmpfs".to_owned(), c(target)?, Some(c"tmpfs".to_owned()), flags)
                }
            });
        }
        if let Some(h) = &self.hostname {
            steps.push(Step::Hostname(c(Path::new(h))?));
        }
        if self.session {
            steps.push(Step::Session);
        }
        if inside_pids {
            steps.push(Step::First);
        }
        if self.own_pids {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            steps.push(Step::Mount(c"proc".to_owned(), c"/proc".to_owned(), Some(c"proc".to_owned()), flags));
        }
        if let Some(d) = &self.directory {
            steps.push(Step::Directory(c(d)?));
        }
        fork::prepare(&mut self.command, steps);
        Ok(self.command)
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the program is not there, or a namespace or mount is refused: the error is the refused step's.
    pub fn spawn(self) -> io::Result<Child> {
        self.into_command()?.spawn()
    }
}

fn c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}
