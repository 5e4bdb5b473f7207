//! bandwidth: what a container sends and receives is what was said, measured with iperf3.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page, result};
use crate::wires::{bridged, ns};

fn conf(prev: &Value, limits: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net", "type": "bandwidth", "capabilities": {"bandwidth": true},
        "runtimeConfig": {"bandwidth": limits}, "prevResult": prev})
}

/// A child that ends with its handle.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(t: &Twin, name: &str) -> Ends {
    let start = || Command::new("iperf3").args(["-s"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = ns(&t.node, name).run(start).unwrap().expect("iperf3 is missing: apt-get install iperf3");
    let ends = Ends(child);
    for _ in 0..100 {
        if t.node.sh(&format!("nsenter --net=/proc/{}/ns/net ss -Hltn sport = 5201", ends.0.id())).contains("5201") {
            return ends;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("iperf3 does not listen");
}

/// Bits per second that arrived in five seconds, from the node into the container or the other way.
fn measure(t: &Twin, to: &str, out_of_container: bool) -> f64 {
    flows(t, &format!("-t 5 {} -c {to}", if out_of_container { "-R" } else { "" }))
}

/// Bits per second that arrived, between the node and the container.
fn flows(t: &Twin, args: &str) -> f64 {
    // One server for one test: between two it does not listen for a moment.
    let _server = serve(t, "c1");
    let v = t.json(&format!("iperf3 -J {args}"));
    v["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{v}"))
}

fn near(got: f64, rate: f64, what: &str) {
    println!("{what}: {:.2} of {:.2} Mbit/s", got / 1e6, rate / 1e6);
    assert!((0.9 * rate..=1.1 * rate).contains(&got), "{what}: {got:.0} bit/s, not {rate:.0}");
}

#[test]
fn five_seconds_of_iperf_are_within_a_tenth_of_the_limit() {
    let any = u64::from(u32::MAX);
    std::thread::scope(|s| {
        for (case, limits, address) in [
            ("rates alone", json!({"ingressRate": 20_000_000, "egressRate": 5_000_000}), "10.88.0.3"),
            (
                "as containerd says it",
                json!({"ingressRate": 8_000_000, "ingressBurst": any, "egressRate": 30_000_000, "egressBurst": any}),
                "fd88::3",
            ),
            (
                "with bursts",
                json!({"ingressRate": 40_000_000, "ingressBurst": 1_000_000, "egressRate": 10_000_000,
                    "egressBurst": 800_000}),
                "10.88.0.3",
            ),
        ] {
            s.spawn(move || {
                let t = Twin::new(Whose::Ours);
                let c1 = bridged(&t.node, "c1", 3);
                let c = conf(&c1, limits.clone());
                t.add("c1", &c);
                t.call("CHECK", "c1", &c).unwrap();
                let rate = |name: &str| limits[name].as_f64().unwrap();
                near(measure(&t, address, false), rate("ingressRate"), &format!("{case}, into the container"));
                near(measure(&t, address, true), rate("egressRate"), &format!("{case}, out of it"));
            });
        }
    });
}

/// The container has a second address of each family, and so has the node; only those are told apart.
const SECOND: &str = "ip address add 10.90.0.1/24 dev cni0; ip address add fd90::1/64 dev cni0 nodad";
const SECOND_IN: &str = "ip address add 10.90.0.3/24 dev eth0; ip address add fd90::3/64 dev eth0 nodad
    n=0; until ping -c 1 -W 0.2 -q fd90::1 > /dev/null; do n=$((n+1)); [ $n -lt 30 ]; done";

#[test]
fn only_what_goes_to_a_shaped_subnet_is_limited() {
    let rate = 20_000_000;
    std::thread::scope(|s| {
        for (field, list, limited) in [
            ("shapedSubnets", ["10.90.0.77/24", "fd90::/64"], true),
            ("unshapedSubnets", ["10.90.0.0/24", "fd90::/16"], false),
        ] {
            for (first, second) in [("10.88.0.", "10.90.0."), ("fd88::", "fd90::")] {
                s.spawn(move || {
                    let t = Twin::new(Whose::Ours);
                    let c1 = bridged(&t.node, "c1", 3);
                    t.node.sh(SECOND);
                    t.node.sh_pod("c1", SECOND_IN);
                    let c = conf(&c1, json!({"ingressRate": rate, "egressRate": rate, field: list}));
                    t.add("c1", &c);
                    t.call("CHECK", "c1", &c).unwrap();
                    for way in ["", "-R"] {
                        for (net, listed) in [(second, true), (first, false)] {
                            let got = flows(&t, &format!("-t 4 {way} -B {net}1 -c {net}3"));
                            let what = format!("{field}, {net}0 {way}");
                            if listed == limited {
                                near(got, f64::from(rate), &what);
                            } else {
                                println!("{what}: {:.0} Mbit/s", got / 1e6);
                                assert!(got > 5.0 * f64::from(rate), "{what} is limited: {got:.0} bit/s");
                            }
                        }
                    }
                    // And none is once they are gone, though the container lives.
                    t.del("c1", &c);
                    for net in [first, second] {
                        let got = flows(&t, &format!("-t 1 -B {net}1 -c {net}3"));
                        assert!(got > 5.0 * f64::from(rate), "{net}: {got:.0} bit/s");
                    }
                });
            }
        }
    });
}

#[test]
fn check_sees_damaged_classes_and_add_mends_and_changes_them() {
    let t = Twin::new(Whose::Ours);
    let c1 = bridged(&t.node, "c1", 3);
    let limits = |field: &str, list: Value| json!({"ingressRate": 8_000_000, "egressRate": 8_000_000, field: list});
    let shown = || {
        let devs = ["v3".to_owned(), tc(&t)["ifbs"][0]["name"].as_str().unwrap_or("lo").to_owned()];
        devs.map(|d| {
            t.node.sh(&format!("tc qdisc show dev {d}; tc class show dev {d}; tc filter show dev {d} parent 1:"))
        })
    };
    let c = conf(&c1, limits("shapedSubnets", json!(["10.0.0.0/8", "fd00::/8"])));
    let before = tc(&t);
    t.add("c1", &c);
    let right = shown();
    for dev in &right {
        for says in ["htb 1: root", "default 0x1", "class htb 1:30 root", "class htb 1:1 root", "flowid 1:30"] {
            assert!(dev.contains(says), "{says}: {dev}");
        }
    }
    t.add("c1", &c);
    assert_eq!(shown(), right, "the same again");
    for harm in ["v3", "$(ip -br link show type ifb | cut -d' ' -f1)"].iter().flat_map(|dev| {
        ["qdisc del dev DEV root", "filter del dev DEV pref 1", "class change dev DEV classid 1:30 htb rate 1mbit"]
            .map(|h| format!("tc {}", h.replace("DEV", dev)))
    }) {
        t.node.sh(&harm);
        assert_eq!(t.call("CHECK", "c1", &c).unwrap_err()["code"], 101, "{harm}");
        t.add("c1", &c);
        t.call("CHECK", "c1", &c).unwrap();
        assert_eq!(shown(), right, "{harm}");
    }
    // Other subnets, the other way about, everything, and back.
    for other in [
        limits("shapedSubnets", json!(["192.0.2.0/24"])),
        limits("unshapedSubnets", json!(["10.0.0.0/8", "fd00::/8"])),
        limits("shapedSubnets", json!([])),
    ] {
        let o = conf(&c1, other);
        assert_eq!(t.call("CHECK", "c1", &o).unwrap_err()["code"], 101);
        t.add("c1", &o);
        t.call("CHECK", "c1", &o).unwrap();
        assert_ne!(shown(), right);
    }
    t.add("c1", &c);
    assert_eq!(shown(), right);
    t.del("c1", &c);
    assert_eq!(tc(&t), before);
    assert!(!t.node.sh("tc qdisc show dev v3").contains("htb"));
    // The network's subnets are for the runtime's rates, too.
    let mut c = conf(&c1, json!({"ingressRate": 8_000_000}));
    c["unshapedSubnets"] = json!(["10.0.0.0/8"]);
    t.add("c1", &c);
    assert!(t.node.sh("tc filter show dev v3 parent 1:").contains("flowid 1:1"));
}

/// What traffic control holds, but for handles and counters.
fn tc(t: &Twin) -> Value {
    let qdiscs = t.json("tc -j qdisc show");
    let tbf: Vec<Value> = qdiscs
        .as_array()
        .unwrap()
        .iter()
        .filter(|q| q["kind"] == "tbf")
        .map(|q| {
            let o = |k: &str| q["options"][k].as_f64().unwrap();
            // The kernel keeps times; both sides round.
            let (burst, latency) = ((o("burst") / 1e3).round(), (o("lat") / 10.0).round());
            json!({"dev": q["dev"], "rate": o("rate"), "burst": burst, "latency": latency})
        })
        .collect();
    let ifbs: Vec<Value> = t
        .json("ip -j -d link show type ifb")
        .as_array()
        .unwrap()
        .iter()
        .filter(|l| l["ifname"].is_string())
        .map(|l| json!({"name": l["ifname"], "mtu": l["mtu"], "up": l["flags"].as_array().unwrap().contains(&"UP".into())}))
        .collect();
    let redirected = t.node.sh("tc filter show dev v3 ingress").contains("Egress Redirect to device bwp");
    json!({"tbf": tbf, "ifbs": ifbs, "redirected": redirected})
}

#[test]
fn the_kernel_is_told_what_the_reference_tells_it() {
    for limits in [
        json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 1_600_000}),
        json!({"ingressRate": 8_000_000, "ingressBurst": 800_000}),
        json!({"egressRate": 123_456_789, "egressBurst": 12_345_678}),
        json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0}),
        json!({}),
    ] {
        let [ours, theirs] = BOTH.map(|whose| {
            let t = Twin::new(whose);
            let c1 = bridged(&t.node, "c1", 3);
            t.node.sh("ip link set cni0 mtu 1400; ip link set v3 mtu 1400");
            let c = conf(&c1, limits.clone());
            let before = tc(&t);
            let added = t.add("c1", &c);
            let during = tc(&t);
            let mut with_prev = c.clone();
            with_prev["prevResult"] = added.clone();
            if limits != json!({}) {
                t.call("CHECK", "c1", &with_prev).unwrap();
            }
            if whose == Whose::Ours {
                t.add("c1", &c);
                assert_eq!(tc(&t), during, "the same again");
            }
            // Without a result and without the namespace, too.
            t.del("c1", &conf(&Value::Null, limits.clone()));
            t.del("c2", &conf(&Value::Null, limits.clone()));
            let ifbs = tc(&t)["ifbs"].clone();
            t.del("c1", &with_prev);
            if whose == Whose::Ours {
                assert_eq!(tc(&t), before, "the host end is let free when it is known");
            }
            (result(&added), during, ifbs)
        });
        assert_eq!(ours, theirs, "{limits}");
    }
}

