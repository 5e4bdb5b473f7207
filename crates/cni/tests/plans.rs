//! ADD as a plan, and what a refusal at any of its requests leaves behind: nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

mod common;

use std::fmt::Write;
use std::path::Path;

use cni::{View, plan};
use common::{Mock, POD, dual, env, execute, golden, record};
use ipam::Record;
use kernel_api::errno;
use kernel_api::rt::{
    Address, BridgeParams, Link, LinkKind, Neighbour, NetnsFd, NewLinkKind, Route, RtRequest, SetLink,
};
use types::Mac;

fn text(r: &Record) -> String {
    let p = plan::add(r, NetnsFd(5));
    let mut out = String::new();
    for (part, list) in [("host", &p.create), ("host", &p.up), ("pod", &p.pod), ("host", &p.host)] {
        for x in list {
            writeln!(out, "{part:<5}{x}").unwrap();
        }
    }
    out
}

#[test]
fn the_plan_of_each_family() {
    let mut out = String::new();
    for (title, r) in
        [("dual-stack", dual()), ("IPv4", record("c1", &["10.244.1.2"])), ("IPv6", record("c1", &["fd00:10:244:1::2"]))]
    {
        writeln!(out, "# {title}\n{}", text(&r)).unwrap();
    }
    golden("plan.txt", &out);
    let p = plan::add(&dual(), NetnsFd(5));
    let RtRequest::LinkAdd(l) = &p.create[0] else { panic!("{:?}", p.create) };
    let NewLinkKind::Veth { peer, peer_netns, peer_mac } = &l.kind else { panic!("{l:?}") };
    assert_eq!((peer.as_str(), *peer_netns), ("eth0", Some(NetnsFd(5))));
    assert_eq!(*peer_mac, Some(plan::pod_mac(&dual().link)));
}

#[test]
fn hardware_addresses_are_unicast_and_local() {
    for i in 0..1000 {
        let Mac(m) = plan::pod_mac(&record(&format!("c{i}"), &[]).link);
        assert_eq!(m[0] & 3, 2);
        assert_ne!(Mac(m), plan::HOST_MAC);
    }
}

fn conf(dir: &Path) -> String {
    format!(
        r#"{{"cniVersion":"1.1.0","name":"seaway","type":"seaway-cni","mtu":1450,"dataDir":"{}",
            "ranges":["10.244.1.0/24","fd00:10:244:1::/64"]}}"#,
        dir.display()
    )
}

#[test]
fn a_refusal_at_any_request_undoes_everything_and_is_told() {
    let requests = {
        let p = plan::add(&dual(), NetnsFd(5));
        p.create.len() + p.up.len() + p.pod.len() + p.host.len()
    };
    for n in 0..requests {
        let dir = tempfile::tempdir().unwrap();
        let mut m = Mock::default();
        m.0.borrow_mut().refuse = Some((n, errno::ENOBUFS));
        let r = execute(&mut m, &env("ADD", "c1", POD, "eth0"), &mut conf(dir.path()).as_bytes(), 1);
        assert_eq!(r.exit, 1, "request {n}: {}", r.stdout);
        assert!(r.stdout.contains("No buffer space") && r.stdout.contains("\"code\":100"), "{}", r.stdout);
        let log = m.0.borrow();
        let link = dual().link;
        assert_eq!(log.done.last(), Some(&("host", RtRequest::LinkDel(link))), "request {n}");
        assert_eq!(ipam::read(dir.path()).unwrap(), [], "request {n}");
    }
}

#[test]
fn ipv6_is_switched_on_where_a_runtime_switched_it_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Mock::default();
    let p = plan::add(&dual(), NetnsFd(5));
    let first_pod_request_of_v6 = p.create.len() + p.up.len() + 2;
    m.0.borrow_mut().refuse = Some((first_pod_request_of_v6, errno::EACCES));
    let r = execute(&mut m, &env("ADD", "c1", POD, "eth0"), &mut conf(dir.path()).as_bytes(), 1);
    assert_eq!(r.exit, 0, "{}", r.stdout);
    assert_eq!(m.0.borrow().sysctls, ["net/ipv6/conf/eth0/disable_ipv6 = 0"]);
}

#[test]
fn add_answers_when_the_kernel_delivers() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Mock::default();
    m.0.borrow_mut().late = 30;
    let r = execute(&mut m, &env("ADD", "c1", POD, "eth0"), &mut conf(dir.path()).as_bytes(), 1);
    assert_eq!((r.exit, m.0.borrow().looked), (0, 31), "{}", r.stdout);
}

