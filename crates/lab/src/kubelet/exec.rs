//! A command in a pod, for a client: pipes or a terminal, the end of it as the API says it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::remote::{In, Out, Session, Wanted};
use crate::ns::Enter;
use crate::{Doing, LabError};

/// How long what a command left behind may still say something on its streams.
const AFTERWARDS: Duration = Duration::from_millis(500);
/// How long a command with a terminal waits for the terminal's size, which clients tell at once, if at all: many programs
/// look at it only when they begin.
const SIZE: Duration = Duration::from_millis(500);

/// What to run, and where.
#[derive(Debug, Clone)]
pub struct What {
    /// This program.
    pub exe: PathBuf,
    /// The pod's namespaces.
    pub enter: Enter,
    /// The container's environment.
    pub env: Vec<(String, String)>,
    /// Its directory.
    pub cwd: Option<PathBuf>,
    /// The command.
    pub argv: Vec<String>,
}

/// How a command ended, as a `meta/v1` Status (remotecommand, version 4).
#[must_use]
pub fn status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}

/// Why a command was not run, as a Status.
#[must_use]
pub fn failure(why: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("error executing command in container: {why}")})
}

/// Runs a command to its end, or to the client's.
pub async fn run(what: What, wanted: Wanted, session: Session) {
    let Session { input, output } = session;
    let said = match start(&what, wanted, input, &output).await {
        Ok(code) => status(code),
        Err(e) => failure(&e.to_string()),
    };
    let _ = output.send(Out::Status(said)).await;
}

/// Passes on what is read, to its end.
async fn pump(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<Out>, wrap: fn(Bytes) -> Out) {
    let mut buf = BytesMut::new();
    loop {
        buf.reserve(32 << 10);
        match from.read_buf(&mut buf).await {
            Ok(0) | Err(_) => return,
            Ok(_) if to.send(wrap(buf.split().freeze())).await.is_err() => return,
            Ok(_) => {}
        }
    }
}

/// The two ends of a new terminal: ours, and the command's.
fn terminal() -> Result<(OwnedFd, OwnedFd), LabError> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).doing(|| "open /dev/ptmx")?;
    grantpt(&ours).and_then(|()| unlockpt(&ours)).doing(|| "terminal")?;
    let name = ptsname(&ours, Vec::new()).doing(|| "terminal")?;
    let path = PathBuf::from(name.to_string_lossy().into_owned());
    // NOCTTY: this process leads a session, whose terminal it would become.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("{}", path.display()))?;
    rustix::fs::fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK).doing(|| "terminal")?;
    Ok((ours, theirs))
}

