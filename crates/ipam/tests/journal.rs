//! Properties of the journal, and the bad days: full disk, read-only disk, damage, reboot.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers outside #[test] functions are tests too

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipam::{IpamError, Journal, Key, KeyLock, Record, Request};
use proptest::prelude::*;
use types::Cidr;

fn key(n: usize) -> Key {
    Key { container: format!("container{n:04}").into(), ifname: "eth0".parse().unwrap() }
}

fn ranges() -> Vec<Cidr> {
    vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()]
}

fn add(j: &mut Journal, n: usize, ranges: &[Cidr]) -> Result<Record, IpamError> {
    j.allocate(&Request {
        key: &key(n),
        network: "seaway",
        netns: "/run/netns/x",
        inode: 4_026_531_840,
        pod: None,
        ranges,
        within: &[],
        pools: None,
        outside: false,
        requested: &[],
        mtu: 1450,
        now: 1,
    })
    .map(|(r, _)| r)
}

fn records(j: &Journal) -> Vec<Record> {
    j.attachments().unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    Add(usize),
    Del(usize),
    Reopen,
    Compact,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0usize..12).prop_map(Op::Add),
        4 => (0usize..12).prop_map(Op::Del),
        1 => Just(Op::Reopen),
        1 => Just(Op::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// No two keys with one address, the same key the same addresses, and what is read back is what was held.
    #[test]
    fn no_address_twice(ops in prop::collection::vec(op(), 0..120)) {
        let dir = tempfile::tempdir().unwrap();
        let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
        let small = vec!["10.0.0.0/28".parse().unwrap(), "fd00::/124".parse().unwrap()];
        let mut held: BTreeMap<Key, Vec<IpAddr>> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Add(n) => {
                    let r = add(&mut j, n, &small).unwrap();
                    prop_assert_eq!(r.addresses.len(), 2);
                    if let Some(before) = held.insert(key(n), r.addresses.clone()) {
                        prop_assert_eq!(before, r.addresses);
                    }
                }
                Op::Del(n) => {
                    let gone = j.release(&key(n)).unwrap();
                    prop_assert_eq!(gone.map(|r| r.addresses), held.remove(&key(n)));
                }
                Op::Compact => j.compact().unwrap(),
                Op::Reopen => {
                    drop(j);
                    j = Journal::open_for_boot(dir.path(), "b").unwrap();
                }
            }
            let all: Vec<_> = held.values().flatten().collect();
            prop_assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
            let seen: BTreeMap<_, _> = j.attachments().unwrap().into_iter().map(|r| (r.key, r.addresses)).collect();
            prop_assert_eq!(&seen, &held);
            // With the help of the index or without.
            let file = dir.path().join("journal");
            prop_assert_eq!(ipam::parse(&file, &fs::read(&file).unwrap(), "b").unwrap(), records(&j));
        }
    }

    /// A crash at any byte leaves the state after some whole number of operations, and the journal goes on from there.
    #[test]
    fn a_kill_at_any_byte_leaves_a_prefix(ops in prop::collection::vec(op(), 1..16), cut: prop::sample::Index) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("journal");
        let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
        // (bytes, state) after each operation.
        let mut states = vec![(0, Vec::new()), (fs::metadata(&file).unwrap().len(), Vec::new())];
        for op in ops {
            match op {
                Op::Add(n) => { add(&mut j, n, &ranges()).unwrap(); }
                Op::Del(n) => { j.release(&key(n)).unwrap(); }
                Op::Reopen | Op::Compact => continue,
            }
            states.push((fs::metadata(&file).unwrap().len(), records(&j)));
        }
        drop(j);
        let bytes = fs::read(&file).unwrap();
        let cut = cut.index(bytes.len() + 1);
        fs::write(&file, &bytes[..cut]).unwrap();
        let want = &states.iter().rev().find(|(n, _)| *n <= cut as u64).unwrap().1;
        prop_assert_eq!(&ipam::parse(&file, &bytes[..cut], "b").unwrap(), want);
        let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
        prop_assert_eq!(&records(&j), want);
        add(&mut j, 99, &ranges()).unwrap();
        let after = records(&j);
        drop(j);
        prop_assert_eq!(records(&Journal::open_for_boot(dir.path(), "b").unwrap()), after);
    }

    /// Whatever the bytes: an answer, never a panic; and one changed byte never loses a record silently.
    #[test]
    fn any_bytes_are_answered(bytes: Vec<u8>) {
        let _ = ipam::parse(Path::new("j"), &bytes, "b");
    }

    #[test]
    fn damage_is_never_silent(at: prop::sample::Index, bit in 0u8..8) {
        let dir = tempfile::tempdir().unwrap();
        let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
        for n in 0..4 { add(&mut j, n, &ranges()).unwrap(); }
        let want = records(&j);
        let file = dir.path().join("journal");
        let mut bytes = fs::read(&file).unwrap();
        // The last newline is left alone: without it the last line counts as torn.
        let at = at.index(bytes.len() - 1);
        bytes[at] ^= 1 << bit;
        match ipam::parse(&file, &bytes, "b") {
            Err(e) => prop_assert!(e.to_string().contains("is damaged at line"), "{}", e),
            Ok(have) => prop_assert_eq!(have, want),
        }
    }
}

