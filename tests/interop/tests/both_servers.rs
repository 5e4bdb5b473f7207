//! The very same agent, the same command line and objects: by the embedded API server, then by a real kube-apiserver with
//! etcd. What it does to the node is the same.
//!
//! kube-apiserver, etcd and kubectl are built from their released Go modules by `tests/k8s/build`, once, outside the tree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use std::path::PathBuf;

use interop::node::{ADDRESSES, CONFLIST, wait, wait_for};
use interop::{Node, tools};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use seaway_tests_interop as interop;
use serde_json::Value;

const KUBECONFIG: &str = "/etc/kubeconfig";
const URL: &str = "https://192.0.2.1:6443";
const READY: &str = "http://127.0.0.1:9642/readyz";

/// A node with pods and a neighbour, Services of several kinds, and settings.
const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: seaway, namespace: kube-system}
data: {clusterCIDR: 10.244.0.0/16, serviceCIDR: 10.96.0.0/16, backend: vxlan}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
---
apiVersion: v1
kind: Node
metadata:
  name: n2
  annotations:
    seaway.io/backend: vxlan
    seaway.io/vxlan: '{"vni":1,"port":8472,"mac":"22:1e:35:0c:d0:92","address":"192.0.2.2"}'
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.50
  sessionAffinity: ClientIP
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}, {name: dns, protocol: UDP, port: 53, nodePort: 30053}]
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: default}
spec: {clusterIP: 10.96.0.51, internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, protocol: UDP, port: 53}]
endpoints:
- {addresses: [10.244.1.7], nodeName: n1, conditions: {ready: true}}
- {addresses: [10.244.2.7], nodeName: n2, conditions: {ready: true}}
- {addresses: [10.244.2.8], nodeName: n2, conditions: {ready: false, serving: true, terminating: true}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: near-1, namespace: default, labels: {kubernetes.io/service-name: near}}
addressType: IPv4
ports: [{name: '', port: 80}]
endpoints: [{addresses: [10.244.2.9], nodeName: n2, conditions: {ready: true}}]
"#;

/// What `tests/k8s/build` has built.
fn built(program: &str) -> String {
    let var = |k: &str| std::env::var_os(k).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = var("SEAWAY_K8S_CACHE").unwrap_or_else(|| {
        let home = || var("HOME").unwrap_or_else(|| "/root".into()).join(".cache");
        var("XDG_CACHE_HOME").unwrap_or_else(home).join("seaway/k8s")
    });
    let path = cache.join("bin").join(program);
    assert!(path.exists(), "{} is missing: run tests/k8s/build {program} (Debian package golang-go)", path.display());
    path.to_str().unwrap().to_owned()
}

fn kubectl(n: &Node, args: &[&str], stdin: &str) -> Result<String, String> {
    let program = built("kubectl");
    let all = [&["env", "HOME=/var/lib", program.as_str(), "--kubeconfig", KUBECONFIG], args].concat();
    let o = n.output(&all, stdin);
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if o.status.success() { Ok(text(&o.stdout)) } else { Err(text(&o.stdout) + &text(&o.stderr)) }
}

fn embedded(n: &mut Node) -> Vec<usize> {
    let program = tools::seaway().to_str().unwrap();
    let at = "192.0.2.1:6443";
    let args =
        ["apiserver", "--store", "/var/lib/api.redb", "--tls", at, "--advertise", at, "--kubeconfig", KUBECONFIG];
    vec![n.start("embedded", &[&[program], &args[..]].concat())]
}

/// etcd and kube-apiserver, with certificates of an authority of their own.
fn real(n: &mut Node) -> Vec<usize> {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "authority");
    let key = KeyPair::generate().unwrap();
    let ca_pem = ca.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(ca, key);
    let mut server = CertificateParams::new(vec!["192.0.2.1".to_owned(), "10.96.0.1".to_owned()]).unwrap();
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    n.write("/etc/real/server.pem", &server.signed_by(&key, &issuer).unwrap().pem());
    n.write("/etc/real/server-key.pem", &key.serialize_pem());
    n.write("/etc/real/ca.pem", &ca_pem);
    let accounts = KeyPair::generate().unwrap();
    n.write("/etc/real/sa.pub", &accounts.public_key_pem());
    n.write("/etc/real/sa.pem", &accounts.serialize_pem());
    n.write("/etc/real/tokens.csv", "the-test,admin,admin,system:masters\n");
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{URL}', \
         certificate-authority: /etc/real/ca.pem}}}}]\nusers: [{{name: u, user: {{token: the-test}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    n.write(KUBECONFIG, &config);
    let (etcd, apiserver) = (built("etcd"), built("kube-apiserver"));
    let urls = ["--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379"];
    let peer = ["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync", "--data-dir", "/var/lib/etcd"];
    let started = n.start("etcd", &[&[etcd.as_str()], &urls[..], &peer].concat());
    wait("etcd answers", || n.attempt(&["curl", "-sf", "http://127.0.0.1:2379/readyz"]).is_ok());
    let args = [
        apiserver.as_str(),
        "--etcd-servers=http://127.0.0.1:2379",
        "--advertise-address=192.0.2.1",
        "--secure-port=6443",
        "--tls-cert-file=/etc/real/server.pem",
        "--tls-private-key-file=/etc/real/server-key.pem",
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=/etc/real/sa.pub",
        "--service-account-signing-key-file=/etc/real/sa.pem",
        "--token-auth-file=/etc/real/tokens.csv",
        "--authorization-mode=RBAC",
    ];
    vec![n.start("kube-apiserver", &args), started]
}

