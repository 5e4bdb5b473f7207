//! Host ports and limits of pods, with the real agent on a real lab: healed, changed while the pod lives, told when they
//! clash.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::{Lab, PATIENCE, Proc, eventually, ok, run};
use serde_json::{Value, json};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/shop");

fn pod(name: &str, node: &str, host_port: u16) -> String {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "annotations": {"kubernetes.io/egress-bandwidth": "10M"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x",
            "ports": [{"containerPort": 8080, "hostPort": host_port}]}]}})
    .to_string()
}

fn running(lab: &Lab, name: &str) -> bool {
    lab.pods().iter().any(|p| p.name == name)
}

/// What a connection to the node's own port gets: whether anybody answers.
fn answers(lab: &Lab, node: &str, port: u16) -> bool {
    let line = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    run(&mut lab.on_node(node, &["timeout", "1", "bash", "-c", &line])).status.success()
}

#[test]
fn host_ports_are_healed_and_limits_follow_the_annotations() {
    let lab = Lab::up(&[SHOP, "--nodes", "1", "--ip", "dual"]);
    let node = lab.objects("nodes", "")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let make = |name: &str, port| {
        lab.api("POST", "/api/v1/namespaces/shop/pods", Some(("application/json", &pod(name, &node, port))))
    };
    make("direct", 8088);
    eventually("the pod runs", PATIENCE, || running(&lab, "direct").then_some(()));
    eventually("its host port answers", PATIENCE, || answers(&lab, &node, 8088).then_some(()));
    let table = || run(&mut lab.on_node(&node, &["nft", "list", "table", "inet", "seaway-hostports"]));
    for harm in [&["nft", "flush", "ruleset"][..], &["nft", "flush", "chain", "inet", "seaway-hostports", "output"]] {
        ok(&mut lab.on_node(&node, harm));
        let start = Instant::now();
        eventually(&format!("{harm:?} is healed"), Duration::from_secs(2), || {
            (table().status.success() && answers(&lab, &node, 8088)).then_some(())
        });
        eprintln!("{harm:?}: whole after {:?}", start.elapsed());
    }

    let tc = || ok(&mut lab.on_node(&node, &["tc", "qdisc", "show"]));
    assert!(tc().contains("rate 10Mbit"), "{}", tc());
    let annotate = |v: Value| {
        lab.patch("/api/v1/namespaces/shop/pods/direct", &json!({"metadata": {"annotations": v}}).to_string());
    };
    annotate(json!({"kubernetes.io/egress-bandwidth": "20M", "kubernetes.io/ingress-bandwidth": "5M"}));
    eventually("other limits", Duration::from_secs(2), || {
        let t = tc();
        (t.contains("rate 20Mbit") && t.contains("rate 5Mbit") && !t.contains("rate 10Mbit")).then_some(())
    });
    annotate(json!({"kubernetes.io/egress-bandwidth": null, "kubernetes.io/ingress-bandwidth": null}));
    eventually("no limits", Duration::from_secs(2), || (!tc().contains("tbf")).then_some(()));
    assert!(!ok(&mut lab.on_node(&node, &["ip", "-br", "link"])).contains("bwp"));
    assert!(answers(&lab, &node, 8088), "the pod is where it was");

    // The node port of the shop's Service comes first; somebody is told.
    make("clash", 30080);
    eventually("an Event tells of the clash", PATIENCE, || {
        let events = lab.objects("events", "-A");
        events
            .iter()
            .any(|e| e["message"].as_str().is_some_and(|m| m.contains("30080/TCP is also the node port of")))
            .then_some(())
    });

    for name in ["direct", "clash"] {
        lab.api("DELETE", &format!("/api/v1/namespaces/shop/pods/{name}"), None);
    }
    eventually("nothing is left", PATIENCE, || {
        (!String::from_utf8_lossy(&table().stdout).contains("comment")).then_some(())
    });
}

/// A pod that asks for any port of its node.
fn random(name: &str, node: Option<&str>, asks: &str, port: u16, mode: &str) -> String {
    let mut v = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default",
            "annotations": {"seaway.io/random-host-ports": asks, "seaway.io/mode": mode}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "x",
            "env": [{"name": "TOLD", "valueFrom": {"fieldRef":
                {"fieldPath": "metadata.annotations['host-port.seaway.io/8080-tcp']"}}}],
            "ports": [{"containerPort": 8080}, {"containerPort": port, "protocol": "UDP"}]}]}});
    if let Some(n) = node {
        v["spec"]["nodeName"] = n.into();
    }
    v.to_string()
}

