//! What several kernel tests need: a fresh namespace, tools run inside it, names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
#![allow(dead_code)] // each test binary uses some of it

use std::process::{Command, Stdio};

use kernel::{Netns, Rt};
use kernel_api::Rtnetlink as _;
use kernel_api::rt::{NewLink, NewLinkKind, RtRequest, SetLink};
use types::IfName;

/// Runs `f` in a fresh namespace with its loopback up. The namespace ends with the thread, also when `f` panics.
pub fn fresh<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let ns = Netns::new().expect("a new network namespace (root is needed)");
    ns.run(|| {
        Rt::open().unwrap().run(&[RtRequest::LinkSet(SetLink::up(name("lo")))]).unwrap();
        f()
    })
    .unwrap()
}

pub fn name(s: &str) -> IfName {
    s.parse().unwrap()
}

/// Runs a tool in the calling thread's namespace and returns what it printed.
pub fn tool(program: &str, args: &[&str], package: &str) -> String {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; install the package {package}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub fn ip(args: &str) -> String {
    tool("ip", &args.split_whitespace().collect::<Vec<_>>(), "iproute2")
}

pub fn bridge(args: &str) -> String {
    tool("bridge", &args.split_whitespace().collect::<Vec<_>>(), "iproute2")
}

pub fn nft(args: &str) -> String {
    tool("nft", &args.split_whitespace().collect::<Vec<_>>(), "nftables")
}

/// A veth pair here, both ends up.
pub fn veth(rt: &mut Rt, a: &str, b: &str) {
    rt.run(&[
        RtRequest::LinkAdd(new_veth(a, b)),
        RtRequest::LinkSet(SetLink::up(name(a))),
        RtRequest::LinkSet(SetLink::up(name(b))),
    ])
    .unwrap();
}

pub fn new_veth(a: &str, b: &str) -> NewLink {
    NewLink::new(name(a), NewLinkKind::Veth { peer: name(b), peer_netns: None, peer_mac: None })
}