#[test]
fn what_the_reference_refuses_is_refused_by_name() {
    let t = Twin::new(Whose::Ours);
    let c1 = bridged(&t.node, "c1", 3);
    t.node.sh_pod("c1", "ip link add br0 type bridge; ip link set br0 name eth1");
    let many: Vec<String> = (0..129).map(|n| format!("10.{n}.0.0/16")).collect();
    let made_by_nobody = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}]});
    for (c, env, says) in [
        (conf(&c1, json!({"ingressBurst": 8000})), "eth0", "runtimeConfig.bandwidth.ingressBurst is given without"),
        (conf(&c1, json!({"egressRate": 7})), "eth0", "runtimeConfig.bandwidth.egressRate is 7"),
        (conf(&c1, json!({"egressRate": 8000, "egressBurst": 1_u64 << 40})), "eth0", "egressBurst is 1099511627776"),
        (conf(&c1, json!({"ingressRate": "1M"})), "eth0", "runtimeConfig.bandwidth.ingressRate is \"1M\""),
        (
            conf(&c1, json!({"ingressRate": 8000, "shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["fd00::/8"]})),
            "eth0",
            "shapedSubnets cannot be both specified",
        ),
        (conf(&c1, json!({"egressRate": 8000, "shapedSubnets": ["10.0.0.0"]})), "eth0", "bandwidth.shapedSubnets"),
        (conf(&c1, json!({"egressRate": 8000, "unshapedSubnets": many})), "eth0", "has 129 subnets: at most 128"),
        (conf(&c1, json!({"ingressRate": 8000})), "eth1", "interface eth1 of the container is no end of a veth"),
        (conf(&made_by_nobody, json!({"ingressRate": 8000})), "eth0", "prevResult.interfaces has no host end of eth0"),
        (conf(&Value::Null, json!({"ingressRate": 8000})), "eth0", "prevResult is missing"),
    ] {
        let before = tc(&t);
        let e = t.call_with("ADD", "c1", &c, &[("CNI_IFNAME", env)]).expect_err(says);
        assert!(e["msg"].as_str().unwrap().contains(says), "{e}");
        assert_eq!(tc(&t), before, "{says}: something is left");
    }
}

#[test]
fn check_sees_a_change_gc_removes_what_does_not_live_and_add_changes_limits() {
    let t = Twin::new(Whose::Ours);
    let c1 = bridged(&t.node, "c1", 3);
    let c = conf(&c1, json!({"ingressRate": 8_000_000, "egressRate": 8_000_000}));
    t.add("c1", &c);
    let right = tc(&t);
    for harm in [
        "tc qdisc del dev v3 root",
        "tc qdisc del dev v3 clsact",
        "ip link del $(ip -br link show type ifb | cut -d' ' -f1)",
        "tc qdisc replace dev v3 root tbf rate 1mbit burst 10k latency 25ms",
    ] {
        t.node.sh(harm);
        assert_eq!(t.call("CHECK", "c1", &c).unwrap_err()["code"], 101, "{harm}");
        t.add("c1", &c);
        t.call("CHECK", "c1", &c).unwrap();
        assert_eq!(tc(&t), right, "{harm}");
    }
    let faster = conf(&c1, json!({"ingressRate": 80_000_000}));
    t.add("c1", &faster);
    t.call("CHECK", "c1", &faster).unwrap();
    assert_eq!(tc(&t)["ifbs"], json!([]));
    t.add("c1", &c);
    let gc = |network: &str, valid: Value| json!({"cniVersion": "1.1.0", "name": network, "type": "bandwidth", "cni.dev/valid-attachments": valid});
    t.call("GC", "", &gc("other", json!([]))).unwrap();
    t.call("GC", "", &gc("net", json!([{"containerID": "c1", "ifname": "eth0"}]))).unwrap();
    assert_eq!(tc(&t), right);
    t.node.sh("ip link add bwp0123456789ab type ifb");
    t.call("GC", "", &gc("net", json!([]))).unwrap();
    let left = tc(&t)["ifbs"].clone();
    assert_eq!(left.as_array().unwrap().len(), 1, "another's stays: {left}");
}

#[test]
fn the_page_tells_the_truth() {
    let t = Twin::new(Whose::Ours);
    let mut c = page("bandwidth");
    c["prevResult"] = bridged(&t.node, "c1", 3);
    t.add("c1", &c);
    let shown = t.node.sh("tc qdisc show dev v3");
    assert!(shown.contains("tbf") && shown.contains("rate 50Mbit"), "{shown}");
    t.call("CHECK", "c1", &c).unwrap();
}