#[test]
fn the_record_is_written_before_the_link_and_removed_when_nothing_leads_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Mock::default();
    let call =
        |m: &mut Mock, command| execute(m, &env(command, "c1", POD, "eth0"), &mut conf(dir.path()).as_bytes(), 1);
    assert_eq!(call(&mut m, "ADD").exit, 0);
    assert_eq!(ipam::read(dir.path()).unwrap().len(), 1);
    // The link cannot be taken down: the record stays, so that somebody comes back for both.
    let done = m.0.borrow().done.len();
    let fresh = Mock::default();
    fresh.0.borrow_mut().refuse = Some((0, errno::EBUSY));
    let r = call(&mut fresh.clone(), "DEL");
    assert!(r.exit == 1 && r.stdout.contains("link set sea"), "{}", r.stdout);
    assert_eq!(ipam::read(dir.path()).unwrap().len(), 1);
    // No such link: fine.
    let fresh = Mock::default();
    fresh.0.borrow_mut().refuse = Some((0, errno::ENODEV));
    assert_eq!(call(&mut fresh.clone(), "DEL").exit, 0);
    assert_eq!(ipam::read(dir.path()).unwrap(), []);
    assert_eq!(call(&mut fresh.clone(), "DEL").exit, 0, "nothing is known");
    assert!(done > 0);
    // Down, forgotten, deleted; when no other process can wait for the deletion, this one does.
    for refuse in [None, Some((1, errno::ENOBUFS))] {
        assert_eq!(call(&mut m, "ADD").exit, 0);
        let fresh = Mock::default();
        fresh.0.borrow_mut().refuse = refuse;
        assert_eq!(call(&mut fresh.clone(), "DEL").exit, 0);
        assert_eq!(ipam::read(dir.path()).unwrap(), []);
        let log = fresh.0.borrow();
        let link = dual().link;
        let down = SetLink { up: Some(false), ..SetLink::new(link.name().clone()) };
        assert_eq!(log.done.first(), Some(&("host", RtRequest::LinkSet(down))));
        assert_eq!(log.done.last(), Some(&("host", RtRequest::LinkDel(link))));
    }
}

#[test]
fn a_del_leaves_no_directory_behind() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("ipam");
    let r = execute(&mut Mock::default(), &env("DEL", "c1", "", "eth0"), &mut conf(&missing).as_bytes(), 1);
    assert_eq!((r.exit, r.stdout.as_str()), (0, ""));
    assert!(!missing.exists());
}

/// Code 50: an ADD could not be served. Code 51: and what is there can no longer be seen to.
#[test]
fn status_tells_whether_living_pods_are_touched() {
    let dir = tempfile::tempdir().unwrap();
    let status = |m: &mut Mock, conf: &str| {
        let r = execute(m, &env("STATUS", "", "", ""), &mut conf.as_bytes(), 1);
        (r.exit, serde_json::from_str::<serde_json::Value>(&r.stdout).unwrap_or_default()["code"].clone())
    };
    let mut m = Mock::default();
    assert_eq!(status(&mut m, &conf(dir.path())), (0, serde_json::Value::Null));
    assert_eq!(status(&mut m, &conf(Path::new("/proc/nowhere"))), (1, 50.into()));
    m.0.borrow_mut().deaf = true;
    assert_eq!(status(&mut m, &conf(dir.path())), (1, 51.into()));
}

/// The two namespaces as ADD leaves them.
fn views(r: &Record) -> (View, View) {
    let link = |index, peer, name: &types::IfName, mac| Link {
        mac: Some(mac),
        mtu: r.mtu,
        up: true,
        peer_index: Some(peer),
        ..Link::new(index, name.clone(), LinkKind::Veth)
    };
    let mut lo = link(1, 0, &"lo".parse().unwrap(), Mac([0; 6]));
    lo.kind = LinkKind::Other(String::new());
    let host = View {
        links: vec![lo.clone(), link(9, 2, r.link.name(), plan::HOST_MAC)],
        addresses: Vec::new(),
        routes: r.addresses.iter().map(|a| plan::host_route(r, *a)).collect(),
        neighbours: r.addresses.iter().map(|a| plan::host_neighbour(r, *a)).collect(),
        filters: plan::guard(r).into_iter().collect(),
    };
    let eth = &r.key.ifname;
    let pod = View {
        links: vec![lo, link(2, 9, eth, plan::pod_mac(&r.link))],
        addresses: r
            .addresses
            .iter()
            .map(|&addr| Address::new(eth.clone(), addr, types::Family::of(addr).bits()))
            .collect(),
        routes: r.addresses.iter().flat_map(|a| plan::pod_routes(r, *a)).collect(),
        neighbours: r
            .addresses
            .iter()
            .map(|a| Neighbour { link: eth.clone(), addr: plan::gateway(*a), mac: plan::HOST_MAC })
            .collect(),
        filters: Vec::new(),
    };
    (host, pod)
}

