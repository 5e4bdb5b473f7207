//! The process that a pod's namespaces belong to: it does nothing, and does not die of it. It gathers what its children
//! and, as PID 1, everybody's orphans leave behind (zombies), and ends on SIGINT or SIGTERM with code 0.
//!
//! One program with two starts. With `panic = "abort"`, which a release build has, there is no standard library, no C
//! library and no dynamic linker: a few KiB. Else (a debug build) `main` is an ordinary one, since a program without the
//! standard library cannot be built to unwind.
#![cfg_attr(panic = "abort", no_std, no_main)]

mod sys;

use sys::{Signals, exit, write};

/// Where the program is not what the kernel or the user can expect.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Code {
    Fine = 0,
    /// What was asked for could not be printed.
    NotWritten = 1,
    /// An argument that is none.
    Usage = 2,
    /// The kernel refuses to block or wait for signals.
    Signals = 3,
}

const VERSION: &str = concat!("seaway-pause ", env!("CARGO_PKG_VERSION"), "\n");
const USAGE: &str = "\
usage: seaway-pause [-v | -h]

Holds the namespaces of a pod: sleeps, reaps zombies, ends on SIGINT or SIGTERM.

  -v, -V, --version   print the version
  -h, --help          print this
";
const NOT_FIRST: &str = "seaway-pause: warning: not the first process (PID 1) of its PID namespace: orphans are not \
                         reaped here\n";
const NO_SIGNALS: &str = "seaway-pause: the kernel refuses to block or wait for signals\n";
const STDOUT: i32 = 1;
const STDERR: i32 = 2;

/// Runs with the arguments after the program's name.
fn run<'a>(mut args: impl Iterator<Item = &'a [u8]>) -> ! {
    if let Some(arg) = args.next() {
        let text = if is_one_of(arg, &["-v", "-V", "--version"]) {
            VERSION
        } else if is_one_of(arg, &["-h", "--help"]) {
            USAGE
        } else {
            for part in [b"seaway-pause: unknown argument ", arg, b"\n", USAGE.as_bytes()] {
                write(STDERR, part);
            }
            exit(Code::Usage as i32)
        };
        exit(if write(STDOUT, text.as_bytes()) { Code::Fine } else { Code::NotWritten } as i32)
    }
    // Blocked before anything else: a signal that comes meanwhile waits.
    let Some(signals) = Signals::block() else { gave_up() };
    if sys::pid() != 1 {
        write(STDERR, NOT_FIRST.as_bytes());
    }
    loop {
        // Before the wait as well: whoever started us may have left children that ended before the signal was blocked.
        sys::reap();
        match signals.wait() {
            Some(sys::SIGINT) => end(b"seaway-pause: SIGINT, ending\n"),
            Some(sys::SIGTERM) => end(b"seaway-pause: SIGTERM, ending\n"),
            Some(_) => {}
            None => gave_up(),
        }
    }
}

fn end(message: &[u8]) -> ! {
    write(STDERR, message);
    exit(Code::Fine as i32)
}

fn gave_up() -> ! {
    write(STDERR, NO_SIGNALS.as_bytes());
    exit(Code::Signals as i32)
}

fn is_one_of(arg: &[u8], all: &[&str]) -> bool {
    all.iter().any(|one| one.len() == arg.len() && one.bytes().zip(arg).all(|(a, b)| a == *b))
}

#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}

#[cfg(not(panic = "abort"))]
fn main() {
    use std::os::unix::ffi::OsStrExt as _;
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    run(args.iter().map(|a| a.as_bytes()))
}
