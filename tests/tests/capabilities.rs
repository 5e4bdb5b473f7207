//! What the agent's container may do on its node (`deploy/seaway.yaml`), shown: with its capabilities each of these things is
//! done, and without one of them exactly what `docs/install.md` says it is for is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kernel::packet::NeighbourSocket;
use kernel::{Netns, Rt};
use kernel_api::Rtnetlink as _;
use kernel_api::rt::{RtRequest, SetLink};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use serde::Deserialize as _;
use types::Family;

const BITS: [(&str, CapabilitySet); 4] = [
    ("NET_ADMIN", CapabilitySet::NET_ADMIN),
    ("NET_RAW", CapabilitySet::NET_RAW),
    ("SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ("SYS_PTRACE", CapabilitySet::SYS_PTRACE),
];

/// Those of the manifest's agent.
fn given() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/seaway.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let all = serde_yaml::Deserializer::from_str(&text).map(|d| serde_json::Value::deserialize(d).unwrap());
    let set = all.into_iter().find(|v| v["kind"] == "DaemonSet").unwrap();
    let add = &set["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"];
    add.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// A process with every right of root, as a pod's may be: killed and reaped when this goes.
struct Privileged(Child);

impl Privileged {
    fn new() -> Self {
        let sleep = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn();
        Self(sleep.expect("sleep; install the package coreutils"))
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }
}

impl Drop for Privileged {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Something that the agent does.
type Deed<'a> = &'a (dyn Fn() -> io::Result<()> + Sync);

fn refused(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::PermissionDenied
}

/// Whether a deed is allowed to a thread of a fresh namespace with these capabilities and no other.
fn may(home: &Netns, capabilities: CapabilitySet, deed: Deed<'_>) -> bool {
    let outcome = home.run(|| {
        // Capabilities are a thread's, and are inherited by the threads that it starts.
        std::thread::scope(|s| {
            let limited = s.spawn(|| {
                let sets = CapabilitySets {
                    effective: capabilities,
                    permitted: capabilities,
                    inheritable: CapabilitySet::empty(),
                };
                set_capabilities(None, sets)?;
                deed()
            });
            limited.join().unwrap()
        })
    });
    match outcome.unwrap() {
        Ok(()) => true,
        Err(e) => {
            assert!(refused(&e), "{e}");
            false
        }
    }
}

#[test]
fn each_capability_of_the_agent_is_needed_for_what_the_page_says() {
    let (home, pod) = (Netns::new().expect("root is needed"), Netns::new().unwrap());
    let process = Privileged::new();
    let link = || {
        let up = RtRequest::LinkSet(SetLink::up("lo".parse().unwrap()));
        Rt::open()?.run(&[up]).map_err(|e| io::Error::from_raw_os_error(e.errno))
    };
    home.run(link).unwrap().unwrap();
    let packets = || NeighbourSocket::open(1, Family::V4).map(drop);
    let enter = || pod.run(|| ());
    let look = || Netns::open(process.netns()).map(drop);
    let deeds: [(&str, Deed<'_>); 4] =
        [("NET_ADMIN", &link), ("NET_RAW", &packets), ("SYS_ADMIN", &enter), ("SYS_PTRACE", &look)];

    let given = given();
    assert_eq!(given.iter().map(String::as_str).collect::<Vec<_>>(), BITS.map(|b| b.0));
    let all = BITS.iter().fold(CapabilitySet::empty(), |a, b| a | b.1);
    for (name, deed) in deeds {
        assert!(may(&home, all, deed), "{name}: refused with all that the container has");
    }
    for (without, bit) in BITS {
        for (name, deed) in deeds {
            assert_eq!(may(&home, all - bit, deed), name != without, "what {name} is for, without {without}");
        }
    }
}
