//! The pages of docs/plugins whose devices not every kernel has: the configuration that each shows is run as it stands,
//! and packets go where the page says. And address pools with mode `ipvlan` (docs/ipam.md), and a DHCP server for it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vm::in_vm;

use crate::common::{Node, program};
use crate::devices::wired;
use crate::twin::{Twin, Whose, page, with};
use crate::wires::{ns, world};

/// Attaches containers with the page's configuration, finds them right, has `f` look at them, and detaches them.
fn page_works(t: &Twin, name: &str, containers: &[&str], f: impl FnOnce()) {
    let mut conf = page(name);
    assert_eq!(conf["type"], name, "the page of {name}");
    conf["ipam"]["dataDir"] = t.dir("store").into();
    let before = t.outside();
    for c in containers {
        t.node.pod(c);
        let said = t.add(c, &conf);
        t.call("CHECK", c, &with(&conf, "prevResult", said)).unwrap_or_else(|e| panic!("CHECK {c}: {e}"));
    }
    f();
    for c in containers {
        t.del(c, &conf);
        t.node.sh_pod(c, "! ip link show eth0 2> /dev/null");
    }
    assert_eq!(t.outside(), before);
}

fn ping(node: &Node, from: &str, to: &[&str]) {
    for to in to {
        node.sh_pod(from, &format!("ping -c 1 -W 5 {to}"));
    }
}

#[test]
fn vlan() {
    in_vm!();
    let t = Twin::new(Whose::Ours);
    world(&t.node);
    t.node.sh_pod(
        "world",
        "ip link add link up1 name tagged type vlan id 5; ip link set tagged up
         ip address add 10.25.1.200/24 dev tagged; ip address add fd00:25:1::c8/64 dev tagged nodad",
    );
    page_works(&t, "vlan", &["c1"], || ping(&t.node, "c1", &["10.25.1.200", "fd00:25:1::c8"]));
}

#[test]
fn ipvlan() {
    in_vm!();
    let t = Twin::new(Whose::Ours);
    world(&t.node);
    t.node.sh_pod("world", "ip address add 10.24.1.200/24 dev up1; ip address add fd00:24:1::c8/64 dev up1 nodad");
    page_works(&t, "ipvlan", &["c1", "c2"], || {
        ping(&t.node, "c1", &["10.24.1.200", "fd00:24:1::c8", "10.24.1.3", "fd00:24:1::3"]);
        ping(&t.node, "world", &["10.24.1.2", "fd00:24:1::2"]);
    });
}

#[test]
fn dummy() {
    in_vm!();
    let t = Twin::new(Whose::Ours);
    page_works(&t, "dummy", &["c1"], || {
        t.node.sh_pod("c1", "ip link set lo up");
        ping(&t.node, "c1", &["10.26.1.2", "fd00:26:1::2"]);
        // It leads nowhere.
        t.node.sh_pod("c1", "! ping -c 1 -W 1 10.26.1.77 > /dev/null");
    });
}

#[test]
fn vrf() {
    in_vm!();
    let t = Twin::new(Whose::Ours);
    let previous = wired(&t, "c1", 3);
    t.node.sh("ip address add 10.9.0.1/24 dev h3; ip address add fd09::1/64 dev h3 nodad");
    let conf = with(&page("vrf"), "prevResult", previous);
    assert_eq!(conf["type"], "vrf");
    t.add("c1", &conf);
    t.call("CHECK", "c1", &conf).unwrap_or_else(|e| panic!("CHECK: {e}"));
    assert_eq!(t.json_pod("c1", "ip -j link show eth0")[0]["master"], "blue");
    t.node.sh_pod("c1", "ping -c 1 -W 5 -I blue 10.9.0.1; ping -c 1 -W 5 -I blue fd09::1");
    // Elsewhere in the container the network is not known.
    t.node.sh_pod("c1", "! ip route get 10.9.0.1 2> /dev/null");
    t.del("c1", &conf);
    t.node.sh_pod("c1", "! ip link show blue 2> /dev/null; ping -c 1 -W 5 10.9.0.1");
}

