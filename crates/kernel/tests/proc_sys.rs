//! Sysctls by way of another mount of /proc/sys, as in a container that may not write the usual one. A process of its
//! own: the place is said once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use kernel::{Netns, Sysctls, set_proc_sys};
use kernel_api::Sysctl as _;

#[test]
fn sysctls_are_written_where_it_was_said() {
    let dir = tempfile::tempdir().unwrap();
    assert!(set_proc_sys(dir.path()).is_err(), "no sysctl is there");
    let elsewhere = dir.path().join("sys");
    std::os::unix::fs::symlink("/proc/sys", &elsewhere).unwrap();
    set_proc_sys(&elsewhere).unwrap();
    assert!(set_proc_sys(&elsewhere).is_err(), "said twice");

    let ns = Netns::new().expect("a new network namespace (root is needed)");
    let mut sysctls = Sysctls::open_in(&ns);
    let knob = "net/ipv4/conf/all/arp_notify";
    sysctls.set(knob, "1").unwrap();
    assert_eq!(sysctls.get(knob).unwrap().as_deref(), Some("1"));
    let usual = ns.run(|| std::fs::read_to_string(format!("/proc/sys/{knob}")).unwrap()).unwrap();
    assert_eq!(usual.trim(), "1", "the same knob of the same namespace");
    // Nothing is written but there.
    std::fs::remove_file(&elsewhere).unwrap();
    assert!(sysctls.set(knob, "0").is_err());
}