#[test]
fn a_released_address_rests_even_across_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
    let first = add(&mut j, 1, &ranges()).unwrap().addresses;
    for n in 2..5 {
        add(&mut j, n, &ranges()).unwrap();
    }
    for n in 2..5 {
        j.release(&key(n)).unwrap();
    }
    j.compact().unwrap();
    drop(j);
    let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
    assert_eq!(first[0], "10.244.1.2".parse::<IpAddr>().unwrap());
    assert_eq!(add(&mut j, 9, &ranges()).unwrap().addresses[0], "10.244.1.6".parse::<IpAddr>().unwrap());
}

#[test]
fn thousands_of_rounds_do_not_grow_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
    for n in 0..5000 {
        add(&mut j, n, &ranges()).unwrap();
        j.release(&key(n)).unwrap();
    }
    let size = fs::metadata(dir.path().join("journal")).unwrap().len();
    assert!(size < 200_000, "{size}");
}

#[test]
fn an_index_of_another_journal_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, index) = (dir.path().join("journal"), dir.path().join("index"));
    let wide: Vec<Cidr> = vec!["10.0.0.0/8".parse().unwrap()];
    let fill = |keys: std::ops::Range<usize>| {
        let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
        for n in keys {
            add(&mut j, n, &wide).unwrap();
        }
        records(&j)
    };
    fill(0..70);
    let old = fs::read(&index).unwrap();
    fs::remove_file(&journal).unwrap();
    let want = fill(100..170);
    let new = fs::read(&index).unwrap();
    assert_ne!(old, new);
    for (bytes, says) in [
        (old.as_slice(), "another journal's"),
        (&new[..new.len() - 1], "torn"),
        (&[], "empty"),
        (new.as_slice(), "the right one"),
    ] {
        fs::write(&index, bytes).unwrap();
        let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
        assert_eq!(records(&j), want, "{says}");
        let next = add(&mut j, 1000, &wide).unwrap();
        assert!(want.iter().all(|r| r.addresses != next.addresses), "{says}");
        j.release(&key(1000)).unwrap();
    }
    // A compaction that changes the order of lines, at the same length.
    let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
    j.release(&key(100)).unwrap();
    add(&mut j, 100, &wide).unwrap();
    j.compact().unwrap();
    fs::write(&index, &new).unwrap();
    let want = records(&j);
    drop(j);
    let j = Journal::open_for_boot(dir.path(), "b").unwrap();
    assert_eq!(records(&j), want);
}

