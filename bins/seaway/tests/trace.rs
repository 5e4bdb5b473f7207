//! What `seaway trace` says of Services in a running lab, and that real packets agree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::process::Command;

use common::{Lab, PATIENCE, SEAWAY, eventually, run};
use serde_json::json;

/// Endpoints on node2 alone; a client on node1.
const MANIFEST: &str = r"
apiVersion: seaway.io/v1alpha1
kind: LoadBalancerPool
metadata: { name: public }
spec: { addresses: [172.31.1.200/32] }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: default }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      nodeSelector: { kubernetes.io/hostname: node2 }
      containers: [{ name: web, image: x, ports: [{ containerPort: 8080 }] }]
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: default }
spec:
  nodeName: node1
  containers: [{ name: client, image: x }]
---
apiVersion: v1
kind: Service
metadata: { name: lb, namespace: default }
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: 8080, nodePort: 30080 }]
---
apiVersion: v1
kind: Service
metadata: { name: sticky, namespace: default }
spec:
  sessionAffinity: ClientIP
  selector: { app: web }
  ports: [{ port: 80, targetPort: 8080 }]
---
apiVersion: v1
kind: Service
metadata: { name: empty, namespace: default }
spec:
  selector: { app: nobody }
  ports: [{ port: 80 }]
";

fn trace(lab: &Lab, args: &[&str]) -> String {
    let out = run(Command::new(SEAWAY).args(["trace", "--name", &lab.name]).args(args));
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// The trace says all this, and the real packet does the same.
fn says(lab: &Lab, from: &str, to: &str, parts: &[&str]) {
    let what = format!("{from} to {to} says {parts:?}, and the packet agrees");
    let mut last = String::new();
    let found = common::eventually_or(PATIENCE, || {
        last = trace(lab, &[from, to, "--probe"]);
        (parts.iter().all(|p| last.contains(p)) && last.contains("agrees") && !last.contains("DISAGREES")).then_some(())
    });
    assert!(found.is_some(), "{what}; it says\n{last}");
}

#[test]
fn why_a_packet_to_a_service_goes_where_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all.yaml"), MANIFEST).unwrap();
    let lab = Lab::up(&[dir.path().to_str().unwrap(), "--nodes", "2"]);
    let at = |name: &str, port: &str, front: &str| format!("Service default/{name}{port} at {front}");
    // From outside: the node that announces the address, which is the one with endpoints.
    let lb = at("lb", " (port http)", "its load balancer's address: one of ");
    says(&lab, "outside", "172.31.1.200:80", &["node2    service", &lb]);
    let node_port = at("lb", " (port http)", "node port 30080: ");
    says(&lab, "outside", "node2:30080", &["node2    service", &node_port]);
    let dropped = format!("drops it: {node_port}policy Local, and no endpoint is on node1; there are some on node2");
    says(&lab, "outside", "node1:30080", &[&dropped, "stops on node1"]);
    // From inside the policy does not hold, and the node's own packets take its address.
    let inside = ["policy Local is for clients outside the cluster", "masquerade: it comes from inside the cluster"];
    says(&lab, "node1", "172.31.1.200:80", &[&lb, inside[0], inside[1]]);
    says(&lab, "client", "lb:80", &[&at("lb", " (port http)", "its cluster address: one of "), "whichever endpoint"]);
    says(&lab, "web", "lb:80", &["masquerade: the pod reaches itself"]);
    // Session affinity: any endpoint may come to be remembered; then it is that one.
    let sticky = at("sticky", "", "its cluster address: ");
    let first = trace(&lab, &["client", "sticky:80"]);
    let any = [&*sticky, "one of ", "session affinity: this client then keeps it for 10800 s"];
    assert!(any.iter().all(|p| first.contains(p)), "{first}");
    says(&lab, "client", "sticky:80", &[&sticky, "agrees"]);
    let then = trace(&lab, &["client", "sticky:80"]);
    assert!(then.contains("session affinity: this client had it before") && then.contains("It arrives."), "{then}");
    says(
        &lab,
        "client",
        "empty:80",
        &["at its cluster address has no ready endpoint", "seaway services default/empty"],
    );
    says(&lab, "client", "empty:81", &["is an address of Service default/empty, which serves 80/TCP there"]);

    // Endpoints that somebody wrote himself, as the older object alone.
    let pods = lab.pods();
    let web = pods.iter().find(|p| p.name.starts_with("web-")).unwrap();
    let v = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "manual"}, "spec": {"ports": [{"port": 80}]}});
    lab.api("POST", "/api/v1/namespaces/default/services", Some(("application/json", &v.to_string())));
    let subsets = json!([{"addresses": [{"ip": web.ips[0]}], "ports": [{"port": 8080}]}]);
    let v = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "manual"}, "subsets": subsets});
    lab.api("POST", "/api/v1/namespaces/default/endpoints", Some(("application/json", &v.to_string())));
    let manual = at("manual", "", &format!("its cluster address: {}:8080", web.ips[0]));
    says(&lab, "client", "manual:80", &[&manual, "It arrives."]);
    lab.api("DELETE", "/api/v1/namespaces/default/endpoints/manual", None);
    says(&lab, "client", "manual:80", &["Service default/manual", "has no ready endpoint"]);

    // And what the Service is to node1.
    let services = || {
        let out = run(Command::new(SEAWAY).args(["services", "default/lb", "--lab", &lab.name, "--node", "node1"]));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let parts = [
            "here       from outside: dropped on node1",
            "seen as it is (policy Local)",
            "load balancers ask node port",
        ];
        parts.iter().all(|p| text.contains(p)).then_some(())
    };
    eventually("seaway services says what is dropped here", PATIENCE, services);
}
