//! Pods with several networks, in a lab: on our `bridge`, and on the reference plugins (Debian's
//! containernetworking-plugins).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use common::{Lab, PATIENCE, eventually, ok, plugin};
use serde_json::{Value, json};

const NADS: &str = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";
const PODS: &str = "/api/v1/namespaces/default/pods";
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

fn post(lab: &Lab, path: &str, body: &Value) {
    lab.api("POST", path, Some(("application/json", &body.to_string())));
}

fn network(lab: &Lab, name: &str, config: &Value) {
    let config = if config.is_null() { json!({}) } else { json!({"config": config.to_string()}) };
    let nad = json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name}, "spec": config});
    post(lab, NADS, &nad);
}

fn pod(lab: &Lab, name: &str, annotations: &Value) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 8080}]}]}});
    post(lab, PODS, &pod);
}

fn running(lab: &Lab, name: &str) -> Value {
    eventually(&format!("{name} runs"), PATIENCE, || {
        let p = lab.api("GET", &format!("{PODS}/{name}"), None);
        (p["status"]["phase"] == "Running").then_some(p)
    })
}

/// What `network-status` says, once it is there.
fn status(lab: &Lab, name: &str) -> Vec<Value> {
    eventually(&format!("{name} has a network-status"), PATIENCE, || {
        let p = lab.api("GET", &format!("{PODS}/{name}"), None);
        let text = p["metadata"]["annotations"][STATUS].as_str()?;
        Some(serde_json::from_str::<Vec<Value>>(text).unwrap())
    })
}

fn inside(lab: &Lab, pod: &str, command: &str) -> String {
    let r = lab.records("node1").into_iter().find(|r| r.pod.as_ref().is_some_and(|p| &*p.name == pod)).unwrap();
    ok(std::process::Command::new("nsenter").arg(format!("--net={}", r.netns)).args(command.split_whitespace()))
}

/// `bridge` with addresses of its own; the store lies in the lab, so that it goes with it.
fn bridge(lab: &Lab, device: &str, subnet: &str) -> Value {
    json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": device, "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": lab.dir().join("store"), "subnet": subnet}})
}

fn stored(lab: &Lab, network: &str) -> usize {
    let files = std::fs::read_dir(lab.dir().join("store").join(network)).into_iter().flatten().flatten();
    files.filter(|f| f.file_name().to_string_lossy().parse::<std::net::IpAddr>().is_ok()).count()
}

/// `bridge` is ours: CNI_PATH of a lab begins beside the binary. The others are the reference's.
fn plugins() {
    let there = ["ptp", "host-local", "tuning"].iter().all(|p| std::path::Path::new("/usr/lib/cni").join(p).exists());
    assert!(there, "the reference plugins are missing: apt-get install containernetworking-plugins");
    let ours = plugin().with_file_name("bridge");
    match std::os::unix::fs::symlink("seaway-cni", &ours) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => panic!("{}: {e}", ours.display()),
        _ => {}
    }
}

