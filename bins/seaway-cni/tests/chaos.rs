//! kill -9 at random points, reboots, lost DELs, full disks, read-only disks, clocks that jump: afterwards what is there is
//! exactly what lives.
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

/// Rounds of [`kills_and_bad_days_leak_nothing`]; with those of the agent's chaos test (bins/seaway/tests) a thousand.
const ROUNDS: u32 = 800;
const PODS: usize = 8;

/// What happens besides calls that are killed.
#[derive(Clone, Copy, PartialEq)]
enum Disk {
    Fine,
    Full,
    ReadOnly,
}

/// A node with a runtime that chains portmap after us, and believes what it was told.
struct Chaos {
    n: Node,
    dice: Dice,
    tmpfs: Option<Tmpfs>,
    disk: Disk,
    names: Vec<String>,
    portmap: PathBuf,
    /// Those whose ADD answered and whose DEL has not begun since.
    living: BTreeSet<String>,
    /// Of them, those whose ADD of portmap answered as well.
    mapped: BTreeSet<String>,
    killed: u32,
    /// Calls that a bad disk refused.
    refused: u32,
}

impl Chaos {
    fn new() -> Self {
        let n = Node::new();
        let tmpfs = Some(Tmpfs::new(&n.data_dir(), c"size=256k,mode=0755"));
        let names: Vec<String> = (0..PODS).map(|i| format!("p{i}")).collect();
        names.iter().for_each(|p| drop(n.pod(p)));
        let portmap = n.dir.path().join("portmap");
        std::os::unix::fs::symlink(common::program(), &portmap).unwrap();
        let dice = Dice(0x5ea0_5ea0_5ea0_5ea1);
        let (living, mapped) = (BTreeSet::new(), BTreeSet::new());
        Self { n, dice, tmpfs, disk: Disk::Fine, names, portmap, living, mapped, killed: 0, refused: 0 }
    }

    fn path(&self, i: usize) -> PathBuf {
        self.n.dir.path().join("netns").join(&self.names[i])
    }

    fn valid(&self) -> Value {
        self.living.iter().map(|p| json!({"containerID": p, "ifname": "eth0"})).collect::<Vec<_>>().into()
    }

