//! Namespaces, hardware and faults of a fake machine.

use super::*;
use crate::fault::Fault;
use kernel_api::rt::{MacvlanMode, MacvlanParams, NewLink, NewLinkKind, SetLink};

fn name(s: &str) -> IfName {
    s.parse().unwrap()
}

fn pair(pod: &FakeNetns) -> RtRequest {
    let kind = NewLinkKind::Veth { peer: name("eth0"), peer_netns: Some(pod.fd()), peer_mac: None };
    RtRequest::LinkAdd(NewLink { up: true, ..NewLink::new(name("v0"), kind) })
}

#[test]
fn halves_in_two_namespaces_are_one_pair() {
    let mut m = FakeMachine::new();
    m.add_netns("/run/netns/pod");
    let mut pod = m.open("/run/netns/pod").unwrap();
    let mut host = m.host().unwrap();
    host.run(&[pair(&pod)]).unwrap();
    let (a, b) = (host.link(&name("v0")).unwrap().unwrap(), pod.link(&name("eth0")).unwrap().unwrap());
    assert_eq!((a.peer_index, b.peer_index), (Some(b.index), Some(a.index)));
    assert!(a.lower_netns.is_some() && b.lower_netns.is_some());
    // The name is taken there: nothing is made here either.
    let links = host.links().unwrap();
    let again = RtRequest::LinkAdd(NewLink {
        up: true,
        ..NewLink::new(
            name("v1"),
            match pair(&pod) {
                RtRequest::LinkAdd(l) => l.kind,
                _ => unreachable!(),
            },
        )
    });
    assert_eq!(host.run(&[again]).unwrap_err().errno, errno::EEXIST);
    assert_eq!(host.links().unwrap(), links);
    assert_eq!(host.delete_link(&name("v0")).unwrap_err().errno, errno::EPERM);
    pod.delete_link(&name("eth0")).unwrap();
    assert_eq!(host.link(&name("v0")).unwrap(), None);
    // And the end of the namespace ends the pair.
    host.run(&[pair(&pod)]).unwrap();
    m.remove_netns("/run/netns/pod");
    assert_eq!(host.link(&name("v0")).unwrap(), None);
    assert_eq!(m.open("/run/netns/pod").err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
}

#[test]
fn hardware_goes_and_comes_home() {
    let mut m = FakeMachine::new();
    m.plug(&name("ens1"), 1500, &[("192.168.0.1".parse().unwrap(), 24)]);
    m.add_netns("/pod");
    let (mut host, mut pod) = (m.host().unwrap(), m.open("/pod").unwrap());
    let into = SetLink { netns: Some(pod.fd()), rename: Some(name("net1")), ..SetLink::up(name("ens1")) };
    host.run(&[RtRequest::LinkSet(into)]).unwrap();
    assert_eq!((host.link(&name("ens1")).unwrap(), host.addresses().unwrap()), (None, Vec::new()));
    assert!(pod.link(&name("net1")).unwrap().unwrap().up);
    m.remove_netns("/pod");
    assert!(!host.link(&name("net1")).unwrap().unwrap().up);
    // A macvlan ends with the link below, wherever it is.
    m.add_netns("/pod");
    let mut pod = m.open("/pod").unwrap();
    let lower = host.link(&name("net1")).unwrap().unwrap().index;
    let params = |mode| MacvlanParams { mode, ..MacvlanParams::default() };
    let new = |n: &str, mode| {
        let kind = NewLinkKind::Macvlan { lower, params: params(mode) };
        RtRequest::LinkAdd(NewLink { netns: Some(pod.fd()), ..NewLink::new(name(n), kind) })
    };
    host.run(&[new("mv0", MacvlanMode::Passthru)]).unwrap();
    assert_eq!(host.run(&[new("mv1", MacvlanMode::Bridge)]).unwrap_err().errno, errno::EINVAL, "taken whole");
    m.world().namespaces[0].state.forget(&name("net1"));
    m.world().settle();
    assert_eq!(pod.link(&name("mv0")).unwrap(), None);
}

#[test]
fn one_script_of_faults_over_all() {
    let mut m = FakeMachine::new();
    m.add_netns("/pod");
    m.add_program("/opt/cni/bin/x", |_, e| Ok(Output { code: Some(0), stdout: e.stdin.clone(), ..Output::default() }));
    let (mut host, pod) = (m.host().unwrap(), m.open("/pod").unwrap());
    m.world().faults.fail_at(1, errno::EPERM);
    m.world().faults.script(2, Fault::Unanswered(errno::ENOBUFS));
    m.world().faults.script(3, Fault::Crash);
    host.run(&[pair(&pod)]).unwrap();
    assert_eq!(pod.set_sysctl("net/ipv4/ip_forward", "1").unwrap_err().errno, errno::EPERM);
    assert_eq!(pod.add_tun(&NewTun::tap(name("tap0"))).unwrap_err().errno, errno::ENOBUFS);
    let exec = Exec {
        program: "/opt/cni/bin/x".into(),
        env: Vec::new(),
        stdin: b"in".to_vec(),
        limit: 10,
        timeout: std::time::Duration::from_secs(1),
    };
    assert_eq!(m.exec(&exec).unwrap_err().raw_os_error(), Some(errno::EIO));
    assert_eq!(host.links().unwrap_err().errno, errno::EIO, "dead");
    m.world().faults.heal();
    assert!(pod.clone().link(&name("tap0")).unwrap().is_some(), "only its answer was lost");
    assert_eq!(m.exec(&exec).unwrap().stdout, b"in");
    assert_eq!(pod.get_sysctl("net/ipv4/ip_forward").unwrap().as_deref(), Some("0"));
}

#[test]
fn one_here_by_the_name_is_left_alone() {
    let mut m = FakeMachine::new();
    m.plug(&name("eth0"), 1500, &[("192.168.0.1".parse().unwrap(), 24)]);
    m.add_netns("/pod");
    let (mut host, mut pod) = (m.host().unwrap(), m.open("/pod").unwrap());
    let lower = host.link(&name("eth0")).unwrap().unwrap();
    host.run(&[pair(&pod)]).unwrap();
    let kind = NewLinkKind::Macvlan { lower: lower.index, params: MacvlanParams::default() };
    let there = NewLink { netns: Some(pod.fd()), up: true, ..NewLink::new(name("v0"), kind) };
    host.run(&[RtRequest::LinkAdd(there)]).unwrap();
    assert_eq!(host.link(&name("eth0")).unwrap(), Some(lower));
    assert_eq!(host.addresses().unwrap().len(), 1);
    assert!(pod.link(&name("v0")).unwrap().unwrap().up && pod.link(&name("eth0")).unwrap().is_some());
}