async fn start(
    what: &What,
    wanted: Wanted,
    mut input: mpsc::Receiver<In>,
    output: &mpsc::Sender<Out>,
) -> Result<i32, LabError> {
    let first = if wanted.tty { tokio::time::timeout(SIZE, input.recv()).await.ok().flatten() } else { None };
    let mut cmd = Command::new(&what.exe);
    cmd.args(["lab", "enter", "--session"]);
    if wanted.tty {
        cmd.arg("--tty");
    }
    cmd.args(what.enter.to_args()).arg("--").args(&what.argv).env_clear().envs(what.env.iter().cloned());
    if let Some(d) = what.cwd.as_ref().filter(|d| d.is_dir()) {
        cmd.current_dir(d);
    }
    let mut tasks = tokio::task::JoinSet::new();
    let (mut child, ours) = if wanted.tty {
        let (ours, theirs) = terminal()?;
        if let Some(In::Resize(columns, rows)) = first {
            resize(&ours, columns, rows);
        }
        let copy = || theirs.try_clone().doing(|| "terminal");
        cmd.env("TERM", "xterm").stdin(copy()?).stdout(copy()?).stderr(copy()?);
        let child = cmd.spawn().doing(|| format!("start {}", what.exe.display()))?;
        // Ours is the only copy then that keeps the terminal's other end open: none.
        drop(cmd);
        drop(theirs);
        #[expect(deprecated, reason = "the replacement is unsafe for descriptors that others may close; this is owned")]
        let ours = AsyncFd::with_interest(ours, Interest::READABLE | Interest::WRITABLE).doing(|| "terminal")?;
        (child, Some(std::sync::Arc::new(ours)))
    } else {
        let pipe = |yes: bool| if yes { Stdio::piped() } else { Stdio::null() };
        cmd.stdin(pipe(wanted.stdin)).stdout(pipe(wanted.stdout)).stderr(pipe(wanted.stderr));
        (cmd.spawn().doing(|| format!("start {}", what.exe.display()))?, None)
    };
    let group = child.id().and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw);
    // Standard input waits for the command; the terminal's size and the client's end do not.
    let (stdin_tx, mut stdin_rx) = mpsc::channel::<Bytes>(1);
    if let Some(t) = &ours {
        let (from, to) = (t.clone(), t.clone());
        let out = output.clone();
        tasks.spawn(async move {
            let mut buf = vec![0u8; 16 << 10];
            while let Ok(n @ 1..) =
                from.async_io(Interest::READABLE, |fd| rustix::io::read(fd, &mut buf[..]).map_err(Into::into)).await
            {
                if out.send(Out::Stdout(Bytes::copy_from_slice(&buf[..n]))).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(mut b) = stdin_rx.recv().await {
                while !b.is_empty() {
                    let wrote = to.async_io(Interest::WRITABLE, |fd| rustix::io::write(fd, &b).map_err(Into::into));
                    let Ok(n) = wrote.await else { return };
                    b = b.split_off(n);
                }
            }
        });
    } else {
        if let Some(o) = child.stdout.take() {
            tasks.spawn(pump(o, output.clone(), Out::Stdout));
        }
        if let Some(e) = child.stderr.take() {
            tasks.spawn(pump(e, output.clone(), Out::Stderr));
        }
        if let Some(mut i) = child.stdin.take() {
            tokio::spawn(async move {
                while let Some(b) = stdin_rx.recv().await {
                    if i.write_all(&b).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
    let ended = tokio::select! {
        e = child.wait() => e,
        () = listen(first, input, stdin_tx, ours.as_deref()) => {
            // The client is gone: nobody is left whom the command serves. A command that has just begun leads no group yet.
            let everybody = || group.map(|g| kill_process_group(g, Signal::KILL));
            let _ = everybody();
            let _ = child.start_kill();
            let _ = everybody();
            child.wait().await
        }
    };
    let ended = ended.doing(|| "wait for the command")?;
    // What it said last; a child of its own may hold the streams for ever.
    let rest = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(AFTERWARDS, rest).await;
    use std::os::unix::process::ExitStatusExt;
    Ok(ended.code().unwrap_or(128 + ended.signal().unwrap_or(0)))
}

fn resize(terminal: impl AsFd, columns: u16, rows: u16) {
    let _ = tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
}

/// Acts on what the client sends until it is gone.
async fn listen(
    first: Option<In>,
    mut input: mpsc::Receiver<In>,
    stdin: mpsc::Sender<Bytes>,
    terminal: Option<&AsyncFd<OwnedFd>>,
) {
    let mut stdin = Some(stdin);
    let mut next = match first {
        None => input.recv().await,
        first => first,
    };
    while let Some(i) = next {
        match i {
            In::Stdin(b) if b.is_empty() => {}
            In::Stdin(b) => {
                if let Some(tx) = &stdin
                    && tx.send(b).await.is_err()
                {
                    stdin = None;
                }
            }
            // At a terminal the end of input is a character.
            In::StdinEnd => stdin = None,
            In::Resize(columns, rows) => {
                if let Some(t) = terminal {
                    resize(t, columns, rows);
                }
            }
        }
        next = input.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_said_as_clients_read_it() {
        assert_eq!(status(0)["status"], "Success");
        let s = status(7);
        assert_eq!((&s["reason"], &s["details"]["causes"][0]["message"]), (&json!("NonZeroExitCode"), &json!("7")));
    }
}