#[test]
fn one_is_found_without_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal");
    let wide: Vec<Cidr> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/64".parse().unwrap()];
    assert_eq!(ipam::find(dir.path(), &key(1)).unwrap(), None);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a look leaves nothing behind");
    let mut j = Journal::open(dir.path()).unwrap();
    // The index is of some lines ago; before and behind it some go and some are written anew.
    for n in 0..100 {
        let mut r = add(&mut j, n, &wide).unwrap();
        if n % 5 == 0 {
            j.release(&key(n / 2)).unwrap();
        }
        r.mtu = 1300;
        j.amend(&r).unwrap();
    }
    let all = records(&j);
    drop(j);
    assert!(dir.path().join("index").exists());
    let same = || {
        for n in 0..110 {
            let want = all.iter().find(|r| r.key == key(n)).cloned();
            assert_eq!(ipam::find(dir.path(), &key(n)).unwrap(), want, "{n}");
        }
    };
    same();
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, [&bytes[..], b"A 1234"].concat()).unwrap();
    same();
    fs::remove_file(dir.path().join("index")).unwrap();
    same();
    fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
    assert!(ipam::find(dir.path(), &key(3)).is_ok(), "a torn tail");
    fs::write(&file, [b"A x\n", &bytes[..]].concat()).unwrap();
    assert!(ipam::find(dir.path(), &key(3)).unwrap_err().to_string().contains("journal"));
}

#[test]
fn large_ranges_cost_what_the_pods_cost() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
    let wide: Vec<Cidr> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let start = std::time::Instant::now();
    for n in 0..500 {
        add(&mut j, n, &wide).unwrap();
    }
    assert!(start.elapsed().as_secs() < 5);
    assert_eq!(j.usage(wide[0]).used, 500);
}

#[test]
fn exhaustion_names_the_range_and_the_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::open_for_boot(dir.path(), "b").unwrap();
    let tiny = vec!["10.0.0.0/29".parse().unwrap()];
    for n in 0..5 {
        add(&mut j, n, &tiny).unwrap();
    }
    let e = add(&mut j, 5, &tiny).unwrap_err();
    assert!(e.is_exhausted());
    assert!(e.to_string().starts_with("range 10.0.0.0/29 has no free address: 5 of 5 are in use"), "{e}");
    // The same key still gets its own.
    assert_eq!(add(&mut j, 4, &tiny).unwrap().addresses, ["10.0.0.6".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_reboot_voids_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::open_for_boot(dir.path(), "old").unwrap();
    add(&mut j, 1, &ranges()).unwrap();
    drop(j);
    let mut j = Journal::open_for_boot(dir.path(), "new").unwrap();
    assert_eq!(records(&j), []);
    let r = add(&mut j, 2, &ranges()).unwrap();
    assert_eq!(r.addresses[0], "10.244.1.2".parse::<IpAddr>().unwrap());
}

#[test]
fn damage_in_the_middle_is_named_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let boot = ipam::boot_id().unwrap();
    let mut j = Journal::open_for_boot(dir.path(), &boot).unwrap();
    let mut want = Vec::new();
    for n in 0..4 {
        want.push(add(&mut j, n, &ranges()).unwrap());
    }
    drop(j);
    let file = dir.path().join("journal");
    let mut bytes = fs::read(&file).unwrap();
    let lines: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    bytes[lines[1] + 30] = b'#'; // line 3: the second attachment
    fs::write(&file, &bytes).unwrap();
    let e = Journal::open(dir.path()).unwrap_err().to_string();
    let says = format!("{} is damaged at line 3, byte {}", file.display(), lines[1]);
    assert!(e.starts_with(&says) && e.contains("seaway ipam check"), "{e}");
    assert!(ipam::read(dir.path()).unwrap_err().to_string().starts_with(&says));
    assert_eq!(fs::read(&file).unwrap(), bytes, "an error changes nothing");

    want.remove(1);
    let report = ipam::check(dir.path()).unwrap();
    assert_eq!((report.faults.len(), report.faults[0].line), (1, 3));
    assert_eq!(report.intact, want);
    ipam::repair(dir.path()).unwrap();
    assert_eq!(ipam::read(dir.path()).unwrap(), want);
    assert_eq!(fs::read(file.with_extension("damaged")).unwrap(), bytes, "the damaged one is kept");
    assert!(!ipam::check(dir.path()).unwrap().damaged());
}

#[test]
fn foreign_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal");
    for (bytes, says) in [
        (&b"hello\n"[..], "is damaged at line 1, byte 0: no `KIND CRC JSON` line"),
        (b"H 00000000 {}\n", "is damaged at line 1, byte 0: its checksum is"),
    ] {
        fs::write(&file, bytes).unwrap();
        let e = Journal::open(dir.path()).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
    fs::File::create(&file).unwrap().set_len(65 << 20).unwrap();
    let e = Journal::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("more than the"), "{e}");
}

