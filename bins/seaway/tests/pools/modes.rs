//! Pools with every wiring mode that this kernel has.

use super::*;

fn wired(lab: &Lab, name: &str, node: &str, mode: &str, options: Option<&str>) {
    let mut notes = json!({"seaway.io/mode": mode});
    if let Some(o) = options {
        notes["seaway.io/mode-options"] = o.into();
    }
    add_pod(lab, name, node, notes);
}

fn ping(mut c: Command, ip: &IpAddr) {
    let out = run(c.args(["ping", "-n", "-c2", "-i0.2", "-W5", &ip.to_string()]));
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{c:?}: {said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(!said.contains("Redirect"), "{said}");
}

fn exec(lab: &Lab, pod: &Pod) -> Command {
    lab.cmd(&["exec", &format!("default/{}", pod.name), "--"])
}

fn checked(lab: &Lab, node: &str) {
    let out = ipam(lab, node, &["check"]);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{node}: {said}");
}

#[test]
fn pods_of_every_mode_have_addresses_of_pools() {
    let lab = Lab::up(&["--nodes", "2", "--backend", "host-gw", "--ip", "dual"]);
    // Of each pool one block a node, so that the fifth pod of a node borrows.
    add_pool(&lab, "small", json!({"cidr": "10.9.0.0/29", "blockSize": 30}));
    add_pool(&lab, "six", json!({"cidr": "fd00:9::/125", "blockSize": 126}));
    let underlay = json!({"subnet": "172.31.1.0/24", "gateway": "172.31.1.1"});
    add_pool(&lab, "wire", json!({"cidr": "172.31.1.64/26", "blockSize": 28, "underlay": underlay}));
    by_pools(&lab, json!({"ipam": "pools"}), &["small", "six"]);
    for (name, node, mode) in [
        ("r1", "node1", "routed"),
        ("b1", "node1", "bridge"),
        ("b2", "node1", "bridge"),
        ("p1", "node1", "ptp"),
        ("b3", "node1", "bridge"),
        ("r2", "node2", "routed"),
        ("b4", "node2", "bridge"),
    ] {
        wired(&lab, name, node, mode, None);
    }
    wired(&lab, "m1", "node1", "macvlan", Some(r#"{"master": "eth0"}"#));
    wired(&lab, "m2", "node2", "macvlan", Some(r#"{"master": "eth0"}"#));
    let pods = eventually("all pods run", PATIENCE, || Some(mine(&lab)).filter(|p| p.len() == 9));
    let of = |name: &str| pods.iter().find(|p| p.name == name).unwrap();
    let (wire, led): (Vec<&Pod>, Vec<&Pod>) = pods.iter().partition(|p| p.name.starts_with('m'));
    for p in &led {
        let small: Cidr = "10.9.0.0/29".parse().unwrap();
        let six: Cidr = "fd00:9::/125".parse().unwrap();
        assert!(p.ips.len() == 2 && small.contains(p.ips[0]) && six.contains(p.ips[1]), "{p:?}");
    }
    assert!(lent(&lab) >= 2, "one address of each family is borrowed: {}", show(&lab));
    for from in &led {
        for to in &led {
            to.ips.iter().for_each(|ip| ping(exec(&lab, from), ip));
        }
    }
    for node in ["node1", "node2"] {
        led.iter().flat_map(|p| &p.ips).for_each(|ip| ping(lab.on_node(node, &[]), ip));
        checked(&lab, node);
    }
    // The bridge has the gateway, and leads to its pods one by one.
    let bridge = ok(&mut lab.on_node("node1", &["ip", "-br", "addr", "show", "cni0"]));
    assert!(bridge.contains("169.254.1.1/32") && bridge.contains("fe80::1/128"), "{bridge}");
    let inside = ok(&mut lab.cmd(&["exec", "default/b1", "--", "ip", "route"]));
    assert!(inside.contains("default via 169.254.1.1 dev eth0"), "{inside}");
    // Pods on the wire are stations of it: they have its prefix and router, and no node leads to them.
    for m in &wire {
        let within: Cidr = "172.31.1.64/26".parse().unwrap();
        assert!(m.ips.len() == 1 && within.contains(m.ips[0]), "{m:?}");
        let inside = ok(exec(&lab, m).args(["sh", "-c", "ip -br addr show eth0; ip route"]));
        assert!(inside.contains(&format!("{}/24", m.ips[0])) && inside.contains("default via 172.31.1.1"), "{inside}");
        wire.iter().for_each(|to| ping(exec(&lab, m), &to.ips[0]));
        ping(exec(&lab, m), &"172.31.1.1".parse().unwrap());
    }
    for node in ["node1", "node2"] {
        let routes = ok(&mut lab.on_node(node, &["ip", "route"]));
        assert!(!routes.contains("172.31.1.64"), "{routes}");
    }
    // A node does not reach its own macvlan; another node, and its pods under its address, do.
    ping(lab.on_node("node2", &[]), &of("m1").ips[0]);
    ping(exec(&lab, of("r2")), &of("m1").ips[0]);
    ping(exec(&lab, of("b4")), &of("m1").ips[0]);

    // What somebody takes away is there again, with the same addresses: the node's routes to a pod on the bridge, which
    // touches nothing inside it; and interfaces, which a pod's own root can delete.
    let link = |name: &str| ok(exec(&lab, of(name)).args(["ip", "-o", "link", "show", "eth0"]));
    let untouched = link("b1");
    for name in ["b2", "p1", "m1"] {
        ok(exec(&lab, of(name)).args(["ip", "link", "del", "eth0"]));
    }
    for ip in &of("b1").ips {
        ok(&mut lab.on_node("node1", &["ip", "route", "del", &ip.to_string()]));
    }
    for name in ["b1", "b2", "p1"] {
        for (ip, from) in of(name).ips.iter().flat_map(|ip| [(ip, "r1"), (ip, "r2"), (ip, "b3")]) {
            eventually(&format!("{from} reaches {name} by {ip} again"), PATIENCE, || {
                let out = run(exec(&lab, of(from)).args(["ping", "-n", "-c1", "-W1", &ip.to_string()]));
                out.status.success().then_some(())
            });
        }
    }
    assert_eq!(link("b1"), untouched);
    eventually("the macvlan is there again", PATIENCE, || {
        let out = run(exec(&lab, of("m2")).args(["ping", "-n", "-c1", "-W1", &of("m1").ips[0].to_string()]));
        out.status.success().then_some(())
    });
    assert!(ok(exec(&lab, of("m1")).args(["ip", "-d", "link", "show", "eth0"])).contains("macvlan mode bridge"));
    checked(&lab, "node1");

    // A pool of the wrong kind is refused, with the reason; and so is borrowing where the pool forbids it.
    add_pod(&lab, "wrong", "node1", json!({"seaway.io/mode": "bridge", "seaway.io/ipv4pools": "wire"}));
    lab.patch(&format!("{OWN}/ippools/small"), r#"{"spec":{"strictAffinity":true}}"#);
    let theirs = ranges(&lab, "small")["node2"][0];
    let free = (0..4).filter_map(|i| theirs.nth(i)).find(|a| !pods.iter().any(|p| p.ips.contains(a))).unwrap();
    add_pod(&lab, "strict", "node1", json!({"seaway.io/mode": "bridge", "seaway.io/ip-addrs": free.to_string()}));
    for why in ["is of the network 172.31.1.0/24 outside", "lends nothing (strictAffinity)"] {
        eventually(&format!("an Event says: {why}"), PATIENCE, || {
            let events = lab.objects("events", "-A");
            events.iter().any(|e| e["message"].as_str().is_some_and(|m| m.contains(why))).then_some(())
        });
    }
    assert_eq!(mine(&lab).len(), 9, "neither of them was given another address");

    // What is deleted leaves nothing.
    for p in pods.iter().map(|p| &*p.name).chain(["wrong", "strict"]) {
        delete_pod(&lab, p);
    }
    eventually("every record is gone", PATIENCE, || lab.records("node1").is_empty().then_some(()));
    eventually("what was borrowed is back", PATIENCE, || (lent(&lab) == 0).then_some(()));
    let routes = ok(&mut lab.on_node("node1", &["sh", "-c", "ip route; ip -6 route"]));
    assert!(!routes.lines().any(|l| l.contains("10.9.0.") && l.contains("cni0")), "{routes}");
    assert!(!routes.lines().any(|l| l.starts_with("fd00:9::") && l.contains("cni0")), "{routes}");
    ["node1", "node2"].into_iter().for_each(|n| checked(&lab, n));
}
