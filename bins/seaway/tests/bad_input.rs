//! Bad input, as a person meets it: each is told apart by object, field and fix, and the rest goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::process::{Command, Stdio};

const SEAWAY: &str = env!("CARGO_BIN_EXE_seaway");

const NODE1: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\nspec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 172.31.1.1}]}\n";

/// A manifest beside a good Node, and what must be said of it: object, field, fix.
const MANIFESTS: &[(&str, &str, &[&str])] = &[
    (
        "an unknown setting",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: seaway, namespace: kube-system}\ndata: {backnd: vxlan}\n",
        &["ConfigMap/kube-system/seaway", "data.backnd", "backend"],
    ),
    (
        "a backend that does not exist",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: seaway, namespace: kube-system}\ndata: {backend: carrier-pigeon}\n",
        &["ConfigMap/kube-system/seaway", "data.backend", "use host-gw or vxlan"],
    ),
    (
        "a malformed cluster range",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: seaway, namespace: kube-system}\ndata: {clusterCIDR: 10.244.0.1/16}\n",
        &["ConfigMap/kube-system/seaway", "data.clusterCIDR", "10.244.0.0/16"],
    ),
    (
        "a malformed pod range",
        "apiVersion: v1\nkind: Node\nmetadata: {name: node2}\nspec: {podCIDR: 10.244.2.0, podCIDRs: [10.244.2.0]}\nstatus: {addresses: [{type: InternalIP, address: 172.31.1.2}]}\n",
        &["Node/node2", "spec.podCIDR", "ADDRESS/LENGTH"],
    ),
    (
        "two nodes with one pod range",
        "apiVersion: v1\nkind: Node\nmetadata: {name: node2}\nspec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 172.31.1.2}]}\n",
        &["Node/node", "spec.podCIDRs", "10.244.1.0/24", "node1"],
    ),
    (
        "overlapping pod ranges",
        "apiVersion: v1\nkind: Node\nmetadata: {name: node2}\nspec: {podCIDR: 10.244.0.0/20, podCIDRs: [10.244.0.0/20]}\nstatus: {addresses: [{type: InternalIP, address: 172.31.1.2}]}\n",
        &["Node/node", "spec.podCIDRs", "overlap"],
    ),
    (
        "a Service of an unknown type",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec: {type: Teleport, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80}]}\n",
        &["Service/default/web", "spec.type", "Teleport", "ClusterIP"],
    ),
    (
        "an endpoint on loopback",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 8080, protocol: TCP}]\nendpoints: [{addresses: [127.0.0.1], conditions: {ready: true}}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80}]}\n",
        &["EndpointSlice/default/web-1", "endpoints[0]", "127.0.0.1"],
    ),
    ("a file that is no YAML", "kind: [\n", &["bad.yaml", "document 1"]),
];

#[test]
fn manifests_are_refused_by_object_field_and_fix() {
    for (what, text, says) in MANIFESTS {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a-node.yaml"), NODE1).unwrap();
        std::fs::write(dir.path().join("bad.yaml"), text).unwrap();
        let out = Command::new(SEAWAY).args(["plan", "--node", "node1", "--from"]).arg(dir.path()).output().unwrap();
        let all = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        for part in *says {
            assert!(all.contains(part), "{what}: nothing says {part:?}:\n{all}");
        }
        assert_eq!(out.status.code(), Some(1), "{what}: a refusal is told by the exit code");
        assert!(all.contains("10.244.1.0/24"), "{what}: the rest goes on:\n{all}");
    }
}

