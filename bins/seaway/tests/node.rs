//! What an agent promises of its node, shown on real labs: the rows of each backend, healing, switching without loss,
//! one agent a node, nothing left by `--cleanup`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Lab, PATIENCE, Pod, Proc, SEAWAY, Talk, eventually, ok, run};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/shop");

fn netns(lab: &Lab, pod: &Pod) -> String {
    let records = lab.records(&pod.node);
    let r = records.iter().find(|r| r.pod.as_ref().is_some_and(|p| *p.name == *pod.name)).unwrap();
    r.netns.to_string()
}

/// Two pods on different nodes: one that asks and an `api` pod that echoes.
fn far_pair(lab: &Lab) -> (Pod, Pod) {
    let pods = lab.pods();
    let server = pods.iter().find(|p| p.name.starts_with("api-")).expect("an api pod").clone();
    let client = pods.iter().find(|p| !p.host_network && p.node != server.node).expect("a pod on another node").clone();
    (client, server)
}

fn lines(text: &str, with: &str) -> Vec<String> {
    text.lines().filter(|l| l.contains(with)).map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn rows(lab: &Lab, node: &str, cmd: &[&str], with: &str) -> Vec<String> {
    lines(&ok(&mut lab.on_node(node, cmd)), with)
}

fn set_backend(lab: &Lab, backend: &str) {
    let patch = format!("{{\"data\":{{\"backend\":\"{backend}\"}}}}");
    lab.patch("/api/v1/namespaces/kube-system/configmaps/seaway", &patch);
}

/// Every node's own backend annotation says so.
fn wait_backend(lab: &Lab, backend: &str) {
    eventually(&format!("every node publishes {backend}"), PATIENCE, || {
        let nodes = lab.objects("nodes", "");
        nodes.iter().all(|n| n["metadata"]["annotations"]["seaway.io/backend"] == backend).then_some(())
    });
}

#[test]
fn a_backend_has_exactly_its_rows_and_switching_loses_nothing() {
    let lab = Lab::up(&[SHOP, "--nodes", "3", "--backend", "vxlan", "--ip", "dual"]);
    wait_backend(&lab, "vxlan");
    let vxlan_rows = || {
        // Per remote node: one route and one neighbour of each family, one forwarding entry.
        (
            rows(&lab, "node1", &["ip", "route"], "dev seaway.1").len(),
            rows(&lab, "node1", &["ip", "-6", "route"], "via fd00").iter().filter(|l| l.contains("seaway.1")).count(),
            rows(&lab, "node1", &["ip", "neigh", "show", "dev", "seaway.1"], "PERMANENT").len(),
            rows(&lab, "node1", &["bridge", "fdb", "show", "dev", "seaway.1"], "permanent").len(),
        )
    };
    assert_eq!(vxlan_rows(), (2, 2, 4, 2));
    let device = ok(&mut lab.on_node("node1", &["ip", "-d", "link", "show", "seaway.1"]));
    for part in ["vxlan id 1 ", "dstport 8472", "nolearning", "mtu 1450"] {
        assert!(device.contains(part), "{part}: {device}");
    }

    // Pods of different nodes have spoken by now: tracked inside the tunnel, not outside.
    let tracked = ok(&mut lab.on_node("node1", &["conntrack", "-L"]));
    assert!(tracked.contains("dport=8080") && !tracked.contains("dport=8472"), "{tracked}");

    // A ping every 10 ms and a connection with a line every 10 ms, through two switches there and back.
    let (client, server) = far_pair(&lab);
    let ns = netns(&lab, &client);
    let pings: Vec<_> = server
        .ips
        .iter()
        .map(|ip| {
            Command::new("nsenter")
                .arg(format!("--net={ns}"))
                .args(["ping", "-n", "-D", "-O", "-i", "0.01", "-W", "1", "-c", "700", &ip.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut talks: Vec<Talk> =
        server.ips.iter().map(|ip| Talk::open(&ns, SocketAddr::new(*ip, 8080)).unwrap()).collect();
    // A process of the node and a client outside, whose connections have the VXLAN device's address as their end.
    let of_node = format!("/run/netns/{}-{}", lab.name, client.node);
    let outside = format!("/run/netns/{}-outside", lab.name);
    let web = lab
        .objects("nodes", "")
        .iter()
        .filter_map(|n| n["status"]["addresses"][0]["address"].as_str()?.parse().ok())
        .collect::<Vec<IpAddr>>();
    let mut held: Vec<Talk> =
        server.ips.iter().map(|ip| Talk::open(&of_node, SocketAddr::new(*ip, 8080)).unwrap()).collect();
    held.extend(web.iter().flat_map(|ip| (0..4).map(|_| Talk::open(&outside, SocketAddr::new(*ip, 30080)).unwrap())));
    let mut switched = Vec::new();
    for to in ["host-gw", "vxlan"] {
        let start = Instant::now();
        switched.push((to, std::time::SystemTime::now()));
        set_backend(&lab, to);
        while start.elapsed() < Duration::from_secs(2) {
            for t in talks.iter_mut().chain(&mut held) {
                t.once().unwrap_or_else(|e| panic!("the connection broke on the way to {to}: {e}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        wait_backend(&lab, to);
        if to == "host-gw" {
            let direct = rows(&lab, "node1", &["ip", "route"], "proto 83");
            assert_eq!(
                direct.iter().filter(|l| l.contains("via 172.31.") && l.contains("dev eth0")).count(),
                2,
                "{direct:?}"
            );
            let device = ["ip", "link", "show", "seaway.1"];
            assert!(run(&mut lab.on_node(&client.node, &device)).status.success(), "it goes under a connection");
            held.clear();
            eventually("the VXLAN device is gone once nobody uses it", PATIENCE, || {
                let gone = |n: &str| !run(&mut lab.on_node(n, &device)).status.success();
                (gone("node1") && gone("node2") && gone("node3")).then_some(())
            });
        }
    }
    for p in pings {
        let out = p.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let lost = lines(&text, "no answer");
        assert!(text.contains("700 received, 0% packet loss"), "{lost:#?}\nswitched at {switched:?}");
    }
    assert_eq!(vxlan_rows(), (2, 2, 4, 2));
}

#[test]
fn what_somebody_breaks_is_whole_within_two_seconds() {
    let lab = Lab::up(&[SHOP, "--nodes", "2", "--backend", "vxlan", "--ip", "dual"]);
    let (client, server) = far_pair(&lab);
    let ns = netns(&lab, &client);
    let service: IpAddr = {
        let svc = lab.objects("services", "shop").into_iter().find(|s| s["metadata"]["name"] == "api").unwrap();
        svc["spec"]["clusterIP"].as_str().unwrap().parse().unwrap()
    };
    let reaches = |to: SocketAddr| Talk::open(&ns, to).and_then(|mut t| t.once()).is_ok();
    let pod = SocketAddr::new(server.ips[0], 8080);
    let vip = SocketAddr::new(service, 80);
    assert!(reaches(pod) && reaches(vip));
    let link = lab.records(&client.node).iter().find(|r| *r.netns == *ns).unwrap().link.to_string();
    let breaks: &[&[&str]] = &[
        &["nft", "flush", "ruleset"],
        &["nft", "delete", "table", "inet", "seaway"],
        &["ip", "route", "flush", "proto", "83"],
        &["ip", "-6", "route", "flush", "proto", "83"],
        &["ip", "link", "del", "seaway.1"],
        &["ip", "link", "set", "seaway.1", "down"],
        &["ip", "neigh", "flush", "dev", "seaway.1", "nud", "permanent"],
        &["ip", "link", "del", &link],
    ];
    for b in breaks {
        ok(&mut lab.on_node(&client.node, b));
        let start = Instant::now();
        eventually(&format!("{b:?} is healed"), Duration::from_secs(2), || {
            let table = run(&mut lab.on_node(&client.node, &["nft", "list", "table", "inet", "seaway"]));
            let routes = rows(&lab, &client.node, &["ip", "route"], "dev seaway.1");
            let link = run(&mut lab.on_node(&client.node, &["ip", "link", "show", &link]));
            (table.status.success() && !routes.is_empty() && link.status.success()).then_some(())
        });
        eventually(&format!("packets flow after {b:?}"), Duration::from_secs(4), || {
            (reaches(pod) && reaches(vip)).then_some(())
        });
        eprintln!("{b:?}: whole after {:?}", start.elapsed());
    }
}

#[test]
fn a_node_that_changes_its_address_leaves_or_comes_back_is_followed() {
    let lab = Lab::up(&[SHOP, "--nodes", "3", "--backend", "host-gw", "--ip", "v4"]);
    wait_backend(&lab, "host-gw");
    let (client, server) = far_pair(&lab);
    let old = rows(&lab, &client.node, &["ip", "route"], "proto 83");
    let via = |l: &str| l.split(" via ").nth(1).and_then(|r| r.split(' ').next()).map(str::to_owned);
    let range = {
        let nodes = lab.objects("nodes", "");
        let n = nodes.iter().find(|n| n["metadata"]["name"] == *server.node).unwrap();
        n["spec"]["podCIDR"].as_str().unwrap().to_owned()
    };
    let before = old.iter().find(|l| l.starts_with(&range)).and_then(|l| via(l)).unwrap();
    // The old address goes (and its routes with it, the default among them), a new one comes.
    ok(&mut lab.on_node(&server.node, &["ip", "address", "del", &format!("{before}/24"), "dev", "eth0"]));
    ok(&mut lab.on_node(&server.node, &["ip", "address", "add", "172.31.1.99/24", "dev", "eth0"]));
    ok(&mut lab.on_node(&server.node, &["ip", "route", "replace", "default", "via", "172.31.1.1"]));
    eventually("the route leads to the new address", PATIENCE, || {
        let now = rows(&lab, &client.node, &["ip", "route"], "proto 83");
        now.iter().any(|l| l.starts_with(&range) && via(l).as_deref() == Some("172.31.1.99")).then_some(())
    });
    let ns = netns(&lab, &client);
    eventually("packets follow", PATIENCE, || {
        Talk::open(&ns, SocketAddr::new(server.ips[0], 8080)).and_then(|mut t| t.once()).ok()
    });
    // The Node goes, and its routes with it.
    for p in Proc::find(&lab, &["lab", "node", &server.node]) {
        p.kill();
    }
    lab.api("DELETE", &format!("/api/v1/nodes/{}", server.node), None);
    eventually("the route is gone", PATIENCE, || {
        rows(&lab, &client.node, &["ip", "route"], &range).is_empty().then_some(())
    });
}

#[test]
fn host_gw_over_a_router_is_refused_by_name() {
    let plugin = common::plugin();
    assert!(plugin.exists());
    let lab = Lab::up(&[SHOP, "--nodes", "2", "--backend", "vxlan", "--ip", "v4", "--segments", "2"]);
    wait_backend(&lab, "vxlan");
    let (client, server) = far_pair(&lab);
    let ns = netns(&lab, &client);
    let reaches = || Talk::open(&ns, SocketAddr::new(server.ips[0], 8080)).and_then(|mut t| t.once()).is_ok();
    assert!(reaches(), "vxlan crosses a router");
    set_backend(&lab, "host-gw");
    let status = eventually("the agent says so", PATIENCE, || {
        let out = ok(&mut lab.on_node(&client.node, &["curl", "-s", "http://127.0.0.1:9642/status"]));
        out.contains("refused\": [\n    {").then_some(out)
    });
    for part in [server.node.as_str(), "vxlan"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    assert!(!reaches(), "no packet goes by a way that is refused");
    set_backend(&lab, "vxlan");
    eventually("back on vxlan", PATIENCE, || reaches().then_some(()));
}

#[test]
fn one_agent_a_node_and_cleanup_leaves_nothing() {
    let lab = Lab::up(&[SHOP, "--nodes", "2", "--backend", "vxlan", "--ip", "dual"]);
    let agent = Proc::find(&lab, &["agent", "node1"]);
    assert_eq!(agent.len(), 1);
    let dir = lab.dir().join("node1");
    let conf = lab.conflist("node1");
    let conf_dir = conf.parent().unwrap().display().to_string();
    let api = format!("unix:{}", lab.dir().join("api.sock").display());
    let ipam = dir.join("ipam").display().to_string();
    let args = ["agent", "--node", "node1", "--api", &api, "--ipam-dir", &ipam, "--cni-conf-dir", &conf_dir];
    let second = |more: &[&str]| run(lab.on_node("node1", &[SEAWAY]).args(args).args(more));
    let out = second(&["--listen", "127.0.0.1:9999"]);
    assert!(!out.status.success());
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("another seaway agent") && text.contains(&agent[0].pid.to_string()), "{text}");
    let out = second(&["--cleanup"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("works only while no agent does"));

    // The runner would make pods anew; then the agent.
    for p in Proc::find(&lab, &["lab", "node"]).iter().chain(&agent) {
        p.kill();
    }
    // One that also tells flannel's plugin which subnet the node has.
    let subnet = dir.join("flannel/subnet.env").display().to_string();
    let flannel = ["--flannel-subnet-file", &subnet];
    let mut third = lab.on_node("node1", &[SEAWAY]).args(args).args(flannel).spawn().unwrap();
    let told = eventually("the node's subnet is told", PATIENCE, || std::fs::read_to_string(&subnet).ok());
    let _ = third.kill();
    let _ = third.wait();
    for line in
        ["FLANNEL_NETWORK=10.", "FLANNEL_SUBNET=10.", "FLANNEL_IPV6_SUBNET=fd", "FLANNEL_MTU=1", "FLANNEL_IPMASQ=true"]
    {
        assert!(told.contains(line), "{line}: {told}");
    }
    let out = second(&[&["--cleanup"][..], &flannel].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(!std::path::Path::new(&subnet).exists());
    for (cmd, trace) in [
        (&["ip", "link"][..], "sea"),
        (&["ip", "route", "show", "table", "all"][..], "proto 83"),
        (&["ip", "-6", "route", "show", "table", "all"][..], "proto 83"),
        (&["nft", "list", "ruleset"][..], "seaway"),
    ] {
        let text = ok(&mut lab.on_node("node1", cmd));
        assert!(!text.contains(trace), "{cmd:?}: {text}");
    }
    assert!(!dir.join("ipam").exists() && !conf.exists());
    let nodes = lab.objects("nodes", "");
    let n = nodes.iter().find(|n| n["metadata"]["name"] == "node1").unwrap();
    assert!(!n["metadata"]["annotations"].to_string().contains("seaway.io/"), "{n}");
}

#[test]
fn sigterm_leaves_the_datapath_and_a_restart_changes_nothing() {
    let lab = Lab::up(&[SHOP, "--nodes", "2", "--backend", "vxlan", "--ip", "dual"]);
    let (client, server) = far_pair(&lab);
    let ns = netns(&lab, &client);
    let mut talk = Talk::open(&ns, SocketAddr::new(server.ips[0], 8080)).unwrap();
    talk.once().unwrap();
    let state = |lab: &Lab| {
        let nft = ok(&mut lab.on_node("node1", &["nft", "-s", "-a", "list", "ruleset"]));
        let routes = ok(&mut lab.on_node("node1", &["ip", "route"]));
        // The elements of a hash set come in any order.
        let mut nft: Vec<String> = nft.lines().map(|l| l.trim_end_matches([',', '}', ' ']).to_owned()).collect();
        nft.sort();
        (nft, routes)
    };
    // Readiness of the last pods may still be on its way.
    let before = eventually("a state that stays", PATIENCE, || {
        let s = state(&lab);
        std::thread::sleep(Duration::from_secs(2));
        (state(&lab) == s).then_some(s)
    });
    let agents = Proc::find(&lab, &["agent", "node1"]);
    ok(Command::new("kill").args(["-TERM", &agents[0].pid.to_string()]));
    eventually("the agent ends", PATIENCE, || Proc::find(&lab, &["agent", "node1"]).is_empty().then_some(()));
    talk.once().unwrap();
    assert_eq!(state(&lab), before, "SIGTERM touches nothing");
    // Not one rule is made anew: handles are the same.
    lab.run(&["heal"]);
    eventually("the agent is ready", PATIENCE, || {
        let out = run(&mut lab.on_node("node1", &["curl", "-sf", "http://127.0.0.1:9642/readyz"]));
        out.status.success().then_some(())
    });
    talk.once().unwrap();
    assert_eq!(state(&lab), before, "a restart finds everything as it should be");
}

#[test]
fn killing_an_agent_during_the_matrix_changes_no_cell() {
    let lab = Lab::up(&[SHOP, "--nodes", "2", "--backend", "vxlan", "--ip", "dual"]);
    for delay in [0, 60, 150, 300] {
        let agents = Proc::find(&lab, &["agent", "node2"]);
        assert_eq!(agents.len(), 1);
        let test = lab.cmd(&["test"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        agents[0].kill();
        let out = test.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "killed after {delay} ms:\n{text}{}", String::from_utf8_lossy(&out.stderr));
        lab.run(&["heal"]);
        eventually("the agent is ready again", PATIENCE, || {
            let out = run(&mut lab.on_node("node2", &["curl", "-sf", "http://127.0.0.1:9642/readyz"]));
            out.status.success().then_some(())
        });
    }
}
