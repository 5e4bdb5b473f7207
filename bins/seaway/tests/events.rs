//! What an agent cannot honour, where a person looks first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Lab, PATIENCE, Proc, eventually, eventually_or, ok, run};
use serde_json::{Value, json};

fn kubectl(lab: &Lab, args: &[&str]) -> String {
    let mut c = Command::new("kubectl");
    c.arg("--kubeconfig").arg(lab.dir().join("kubeconfig")).args(["--cache-dir"]).arg(lab.dir().join("kubectl-cache"));
    ok(c.args(args))
}

#[test]
fn a_refusal_is_an_event_at_its_object() {
    let lab = Lab::up(&["--nodes", "2"]);
    lab.patch("/api/v1/namespaces/kube-system/configmaps/seaway", r#"{"data": {"backnd": "vxlan"}}"#);
    let told = || {
        let all = lab.objects("events", "kube-system");
        let ours = all.into_iter().filter(|e| e["involvedObject"]["name"] == "seaway").collect::<Vec<_>>();
        (ours.len() >= 2).then_some(ours)
    };
    let ours = eventually("both agents tell of the setting", PATIENCE, told);
    for e in &ours {
        assert_eq!(
            (&e["type"], &e["reason"], &e["source"]["component"]),
            (&"Warning".into(), &"NotHonoured".into(), &"seaway-agent".into())
        );
        let message = e["message"].as_str().unwrap();
        assert!(
            message.contains("data.backnd") && message.contains("correct it to") && message.contains("backend"),
            "{message}"
        );
    }
    let hosts: std::collections::BTreeSet<_> = ours.iter().map(|e| e["source"]["host"].to_string()).collect();
    assert_eq!(hosts.len(), 2, "each node speaks for itself");
    let text = kubectl(&lab, &["-n", "kube-system", "describe", "configmap", "seaway"]);
    assert!(text.contains("NotHonoured") && text.contains("data.backnd"), "{text}");
    let text = kubectl(&lab, &["-n", "kube-system", "get", "events"]);
    assert!(text.contains("configmap/seaway") && text.contains("Warning"), "{text}");
}

/// Two that want one port, an address of a family that the Service has not, a pool that is exhausted, ports that a process
/// of the node has: each is told at its Service, with the field and the cure.
#[test]
fn what_a_service_asks_for_and_cannot_have_is_an_event_at_it() {
    let lab = Lab::up(&["--nodes", "2", "--ip", "dual"]);
    let node1 = kernel::Netns::open(format!("/run/netns/{}-node1", lab.name)).unwrap();
    let _process = node1.run(|| std::net::TcpListener::bind("0.0.0.0:32123")).unwrap().unwrap();
    let _other = node1.run(|| std::net::TcpListener::bind("0.0.0.0:32124")).unwrap().unwrap();
    let create = |path: &str, v: &Value| lab.api("POST", path, Some(("application/json", &v.to_string())));
    let pool = json!({"apiVersion": "seaway.io/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "small"},
        "spec": {"addresses": ["172.31.1.200/32"]}});
    create("/apis/seaway.io/v1alpha1/loadbalancerpools", &pool);
    let service = |name: &str, spec: Value| {
        let mut spec = spec;
        if spec["ports"].is_null() {
            spec["ports"] = json!([{"port": 80}]);
        }
        spec["ipFamilies"] = json!(["IPv4"]);
        spec["ipFamilyPolicy"] = "SingleStack".into();
        let v = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        create("/api/v1/namespaces/default/services", &v)
    };
    service("a-first", json!({"externalIPs": ["192.0.2.77"]}));
    service("b-second", json!({"externalIPs": ["192.0.2.77"]}));
    service("c-family", json!({"externalIPs": ["2001:db8::77"]}));
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32123});
    service("d-checked", local);
    service("e-exhausted", json!({"type": "LoadBalancer"}));
    service("f-process", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32124}]}));
    for (name, reason, parts) in [
        (
            "b-second",
            "NotHonoured",
            ["spec.externalIPs", "192.0.2.77 port 80/TCP is already served by Service default/a-first: choose another"],
        ),
        (
            "c-family",
            "NotHonoured",
            ["spec.externalIPs", "no IPv6 cluster address, so 2001:db8::77 is not served: add the family"],
        ),
        ("d-checked", "FailedToStartServiceHealthcheck", ["spec.healthCheckNodePort", "stop who has the port"]),
        ("f-process", "NotHonoured", ["spec.ports[0].nodePort", "a process of node1 listens at 32124/TCP too"]),
        ("e-exhausted", "", ["LoadBalancerPool small is in use", "add addresses to it"]),
    ] {
        eventually(&format!("{name} is told"), PATIENCE, || {
            let says = |e: &Value| parts.iter().all(|p| e["message"].as_str().is_some_and(|m| m.contains(p)));
            let is = |e: &&Value| {
                e["involvedObject"]["name"] == name
                    && e["involvedObject"]["kind"] == "Service"
                    && e["type"] == "Warning"
            };
            let all = lab.objects("events", "default");
            all.iter().filter(is).any(|e| says(e) && (reason.is_empty() || e["reason"] == reason)).then_some(())
        });
    }
    // Who was first has it, and is told nothing.
    let all = lab.objects("events", "default");
    assert!(all.iter().all(|e| e["involvedObject"]["name"] != "a-first"), "{all:?}");
}

