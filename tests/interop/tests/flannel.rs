//! A flannel network in a real etcd: one as flannel writes it, and one with flannel's own daemon at the other end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

#[path = "flannel/lease.rs"]
mod lease;
#[path = "flannel/secured.rs"]
mod secured;

use interop::node::{ADDRESSES, OUTSIDE, wait, wait_for};
use interop::{Node, tools};
use seaway_tests_interop as interop;
use serde_json::{Value, json};

const ETCD: &str = "http://192.0.2.1:2379";
const PREFIX: &str = "/coreos.com/network";
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

struct Fleet {
    node: Node,
    etcd: usize,
}

fn arg(p: &std::path::Path) -> String {
    p.to_str().unwrap().to_owned()
}

impl Fleet {
    fn new() -> Self {
        let mut node = Node::boot();
        let etcd = Self::start_etcd(&mut node);
        Self { node, etcd }
    }

    fn start_etcd(node: &mut Node) -> usize {
        let program = arg(&tools::ETCD.program("server"));
        let urls = ["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD];
        let peer = ["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync"];
        let args = [&[program.as_str(), "--data-dir", "/var/lib/etcd"], &urls[..], &peer[..]].concat();
        let etcd = node.start("etcd", &args);
        wait("etcd answers", || node.attempt(&["curl", "-sf", &format!("{ETCD}/readyz")]).is_ok());
        etcd
    }

    /// A request to the gateway. The texts at these places are keys and values.
    fn ask(&self, path: &str, mut body: Value) -> Value {
        for field in ["key", "range_end", "value"] {
            if let Some(text) = body.get(field).and_then(Value::as_str) {
                body[field] = String::from_utf8(self.node.output(&["base64", "-w0"], text).stdout).unwrap().into();
            }
        }
        let url = format!("{ETCD}{path}");
        serde_json::from_str(&self.node.run(&["curl", "-sS", "--fail-with-body", &url, "-d", &body.to_string()]))
            .unwrap()
    }

    fn put(&self, key: &str, value: &str) {
        self.ask("/v3/kv/put", json!({"key": key, "value": value}));
    }

    fn delete(&self, key: &str) {
        assert_eq!(self.ask("/v3/kv/deleterange", json!({"key": key}))["deleted"], "1", "{key}");
    }

    /// The leases: last part of the key, and value.
    fn leases(&self) -> Vec<(String, String)> {
        let (first, end) = (format!("{PREFIX}/subnets/"), format!("{PREFIX}/subnets0"));
        let all = self.ask("/v3/kv/range", json!({"key": first, "range_end": end}));
        let text =
            |v: &Value| String::from_utf8(self.node.output(&["base64", "-d"], v.as_str().unwrap()).stdout).unwrap();
        let kvs = all["kvs"].as_array().cloned().unwrap_or_default();
        kvs.iter().map(|kv| (text(&kv["key"]).strip_prefix(&first).unwrap().to_owned(), text(&kv["value"]))).collect()
    }

    /// The range whose lease names an address.
    fn range_of(&self, address: &str) -> Option<String> {
        let mine = format!("\"PublicIP\":\"{address}\"");
        self.leases().into_iter().find(|(_, v)| v.contains(&mine)).map(|(k, _)| k)
    }

    /// The agent on the node.
    fn agent(&mut self) -> usize {
        let program = arg(tools::seaway());
        let args =
            ["agent", "--source", "etcd", "--etcd-endpoints", ETCD, "--iface-regex", "^up[0-9]$", "--node", "n1"];
        self.node.start("agent", &[&[program.as_str()], &args[..]].concat())
    }

    /// Flannel's daemon, or a shell command in its place, on the machine outside, with a /run of its own.
    fn outside(&mut self, name: &str, script: &str) -> usize {
        let script = format!("mount --make-rprivate /; mount --bind /var/lib/{name} /run/flannel; exec {script}");
        self.node.sh(&format!("mkdir -p /var/lib/{name} /run/flannel"));
        let args = ["nsenter", "--net=/run/netns/outside", "unshare", "--mount", "sh", "-ec", &script];
        self.node.start(name, &args)
    }

    fn flanneld(&mut self) -> usize {
        let program = arg(&tools::FLANNEL.program("flannel"));
        let off = "--ip-masq=false --iptables-forward-rules=false";
        self.outside("flanneld", &format!("{program} --etcd-endpoints={ETCD} --iface=up0 {off}"))
    }

    fn ip(&self, args: &[&str]) -> String {
        self.node.run(&[&["ip"], args].concat())
    }
}

/// The first address of a range that a key names, or one further on.
fn nth(key: &str, n: usize) -> String {
    let v4 = key.split('&').next().unwrap().split('-').next().unwrap();
    format!("{}.{n}", v4.rsplit_once('.').unwrap().0)
}

#[test]
fn a_fleet_as_flannel_writes_it() {
    let mut f = Fleet::new();
    for line in include_str!("flannel/fleet.txt").lines() {
        let (key, value) = line.split_once(' ').unwrap();
        f.put(key, value);
    }
    let agent = f.agent();
    wait("our lease", || f.range_of(ADDRESSES[0]).is_some());
    let own = f.range_of(ADDRESSES[0]).unwrap();
    wait("the routes", || f.ip(&["route", "show", "proto", "83"]).lines().count() == 4);
    let mac: Value = serde_json::from_str(&f.ip(&["-j", "link", "show", "seaway.1"])).unwrap();
    let mac = mac[0]["address"].as_str().unwrap().to_owned();
    // Byte for byte what flannel's daemon would have written.
    let value = f.leases().into_iter().find(|(k, _)| *k == own).unwrap().1;
    assert_eq!(
        value,
        format!(
            r#"{{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    );
    for (n, at, peer) in [
        (34, "192.0.2.34", "22:1e:35:0c:d0:92"),
        (35, "198.51.100.35", "9a:e8:53:e2:53:43"),
        (36, "192.0.2.36", "5a:47:80:7e:69:8e"),
    ] {
        let (routes, neighbours) = (f.ip(&["route"]), f.ip(&["neigh", "show", "dev", "seaway.1"]));
        assert!(routes.contains(&format!("10.5.{n}.0/24 via 10.5.{n}.0 dev seaway.1 proto 83 onlink")), "{routes}");
        assert!(neighbours.contains(&format!("10.5.{n}.0 lladdr {peer} PERMANENT")), "{neighbours}");
        let fdb = f.node.run(&["bridge", "fdb", "show", "dev", "seaway.1"]);
        assert!(fdb.contains(&format!("{peer} dst {at} self permanent")), "{fdb}");
    }
    wait("the subnet file", || !f.node.read(SUBNET_FILE).is_empty());
    let first = format!("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={}/24\nFLANNEL_MTU=1450\n", nth(&own, 1));
    assert!(f.node.read(SUBNET_FILE).starts_with(&first), "{}", f.node.read(SUBNET_FILE));

    // Others come back with another hardware address, go, and come.
    let lease = |ip: &str, mac: &str| {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    };
    f.put(&format!("{PREFIX}/subnets/10.5.34.0-24"), &lease("192.0.2.34", "22:1e:35:0c:d0:aa"));
    f.delete(&format!("{PREFIX}/subnets/10.5.36.0-24"));
    f.put(&format!("{PREFIX}/subnets/10.5.77.0-24"), &lease("192.0.2.77", "22:1e:35:0c:d0:77"));
    wait("the changes", || {
        let (routes, neighbours) = (f.ip(&["route"]), f.ip(&["neigh", "show", "dev", "seaway.1"]));
        neighbours.contains("d0:aa PERMANENT") && !routes.contains("10.5.36.0/24") && routes.contains("10.5.77.0/24")
    });

    // Our own lease is lost: the same range is taken again, and nothing of the datapath goes.
    f.delete(&format!("{PREFIX}/subnets/{own}"));
    wait("our lease again", || f.range_of(ADDRESSES[0]).is_some_and(|k| k == own));
    assert!(f.node.log("agent").contains("lease was lost"));

    // The store goes away and comes back with other contents, compacted; the agent reads it anew.
    f.put(&format!("{PREFIX}/subnets/10.5.35.0-24"), &lease("198.51.100.35", "9a:e8:53:e2:53:99"));
    let revision = f.ask("/v3/kv/range", json!({"key": "x"}))["header"]["revision"].clone();
    f.ask("/v3/kv/compaction", json!({"revision": revision, "physical": true}));
    f.node.kill(f.etcd);
    assert!(f.ip(&["route"]).contains("10.5.77.0/24"), "what was known stays");
    f.etcd = Fleet::start_etcd(&mut f.node);
    f.delete(&format!("{PREFIX}/subnets/10.5.77.0-24"));
    wait_for("the store's new contents", 60, || {
        !f.ip(&["route"]).contains("10.5.77.0/24") && f.ip(&["neigh", "show", "dev", "seaway.1"]).contains("53:99 PERM")
    });

    // The agent dies: forwarding stays. It comes back after its lease has gone: the subnet file says what it had.
    f.node.kill(agent);
    assert!(f.ip(&["route"]).contains("10.5.35.0/24 via 10.5.35.0 dev seaway.1"));
    f.delete(&format!("{PREFIX}/subnets/{own}"));
    let agent = f.agent();
    wait("our lease from before", || f.range_of(ADDRESSES[0]).is_some_and(|k| k == own));
    f.node.kill(agent);

    // A configuration that cannot be used is named, and nothing is torn down.
    f.put(&format!("{PREFIX}/config"), r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}}"#);
    f.agent();
    wait("the reason", || {
        let ready = f.node.attempt(&["curl", "-s", "http://127.0.0.1:9642/readyz"]).unwrap_or_default();
        ready.contains("Backend.Type") && ready.contains("vxlan or host-gw")
    });
    assert!(f.ip(&["route"]).contains("10.5.35.0/24 via 10.5.35.0 dev seaway.1"));
}

/// Two ways, and back again.
fn reach(f: &Fleet, what: &str, ours: &str, theirs: &str) {
    wait_for(what, 30, || f.node.attempt(&["ping", "-c1", "-W1", theirs]).is_ok());
    f.node.outside(&["ping", "-c2", "-i0.2", "-W2", ours]);
}

fn with_flannels_daemon(config: &str, families: &[usize]) {
    let mut f = Fleet::new();
    f.node.sh("ip -n outside route delete 10.0.0.0/8; ip -n outside route delete fd00::/8");
    f.put(&format!("{PREFIX}/config"), config);
    let daemon = f.flanneld();
    wait("flannel's lease", || f.range_of(OUTSIDE[0]).is_some());
    let agent = f.agent();
    wait("our lease", || f.range_of(ADDRESSES[0]).is_some());
    let (ours, theirs) = (f.range_of(ADDRESSES[0]).unwrap(), f.range_of(OUTSIDE[0]).unwrap());
    // A pod at each end: ours by the plugin that finds its range in flannel's file, theirs an address.
    wait("the subnet file", || !f.node.read(SUBNET_FILE).is_empty());
    f.node.install_ours(&["flannel"]);
    f.node.sh("ip netns add pod");
    let conf =
        json!({"cniVersion": "1.0.0", "name": "mynet", "type": "flannel", "delegate": {"isDefaultGateway": true}});
    let env =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/run/netns/pod"), ("CNI_IFNAME", "eth0")];
    let added = f.node.plugin(&env, &conf).unwrap_or_else(|e| panic!("{e}"));
    let theirs6 = theirs.split_once('&').map(|(_, v6)| v6.rsplit_once('-').unwrap().0.to_owned());
    let far = [nth(&theirs, 7), theirs6.map(|a| format!("{a}7")).unwrap_or_default()];
    for i in families {
        f.node.sh(&format!("ip -n outside address add {} dev lo", far[*i]));
        let pod = added["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap());
        let pod = pod.map(|a| a.split('/').next().unwrap()).find(|a| a.contains(':') == (*i == 1)).unwrap().to_owned();
        wait_for("a pod of ours reaches theirs", 30, || {
            f.node.attempt(&["nsenter", "--net=/run/netns/pod", "ping", "-c1", "-W1", &far[*i]]).is_ok()
        });
        f.node.outside(&["ping", "-c2", "-i0.2", "-W2", "-I", &far[*i], &pod]);
        reach(&f, "node to their pod", &pod, &far[*i]);
    }

    // Their node becomes ours: the daemon ends, the agent takes over its range.
    f.node.kill(daemon);
    f.node.sh("for l in $(ip -n outside -br link | grep -o '^flannel[^ ]*'); do ip -n outside link delete $l; done");
    f.node.sh("for r in $(ip -n outside -o route show root 10.5.0.0/16 | cut -d' ' -f1); do ip -n outside route delete $r; done");
    let program = arg(tools::seaway());
    let own =
        "--ipam-dir /var/lib/taken/ipam --cni-conf-dir /var/lib/taken/cni --flannel-subnet-file /var/lib/taken/env";
    let common = format!(
        "{program} agent --source etcd --etcd-endpoints {ETCD} --iface-can-reach {} --node n2 {own}",
        ADDRESSES[0]
    );
    let taken = f.outside("taken", &common);
    wait("the same range", || f.node.read("/var/lib/taken/env").contains("FLANNEL_SUBNET"));
    assert_eq!(f.range_of(OUTSIDE[0]).unwrap(), theirs);
    for i in families {
        wait_for("both are ours", 30, || f.node.attempt(&["ping", "-c1", "-W1", &far[*i]]).is_ok());
    }

    // And flannel's again.
    f.node.kill(taken);
    f.node.run(&["nsenter", "--net=/run/netns/outside", "sh", "-c", &format!("{common} --cleanup")]);
    f.flanneld();
    wait_for("the daemon has its range again", 30, || {
        f.node.outside(&["ip", "route"]).contains(&nth(&ours, 0)) && f.range_of(OUTSIDE[0]).unwrap() == theirs
    });
    for i in families {
        wait_for("flannel's again", 30, || f.node.attempt(&["ping", "-c1", "-W1", &far[*i]]).is_ok());
    }
    f.node.kill(agent);
}

#[test]
fn a_node_beside_flannels_daemon_by_vxlan() {
    with_flannels_daemon(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#, &[0]);
}

#[test]
fn a_node_beside_flannels_daemon_by_host_gw() {
    with_flannels_daemon(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#, &[0]);
}

#[test]
fn a_node_beside_flannels_daemon_directly_where_it_can() {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7,"Port":4789,"DirectRouting":true}}"#;
    with_flannels_daemon(config, &[0]);
}

#[test]
fn a_node_beside_flannels_daemon_with_both_families() {
    let config =
        r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    with_flannels_daemon(config, &[0, 1]);
}