fn make(lab: &Lab, body: &str) {
    lab.api("POST", "/api/v1/namespaces/default/pods", Some(("application/json", body)));
}

fn delete(lab: &Lab, name: &str) {
    lab.api("DELETE", &format!("/api/v1/namespaces/default/pods/{name}"), None);
    eventually(&format!("{name} is gone"), PATIENCE, || {
        lab.objects("pods", "default").iter().all(|p| p["metadata"]["name"] != name).then_some(())
    });
}

fn object(lab: &Lab, name: &str) -> Value {
    lab.api("GET", &format!("/api/v1/namespaces/default/pods/{name}"), None)
}

/// What the Pod tells: (container's port, protocol, host port).
fn told(lab: &Lab, name: &str) -> Vec<(u16, String, u16)> {
    let o = object(lab, name);
    let list: Value =
        serde_json::from_str(o["metadata"]["annotations"]["seaway.io/host-ports"].as_str().unwrap_or("[]")).unwrap();
    let port = |v: &Value| u16::try_from(v.as_u64().unwrap()).unwrap();
    let all = list.as_array().unwrap().iter();
    all.map(|p| (port(&p["containerPort"]), p["protocol"].as_str().unwrap().into(), port(&p["hostPort"]))).collect()
}

fn runs(lab: &Lab, name: &str) -> Vec<(u16, String, u16)> {
    eventually(&format!("{name} runs"), PATIENCE, || running(lab, name).then_some(()));
    told(lab, name)
}

/// Who answers there, asked from a network namespace of the lab.
fn who(lab: &Lab, from: &str, to: SocketAddr, proto: &str) -> Option<String> {
    let ns = kernel::Netns::open(format!("/run/netns/{}-{from}", lab.name)).unwrap();
    let limit = Some(Duration::from_secs(2));
    let answer = ns.run(|| -> std::io::Result<String> {
        let mut buffer = [0; 1024];
        let n = if proto == "UDP" {
            let s = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            s.set_read_timeout(limit)?;
            s.send_to(b"hello", to)?;
            s.recv(&mut buffer)?
        } else {
            let mut s = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            s.set_read_timeout(limit)?;
            s.write_all(b"hello\n")?;
            s.read(&mut buffer)?
        };
        Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
    });
    let line = answer.unwrap().ok()?;
    Some(line.split_ascii_whitespace().next()?.trim_start_matches("pod=").to_owned())
}

fn node_ips(lab: &Lab, node: &str) -> Vec<IpAddr> {
    let nodes = lab.objects("nodes", "");
    let of = nodes.iter().find(|n| n["metadata"]["name"] == node).unwrap();
    let all = of["status"]["addresses"].as_array().unwrap().iter();
    all.filter(|a| a["type"] == "InternalIP").map(|a| a["address"].as_str().unwrap().parse().unwrap()).collect()
}

fn range(lab: &Lab, node: &str, range: Option<&str>) {
    let v = json!({"metadata": {"annotations": {"seaway.io/host-port-range": range}}});
    lab.patch(&format!("/api/v1/nodes/{node}"), &v.to_string());
}

fn table(lab: &Lab, node: &str) -> String {
    String::from_utf8_lossy(&run(&mut lab.on_node(node, &["nft", "list", "table", "inet", "seaway-hostports"])).stdout)
        .into()
}

fn events(lab: &Lab, name: &str, says: &str) {
    eventually(&format!("an Event of {name} says {says:?}"), PATIENCE, || {
        lab.objects("events", "-A")
            .iter()
            .any(|e| e["involvedObject"]["name"] == name && e["message"].as_str().is_some_and(|m| m.contains(says)))
            .then_some(())
    });
}