    /// The configuration of portmap for pod `i`, with the addresses that it has.
    fn ports(&self, i: usize, result: Option<Value>) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "seaway", "type": "portmap", "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": [{"hostPort": 8000 + i, "containerPort": 80, "protocol": "tcp"}]},
        });
        if let Some(r) = result {
            conf["prevResult"] = r;
        }
        conf
    }

    /// A call that is killed after some milliseconds, unless it has ended by then: its answer, if it gave one. An
    /// unhurried debug build takes some milliseconds for an ADD.
    fn cut(&mut self, round: u32, child: std::process::Child) -> Option<Value> {
        let mut child = child;
        std::thread::sleep(Duration::from_micros(self.dice.below(12_000)));
        child.kill().unwrap();
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        match out.status.code() {
            None => {
                self.killed += 1;
                None
            }
            Some(0) => Some(serde_json::from_str(&text).unwrap_or(Value::Null)),
            Some(_) => {
                let bad_day = ["No space left on device", "Read-only file system"].iter().any(|w| text.contains(w));
                assert!(bad_day && self.disk != Disk::Fine, "round {round}: {text}");
                self.refused += 1;
                None
            }
        }
    }

    fn add(&mut self, round: u32, i: usize) {
        let (name, path) = (self.names[i].clone(), self.path(i));
        // A repeated ADD of one that lives may be killed as well; that one lives on.
        let conf = self.n.conf.clone();
        let Some(result) = self.cut(round, self.n.start("ADD", &name, path.to_str(), &conf)) else { return };
        self.living.insert(name.clone());
        let conf = self.ports(i, Some(result));
        let child = self.n.start_as(&self.portmap, "ADD", &name, path.to_str(), &conf);
        if self.cut(round, child).is_some() {
            self.mapped.insert(name);
        }
    }

    fn del(&mut self, round: u32, i: usize) {
        let (name, path) = (self.names[i].clone(), self.path(i));
        self.living.remove(&name);
        self.mapped.remove(&name);
        let conf = self.ports(i, None);
        let child = self.n.start_as(&self.portmap, "DEL", &name, path.to_str(), &conf);
        self.cut(round, child);
        let conf = self.n.conf.clone();
        self.cut(round, self.n.start("DEL", &name, path.to_str(), &conf));
    }

    fn gc(&mut self, round: u32) {
        let conf = self.n.conf_with("cni.dev/valid-attachments", self.valid());
        self.cut(round, self.n.start("GC", "-", None, &conf));
    }

    /// A container whose DEL never comes: its namespace is another one when the name is used again.
    fn lose(&mut self, i: usize) {
        let name = self.names[i].clone();
        self.living.remove(&name);
        self.mapped.remove(&name);
        kernel::Netns::delete(self.path(i)).unwrap();
        self.n.pod(&name);
    }

    /// An ADD whose clock stands somewhere: time is an argument.
    fn add_at(&mut self, i: usize, now: u64) {
        if self.disk != Disk::Fine {
            return;
        }
        let (name, path) = (self.names[i].clone(), self.path(i));
        let text = |s: &str| Some(std::ffi::OsString::from(s));
        let env = cni::Env {
            command: text("ADD"),
            container_id: text(&name),
            netns: path.to_str().and_then(text),
            ifname: text("eth0"),
            args: None,
            path: None,
        };
        let conf = self.n.conf.to_string();
        let plugin = cni::Seaway;
        let out = self
            .n
            .ns
            .run(|| cni::serve(&plugin, plugins::by_name, &mut kernel::Linux, &env, &mut conf.as_bytes(), now));
        let out = out.unwrap();
        assert_eq!(out.exit, 0, "{}", out.stdout);
        self.living.insert(name);
    }

    fn reboot(&mut self) {
        self.living.clear();
        self.mapped.clear();
        self.disk(Disk::Fine);
        self.n.reboot();
        self.names.iter().for_each(|p| drop(self.n.pod(p)));
        // The journal is that of another boot; an index of another boot is told by that (crates/ipam).
        let other = tempfile::tempdir().unwrap();
        drop(ipam::Journal::open_for_boot(other.path(), "another").unwrap());
        let head = std::fs::read(other.path().join("journal")).unwrap();
        let file = self.n.data_dir().join("journal");
        if let Ok(old) = std::fs::read(&file) {
            let rest = old.iter().position(|b| *b == b'\n').map_or(&[][..], |at| &old[at + 1..]);
            std::fs::write(&file, [&head, rest].concat()).unwrap();
            let _ = std::fs::remove_file(self.n.data_dir().join("index"));
        }
    }

    fn disk(&mut self, to: Disk) {
        let (dir, hog) = (self.n.data_dir(), self.n.data_dir().join("hog"));
        if let Some(t) = &self.tmpfs {
            let flags = |ro| if ro { rustix::mount::MountFlags::RDONLY } else { rustix::mount::MountFlags::empty() };
            // Busy while who waits for a link's end has the lock open.
            while let Err(e) = rustix::mount::mount_remount(&t.0, flags(to == Disk::ReadOnly), c"") {
                assert_eq!(e, rustix::io::Errno::BUSY);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        match to {
            Disk::Fine => drop(std::fs::remove_file(hog)),
            Disk::Full => drop(std::fs::write(hog, vec![0u8; 1 << 20])),
            Disk::ReadOnly => {}
        }
        assert!(dir.exists());
        self.disk = to;
    }

    /// What the runtime does now and then, unhurried; afterwards what is there is what lives.
    fn settle(&mut self) {
        self.disk(Disk::Fine);
        let valid = self.valid();
        let ours = self.n.conf_with("cni.dev/valid-attachments", valid);
        self.n.call("GC", "-", &ours).unwrap();
        let valid: Vec<Value> = self.mapped.iter().map(|p| json!({"containerID": p, "ifname": "eth0"})).collect();
        let mut conf = self.ports(0, None);
        conf["cni.dev/valid-attachments"] = valid.into();
        conf.as_object_mut().unwrap().remove("runtimeConfig");
        answer(self.n.start_as(&self.portmap, "GC", "-", None, &conf).wait_with_output().unwrap()).unwrap();
        self.n.assert_exactly(&self.living);
        let rules = self.n.sh("nft list ruleset");
        for (i, name) in self.names.iter().enumerate() {
            let there = rules.contains(&format!("{}", 8000 + i));
            assert_eq!(there, self.mapped.contains(name), "the host port of {name}:\n{rules}");
        }
        for p in &self.living {
            self.n.sh_pod(p, "ping -nq -c1 -W1 192.0.2.1 && ping -nq -c1 -W1 2001:db8::1");
        }
    }
}

#[test]
fn kills_and_bad_days_leak_nothing() {
    let mut c = Chaos::new();
    for round in 0..ROUNDS {
        let i = c.dice.below(PODS as u64) as usize;
        match c.dice.below(40) {
            0..16 => c.add(round, i),
            16..28 => c.del(round, i),
            28..33 => c.gc(round),
            33..35 => c.lose(i),
            35..37 => {
                let now = [0, 1, 1 << 40, u64::MAX][c.dice.below(4) as usize];
                c.add_at(i, now);
            }
            37 => c.disk(Disk::Full),
            38 => c.disk(Disk::ReadOnly),
            _ => c.disk(Disk::Fine),
        }
        if round % 100 == 99 {
            c.reboot();
        } else if round % 25 == 24 {
            c.settle();
        }
    }
    assert!((ROUNDS / 5..ROUNDS * 2).contains(&c.killed), "{} were killed: the moments are badly chosen", c.killed);
    assert!(c.refused > ROUNDS / 20, "{} were refused: the disk is too good", c.refused);
    c.disk(Disk::Fine);
    c.living.clear();
    c.mapped.clear();
    c.settle();
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
