//! The machine's first process: makes its file systems, runs the tests that the host lists, tells their results over the
//! second serial port, ends the machine. Started as `init --test NAME` it becomes that test.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use kernel::{Netns, Rt, Spawn};
use kernel_api::Rtnetlink as _;
use kernel_api::rt::{RtRequest, SetLink};
use rustix::fs::FileType;
use rustix::mount::{MountFlags, mount};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use vm::wire::{Event, LONGEST_OUTPUT, Outcome};
use vm::{BINARY, INSIDE, LIST, PROGRAMS, test_limit};

/// What a test prints goes here.
const OUTPUT: &str = "/run/output";

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--test") {
        let e = become_test(&args.next().unwrap_or_default());
        eprintln!("vm-init: {e:#}");
        std::process::exit(1);
    }
    if std::process::id() != 1 {
        eprintln!("vm-init is the first process of the machine that `cargo test -p seaway-tests-vm` boots");
        std::process::exit(2);
    }
    if let Err(e) = first_process() {
        eprintln!("vm-init: {e:#}");
        // Without the port the console is what the host reads.
        if let Ok(mut wire) = port() {
            let _ = wire.write_all(&Event::Broken { why: format!("{e:#}") }.encode());
            let _ = rustix::termios::tcdrain(&wire);
        }
    }
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
}

/// The line to the host, without the terminal's rewriting of bytes.
fn port() -> Result<File> {
    let file = File::options().write(true).open("/dev/ttyS1").context("open /dev/ttyS1")?;
    let mut settings = tcgetattr(&file).context("settings of /dev/ttyS1")?;
    settings.make_raw();
    tcsetattr(&file, OptionalActions::Now, &settings).context("settings of /dev/ttyS1")?;
    Ok(file)
}

fn file_system(kind: &str, at: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("make {at}"))?;
    mount(kind, at, kind, MountFlags::empty(), None).with_context(|| format!("mount {kind} at {at}"))
}

fn first_process() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp")] {
        file_system(kind, at)?;
    }
    // Some kernels mount it by themselves.
    if !Path::new("/dev/null").exists() {
        file_system("devtmpfs", "/dev")?;
    }
    // As udev makes them: the module comes when one is opened.
    fs::create_dir_all("/dev/net").context("make /dev/net")?;
    if !Path::new("/dev/net/tun").exists() {
        let device = rustix::fs::makedev(10, 200);
        rustix::fs::mknodat(rustix::fs::CWD, "/dev/net/tun", FileType::CharacterDevice, 0o666.into(), device)
            .context("make /dev/net/tun")?;
    }
    let mut wire = port()?;
    let mut say = |e: &Event| wire.write_all(&e.encode()).context("write to /dev/ttyS1");
    let tests = fs::read_to_string(LIST).with_context(|| format!("read {LIST}"))?;
    say(&Event::Ready { release: rustix::system::uname().release().to_string_lossy().into_owned() })?;
    for name in tests.lines().filter(|l| !l.is_empty()) {
        say(&Event::Started { name: name.to_owned() })?;
        let begin = Instant::now();
        let (passed, mut output) = match test(name) {
            Ok(r) => r,
            Err(e) => (false, format!("vm-init: {e:#}\n").into_bytes()),
        };
        if output.len() > LONGEST_OUTPUT {
            output.drain(..output.len() - LONGEST_OUTPUT);
        }
        let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        say(&Event::Result { name: name.to_owned(), outcome: Outcome { passed, millis, output } })?;
    }
    say(&Event::End)?;
    rustix::termios::tcdrain(&wire).context("the last message")
}

/// Runs one test; whether it passed, and what it printed.
fn test(name: &str) -> Result<(bool, Vec<u8>)> {
    let out = File::create(OUTPUT)?;
    let mut child = Spawn::new("/init")
        .args(["--test", name])
        .netns(&Netns::new()?)
        .own_pids()
        .env_clear()
        .env(INSIDE, "1")
        .env("PATH", format!("/usr/sbin:/usr/bin:{PROGRAMS}"))
        .env("HOME", "/root")
        .env("RUST_BACKTRACE", "0")
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .context("start the test")?;
    let ended = kernel::process::wait_for_end(child.id(), test_limit())?;
    if !ended {
        // Its namespace, with all that it started, ends with it.
        child.kill()?;
    }
    let status = child.wait()?;
    let mut output = output()?;
    if !ended {
        output.extend(format!("\nended after {} s\n", test_limit().as_secs()).into_bytes());
    } else if status.code() == Some(0) && !contains(&output, b"test result: ok. 1 passed") {
        bail!("the test binary did not run it: {}", String::from_utf8_lossy(&output));
    }
    Ok((ended && status.success(), output))
}

fn output() -> io::Result<Vec<u8>> {
    let mut file = File::open(OUTPUT)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LONGEST_OUTPUT as u64)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|w| w == part)
}

/// In the namespaces of a test: what depends on them is mounted, then the test binary takes over.
fn become_test(name: &str) -> anyhow::Error {
    // /sys shows the interfaces of the namespace it was mounted in.
    for (kind, at) in [("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp")] {
        if let Err(e) = file_system(kind, at) {
            return e;
        }
    }
    let lo = || Rt::open()?.run(&[RtRequest::LinkSet(SetLink::up("lo".parse()?))]).context("set lo up");
    if let Err(e) = lo() {
        return e;
    }
    let e = Command::new(BINARY)
        .args([name, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .current_dir("/root")
        .exec();
    anyhow::Error::from(e).context(format!("start {BINARY}"))
}