#[test]
fn random_host_ports_lead_to_the_pod_that_asked_and_it_is_told() {
    let lab = Lab::up(&["--nodes", "2", "--ip", "dual"]);
    for (name, mode) in [("any", "routed"), ("bridged", "bridge")] {
        make(&lab, &random(name, Some("node1"), "8080, 5353/UDP, 7777/SCTP", 5353, mode));
        let ports = runs(&lab, name);
        assert_eq!(ports.len(), 3, "{ports:?}");
        assert!(ports.iter().all(|(_, _, p)| (20_000..30_000).contains(p)), "{ports:?}");
        for (_, proto, port) in ports.iter().filter(|p| p.1 != "SCTP") {
            for ip in node_ips(&lab, "node1") {
                // From another node, from the node itself.
                for from in ["node2", "node1"] {
                    let to = SocketAddr::new(ip, *port);
                    let who =
                        eventually(&format!("{to}/{proto} answers {from}"), PATIENCE, || who(&lab, from, to, proto));
                    assert_eq!(who, format!("default/{name}"), "{to}/{proto}");
                }
            }
        }
        // SCTP has no sockets on every kernel: the mapping is there, and the frames of all are translated alike.
        let sctp = ports.iter().find(|p| p.1 == "SCTP").unwrap().2;
        assert!(table(&lab, "node1").contains(&format!("sctp . {sctp}")), "{}", table(&lab, "node1"));
        // Its environment says so, by our variables and by the downward API; its own command sees it.
        let p = &Proc::find(&lab, &["echo", "--pod", &format!("default/{name}")])[0];
        let env = std::fs::read(format!("/proc/{}/environ", p.pid)).unwrap();
        let env: Vec<String> = env.split(|b| *b == 0).map(|l| String::from_utf8_lossy(l).into()).collect();
        for (to, proto, port) in &ports {
            assert!(env.contains(&format!("SEAWAY_HOST_PORT_{to}_{proto}={port}")), "{env:?}");
        }
        let tcp = ports.iter().find(|p| p.1 == "TCP").unwrap().2;
        assert!(env.contains(&format!("TOLD={tcp}")), "{env:?}");
    }
    // What somebody took away from the Pod is told again, the same.
    let before = told(&lab, "any");
    let none = json!({"metadata": {"annotations": {"seaway.io/host-ports": null}}});
    lab.patch("/api/v1/namespaces/default/pods/any", &none.to_string());
    eventually("told again", PATIENCE, || (told(&lab, "any") == before).then_some(()));
    // The agent is killed, and somebody flushes the rules: nothing changes for the pod.
    Proc::find(&lab, &["agent", "--node", "node1"])[0].kill();
    ok(&mut lab.on_node("node1", &["nft", "flush", "ruleset"]));
    lab.run(&["heal"]);
    let to = SocketAddr::new(node_ips(&lab, "node1")[0], before.iter().find(|p| p.1 == "TCP").unwrap().2);
    eventually("the port answers again", PATIENCE, || who(&lab, "node2", to, "TCP"));
    assert_eq!(told(&lab, "any"), before);
    // A DEL that never comes: `ipam check --fix` takes the ports back. The runner and the agent would otherwise.
    for words in [&["lab", "node"][..], &["agent", "node1"]] {
        Proc::find(&lab, words).iter().for_each(Proc::kill);
    }
    let of_any = |r: &ipam::Record| r.pod.as_ref().is_some_and(|p| &*p.name == "any");
    let record = lab.records("node1").into_iter().find(of_any).unwrap();
    assert_eq!(record.ports.len(), 3);
    ok(std::process::Command::new("umount").arg(&*record.netns));
    for p in Proc::find(&lab, &["echo", "--pod", "default/any"]) {
        p.kill();
    }
    std::fs::remove_file(&*record.netns).unwrap();
    let dir = lab.dir().join("node1/ipam");
    let check = [common::SEAWAY, "ipam", "check", "--fix", "--ipam-dir", dir.to_str().unwrap()];
    let said = run(&mut lab.on_node("node1", &check));
    assert!(!lab.records("node1").iter().any(of_any), "{}", String::from_utf8_lossy(&said.stdout));
    assert!(who(&lab, "node2", to, "TCP").is_none());
    assert_eq!(table(&lab, "node1").matches(&*record.key.container).count(), 0, "{}", table(&lab, "node1"));
    lab.run(&["heal"]);
    for name in ["any", "bridged"] {
        delete(&lab, name);
    }
    eventually("nothing is left", PATIENCE, || {
        (!table(&lab, "node1").contains("comment") && lab.records("node1").is_empty()).then_some(())
    });
}

