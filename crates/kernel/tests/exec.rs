//! Programs run to their end: what they say, what bounds them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use kernel::Linux;
use kernel_api::machine::{Exec, Machine as _};

/// A script of /bin/sh on standard input is the program's input; `-c` is not needed.
fn sh(script: &str, limit: usize, timeout: Duration) -> std::io::Result<kernel_api::machine::Output> {
    Linux.exec(&Exec {
        program: "/bin/sh".into(),
        env: vec![("GREETING".into(), "hello".into()), ("PATH".into(), "/usr/bin:/bin".into())],
        stdin: script.as_bytes().to_vec(),
        limit,
        timeout,
    })
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn output_code_and_environment() {
    let o = sh("echo $GREETING; echo no >&2; echo ${HOME-unset}; exit 7", 1 << 20, LONG).unwrap();
    assert_eq!((o.code, &o.stdout[..], &o.stderr[..]), (Some(7), &b"hello\nunset\n"[..], &b"no\n"[..]));
    let o = sh("kill -9 $$", 1 << 20, LONG).unwrap();
    assert_eq!(o.code, None);
    // More than a pipe holds, both ways.
    let o = sh(&format!("# {}\nhead -c 300000 /dev/zero", "x".repeat(300_000)), 1 << 20, LONG).unwrap();
    assert_eq!((o.code, o.stdout.len()), (Some(0), 300_000));
    let e = Linux.exec(&Exec {
        program: "/nonexistent/plugin".into(),
        env: Vec::new(),
        stdin: Vec::new(),
        limit: 10,
        timeout: LONG,
    });
    assert_eq!(e.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn bounds() {
    let start = Instant::now();
    let e = sh("sleep 20 & exec sleep 20", 1 << 20, Duration::from_millis(200)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::TimedOut, "{e}");
    assert!(e.to_string().contains("/bin/sh did not end in 200ms"), "{e}");
    for to in ["1", "2"] {
        let e = sh(&format!("exec head -c 100000000 /dev/zero >&{to}"), 1000, LONG).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::FileTooLarge, "{e}");
        assert!(e.to_string().contains("more than 1000 bytes"), "{e}");
    }
    // One that it left running holds the pipe, and is not waited for.
    let o = sh("sleep 3 & echo done", 1 << 20, LONG).unwrap();
    assert_eq!(o.stdout, b"done\n");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}
