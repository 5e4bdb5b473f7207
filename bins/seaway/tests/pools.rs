//! Address pools on a real lab: blocks are claimed and run out, addresses are borrowed, pods go, pools are disabled and
//! deleted; and every address that a pod has is reached from every node all the while.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;
#[path = "pools/modes.rs"]
mod modes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::{Command, Output};

use common::{Lab, PATIENCE, Pod, SEAWAY, eventually, eventually_or, ok, run};
use serde_json::{Value, json};
use types::Cidr;

const JSON: &str = "application/json";
const OWN: &str = "/apis/seaway.io/v1alpha1";
const NODES: [&str; 3] = ["node1", "node2", "node3"];

fn nodes(lab: &Lab) -> Vec<String> {
    lab.objects("nodes", "").iter().filter_map(|n| Some(n["metadata"]["name"].as_str()?.to_owned())).collect()
}

fn add_pool(lab: &Lab, name: &str, spec: Value) {
    let body = json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec});
    lab.api("POST", &format!("{OWN}/ippools"), Some((JSON, &body.to_string())));
}

fn settings(lab: &Lab, data: Value) {
    lab.patch("/api/v1/namespaces/kube-system/configmaps/seaway", &json!({"data": data}).to_string());
}

/// Sets `data`, which names pools, and waits until every node has a block of each pool and gives addresses of them: a
/// pod that comes earlier rightly has one of its node's own range.
fn by_pools(lab: &Lab, data: Value, pools: &[&str]) {
    settings(lab, data);
    let nodes = nodes(lab);
    eventually("each node has a block of each pool", PATIENCE, || {
        pools.iter().all(|p| ranges(lab, p).len() == nodes.len()).then_some(())
    });
    eventually("the configuration names pools", PATIENCE, || {
        let names = |n: &String| std::fs::read_to_string(lab.conflist(n)).is_ok_and(|t| t.contains("pools.json"));
        nodes.iter().all(names).then_some(())
    });
}

fn add_pod(lab: &Lab, name: &str, node: &str, annotations: Value) {
    let body = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0,
                 "containers": [{"name": "c", "image": "docker.io/library/redis:7", "ports": [{"containerPort": 6379}]}]},
    });
    lab.api("POST", "/api/v1/namespaces/default/pods", Some((JSON, &body.to_string())));
}

fn delete_pod(lab: &Lab, name: &str) {
    lab.api("DELETE", &format!("/api/v1/namespaces/default/pods/{name}"), None);
}

fn objects(lab: &Lab, plural: &str) -> Vec<Value> {
    lab.api("GET", &format!("{OWN}/{plural}"), None)["items"].as_array().cloned().unwrap_or_default()
}

fn mine(lab: &Lab) -> Vec<Pod> {
    lab.pods().into_iter().filter(|p| p.namespace == "default" && !p.host_network).collect()
}

/// Waits until so many pods run, each with `families` addresses.
fn running(lab: &Lab, count: usize, families: usize) -> Vec<Pod> {
    let found = eventually_or(PATIENCE, || {
        Some(mine(lab)).filter(|p| p.len() == count && p.iter().all(|p| p.ips.len() == families))
    });
    found.unwrap_or_else(|| {
        let events = lab.objects("events", "-A");
        let said: Vec<String> =
            events.iter().map(|e| format!("{}: {}", e["involvedObject"]["name"], e["message"])).collect();
        panic!("not within {PATIENCE:?}: {count} pods run: {:?}\n{}\n{}", mine(lab), show(lab), said.join("\n"))
    })
}

/// Every address answers a ping from every node, and from a pod of another node; nobody has another's.
fn all_reach_all(lab: &Lab) {
    let pods = mine(lab);
    let all: Vec<IpAddr> = pods.iter().flat_map(|p| p.ips.clone()).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "an address twice: {pods:?}");
    let ping =
        |mut c: Command, ip: &IpAddr| run(c.args(["ping", "-n", "-c1", "-W2", &ip.to_string()])).status.success();
    for ip in &all {
        let from_nodes: Vec<String> = nodes(lab).into_iter().filter(|n| !ping(lab.on_node(n, &[]), ip)).collect();
        assert!(from_nodes.is_empty(), "{ip} is not reached from {from_nodes:?}: {pods:?}\n{}", show(lab));
    }
    for to in &pods {
        let Some(from) = pods.iter().find(|p| p.node != to.node) else { continue };
        for ip in to.ips.iter().filter(|a| from.ips.iter().any(|b| a.is_ipv4() == b.is_ipv4())) {
            let mut c = lab.cmd(&["exec", &format!("default/{}", from.name), "--"]);
            let out = run(c.args(["ping", "-n", "-c1", "-W2", &ip.to_string()]));
            assert!(
                out.status.success(),
                "{ip} is not reached from pod {}: {}",
                from.name,
                String::from_utf8_lossy(&out.stdout)
            );
        }
    }
}