/// Seaway's own plugin in mode `ipvlan` with addresses of pools, as the agent configures it.
fn pooled(node: &Node, mode: &str, pools: &Value) -> Value {
    let file = node.dir.path().join("pools.json");
    let names: Vec<&String> = pools.as_object().unwrap().keys().collect();
    let text = json!({"version": 1, "pools": pools, "except": [], "default": names}).to_string();
    std::fs::write(&file, text).unwrap();
    json!({"cniVersion": "1.1.0", "name": "seaway", "type": "seaway-cni", "mtu": 1500, "mode": "ipvlan",
        "modeOptions": {"master": "up0", "mode": mode}, "ipam": {"type": "seaway", "pools": file},
        "dataDir": node.dir.path().join("ipam")})
}

fn attached(node: &Node, conf: &Value) -> Vec<Vec<String>> {
    let one = |c: &str| {
        node.pod(c);
        let said = node.call("ADD", c, conf).unwrap_or_else(|e| panic!("ADD {c}: {e}"));
        let checked = with(conf, "prevResult", said.clone());
        node.call("CHECK", c, &checked).unwrap_or_else(|e| panic!("CHECK {c}: {e}"));
        let of = |i: &Value| i["address"].as_str().unwrap().to_owned();
        said["ips"].as_array().unwrap().iter().map(of).collect()
    };
    ["c1", "c2"].into_iter().map(one).collect()
}

fn bare(addresses: &[String]) -> Vec<&str> {
    addresses.iter().map(|a| a.split('/').next().unwrap()).collect()
}

#[test]
fn ipvlan_l2_with_pools_of_the_wire() {
    in_vm!();
    let node = Node::new();
    world(&node);
    let pools = json!({
        "four": {"cidr": "192.0.2.64/26", "ranges": ["192.0.2.64/30"],
            "underlay": {"subnet": "192.0.2.0/24", "gateway": "192.0.2.9"}},
        "six": {"cidr": "2001:db8::40/122", "ranges": ["2001:db8::40/126"],
            "underlay": {"subnet": "2001:db8::/64", "gateway": "2001:db8::9"}},
    });
    let conf = pooled(&node, "l2", &pools);
    let given = attached(&node, &conf);
    assert_eq!(given[0], ["192.0.2.64/24", "2001:db8::40/64"]);
    ping(&node, "c1", &["192.0.2.9", "2001:db8::9"]);
    ping(&node, "c1", &bare(&given[1]));
    ping(&node, "world", &bare(&given[0]));
    let routes = node.sh_pod("c1", "ip route; ip -6 route");
    assert!(routes.contains("default via 192.0.2.9") && routes.contains("default via 2001:db8::9"), "{routes}");
    // The pod's own root deletes its interface: the agent makes it again with the same addresses, and so does a second ADD.
    let (dir, key) =
        (node.dir.path().join("ipam"), ipam::Key { container: "c1".into(), ifname: "eth0".parse().unwrap() });
    let agent = || cni::reattach(&mut kernel::Linux, plugins::by_name, &dir, &key, &[]).unwrap();
    assert!(!node.ns.run(agent).unwrap(), "nothing is missing");
    for by_agent in [true, false] {
        node.sh_pod("c1", "ip link del eth0");
        if by_agent {
            assert!(node.ns.run(agent).unwrap());
        } else {
            node.call("ADD", "c1", &conf).unwrap_or_else(|e| panic!("ADD again: {e}"));
        }
        let there = node.sh_pod("c1", "ip -d address show dev eth0");
        assert!(there.contains("ipvlan  mode l2") && given[0].iter().all(|a| there.contains(a)), "{there}");
        ping(&node, "c1", &["192.0.2.9", "2001:db8::9"]);
        ping(&node, "world", &bare(&given[0]));
    }
    for c in ["c1", "c2"] {
        node.call("DEL", c, &conf).unwrap();
    }
}

