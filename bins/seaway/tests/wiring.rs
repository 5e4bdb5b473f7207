//! How pods are wired: by the cluster's settings, a namespace, a pod; and their MTU, on real labs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use common::{Lab, Pod, eventually, ok, run};

const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: bridged, annotations: { seaway.io/mode: bridge } }
---
apiVersion: v1
kind: Pod
metadata: { name: plain }
spec: { nodeName: node1, containers: [{ name: c, image: none }] }
---
apiVersion: v1
kind: Pod
metadata: { name: far }
spec: { nodeName: node2, containers: [{ name: c, image: none }] }
---
apiVersion: v1
kind: Pod
metadata: { name: far-ptp, annotations: { seaway.io/mode: ptp } }
spec: { nodeName: node2, containers: [{ name: c, image: none }] }
---
apiVersion: v1
kind: Pod
metadata: { name: far, namespace: bridged }
spec: { nodeName: node2, containers: [{ name: c, image: none }] }
---
apiVersion: v1
kind: Pod
metadata: { name: ptp, annotations: { seaway.io/mode: ptp } }
spec: { nodeName: node1, containers: [{ name: c, image: none }] }
---
apiVersion: v1
kind: Pod
metadata: { name: one, namespace: bridged }
spec: { nodeName: node1, containers: [{ name: c, image: none }] }
---
apiVersion: v1
kind: Pod
metadata: { name: two, namespace: bridged }
spec: { nodeName: node1, containers: [{ name: c, image: none }] }
---
apiVersion: v1
kind: Pod
metadata: { name: own, namespace: bridged, annotations: { seaway.io/mode: routed } }
spec: { nodeName: node1, containers: [{ name: c, image: none }] }
"#;

fn manifests(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pods.yaml"), text).unwrap();
    dir
}

