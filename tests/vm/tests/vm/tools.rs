//! Tools that the machine's tests run, and short names.

use std::process::{Command, Stdio};

use types::IfName;

/// Runs a tool and returns what it printed; panics with what it said when it fails.
pub fn tool(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output();
    let out = out.unwrap_or_else(|e| panic!("{program}: {e}; is it in TOOLS of tests/vm/src/image.rs?"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// `ip` with these words.
pub fn ip(args: &str) -> String {
    tool("ip", &args.split_whitespace().collect::<Vec<_>>())
}

/// What `ip -d -j` says about one link.
pub fn link(name: &str) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&ip(&format!("-d -j link show {name}"))).unwrap();
    all[0].clone()
}

/// A name.
pub fn name(s: &str) -> IfName {
    s.parse().unwrap()
}