#[test]
fn check_names_what_differs() {
    let r = dual();
    let (host, pod) = views(&r);
    assert_eq!(cni::differences(&r, &host, &pod), [""; 0]);
    type Change = Box<dyn Fn(&mut View, &mut View)>;
    let cases: Vec<(&str, Change)> = vec![
        ("host: there is no interface sea", Box::new(|h, _| drop(h.links.pop()))),
        ("pod: there is no interface eth0", Box::new(|_, p| drop(p.links.pop()))),
        ("host: sea2a0b", Box::new(|h, _| h.links[1].up = false)),
        ("pod: eth0 is down", Box::new(|_, p| p.links[1].up = false)),
        ("pod: lo is down", Box::new(|_, p| p.links[0].up = false)),
        ("has MTU 1500 instead of 1450", Box::new(|h, _| h.links[1].mtu = 1500)),
        ("pod: eth0 has the hardware address none", Box::new(|_, p| p.links[1].mac = None)),
        ("is no veth", Box::new(|h, _| h.links[1].kind = LinkKind::Bridge(BridgeParams::default()))),
        ("pod: eth0 is not the other end of sea", Box::new(|h, _| h.links[1].peer_index = Some(3))),
        ("pod: address 10.244.1.2/32 is missing on eth0", Box::new(|_, p| drop(p.addresses.remove(0)))),
        ("pod: address fd00:10:244:1::2/128 is missing on eth0", Box::new(|_, p| drop(p.addresses.remove(1)))),
        ("pod: route `169.254.1.1/32 dev eth0 scope link` is missing", Box::new(|_, p| drop(p.routes.remove(0)))),
        ("pod: route `0.0.0.0/0 via 169.254.1.1 dev eth0` is missing", Box::new(|_, p| drop(p.routes.remove(1)))),
        ("pod: route `::/0 via fe80::1 dev eth0 metric 1024` is missing", Box::new(|_, p| drop(p.routes.remove(2)))),
        ("pod: neighbour `169.254.1.1 lladdr ee:ee", Box::new(|_, p| drop(p.neighbours.remove(0)))),
        ("host: route `10.244.1.2/32 dev sea", Box::new(|h, _| drop(h.routes.remove(0)))),
        ("can send from addresses that are not its own", Box::new(|h, _| h.filters.clear())),
        ("host: neighbour `fd00:10:244:1::2 lladdr", Box::new(|h, _| drop(h.neighbours.remove(1)))),
    ];
    for (says, change) in cases {
        let (mut h, mut p) = (host.clone(), pod.clone());
        change(&mut h, &mut p);
        let d = cni::differences(&r, &h, &p);
        let says = if says == "host: sea2a0b" { format!("host: {} is down", r.link) } else { says.into() };
        assert!(d.len() == 1 && d[0].contains(&says), "{says}: {d:?}");
    }
    // Another pod's things are no difference.
    let (mut h, p) = (host, pod);
    h.routes.push(Route { dst: "10.0.0.0/8".parse().unwrap(), ..h.routes[0].clone() });
    assert!(cni::differences(&r, &h, &p).is_empty());
}

#[test]
fn which_namespaces_are_gone() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
    let plain = std::fs::metadata(&file).unwrap().ino();
    let missing = dir.path().join("missing");
    for (path, inode, gone) in [
        ("/proc/self/ns/net", own, false),
        ("/proc/self/ns/net", own + 1, true),
        (file.to_str().unwrap(), own, true),
        (file.to_str().unwrap(), plain, true),
        (missing.to_str().unwrap(), own, true),
    ] {
        let r = Record { netns: path.into(), inode, ..dual() };
        assert_eq!(cni::namespace_gone(&r), gone, "{path} {inode}");
        assert_eq!(cni::gone(std::slice::from_ref(&r)).len(), usize::from(gone));
    }
}
