//! kill -9 at random points, full disks, read-only disks: afterwards what is there is exactly what lives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Node, answer};
use serde_json::{Value, json};

/// A generator good enough to choose moments (xorshift, 64 bit), and repeatable.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

#[test]
fn two_hundred_kills_leak_nothing() {
    let n = Node::new();
    let mut dice = Dice(0x5ea0_5ea0_5ea0_5ea1);
    // What the runtime believes: only these had an ADD that answered and no DEL begun since.
    let mut living: BTreeSet<String> = BTreeSet::new();
    let names: Vec<String> = (0..8).map(|i| format!("p{i}")).collect();
    let paths: Vec<PathBuf> = names.iter().map(|p| n.pod(p)).collect();
    let mut killed = 0;
    for round in 0..200 {
        let i = dice.below(8) as usize;
        let (name, path) = (&names[i], paths[i].to_str().unwrap());
        let command = if dice.below(2) == 0 { "ADD" } else { "DEL" };
        if command == "DEL" {
            living.remove(name);
        }
        let mut child = n.start(command, name, Some(path), &n.conf);
        // An unhurried debug build takes some milliseconds for an ADD, more for a DEL.
        std::thread::sleep(Duration::from_micros(dice.below(9000)));
        child.kill().unwrap();
        let out = child.wait_with_output().unwrap();
        match (out.status.code(), command) {
            (None, _) => {
                killed += 1;
                // A repeated ADD of one that lives may have been killed as well; that one lives on.
            }
            (Some(0), "ADD") => {
                living.insert(name.clone());
            }
            (Some(0), _) => {}
            (Some(_), _) => panic!("round {round} {command} {name}: {}", String::from_utf8_lossy(&out.stdout)),
        }
        if round % 20 == 19 {
            let list: Vec<Value> = living.iter().map(|p| json!({"containerID": p, "ifname": "eth0"})).collect();
            n.call("GC", "-", &n.conf_with("cni.dev/valid-attachments", list.into())).unwrap();
            n.assert_exactly(&living);
            for p in &living {
                n.sh_pod(p, "ping -nq -c1 -W1 192.0.2.1 && ping -nq -c1 -W1 2001:db8::1");
            }
        }
    }
    assert!((40..200).contains(&killed), "{killed} of 200 were killed: the moments are badly chosen");
    for p in &names {
        n.del(p);
    }
    n.assert_exactly(&BTreeSet::new());
}

/// A tmpfs, gone with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(at: &Path, options: &std::ffi::CStr) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", at, "tmpfs", flags, options).expect("mount tmpfs: run as root");
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_refuses_adds_and_lets_pods_go() {
    let n = Node::new();
    let _disk = Tmpfs::new(&n.data_dir(), c"size=32k,mode=0755");
    n.pod("a");
    n.add("a");
    let hog = n.data_dir().join("hog");
    let _ = std::fs::write(&hog, vec![0u8; 64 << 10]);
    // The journal's last page still has room: until it has not.
    let mut living = BTreeSet::from(["a".to_string()]);
    let e = loop {
        let name = format!("p{}", living.len());
        assert!(living.len() < 60, "the disk never got full");
        n.pod(&name);
        match n.call("ADD", &name, &n.conf) {
            Ok(_) => living.insert(name),
            Err(e) => break e,
        };
    };
    let msg = e["msg"].as_str().unwrap();
    assert!(e["code"] == 5 && msg.contains("No space left") && msg.contains("free some space"), "{e}");
    assert_eq!(n.call("STATUS", "-", &n.conf).unwrap_err()["code"], 50);
    let records: BTreeSet<String> =
        ipam::read(&n.data_dir()).unwrap().iter().map(|r| r.key.container.to_string()).collect();
    assert_eq!(records, living);
    assert_eq!(n.pod_links().len(), living.len(), "the refused one left no link");
    for p in &living {
        n.del(p);
    }
    std::fs::remove_file(hog).unwrap();
    n.assert_exactly(&BTreeSet::new());
    n.add("a");
    n.assert_exactly(&BTreeSet::from(["a".to_string()]));
}

#[test]
fn a_read_only_disk_is_a_clear_error_and_changes_nothing() {
    let n = Node::new();
    let disk = Tmpfs::new(&n.data_dir(), c"size=1m,mode=0755");
    n.pod("a");
    n.add("a");
    rustix::mount::mount_remount(&disk.0, rustix::mount::MountFlags::RDONLY, c"").unwrap();
    n.pod("b");
    for (command, pod) in [("ADD", "b"), ("DEL", "a")] {
        let e = n.call(command, pod, &n.conf).unwrap_err();
        let msg = e["msg"].as_str().unwrap();
        assert!(e["code"] == 5 && msg.contains("Read-only file system") && msg.contains("remount it writable"), "{e}");
    }
    let e = n.call("STATUS", "-", &n.conf).unwrap_err();
    assert_eq!(e["code"], 50, "{e}");
    n.assert_exactly(&BTreeSet::from(["a".to_string()]));
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
}

#[test]
fn a_damaged_journal_stops_adds_but_no_pod() {
    let n = Node::new();
    for p in ["a", "b", "c"] {
        n.pod(p);
        n.add(p);
    }
    let file = n.data_dir().join("journal");
    let mut bytes = std::fs::read(&file).unwrap();
    let line = bytes.iter().position(|b| *b == b'\n').unwrap() + 20;
    bytes[line] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    n.pod("d");
    for (command, pod) in [("ADD", "d"), ("DEL", "c")] {
        let e = n.call(command, pod, &n.conf).unwrap_err();
        let msg = e["msg"].as_str().unwrap();
        assert!(msg.contains("journal is damaged at line 2") && msg.contains("seaway ipam check"), "{e}");
    }
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
    // Mended: the intact ones are known; the runtime's GC and ADD see to the rest.
    ipam::repair(&n.data_dir()).unwrap();
    std::fs::remove_file(file.with_extension("damaged")).unwrap();
    let list = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth0"}]);
    n.call("GC", "-", &n.conf_with("cni.dev/valid-attachments", list)).unwrap();
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
    n.del("a");
    n.del("b");
    n.assert_exactly(&BTreeSet::new());
}

#[test]
fn a_reader_that_went_away_does_not_undo_an_add() {
    let n = Node::new();
    let path = n.pod("a");
    let mut child = n.start("ADD", "a", path.to_str(), &n.conf);
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    n.assert_exactly(&BTreeSet::from(["a".to_string()]));
    // The runtime that lost the answer asks again.
    assert!(answer(n.start("ADD", "a", path.to_str(), &n.conf).wait_with_output().unwrap()).is_ok());
}