#[test]
fn a_node_says_that_it_has_a_network() {
    let lab = Lab::up(&["--nodes", "2"]);
    let conditions = || {
        let nodes = lab.objects("nodes", "");
        let of = |n: &serde_json::Value, kind: &str| {
            n["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned()
        };
        let all: Vec<_> = nodes.iter().filter_map(|n| of(n, "NetworkUnavailable").zip(of(n, "Ready"))).collect();
        (all.len() == 2).then_some(all)
    };
    for (network, ready) in eventually("both nodes have the condition", PATIENCE, conditions) {
        assert_eq!((&network["status"], &network["reason"]), (&"False".into(), &"SeawayIsUp".into()));
        assert!(network["lastTransitionTime"].as_str().is_some_and(|t| t.ends_with('Z')), "{network}");
        assert_eq!(ready["status"], "True", "what others say of the node stays");
    }
}

/// An operator who reads the log sees each pass once: what was heard, how much was changed by whom, how long it took.
#[test]
fn a_pass_is_one_line_of_the_log() {
    let lab = Lab::up(&["--nodes", "2"]);
    let lines = || {
        let text = std::fs::read_to_string(lab.dir().join("logs/agent-node1.log")).unwrap();
        text.lines().filter(|l| l.contains("reconcile")).map(str::to_owned).collect::<Vec<_>>()
    };
    let quiet = || {
        let before = lines().len();
        std::thread::sleep(Duration::from_secs(3));
        (before == lines().len()).then_some(before)
    };
    let before = eventually("the lab comes to rest", PATIENCE, quiet);
    // Nobody makes slices of a Service without a selector: it is all that happens.
    let service =
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alone"}, "spec": {"ports": [{"port": 80}]}}"#;
    lab.api("POST", "/api/v1/namespaces/default/services", Some(("application/json", service)));
    eventually("a line", PATIENCE, || (lines().len() > before).then_some(()));
    let after = eventually("rest", PATIENCE, quiet);
    assert_eq!(after, before + 1, "{:#?}", lines());
    let line = lines().pop().unwrap();
    for part in [" INFO ", "result=\"changed\"", "heard=\"Service 1\"", "ops=", "nftables=", "refused=0", "ms="] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

/// The Node's condition, once it is there.
fn network(lab: &Lab, node: &str) -> Option<Value> {
    let nodes = lab.objects("nodes", "");
    let node = nodes.into_iter().find(|n| n["metadata"]["name"] == node)?;
    node["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "NetworkUnavailable").cloned()
}

/// A file's name in a folder's place, and the folder again when this goes.
struct Hidden(std::path::PathBuf);

impl Hidden {
    fn new(dir: &Path) -> Self {
        std::fs::rename(dir, dir.with_extension("hidden")).unwrap();
        std::fs::write(dir, "").unwrap();
        Self(dir.to_owned())
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::rename(self.0.with_extension("hidden"), &self.0);
    }
}

/// While packets cannot be carried the Node says so, and why; the time of the change is that of the change alone.
#[test]
fn a_node_without_network_says_so_while_it_lasts() {
    let lab = Lab::up(&["--nodes", "3", "--backend", "vxlan"]);
    let is = |node: &str, status: &str, reason: &str| {
        network(&lab, node).filter(|c| c["status"] == status && c["reason"] == reason)
    };
    let since = |c: &Value| c["lastTransitionTime"].as_str().unwrap().to_owned();
    let begun = ["node1", "node2", "node3"]
        .map(|n| since(&eventually("each node is up", PATIENCE, || is(n, "False", "SeawayIsUp"))));

    // Said anew, since the node's annotations were lost, it is no transition; nor is an agent that starts anew.
    std::thread::sleep(Duration::from_millis(1100));
    let note = || {
        let nodes = lab.objects("nodes", "");
        nodes.iter().find(|n| n["metadata"]["name"] == "node1").unwrap()["metadata"]["annotations"]["seaway.io/backend"]
            .as_str()
            .map(str::to_owned)
    };
    lab.patch("/api/v1/nodes/node1", r#"{"metadata": {"annotations": {"seaway.io/backend": null}}}"#);
    eventually("the annotation is back", PATIENCE, note);
    Proc::find(&lab, &["agent", "node1"]).iter().for_each(Proc::kill);
    lab.run(&["heal"]);
    eventually("the agent is ready again", PATIENCE, || {
        let asked = run(&mut lab.on_node("node1", &["curl", "-sf", "http://127.0.0.1:9642/readyz"]));
        asked.status.success().then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(since(&network(&lab, "node1").unwrap()), begun[0]);

    // node1: another program's device has the number and port of ours. node2: nothing can be written where runtimes look.
    let backend = |to: &str| {
        lab.patch("/api/v1/namespaces/kube-system/configmaps/seaway", &json!({"data": {"backend": to}}).to_string());
    };
    backend("host-gw");
    eventually("the VXLAN device of node1 is gone", PATIENCE, || {
        (!run(&mut lab.on_node("node1", &["ip", "link", "show", "seaway.1"])).status.success()).then_some(())
    });
    let other = ["ip", "link", "add", "other", "type", "vxlan", "id", "1", "dstport", "8472", "local", "172.31.1.11"];
    ok(&mut lab.on_node("node1", &other));
    let hidden = Hidden::new(lab.conflist("node2").parent().unwrap());
    backend("vxlan");
    let down = eventually("node1 has no network", PATIENCE * 2, || is("node1", "True", "RoutesNotProgrammed"));
    assert!(down["message"].as_str().is_some_and(|m| m.contains("VNI")), "{down}");
    assert!(since(&down) > begun[0], "{down}");
    let conf_down = eventually("node2 can attach no pod", PATIENCE * 2, || is("node2", "True", "NoPodNetwork"));
    assert!(conf_down["message"].as_str().is_some_and(|m| m.contains("10-seaway.conflist")), "{conf_down}");
    assert!(since(&conf_down) > begun[1], "{conf_down}");
    let well = network(&lab, "node3").unwrap();
    assert_eq!((&well["status"], since(&well)), (&"False".into(), begun[2].clone()), "what others lack is not its own");

    // It lasts, though the agent tries again and again.
    std::thread::sleep(Duration::from_secs(5));
    let now = is("node1", "True", "RoutesNotProgrammed").unwrap();
    assert_eq!(since(&now), since(&down));
    ok(&mut lab.on_node("node1", &["ip", "link", "del", "other"]));
    drop(hidden);
    for (node, before) in [("node1", since(&down)), ("node2", since(&conf_down))] {
        let up = eventually(&format!("the network of {node} is back"), PATIENCE, || is(node, "False", "SeawayIsUp"));
        assert!(since(&up) > before, "{up}");
    }
}

/// Events at an object with these words in their messages: of which type, and with which reason. There may be several: a
/// runtime repeats the words with which the agent has a pod refused.
fn events(lab: &Lab, object: &str, words: &[&str]) -> Vec<(String, String)> {
    let text = |e: &Value, at: &str| e.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let all = lab.objects("events", "-A");
    let about = |e: &&Value| {
        let of = format!("{}/{}", text(e, "/involvedObject/kind"), text(e, "/involvedObject/name"));
        of == object && words.iter().all(|w| text(e, "/message").contains(w))
    };
    all.iter().filter(about).map(|e| (text(e, "/type"), text(e, "/reason"))).collect()
}

/// What people get wrong most, each told at the object that has to be mended.
#[test]
fn mistakes_are_told_at_their_objects() {
    let lab = Lab::up(&["--nodes", "2", "--ip", "dual", "--backend", "vxlan"]);
    let create = |path: &str, object: Value| {
        lab.api("POST", path, Some(("application/json", &object.to_string())));
    };
    let told = |object: &str, reason: &str, words: &[&str]| {
        let kind = if reason == "Announced" { "Normal" } else { "Warning" };
        let (wanted, mut got) = ((kind.to_owned(), reason.to_owned()), Vec::new());
        let found = eventually_or(PATIENCE, || {
            got = events(&lab, object, words);
            got.contains(&wanted).then_some(())
        });
        assert!(found.is_some(), "{object}: no Event {wanted:?} with {words:?}, only {got:?}");
    };
    let refused = |object: &str, words: &[&str]| told(object, "NotHonoured", words);

    // A node with another's pod range, one with another's address, and one whose address is in a pod range.
    let nodes = lab.objects("nodes", "");
    let first = nodes.iter().find(|n| n["metadata"]["name"] == "node1").unwrap();
    let range = first["spec"]["podCIDRs"][0].as_str().unwrap();
    // Who is older has it, by the second.
    std::thread::sleep(Duration::from_millis(1100));
    for (name, cidr, address) in [
        ("twin", range, "172.31.1.71"),
        ("alias", "10.244.200.0/24", "172.31.1.11"),
        ("inside", "10.244.201.0/24", "10.244.202.1"),
    ] {
        let status = json!({"addresses": [{"type": "InternalIP", "address": address}]});
        let spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec});
        create("/api/v1/nodes", object);
        lab.patch(&format!("/api/v1/nodes/{name}/status"), &json!({"status": status}).to_string());
    }
    refused("Node/twin", &["spec.podCIDRs[0]", range, "overlaps", "of Node node1"]);
    refused("Node/alias", &["status.addresses[InternalIP]", "172.31.1.11", "node1"]);
    refused("Node/inside", &["10.244.202.1", "pod range", "data.clusterCIDR"]);

    // An interface too small for a tunnel with IPv6 inside.
    ok(&mut lab.on_node("node2", &["ip", "link", "set", "eth0", "mtu", "1300"]));
    refused("Node/node2", &["the MTU of eth0 is 1300", "raise it to 1330", "host-gw"]);
    ok(&mut lab.on_node("node2", &["ip", "link", "set", "eth0", "mtu", "1500"]));

    // A pod that asks for what there is not.
    let lost = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "lost", "annotations": {"k8s.v1.cni.cncf.io/networks": "none"}},
        "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "x"}]}});
    create("/api/v1/namespaces/default/pods", lost);
    refused("Pod/lost", &["metadata.annotations[k8s.v1.cni.cncf.io/networks]", "default/none"]);

    // kube-proxy's port, when the agent starts and somebody has it.
    Proc::find(&lab, &["agent", "node1"]).iter().for_each(Proc::kill);
    let node1 = kernel::Netns::open(format!("/run/netns/{}-node1", lab.name)).unwrap();
    let listen = || {
        let bound = node1.run(|| std::net::TcpListener::bind("[::]:10256")).unwrap();
        bound.ok()
    };
    let _process = eventually("the agent's port is free", PATIENCE, listen);
    lab.run(&["heal"]);
    told("Node/node1", "FailedToStartProxierHealthcheck", &["cannot listen at", ":10256", "kube-proxy"]);

    // And what goes well with an address outside.
    let pool = json!({"apiVersion": "seaway.io/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "public"},
        "spec": {"addresses": ["172.31.1.200/32"]}});
    create("/apis/seaway.io/v1alpha1/loadbalancerpools", pool);
    let announced = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "announced"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    create("/api/v1/namespaces/default/services", announced);
    told("Service/announced", "Announced", &["answers for 172.31.1.200 on the link"]);
}

/// Whoever reads an Event's reason finds it in the page for operators.
#[test]
fn each_reason_of_an_event_is_on_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let mut dirs = vec![root.join("bins/seaway/src/agent"), root.join("crates/source/src")];
    let mut found = std::collections::BTreeSet::new();
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for after in ["reason: \"", "const REASON: &str = \""] {
                found.extend(code.split(after).skip(1).map(|t| t.split('"').next().unwrap().to_owned()));
            }
        }
    }
    assert!(found.len() >= 6 && found.contains("NotHonoured"), "{found:?}");
    let missing: Vec<_> = found.iter().filter(|r| !page.contains(&format!("`{r}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md does not say what these Events are: {missing:?}");
}