#[test]
fn each_pod_is_wired_as_it_its_namespace_or_the_cluster_says() {
    let dir = manifests(PODS);
    let lab = Lab::up(&[dir.path().to_str().unwrap(), "--nodes", "2", "--backend", "host-gw", "--ip", "dual"]);
    let pods = lab.pods();
    let of = |name: &str| pods.iter().find(|p| p.name == name).unwrap();
    let records = lab.records("node1");
    let mode = |name: &str| {
        let r = records.iter().find(|r| r.pod.as_ref().is_some_and(|p| *p.name == *name)).unwrap();
        r.delegates.first().map_or("routed", |d| &*d.kind).to_owned()
    };
    let modes = ["plain", "ptp", "one", "two", "own"].map(mode);
    assert_eq!(modes, ["routed", "ptp", "bridge", "bridge", "routed"]);
    // Every mode to every mode, on one node and between two, by both families.
    let kind = |p: &Pod| match (&*p.namespace, &*p.name) {
        ("bridged", "one" | "two" | "far") => "bridge",
        (_, "ptp" | "far-ptp") => "ptp",
        _ => "routed",
    };
    let mut table = std::collections::BTreeMap::new();
    for from in &pods {
        for to in &pods {
            for ip in &to.ips {
                let full = format!("{}/{}", from.namespace, from.name);
                let mut ping = lab.cmd(&["exec", &full, "--", "ping", "-c", "1", "-w", "5", &ip.to_string()]);
                let out = run(&mut ping);
                let place = if from.node == to.node { "one node" } else { "two nodes" };
                assert!(
                    out.status.success(),
                    "{} {full} to {} {}/{} by {ip}: {}",
                    kind(from),
                    kind(to),
                    to.namespace,
                    to.name,
                    String::from_utf8_lossy(&out.stdout)
                );
                *table.entry((kind(from), kind(to), place, ip.is_ipv6())).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(table.len(), 3 * 3 * 2 * 2, "{table:?}");
    // Deleted, they leave nothing.
    lab.run(&["delete", "-f", dir.path().to_str().unwrap()]);
    eventually("every record is gone", Duration::from_secs(20), || lab.records("node1").is_empty().then_some(()));
    let links = ok(&mut lab.on_node("node1", &["ip", "-br", "link"]));
    let routes = ok(&mut lab.on_node("node1", &["ip", "-6", "route", "show", "dev", "cni0"]));
    assert!(!routes.contains("/128") && !routes.contains(":2 "), "{routes}");
    assert!(!links.contains("veth") && !links.contains("sea0"), "{links}");
    assert_eq!(of("one").ips.len(), 2);
}

#[test]
fn the_mtu_of_pods_follows_the_uplink_and_the_backend() {
    let dir = manifests(PODS);
    let lab = Lab::up(&[dir.path().to_str().unwrap(), "--nodes", "2", "--backend", "host-gw", "--ip", "dual"]);
    let mtus = |want: u32| {
        let want = format!("mtu {want} ");
        let pod = ok(&mut lab.cmd(&["exec", "default/plain", "--", "ip", "link", "show", "eth0"]));
        let link = lab
            .records("node1")
            .iter()
            .find(|r| r.pod.as_ref().is_some_and(|p| &*p.name == "plain"))
            .unwrap()
            .link
            .to_string();
        let host = ok(&mut lab.on_node("node1", &["ip", "link", "show", &link]));
        (pod.contains(&want) && host.contains(&want)).then_some(())
    };
    eventually("1500 at first", Duration::from_secs(1), || mtus(1500));
    lab.patch("/api/v1/namespaces/kube-system/configmaps/seaway", "{\"data\":{\"backend\":\"vxlan\"}}");
    eventually("1450 with vxlan", Duration::from_secs(5), || mtus(1450));
    let uplink = ok(&mut lab
        .on_node("node1", &["sh", "-c", "ip -br addr | awk '/172\\.31\\./ {print $1}' | cut -d@ -f1 | head -1"]));
    ok(&mut lab.on_node("node1", &["ip", "link", "set", uplink.trim(), "mtu", "1400"]));
    eventually("1350 with a smaller uplink", Duration::from_secs(5), || mtus(1350));
    let conflist = std::fs::read_to_string(lab.dir().join("node1/cni/10-seaway.conflist")).unwrap();
    assert!(conflist.contains("\"mtu\": 1350"), "{conflist}");
}

/// The host end of a pod's pair, as its record tells it.
fn host_end(lab: &Lab, name: &str) -> String {
    let r = lab.records("node1").into_iter().find(|r| r.pod.as_ref().is_some_and(|p| *p.name == *name)).unwrap();
    cni::host_end(&r).map_or_else(|| r.link.to_string(), |l| l.to_string())
}

#[test]
fn what_somebody_takes_from_a_pod_of_any_mode_is_put_back() {
    let dir = manifests(PODS);
    let lab = Lab::up(&[dir.path().to_str().unwrap(), "--nodes", "2", "--backend", "host-gw", "--ip", "dual"]);
    let pods = lab.pods();
    let one = |name: &str| pods.iter().find(|p| p.name == name && p.node == "node1").unwrap();
    let full = |p: &Pod| format!("{}/{}", p.namespace, p.name);
    let reach = |to: &Pod| {
        to.ips
            .iter()
            .all(|ip| run(&mut lab.on_node("node2", &["ping", "-c", "1", "-W", "1", &ip.to_string()])).status.success())
    };
    let guarded = |name: &str| {
        let link = host_end(&lab, name);
        let out = run(&mut lab.on_node(
            "node1",
            &["sh", "-c", &format!("tc filter show dev {link} ingress; bpftool net show dev {link} 2>/dev/null")],
        ));
        String::from_utf8_lossy(&out.stdout).contains("bpf")
    };
    for (name, harm) in [
        ("plain", "ip link del LINK"),
        ("ptp", "ip link del LINK"),
        ("one", "ip link del LINK"),
        ("one", "ip link del cni0"),
        ("two", "ip link set LINK nomaster"),
        ("two", "tc qdisc del dev LINK clsact"),
        ("ptp", "tc qdisc del dev LINK clsact"),
        ("ptp", "ip route del POD4"),
        ("two", "ip -6 route del POD6/128"),
    ] {
        let pod = one(name);
        eventually(&format!("{name} is well before {harm}"), Duration::from_secs(60), || {
            (reach(pod) && guarded(name)).then_some(())
        });
        let ip = |v6: bool| pod.ips.iter().find(|i| i.is_ipv6() == v6).unwrap().to_string();
        let harm = harm.replace("LINK", &host_end(&lab, name)).replace("POD4", &ip(false)).replace("POD6", &ip(true));
        let out = run(&mut lab.on_node("node1", &["sh", "-c", &harm]));
        if harm.contains("clsact") && !out.status.success() {
            // The guard is no longer there by way of a queueing discipline.
            continue;
        }
        assert!(out.status.success(), "{harm}: {}", String::from_utf8_lossy(&out.stderr));
        eventually(&format!("{name} is well after {harm}"), Duration::from_secs(120), || {
            (reach(pod) && guarded(name)).then_some(())
        });
        let addresses = ok(&mut lab.cmd(&["exec", &full(pod), "--", "ip", "addr", "show", "eth0"]));
        assert!(pod.ips.iter().all(|i| addresses.contains(&format!("{i}/"))), "{addresses}");
    }
}

#[test]
fn a_pod_of_any_mode_speaks_from_its_own_addresses_alone() {
    let dir = manifests(PODS);
    let lab = Lab::up(&[dir.path().to_str().unwrap(), "--nodes", "2", "--backend", "host-gw", "--ip", "dual"]);
    let pods = lab.pods();
    let node = kernel::Netns::open(format!("/run/netns/{}-node1", lab.name)).unwrap();
    for name in ["plain", "ptp", "one"] {
        let pod = pods.iter().find(|p| p.name == name && p.node == "node1").unwrap();
        let r = lab.records("node1").into_iter().find(|r| r.pod.as_ref().is_some_and(|p| &*p.name == name)).unwrap();
        let inside = kernel::Netns::open(&*r.netns).unwrap();
        for own in &pod.ips {
            let server = node
                .run(|| UdpSocket::bind(if own.is_ipv4() { "0.0.0.0:4000" } else { "[::]:4000" }))
                .unwrap()
                .unwrap();
            server.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let nodes = lab.objects("nodes", "");
            let addresses =
                nodes.iter().find(|n| n["metadata"]["name"] == "node1").unwrap()["status"]["addresses"].clone();
            let to: IpAddr = addresses
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|a| a["address"].as_str()?.parse::<IpAddr>().ok())
                .find(|a| a.is_ipv4() == own.is_ipv4())
                .unwrap();
            // Another address of the node's range, which the node would take for a pod of this very link.
            let other: IpAddr = match own {
                IpAddr::V4(a) => std::net::Ipv4Addr::from(u32::from(*a) + 100).into(),
                IpAddr::V6(a) => std::net::Ipv6Addr::from(u128::from(*a) + 100).into(),
            };
            let length = if own.is_ipv4() { 32 } else { 128 };
            let full = format!("{}/{}", pod.namespace, pod.name);
            let add = ["exec", &full, "--", "ip", "addr", "add", &format!("{other}/{length}"), "dev", "eth0"];
            let mut add: Vec<&str> = add.to_vec();
            if own.is_ipv6() {
                add.push("nodad");
            }
            ok(&mut lab.cmd(&add));
            let says = |from: IpAddr| {
                let sent = inside.run(|| UdpSocket::bind((from, 0)).and_then(|s| s.send_to(b"x", (to, 4000)))).unwrap();
                sent.unwrap();
                let mut buffer = [0; 8];
                server.recv_from(&mut buffer).is_ok_and(|(_, a)| a.ip() == from)
            };
            eventually("its own address is let through", Duration::from_secs(20), || says(*own).then_some(()));
            assert!(!says(other), "{name} spoke as {other}");
            assert!(says(*own));
        }
        // With another hardware address it says nothing at all.
        let full = format!("{}/{}", pod.namespace, pod.name);
        ok(&mut lab.cmd(&["exec", &full, "--", "ip", "link", "set", "eth0", "address", "0a:00:00:00:00:77"]));
        let ping = ["exec", &full, "--", "ping", "-c", "1", "-W", "1", "169.254.1.1"];
        drop(run(&mut lab.cmd(&ping)));
        let neighbours = ok(&mut lab.on_node("node1", &["ip", "neigh"]));
        assert!(!neighbours.contains("0a:00:00:00:00:77"), "{neighbours}");
    }
}