/// A tmpfs of its own, gone with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(at: &Path, options: &str) -> Self {
        let flags = rustix::mount::MountFlags::empty();
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", at, "tmpfs", flags, options.as_c_str()).expect("mount tmpfs: run as root");
        Self(at.to_owned())
    }
    fn read_only(&self) {
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(&self.0, flags, c"").unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_refuses_adds_whole_and_lets_pods_go() {
    let dir = tempfile::tempdir().unwrap();
    let _mount = Tmpfs::new(dir.path(), "size=64k,mode=0755");
    let boot = ipam::boot_id().unwrap();
    let mut j = Journal::open_for_boot(dir.path(), &boot).unwrap();
    for n in 0..3 {
        add(&mut j, n, &ranges()).unwrap();
    }
    // Fill the disk, and then the journal's own last page.
    let hog = dir.path().join("hog");
    let _ = fs::write(&hog, vec![0u8; 128 << 10]);
    let mut n = 3;
    let e = loop {
        match add(&mut j, n, &ranges()) {
            Ok(_) => n += 1,
            Err(e) => break e,
        }
        assert!(n < 100, "the disk never got full");
    };
    let text = e.to_string();
    assert!(text.contains("append to") && text.contains("journal") && text.contains("free some space"), "{text}");
    assert!(j.probe().is_err());
    let before = records(&j);
    assert_eq!(before.len(), n);
    assert_eq!(ipam::read(dir.path()).unwrap(), before, "nothing half-applied");

    // All of them may go, though there is no room.
    for k in 0..n {
        assert!(j.release(&key(k)).unwrap().is_some());
    }
    assert_eq!(ipam::read(dir.path()).unwrap(), []);
    drop(j);
    fs::remove_file(hog).unwrap();
    let mut j = Journal::open_for_boot(dir.path(), &boot).unwrap();
    assert_eq!(records(&j), []);
    j.probe().unwrap();
    let next = add(&mut j, 0, &ranges()).unwrap().addresses[0];
    assert_eq!(next, ranges()[0].nth(2 + n as u128).unwrap(), "voided addresses rest too");
}

#[test]
fn a_read_only_disk_is_named_and_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Tmpfs::new(dir.path(), "size=1m,mode=0755");
    let boot = ipam::boot_id().unwrap();
    let mut j = Journal::open_for_boot(dir.path(), &boot).unwrap();
    let one = add(&mut j, 1, &ranges()).unwrap();
    drop(j);
    mount.read_only();
    let mut j = Journal::open_for_boot(dir.path(), &boot).unwrap();
    assert_eq!(records(&j), std::slice::from_ref(&one));
    let e = add(&mut j, 2, &ranges()).unwrap_err().to_string();
    assert!(e.contains("journal: Read-only file system") && e.contains("remount it writable"), "{e}");
    assert!(j.probe().is_err() && j.release(&key(1)).is_err());
    assert_eq!(ipam::read(dir.path()).unwrap(), [one]);
    let e = KeyLock::take(dir.path(), &key(1).link(), |_, _| Ok(())).unwrap_err().to_string();
    assert!(e.contains("remount it writable"), "{e}");
}

#[test]
fn readers_never_see_damage_while_writers_write() {
    let dir = tempfile::tempdir().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for t in 0..3usize {
            let (dir, stop) = (dir.path(), &stop);
            s.spawn(move || {
                let mut n = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let k = t * 1000 + n % 7;
                    let mut j = Journal::open(dir).unwrap();
                    add(&mut j, k, &ranges()).unwrap();
                    if n % 3 == 0 {
                        j.release(&key(k)).unwrap();
                    }
                    if n % 50 == 0 {
                        j.compact().unwrap();
                    }
                    n += 1;
                }
            });
        }
        for _ in 0..400 {
            let all = ipam::read(dir.path()).unwrap();
            let used: Vec<_> = all.iter().flat_map(|r| &r.addresses).collect();
            assert_eq!(used.len(), used.iter().collect::<BTreeSet<_>>().len());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
