//! Namespaces and their sysctls.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use common::{fresh, name, veth};
use kernel::{Linux, Netns, Rt, Sysctls};
use kernel_api::Rtnetlink as _;
use kernel_api::machine::Machine as _;
use kernel_api::{Sysctl as _, errno};

/// Removes what a failed test leaves.
struct Named(PathBuf);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Netns::delete(&self.0);
    }
}

fn mounted(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().any(|l| l.split(' ').nth(4) == path.to_str())
}

#[test]
fn a_named_namespace_lives_at_its_path_until_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let named = Named(dir.path().join("blue"));
    let made = Netns::create(&named.0).unwrap();
    assert!(mounted(&named.0));
    let opened = Netns::open(&named.0).unwrap();
    assert_eq!(made, opened);
    assert_ne!(opened.inode(), Netns::current().unwrap().inode());
    assert_eq!(opened.run(|| Netns::current().unwrap().inode()).unwrap(), opened.inode());
    assert_eq!(Netns::create(&named.0).unwrap_err().kind(), ErrorKind::AlreadyExists);
    Netns::delete(&named.0).unwrap();
    assert!(!mounted(&named.0) && !named.0.exists());
    Netns::delete(&named.0).unwrap();
    // The handle keeps it alive.
    assert!(Rt::open_in(&opened).unwrap().link(&name("lo")).unwrap().is_some());
}

#[test]
fn leftovers_and_strangers() {
    let dir = tempfile::tempdir().unwrap();
    let half = Named(dir.path().join("half"));
    fs::write(&half.0, "").unwrap();
    let e = Netns::open(&half.0).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
    assert!(e.to_string().contains("half is no network namespace"), "{e}");
    Netns::create(&half.0).unwrap();
    assert!(Netns::is_netns(&half.0));

    let text = dir.path().join("text");
    fs::write(&text, "keep me").unwrap();
    assert_eq!(Netns::create(&text).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&text).unwrap(), "keep me");
    assert_eq!(Netns::open(dir.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!Netns::is_netns("/proc/self/ns/mnt"));
    assert!(!Netns::is_netns(dir.path()));
    assert!(Netns::is_netns("/proc/self/ns/net"));
}

#[test]
fn a_thread_enters_and_comes_back() {
    let before = Netns::current().unwrap();
    let ns = Netns::new().unwrap();
    {
        let inside = ns.enter().unwrap();
        assert!(ns.is_current().unwrap());
        inside.restore();
    }
    assert_eq!(Netns::current().unwrap(), before);
    let r = std::panic::catch_unwind(|| {
        let _inside = ns.enter().unwrap();
        panic!("expected in this test");
    });
    assert!(r.is_err());
    assert_eq!(Netns::current().unwrap(), before);
}

#[test]
fn sysctls_are_those_of_the_namespace_they_were_opened_in() {
    let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
    let mut of_a = Sysctls::open_in(&a);
    let mut of_b = b.run(|| Sysctls::open().unwrap()).unwrap();
    for (path, on) in [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")] {
        assert_eq!(of_b.get(path).unwrap().as_deref(), Some("0"));
        of_a.set(path, on).unwrap();
        assert_eq!(of_a.get(path).unwrap().as_deref(), Some(on));
        assert_eq!(of_b.get(path).unwrap().as_deref(), Some("0"));
        // Whatever namespace the caller is in by then.
        b.run(|| assert_eq!(Sysctls::open_in(&a).get(path).unwrap().as_deref(), Some(on))).unwrap();
    }
    let here = Netns::current().unwrap();
    assert_ne!(here, a);
}

#[test]
fn sysctls_of_links_and_those_that_are_not_there() {
    fresh(|| {
        veth(&mut Rt::open().unwrap(), "eth0.5", "b");
        let mut s = Sysctls::open().unwrap();
        s.set("net/ipv4/conf/eth0.5/rp_filter", "2").unwrap();
        assert_eq!(s.get("net/ipv4/conf/eth0.5/rp_filter").unwrap().as_deref(), Some("2"));
        assert_eq!(s.get("net/ipv4/conf/nosuch/rp_filter").unwrap(), None);
        assert_eq!(s.set("net/ipv4/conf/nosuch/rp_filter", "2").unwrap_err().errno, errno::ENOENT);
        assert_eq!(s.set("net/ipv4/ip_forward", "many").unwrap_err().errno, errno::EINVAL);
        for bad in ["", "/etc/passwd", "net/../kernel/hostname", "net//ipv4", "net/./ipv4", "net/ipv4\0"] {
            assert!(s.get(bad).is_err(), "{bad:?}");
            assert!(s.set(bad, "1").is_err(), "{bad:?}");
        }
    });
}

#[test]
fn one_holder_per_byte_of_a_file() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = || std::fs::OpenOptions::new().write(true).open(file.path()).unwrap();
    // Another byte is nobody's business; the far end of what a lock may name is taken.
    let other = open();
    Linux.lock(&other, (1 << 48) - 1).unwrap();
    let inside = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..50 {
                    let mine = open();
                    Linux.lock(&mine, 7).unwrap();
                    assert_eq!(inside.fetch_add(1, SeqCst), 0);
                    std::thread::yield_now();
                    inside.fetch_sub(1, SeqCst);
                }
            });
        }
    });
    assert_eq!(file.as_file().metadata().unwrap().len(), 0);
}

#[test]
fn a_link_is_discarded_by_a_process_of_its_own_which_holds_the_lock() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = || std::fs::OpenOptions::new().write(true).open(file.path()).unwrap();
    fresh(|| {
        let link = types::OwnedName::pod_link(0xd15c);
        veth(&mut Rt::open().unwrap(), link.as_str(), "eth0");
        let mine = open();
        Linux.lock(&mine, 7).unwrap();
        let absent = types::OwnedName::pod_link(0xd15d);
        Linux.discard(&[absent, link.clone()], Some(mine.as_fd())).unwrap();
        drop(mine);
        // Who waits for the lock waits for the kernel.
        Linux.lock(&open(), 7).unwrap();
        assert_eq!(Rt::open().unwrap().link(link.name()).unwrap(), None);
        // One that is not there is nobody's concern.
        Linux.discard(&[link], None).unwrap();
    });
}