fn show(lab: &Lab) -> String {
    let blocks: Vec<String> = objects(lab, "ipblocks").iter().map(|b| b["spec"].to_string()).collect();
    let route = |n: String| format!("{n}: {}", ok(&mut lab.on_node(&n, &["ip", "route"])));
    let routes: Vec<String> = nodes(lab).into_iter().map(route).collect();
    format!("{}\n{}", blocks.join("\n"), routes.join("\n"))
}

fn ranges(lab: &Lab, pool: &str) -> BTreeMap<String, Vec<Cidr>> {
    let mut out: BTreeMap<String, Vec<Cidr>> = BTreeMap::new();
    for b in objects(lab, "ipblocks").iter().filter(|b| b["spec"]["pool"] == pool) {
        let node = b["spec"]["node"].as_str().unwrap_or_default().to_owned();
        out.entry(node).or_default().push(b["spec"]["cidr"].as_str().unwrap().parse().unwrap());
    }
    out
}

fn lent(lab: &Lab) -> usize {
    objects(lab, "ipblocks").iter().map(|b| b["spec"]["lent"].as_array().map_or(0, Vec::len)).sum()
}

fn ipam(lab: &Lab, node: &str, args: &[&str]) -> Output {
    let dir = lab.dir().join(node).join("ipam");
    let api = format!("unix:{}", lab.dir().join("api.sock").display());
    run(lab
        .on_node(node, &[SEAWAY, "ipam"])
        .args(args)
        .arg("--ipam-dir")
        .arg(dir)
        .args(["--api", &api, "--node", node]))
}