#[test]
fn a_random_host_port_is_nobody_elses_and_pods_go_where_some_are() {
    let lab = Lab::up(&["--nodes", "2", "--ip", "dual"]);
    for node in ["node1", "node2"] {
        range(&lab, node, Some("21000-21003"));
        eventually("the node says how many it has", PATIENCE, || {
            let n = lab.api("GET", &format!("/api/v1/nodes/{node}"), None);
            (n["status"]["capacity"]["seaway.io/host-ports"] == "4").then_some(())
        });
    }
    // A process of the node listens on one, another pod has one by its spec, a Service's node port is one.
    let ns = kernel::Netns::open(format!("/run/netns/{}-node1", lab.name)).unwrap();
    let listener = ns.run(|| TcpListener::bind("[::]:21000")).unwrap().unwrap();
    lab.api(
        "POST",
        "/api/v1/namespaces/default/pods",
        Some(("application/json", &pod("fixed", "node1", 21_001).replace("shop", "default"))),
    );
    eventually("the pod with a port of its own runs", PATIENCE, || running(&lab, "fixed").then_some(()));
    for name in ["one", "two"] {
        make(&lab, &random(name, Some("node1"), "8080", 5353, "routed"));
    }
    let mut got: Vec<u16> = ["one", "two"].iter().map(|n| runs(&lab, n)[0].2).collect();
    got.sort_unstable();
    assert_eq!(got, [21_002, 21_003], "those that nobody has");
    let ips = node_ips(&lab, "node1");
    assert_eq!(who(&lab, "node2", SocketAddr::new(ips[0], 21_001), "TCP").as_deref(), Some("default/fixed"));
    // No room: said, and got as soon as there is.
    make(&lab, &random("three", Some("node1"), "8080", 5353, "routed"));
    events(&lab, "three", "no port of 21000-21003 is free on Node node1 for port 8080/TCP");
    assert!(!running(&lab, "three"));
    // Who is not bound to that node goes to the other, as long as there are some.
    for name in ["four", "five", "six", "seven"] {
        make(&lab, &random(name, None, "8080", 5353, "routed"));
        runs(&lab, name);
        assert_eq!(object(&lab, name)["spec"]["nodeName"], "node2", "{name}");
    }
    make(&lab, &random("eight", None, "8080", 5353, "routed"));
    // Nor does one whose hostPort was given to a pod of each node.
    let fixed = pod("apart", "", got[0]).replace("shop", "default");
    lab.api("POST", "/api/v1/namespaces/default/pods", Some(("application/json", &fixed)));
    std::thread::sleep(Duration::from_secs(1));
    for name in ["eight", "apart"] {
        assert_eq!(object(&lab, name)["spec"]["nodeName"].as_str().unwrap_or(""), "", "{name} has nowhere to go");
        delete(&lab, name);
    }
    delete(&lab, "one");
    let third = runs(&lab, "three");
    assert!(got.contains(&third[0].2), "{third:?} of {got:?}");
    drop(listener);
    // Wrong use: told at the Pod, with the annotation and the fix.
    for (name, asks, says) in [
        ("zero", "0", "metadata.annotations[seaway.io/random-host-ports]: has \"0\": a port from 1 to 65535 is needed"),
        ("named", "web", "no container has a port of that name"),
        ("far", "8080@192.0.2.77", "asks for 192.0.2.77, which is no address of Node node2"),
    ] {
        make(&lab, &random(name, Some("node2"), asks, 5353, "routed"));
        events(&lab, name, says);
        assert!(!running(&lab, name));
    }
}

#[test]
fn a_random_host_port_of_one_address_answers_at_that_one_alone() {
    let lab = Lab::up(&["--nodes", "2", "--ip", "dual"]);
    let ips = node_ips(&lab, "node1");
    let (v4, v6) = (ips.iter().find(|i| i.is_ipv4()).unwrap(), ips.iter().find(|i| i.is_ipv6()).unwrap());
    // A second address of the node, that others have a way to.
    ok(&mut lab.on_node("node1", &["ip", "address", "add", "192.0.2.77/32", "dev", "eth0"]));
    ok(&mut lab.on_node("node2", &["ip", "route", "add", "192.0.2.77/32", "via", &v4.to_string()]));
    for (name, mode) in [("routed", "routed"), ("bridged", "bridge")] {
        make(&lab, &random(name, Some("node1"), &format!("8080@{v4}, 5353/UDP@{v6}"), 5353, mode));
        let ports = runs(&lab, name);
        assert_eq!(ports.len(), 2, "{ports:?}");
        let other: IpAddr = "192.0.2.77".parse().unwrap();
        for (_, proto, port) in &ports {
            let (mine, others) = if proto == "UDP" { (v6, [*v4, other]) } else { (v4, [*v6, other]) };
            let at = |ip: IpAddr| SocketAddr::new(ip, *port);
            let said = eventually(&format!("{}/{proto} answers", at(*mine)), PATIENCE, || {
                who(&lab, "node2", at(*mine), proto)
            });
            assert_eq!(said, format!("default/{name}"));
            assert_eq!(who(&lab, "node1", at(*mine), proto), Some(said), "from the node itself");
            for ip in others {
                assert_eq!(who(&lab, "node2", at(ip), proto), None, "{}/{proto} is not the pod's", at(ip));
            }
        }
        delete(&lab, name);
    }
    eventually("nothing is left", PATIENCE, || (!table(&lab, "node1").contains("comment")).then_some(()));
}