/// Objects to a server that has just begun; kinds of ours only where they are not there yet.
fn fill(n: &Node) {
    wait_for("the API server answers", 120, || kubectl(n, &["get", "--raw", "/readyz"], "").is_ok());
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");
    for f in std::fs::read_dir(crds).unwrap().flatten() {
        let text = std::fs::read_to_string(f.path()).unwrap();
        kubectl(n, &["apply", "--server-side", "--force-conflicts", "-f", "-"], &text).unwrap();
    }
    let all = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    wait_for("the objects are there", 60, || kubectl(n, &all, OBJECTS).is_ok());
    for (node, address) in [("n1", ADDRESSES[0]), ("n2", "192.0.2.2")] {
        let status = format!(r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{address}"}}]}}}}"#);
        kubectl(n, &["patch", "node", node, "--subresource=status", "--type=merge", "-p", &status], "").unwrap();
    }
    wait_for("the server's own Service has its endpoint", 60, || {
        let args = ["get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o"];
        let args = [&args[..], &["jsonpath={.items[*].endpoints[*].addresses[*]}"]].concat();
        kubectl(n, &args, "").is_ok_and(|out| out.trim() == "192.0.2.1")
    });
}

/// A list without what differs from one making of it to the next.
fn plain(mut v: Value) -> Value {
    match &mut v {
        Value::Object(m) => {
            m.remove("handle");
            m.values_mut().for_each(|x| *x = plain(x.take()));
        }
        Value::Array(a) => {
            a.iter_mut().for_each(|x| *x = plain(x.take()));
        }
        _ => {}
    }
    // A set's elements come in the order of the kernel's hash.
    for key in ["elem"] {
        if let Some(Value::Array(a)) = v.get_mut(key) {
            a.sort_by_key(ToString::to_string);
        }
    }
    v
}

/// What the agent has made of the node: rules, links, routes, neighbours, and what it wrote.
fn made(n: &Node) -> Vec<String> {
    let rules: Value = serde_json::from_str(&n.run(&["nft", "-j", "-s", "list", "ruleset"])).unwrap();
    let mut rules: Vec<String> = plain(rules)["nftables"].as_array().unwrap().iter().map(ToString::to_string).collect();
    rules.sort();
    let mut all = vec![n.read(CONFLIST)];
    for args in [
        &["ip", "route", "show", "table", "all", "proto", "83"][..],
        &["ip", "neigh", "show", "nud", "permanent"],
        &["bridge", "fdb", "show", "dev", "seaway.1"],
        &["ip", "-br", "link", "show", "type", "vxlan"],
    ] {
        let mut lines: Vec<String> = n.run(args).lines().map(str::to_owned).collect();
        lines.sort();
        all.extend(lines);
    }
    all.extend(rules);
    all
}

#[test]
fn one_agent_serves_the_embedded_server_and_a_real_one() {
    let mut n = Node::boot();
    let program = tools::seaway().to_str().unwrap();
    let own = ["agent", "--node", "n1", "--api", KUBECONFIG, "--iface", "up0", "--listen", "127.0.0.1:9642"];
    let agent = [&[program], &own[..]].concat();
    let mut outcomes = Vec::new();
    for server in [embedded as fn(&mut Node) -> Vec<usize>, real] {
        let servers = server(&mut n);
        fill(&n);
        let running = n.start("agent", &agent);
        wait_for("the agent is ready", 60, || n.attempt(&["curl", "-sf", READY]).is_ok());
        // It says the same of its node, to each.
        wait_for("the node's condition", 60, || {
            let path = "jsonpath={.status.conditions[?(@.type==\"NetworkUnavailable\")].reason}";
            kubectl(&n, &["get", "node", "n1", "-o", path], "").is_ok_and(|out| out == "SeawayIsUp")
        });
        let notes = kubectl(&n, &["get", "node", "n1", "-o", "jsonpath={.metadata.annotations.seaway\\.io/vxlan}"], "");
        wait_for("the rules", 60, || n.run(&["nft", "list", "ruleset"]).contains("10.244.2.7"));
        // A change arrives.
        let policy = r#"{"spec":{"internalTrafficPolicy":"Cluster"}}"#;
        kubectl(&n, &["patch", "service", "near", "-p", policy], "").unwrap();
        wait_for("the change", 60, || n.run(&["nft", "list", "ruleset"]).contains("10.244.2.9"));
        let version = kubectl(&n, &["version"], "").unwrap();
        outcomes.push((made(&n), notes.unwrap(), version));
        n.kill(running);
        n.run(&[&agent[..], &["--cleanup"]].concat());
        assert!(!n.run(&["nft", "list", "ruleset"]).contains("10.244."), "nothing is left for the other");
        for s in servers {
            n.kill(s);
        }
    }
    let [(ours, told, v1), (theirs, told_real, v2)] = &outcomes[..] else { panic!("two servers") };
    assert!(v1.contains("+seaway-") && !v2.contains("+seaway-"), "{v1}{v2}");
    assert!(ours.iter().any(|l| l.contains("10.244.2.0/24 via 10.244.2.0 dev seaway.1")), "{ours:#?}");
    assert!(ours.len() > 40, "{ours:#?}");
    assert_eq!(told, told_real);
    let only = |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
    let (a, b) = (only(ours, theirs), only(theirs, ours));
    assert!(a.is_empty() && b.is_empty(), "by the embedded server only: {a:#?}\nby the real one only: {b:#?}");
}