#[test]
fn blocks_run_out_addresses_are_borrowed_and_pools_go_without_stranding_a_pod() {
    let lab = Lab::up(&["--nodes", "3", "--backend", "vxlan", "--ip", "dual"]);
    // A pod of before keeps its address while the cluster moves to pools.
    add_pod(&lab, "old", "node1", json!({}));
    let old = running(&lab, 1, 2).remove(0);
    add_pool(&lab, "small", json!({"cidr": "10.9.0.0/28", "blockSize": 30}));
    add_pool(&lab, "six", json!({"cidr": "fd00:9::/124", "blockSize": 126}));
    by_pools(&lab, json!({"ipam": "pools"}), &["small", "six"]);

    // 13 of 16 addresses: node1 needs two blocks and more, so the others lend.
    let count = [("node1", 9), ("node2", 2), ("node3", 2)];
    for (node, n) in count {
        for i in 0..n {
            add_pod(&lab, &format!("{node}-{i}"), node, json!({}));
        }
    }
    let pods = running(&lab, 14, 2);
    for p in pods.iter().filter(|p| p.name != "old") {
        let [v4, v6] = [&p.ips[0], &p.ips[1]];
        assert!(
            "10.9.0.0/28".parse::<Cidr>().unwrap().contains(*v4)
                && "fd00:9::/124".parse::<Cidr>().unwrap().contains(*v6),
            "{p:?}"
        );
    }
    assert!(pods.iter().any(|p| p.ips == old.ips), "the pod of before lives as it was");
    assert!(lent(&lab) > 0, "{}", show(&lab));
    all_reach_all(&lab);
    for node in NODES {
        let out = ipam(&lab, node, &["check"]);
        assert!(
            out.status.success(),
            "{node}: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }

    // Pods go: what was borrowed goes back.
    for i in 0..9 {
        delete_pod(&lab, &format!("node1-{i}"));
    }
    running(&lab, 5, 2);
    eventually("borrowed addresses are given back", PATIENCE, || (lent(&lab) == 0).then_some(()));
    all_reach_all(&lab);

    // A disabled pool gives nothing new; a deleted one stays until its last pod is gone.
    add_pool(&lab, "next", json!({"cidr": "10.10.0.0/26", "blockSize": 29}));
    lab.patch(&format!("{OWN}/ippools/small"), r#"{"spec":{"disabled":true}}"#);
    eventually("the new pool is claimed from", PATIENCE, || (ranges(&lab, "next").len() == 3).then_some(()));
    add_pod(&lab, "fresh", "node1", json!({}));
    let pods = running(&lab, 6, 2);
    let fresh = pods.iter().find(|p| p.name == "fresh").unwrap();
    assert!("10.10.0.0/26".parse::<Cidr>().unwrap().contains(fresh.ips[0]), "{fresh:?}");
    lab.api("DELETE", &format!("{OWN}/ippools/small"), None);
    eventually("the pool says who holds it", PATIENCE, || {
        let pool = objects(&lab, "ippools").into_iter().find(|p| p["metadata"]["name"] == "small")?;
        pool["status"]["message"].as_str()?.contains("4 pods have addresses of it").then_some(())
    });
    all_reach_all(&lab);
    for p in pods.iter().filter(|p| p.name.starts_with("node")) {
        delete_pod(&lab, &p.name);
    }
    eventually("the pool is gone with its last pod", PATIENCE, || {
        let left = objects(&lab, "ippools").iter().any(|p| p["metadata"]["name"] == "small");
        (!left && ranges(&lab, "small").is_empty()).then_some(())
    });
    running(&lab, 2, 2);
    all_reach_all(&lab);
}

/// What is broken by hand on purpose, one thing of each kind, is found and mended.
#[test]
fn every_disagreement_is_found_and_mended() {
    let lab = Lab::up(&["--nodes", "2", "--backend", "host-gw"]);
    add_pool(&lab, "small", json!({"cidr": "10.9.0.0/28", "blockSize": 30}));
    by_pools(&lab, json!({"ipam": "pools", "addressesOutsideIPAM": "true"}), &["small"]);
    add_pod(&lab, "a", "node1", json!({}));
    let block = ranges(&lab, "small")["node2"][0];
    add_pod(&lab, "b", "node1", json!({"seaway.io/ip-addrs": block.last().to_string()}));
    let pods = running(&lab, 2, 1);
    let b = pods.iter().find(|p| p.name == "b").unwrap();
    assert_eq!(b.ips, [block.last()], "a fixed address of another node's block is borrowed");
    all_reach_all(&lab);
    let text = |o: &Output| format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    let out = ipam(&lab, "node1", &["check"]);
    assert!(out.status.success() && text(&out).contains("2 records, 0 disagreements"), "{}", text(&out));
    for (args, says) in [
        (&["pools"][..], "small"),
        (&["show", "--blocks"], "to node1"),
        (&["show"], "default/b"),
        (&["pools", "-o", "json"], "\"blockSize\": 30"),
    ] {
        let out = ipam(&lab, "node1", args);
        assert!(out.status.success() && text(&out).contains(says), "{args:?}: {}", text(&out));
    }
    // Wrong uses are refused, and an Event says why.
    add_pod(&lab, "wrong", "node1", json!({"seaway.io/ipv4pools": "nope"}));
    eventually("an Event at the pod", PATIENCE, || {
        let events = lab.objects("events", "default");
        events
            .iter()
            .any(|e| {
                e["involvedObject"]["name"] == "wrong"
                    && e["message"].as_str().is_some_and(|m| m.contains("there is no IPPool of name or range"))
            })
            .then_some(())
    });
    delete_pod(&lab, "wrong");
    // An address of no pool, where the cluster allows it: one node's, and peers know whose.
    add_pod(&lab, "outside", "node2", json!({"seaway.io/ip-addrs-no-ipam": "172.30.0.9"}));
    let pods = running(&lab, 3, 1);
    assert!(pods.iter().any(|p| p.name == "outside" && p.ips == ["172.30.0.9".parse::<IpAddr>().unwrap()]), "{pods:?}");
    all_reach_all(&lab);
    delete_pod(&lab, "outside");
    eventually("nobody has it any more", PATIENCE, || {
        objects(&lab, "ipblocks").iter().all(|b| b["spec"]["pool"] != "").then_some(())
    });
    // A living pod keeps its address.
    let out = ipam(&lab, "node1", &["release", &block.last().to_string()]);
    assert!(!out.status.success() && text(&out).contains("pod default/b lives"), "{}", text(&out));

    // Now without an agent, so that nobody else mends it.
    for p in common::Proc::find(&lab, &["agent", "node1"]) {
        p.kill();
    }
    let records = lab.records("node1");
    let of = |name: &str| records.iter().find(|r| r.pod.as_ref().is_some_and(|p| *p.name == *name)).unwrap();
    let v4 = of("a").addresses[0].to_string();
    ok(&mut lab.on_node("node1", &["ip", "route", "del", &v4]));
    ok(&mut lab.on_node("node1", &["ip", "link", "del", of("b").link.as_str()]));
    ok(&mut lab.on_node("node1", &["ip", "link", "add", "sea0123456789ab", "type", "veth", "peer", "name", "x0"]));
    ok(&mut lab.on_node("node1", &["ip", "route", "add", "10.9.0.77/32", "dev", of("a").link.as_str(), "proto", "83"]));
    let name = resolve::pools::IpBlock::name_of(ranges(&lab, "small")["node1"][0]);
    lab.patch(&format!("{OWN}/ipblocks/{name}"), r#"{"metadata":{"finalizers":null}}"#);
    lab.api("DELETE", &format!("{OWN}/ipblocks/{name}"), None);
    let out = ipam(&lab, "node1", &["check"]);
    let said = text(&out);
    for part in [
        "has no route to",
        "is missing",
        "sea0123456789ab belongs to no record",
        "a route leads 10.9.0.77/32",
        "no IPBlock of IPPool small holds",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(out.status.code(), Some(1), "{said}");
    let out = ipam(&lab, "node1", &["check", "--fix"]);
    assert!(out.status.success(), "{}", text(&out));
    let out = ipam(&lab, "node1", &["check"]);
    assert!(out.status.success() && text(&out).contains("0 disagreements"), "{}", text(&out));
    lab.run(&["heal"]);
    all_reach_all(&lab);
}
