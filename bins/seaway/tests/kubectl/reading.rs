//! Commands that look: get, describe, explain, wait, events, and what the server says of itself.

use super::*;

const THINGS: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {tier: front}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: 'web:1', ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {tier: front}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: seaway.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: outside}
spec: {addresses: [192.0.2.0/28]}
---
apiVersion: v1
kind: Pod
metadata: {name: alone}
spec: {nodeName: node1, containers: [{name: c, image: 'x:1', command: [sleep, infinity]}]}
";

#[test]
fn get_describe_explain_and_what_the_server_is() {
    let k = Kube::up(&["--nodes", "2"]);
    k.file("things.yaml", THINGS);
    assert_eq!(k.ok("apply -f things.yaml").lines().count(), 4);
    k.ok("rollout status deploy/web --timeout=30s");
    k.ok("wait --for=condition=Ready pod/alone --timeout=30s");

    // Get: each form of output.
    let out = k.ok("get pods -o wide");
    assert_eq!(
        head(&out),
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"]
    );
    assert_eq!(firsts(&out).len(), 3);
    let json: serde_json::Value = serde_json::from_str(&k.ok("get deploy web -o json")).unwrap();
    assert_eq!((&json["kind"], &json["spec"]["replicas"]), (&"Deployment".into(), &2.into()));
    assert!(k.ok("get svc web -o yaml").contains("targetPort: http"));
    assert_eq!(k.ok("get svc web -o jsonpath={.spec.ports[0].port}"), "80");
    assert_eq!(k.ok("get svc web -o go-template={{.metadata.name}}"), "web");
    assert_eq!(k.ok("get svc,deploy -l tier=front -o name"), "service/web\ndeployment.apps/web\n");
    let out = k.ok("get pods -o custom-columns=POD:.metadata.name,NODE:.spec.nodeName");
    assert_eq!(head(&out), ["POD", "NODE"]);
    assert!(out.contains("alone   ") && out.contains("node1"), "{out}");
    // Selectors, order, all namespaces, pages.
    assert_eq!(firsts(&k.ok("get pods -l app=web")).len(), 2);
    assert_eq!(firsts(&k.ok("get pods -l app!=web")), ["alone"]);
    assert_eq!(k.ok_with("get pods -o name -l", &["app in (web,other),!nope"]).lines().count(), 2);
    assert_eq!(firsts(&k.ok("get pods --field-selector metadata.name=alone,status.phase=Running")), ["alone"]);
    assert_eq!(firsts(&k.ok("get svc -A --sort-by=.metadata.name")), ["default", "default"]);
    assert_eq!(k.ok("get cm -A --sort-by=.metadata.name -o name --chunk-size=1"), k.ok("get cm -A -o name"));
    assert_eq!(k.ok("get pods --chunk-size=1 -o name"), k.ok("get pods -o name"));
    assert_eq!(head(&k.ok("get pods --show-labels")).last(), Some(&"LABELS"));
    assert_eq!(head(&k.ok("get pods -L app")).last(), Some(&"APP"));
    assert!(firsts(&k.ok("get all")).contains(&"service/web"));
    let (code, why) = k.fails("get pod nope");
    assert_eq!((code, why.trim()), (1, "Error from server (NotFound): pods \"nope\" not found"));
    assert_eq!(k.ok("get pod nope --ignore-not-found"), "");
    // Columns of our own kinds, by their printer columns.
    let out = k.ok("get lbp -o wide");
    assert_eq!(head(&out), ["NAME", "ADDRESSES", "FREE", "USED", "ANNOUNCE", "DISABLED", "AGE"]);
    assert!(head(&k.ok("get lbp")).iter().all(|c| *c != "ANNOUNCE"));

    // Watch.
    let watch = k.follow("get pods -w --output-watch-events -l app=web", &[]);
    watch.line("ADDED");
    k.ok("label pods -l app=web seen=yes");
    watch.line("MODIFIED");
    drop(watch);

    // Describe.
    let out = k.ok("describe pod alone");
    for want in ["Node:             node1/", "Status:           Running", "sleep", "Started", "ImageIgnored"] {
        assert!(out.contains(want), "{want}: {out}");
    }
    let out = k.ok("describe node node1");
    for want in ["seaway.io/backend: vxlan", "PodCIDRs:", "KubeletReady", "alone", "HolderIdentity:  node1"] {
        assert!(out.contains(want), "{want}: {out}");
    }
    let out = k.ok("describe svc web");
    assert!(out.contains("TargetPort:               http/TCP") && out.contains("Endpoints:  "), "{out}");
    let out = k.ok("describe endpointslices -l kubernetes.io/service-name=web");
    assert!(out.contains("AddressType:  IPv4") && out.contains("Ready:    true"), "{out}");
    assert!(k.ok("describe deploy web").contains("2 desired | 2 updated | 2 total | 2 available"));
    assert!(k.ok("describe lbp outside").contains("192.0.2.0/28"));
    assert!(k.ok("describe crd loadbalancerpools.seaway.io").contains("Established"));
    assert!(k.ok("events --for pod/alone").contains("Started"));
    assert!(k.ok("get events --field-selector involvedObject.name=alone,reason=Started").contains("pod/alone"));

    // Wait.
    k.ok("wait --for=condition=Available deploy/web --timeout=30s");
    k.ok("wait --for=jsonpath={.status.phase}=Running pod/alone --timeout=30s");
    k.ok("wait --for=create svc/web --timeout=30s");
    let (_, why) = k.fails("wait --for=condition=Never pod/alone --timeout=1s");
    assert!(why.contains("timed out waiting for the condition"), "{why}");

    // Explain.
    let out = k.ok("explain loadbalancerpools");
    assert!(out.contains("GROUP:      seaway.io") && out.contains("Services of type LoadBalancer"), "{out}");
    let out = k.ok("explain lbp.spec.autoAssign");
    assert!(out.contains("FIELD: autoAssign <boolean>") && out.contains("without naming it"), "{out}");
    assert!(k.ok("explain lbp.apiVersion").contains("group and version"));
    assert!(k.ok("explain pods.spec.containers --recursive").contains("readinessProbe\t<Probe>"));
    assert!(k.fails("explain lbp.spec.nope").1.contains("field \"nope\" does not exist"));

    // The server.
    let out = k.ok("version");
    assert!(out.contains("Client Version: v1.36") && out.contains("Server Version: v1.36"), "{out}");
    assert!(!out.contains("skew"), "{out}");
    assert!(k.ok("cluster-info").contains("control plane"));
    let out = k.ok("api-resources");
    for kind in ["Pod", "EndpointSlice", "LoadBalancerPool", "SelfSubjectAccessReview"] {
        assert!(out.lines().any(|l| l.ends_with(kind)), "{kind}: {out}");
    }
    let out = k.ok("api-resources --api-group=seaway.io --verbs=list --namespaced=false -o name");
    assert!(out.lines().any(|l| l == "ippools.seaway.io"), "{out}");
    let out = k.ok("api-versions");
    assert!(out.lines().any(|l| l == "seaway.io/v1alpha1") && out.lines().any(|l| l == "v1"), "{out}");
    assert_eq!(k.ok("get --raw /readyz"), "ok");

    // Rights: there are no roles, and that is said.
    assert_eq!(k.ok("auth can-i create pods").trim(), "yes");
    assert_eq!(k.ok("auth can-i get pods --subresource=log").trim(), "yes");
    assert!(k.ok("auth can-i --list").contains("*.*"));
    let out = k.ok("auth whoami");
    assert!(out.contains("Username") && out.contains("admin") && out.contains("system:masters"), "{out}");

    // The lab's own commands beside it.
    let web = k.lab.run(&["get", "pods", "-n", "default", "-l", "app=web"]);
    assert_eq!(firsts(&web).len(), 2, "{web}");
    let seaway = |args: &[&str]| common::ok(Command::new(common::SEAWAY).args(args));
    let out = seaway(&["services", "--lab", &k.lab.name, "--node", "node1"]);
    assert!(out.contains("default/web") || out.contains("web "), "{out}");
    let out = seaway(&["trace", "--name", &k.lab.name, "default/alone", "default/web:80"]);
    assert!(out.contains("10.96."), "{out}");
}