#[test]
fn ipvlan_l3_with_pools() {
    in_vm!();
    let node = Node::new();
    world(&node);
    node.sh_pod("world", "ip route add 10.9.0.0/29 via 192.0.2.1; ip route add fd00:9::/125 via 2001:db8::1");
    let pools = json!({"four": {"cidr": "10.9.0.0/29", "ranges": ["10.9.0.0/30"]},
        "six": {"cidr": "fd00:9::/125", "ranges": ["fd00:9::/126"]}});
    let conf = pooled(&node, "l3", &pools);
    let given = attached(&node, &conf);
    assert_eq!(given[0], ["10.9.0.0/32", "fd00:9::/128"]);
    ping(&node, "c1", &bare(&given[1]));
    ping(&node, "c1", &["192.0.2.9", "2001:db8::9"]);
    ping(&node, "world", &bare(&given[0]));
    for c in ["c1", "c2"] {
        node.call("DEL", c, &conf).unwrap();
    }
}

/// A process that ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn running(node: &Node, place: &str, log: &str, c: &mut Command) -> Running {
    c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(log).unwrap());
    Running(ns(node, place).run(|| c.spawn()).unwrap().unwrap_or_else(|e| panic!("{c:?}: {e}")))
}

/// Stations with one hardware address: a DHCP server tells them apart by the client identifier, and they hear its answers
/// only when these are broadcast, as none of them has the address yet.
#[test]
fn ipvlan_with_addresses_of_a_dhcp_server() {
    in_vm!();
    let t = Twin::new(Whose::Ours);
    world(&t.node);
    let (socket, logs) = (t.dir("dhcp.sock"), [t.dir("server.log"), t.dir("daemon.log")]);
    let mut c = Command::new("dnsmasq");
    c.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=up1", "--bind-interfaces"]);
    c.args(["--no-ping", "--dhcp-authoritative", "--user=root", "--log-dhcp", "--log-facility=-", "--pid-file="]);
    c.args(["--dhcp-range=192.0.2.100,192.0.2.120,255.255.255.0,2m", "--dhcp-option=3,192.0.2.9"]);
    let _server = running(&t.node, "world", &logs[0], c.arg(format!("--dhcp-leasefile={}", t.dir("leases"))));
    let mut c = Command::new(program());
    c.args(["dhcp", "daemon", "-hostprefix=", "-statedir", "", "-broadcast", "-socketpath", &socket]);
    let _daemon = running(&t.node, "node", &logs[1], &mut c);
    let end = Instant::now() + Duration::from_secs(20);
    while !std::path::Path::new(&socket).exists() {
        assert!(Instant::now() < end, "the daemon does not listen: {}", std::fs::read_to_string(&logs[1]).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "ipvlan", "master": "up0",
        "ipam": {"type": "dhcp", "daemonSocketPath": socket}});
    let given = ["c1", "c2"].map(|c| {
        t.node.pod(c);
        let said = t.call("ADD", c, &conf).unwrap_or_else(|e| {
            let [server, daemon] = logs.each_ref().map(|l| std::fs::read_to_string(l).unwrap_or_default());
            panic!("ADD {c}: {e}\nserver: {server}\ndaemon: {daemon}")
        });
        t.call("CHECK", c, &with(&conf, "prevResult", said.clone())).unwrap();
        said["ips"][0]["address"].as_str().unwrap().to_owned()
    });
    assert_ne!(given[0], given[1], "one lease for both");
    let mac = |c: &str| t.json_pod(c, "ip -j link show eth0")[0]["address"].clone();
    assert_eq!(mac("c1"), mac("c2"));
    ping(&t.node, "c1", &["192.0.2.9", given[1].split('/').next().unwrap()]);
    for c in ["c1", "c2"] {
        t.del(c, &conf);
    }
}