/// Command lines, and what must be said of them.
const COMMANDS: &[(&[&str], &[&str])] = &[
    (&["plan", "--from", "/nonexistent", "--node", "n"], &["/nonexistent", "give a folder"]),
    (&["agent", "--node", "Not_A_Node", "--api", "unix:/x"], &["Not_A_Node", "RFC 1123"]),
    (&["agent", "--node", "n", "--api", "unix:"], &["--api"]),
    (&["agent", "--api", "unix:/x"], &["--node"]),
    (&["agent", "--node", "n", "--iface", "10.0.0.0/99"], &["--iface", "10.0.0.0/99"]),
    (&["agent", "--node", "n", "--iface-regex", "eth("], &["--iface-regex", "eth("]),
    (&["agent", "--node", "n", "--iface-can-reach", "gw"], &["--iface-can-reach", "gw"]),
    (&["agent", "--node", "n", "--iface", "eth0", "--iface-regex", "eth"], &["--iface", "cannot be used with"]),
    (&["lab", "up", "--name", "No_Good"], &["No_Good"]),
    (&["lab", "up", "--nodes", "0"], &["nodes"]),
    (&["lab", "up", "--backend", "pigeon"], &["pigeon", "vxlan"]),
    (&["trace", "a", "b", "--name", "no-such-lab"], &["no-such-lab"]),
    (&["apiserver", "--store", "/tmp/x", "--service-cidr", "10.96.0.1/16", "--unix", "/tmp/y"], &["10.96.0.0/16"]),
    (&["controller", "--only", "everything"], &["everything", "scheduler"]),
];

#[test]
fn command_lines_are_refused_with_the_fix() {
    for (args, says) in COMMANDS {
        let out = Command::new(SEAWAY).args(*args).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success(), "{args:?} succeeded");
        for part in *says {
            assert!(text.contains(part), "{args:?}: nothing says {part:?}:\n{text}");
        }
    }
}

#[test]
fn a_damaged_journal_is_told_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    {
        let key = |c: &str| ipam::Key { container: c.into(), ifname: "eth0".parse().unwrap() };
        let mut j = ipam::Journal::open(dir.path()).unwrap();
        let range: types::Cidr = "10.244.1.0/24".parse().unwrap();
        for c in ["a", "b", "c"] {
            let request = ipam::Request {
                key: &key(c),
                ranges: &[range],
                within: &[],
                pools: None,
                outside: false,
                requested: &[],
                network: "seaway",
                netns: "/run/netns/x",
                inode: 1,
                pod: None,
                mtu: 1500,
                now: 0,
            };
            j.allocate(&request).unwrap();
        }
    }
    let journal = dir.path().join("journal");
    let text = std::fs::read_to_string(&journal).unwrap();
    let damaged: Vec<String> = text
        .lines()
        .enumerate()
        .map(|(i, l)| if i == 2 { l.replace("10.244", "10.245") } else { l.to_owned() })
        .collect();
    std::fs::write(&journal, damaged.join("\n") + "\n").unwrap();
    let run = |args: &[&str]| {
        // In a namespace of its own: it looks at interfaces, and mends them.
        let mut c = Command::new("unshare");
        let out = c.args(["-n", SEAWAY, "ipam"]).args(args).arg("--ipam-dir").arg(dir.path()).output().unwrap();
        (out.status.code(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    };
    let (code, text) = run(&["show"]);
    assert!(code == Some(1) && text.contains("line 3") && text.contains("seaway ipam check"), "{text}");
    let (code, text) = run(&["check"]);
    assert!(code == Some(1) && text.contains("line 3") && text.contains("3 disagreements, 3 not mended"), "{text}");
    let (code, text) = run(&["release", "10.244.1.9"]);
    assert!(code == Some(1) && text.contains("line 3"), "{text}");
    // The intact records are kept at first; then it shows that their namespaces are gone.
    let (code, text) = run(&["check", "--fix"]);
    assert!(code == Some(0) && text.contains("3 disagreements, 0 not mended"), "{text}");
    assert!(dir.path().join("journal.damaged").exists());
    let (code, text) = run(&["show"]);
    assert!(code == Some(0) && !text.contains("10.24"), "{text}");
    let (code, text) = run(&["release", "10.244.1.9"]);
    assert!(code == Some(1) && text.contains("nothing in") && text.contains("has 10.244.1.9"), "{text}");
    let (code, text) = run(&["pools"]);
    assert!(code == Some(1) && text.contains("--api: say which API server"), "{text}");
}