#[test]
fn a_pod_has_the_networks_it_asks_for_and_is_told_what_it_got() {
    plugins();
    let lab = Lab::up(&["--nodes", "1", "--ip", "dual"]);
    network(&lab, "side", &bridge(&lab, "side0", "10.77.0.0/24"));
    let chain = json!({"cniVersion": "1.0.0", "name": "direct", "plugins": [
        {"type": "ptp", "ipam": {"type": "host-local", "dataDir": lab.dir().join("store"), "subnet": "10.78.0.0/24"}},
        {"type": "tuning", "mtu": 1400}]});
    network(&lab, "direct", &chain);
    // One that has no configuration: the node's file of that name.
    network(&lab, "filed", &Value::Null);
    let file = bridge(&lab, "filed0", "10.79.0.0/24").as_object().cloned().map(|mut m| {
        m.insert("name".into(), "filed".into());
        Value::Object(m)
    });
    let dir = lab.dir().join("node1/cni");
    let dir = if dir.exists() { dir } else { lab.dir().join("node1/cni/net.d") };
    std::fs::write(dir.join("90-filed.conf"), file.unwrap().to_string()).unwrap();

    pod(&lab, "web", &json!({NETWORKS: "side, default/direct@p0"}));
    let p = running(&lab, "web");
    let all = status(&lab, "web");
    let brief: Vec<_> = all
        .iter()
        .map(|e| (e["name"].as_str().unwrap(), e["interface"].as_str().unwrap(), e["default"] == true))
        .collect();
    assert_eq!(brief, [("seaway", "eth0", true), ("default/side", "net1", false), ("default/direct", "p0", false)]);
    let own: Vec<Value> = p["status"]["podIPs"].as_array().unwrap().iter().map(|i| i["ip"].clone()).collect();
    assert_eq!(all[0]["ips"].as_array().unwrap().len(), 2);
    assert_eq!(all[0]["ips"], Value::from(own), "the pod's own addresses are those of the cluster's network");
    assert_eq!((all[1]["ips"][0].as_str(), all[2]["ips"][0].as_str()), (Some("10.77.0.2"), Some("10.78.0.2")));
    let shown = inside(&lab, "web", "ip -br link");
    for e in &all {
        let (name, mac) = (e["interface"].as_str().unwrap(), e["mac"].as_str().unwrap());
        assert!(shown.lines().any(|l| l.starts_with(name) && l.contains(mac)), "{e}\n{shown}");
    }
    assert!(inside(&lab, "web", "ip link show p0").contains("mtu 1400"));
    inside(&lab, "web", "ping -c 1 -W 2 10.77.0.1");

    // Two pods meet on the side, with the addresses they ask for; one goes out through it.
    let text = json!([{"name": "side", "interface": "s0", "ips": ["10.77.0.50/24"], "mac": "02:00:00:00:77:50", "default-route": ["10.77.0.1"]}]);
    let mut asked = bridge(&lab, "side0", "10.77.0.0/24");
    asked["capabilities"] = json!({"ips": true, "mac": true});
    asked["name"] = "side".into();
    lab.patch(&format!("{NADS}/side"), &json!({"spec": {"config": asked.to_string()}}).to_string());
    pod(&lab, "fixed", &json!({NETWORKS: text.to_string()}));
    running(&lab, "fixed");
    let all = status(&lab, "fixed");
    assert_eq!((&all[1]["ips"], &all[1]["mac"]), (&json!(["10.77.0.50"]), &json!("02:00:00:00:77:50")));
    assert!(inside(&lab, "fixed", "ip route show default").contains("via 10.77.0.1 dev s0"));
    inside(&lab, "web", "ping -c 1 -W 2 10.77.0.50");

    // The older way to say it, and the first interface of another network.
    pod(&lab, "older", &json!({"cni": "seaway,filed"}));
    running(&lab, "older");
    let all = status(&lab, "older");
    assert_eq!(
        (&all[1]["name"], &all[1]["interface"], &all[1]["ips"][0]),
        (&json!("default/filed"), &json!("eth1"), &json!("10.79.0.2"))
    );
    pod(&lab, "other", &json!({"v1.multus-cni.io/default-network": "default/side"}));
    let p = running(&lab, "other");
    assert!(p["status"]["podIP"].as_str().unwrap().starts_with("10.77.0."), "{p}");
    let all = status(&lab, "other");
    assert_eq!((all.len(), &all[0]["name"], &all[0]["default"]), (1, &json!("default/side"), &json!(true)));

    // What was attached goes, whatever became of the definitions.
    for n in ["side", "direct", "filed"] {
        lab.api("DELETE", &format!("{NADS}/{n}"), None);
    }
    for p in ["web", "fixed", "older", "other"] {
        lab.api("DELETE", &format!("{PODS}/{p}?gracePeriodSeconds=1"), None);
    }
    eventually("every address is given back", PATIENCE, || {
        let left =
            lab.records("node1").len() + ["side", "direct", "filed"].iter().map(|n| stored(&lab, n)).sum::<usize>();
        (left == 0).then_some(())
    });
    let links = ok(&mut lab.on_node("node1", &["ip", "-br", "link"]));
    assert!(!links.contains("veth"), "{links}");
}

#[test]
fn a_network_that_cannot_be_undoes_the_others_and_is_told_at_the_pod() {
    plugins();
    let lab = Lab::up(&["--nodes", "1"]);
    network(&lab, "side", &bridge(&lab, "side0", "10.77.0.0/24"));
    // An interface of the node that is no bridge: the plugin fails when it is called.
    let uplink = ok(&mut lab.on_node("node1", &["ip", "-br", "link"]));
    let uplink = uplink
        .lines()
        .map(|l| l.split(['@', ' ']).next().unwrap())
        .find(|n| n.starts_with("eth") || n.starts_with("up"));
    network(&lab, "broken", &bridge(&lab, uplink.expect("an uplink"), "10.78.0.0/24"));
    pod(&lab, "half", &json!({NETWORKS: "side,broken"}));
    let says = |name: &str, text: &str| {
        eventually(&format!("an event at {name} says {text}"), PATIENCE, || {
            let all = lab.objects("events", "default");
            let of =
                |e: &&Value| e["involvedObject"]["name"] == name && e["message"].as_str().unwrap_or("").contains(text);
            all.iter().any(|e| of(&e)).then_some(())
        })
    };
    says("half", "network default/broken: interface net2: bridge");
    let left = (lab.records("node1").len(), stored(&lab, "side"), stored(&lab, "broken"));
    // Between two tries of the runner nothing is there; during one everything may be.
    if left != (0, 0, 0) {
        eventually("a failed attachment is undone", PATIENCE, || {
            (lab.records("node1").is_empty() && stored(&lab, "side") + stored(&lab, "broken") == 0).then_some(())
        });
    }
    // A name that is none, a wrong annotation: told by the agent, with the fix, and nothing is attached.
    pod(&lab, "nowhere", &json!({NETWORKS: "none"}));
    says("nowhere", "there is no NetworkAttachmentDefinition/default/none: create it, or correct the name");
    pod(&lab, "wrong", &json!({NETWORKS: r#"[{"name": "side", "infiniband-guid": "x"}]"#}));
    says("wrong", "[0].infiniband-guid");
    // Once it is mended the pod comes up.
    network(&lab, "none", &bridge(&lab, "none0", "10.79.0.0/24"));
    running(&lab, "nowhere");
    assert_eq!(status(&lab, "nowhere")[1]["ips"], json!(["10.79.0.2"]));
}
