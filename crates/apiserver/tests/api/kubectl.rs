//! The real kubectl.

use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::harness::*;

struct Kubectl<'a>(&'a Host);

impl Kubectl<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new("kubectl");
        // Its caches stay in the test's own folder.
        c.args(args)
            .env("KUBECONFIG", self.0.dir.path().join("kubeconfig"))
            .env("HOME", self.0.dir.path())
            .env_remove("KUBECACHEDIR")
            .current_dir(self.0.dir.path());
        c
    }

    async fn run(&self, args: &[&str]) -> Output {
        let mut c = self.command(args);
        tokio::task::spawn_blocking(move || c.stdin(Stdio::null()).output())
            .await
            .unwrap()
            .expect("kubectl cannot be run: install it (Debian package kubernetes-client)")
    }

    async fn ok(&self, args: &[&str]) -> String {
        let o = self.run(args).await;
        let (out, err) = (String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
        assert!(o.status.success(), "kubectl {args:?}: {out}{err}");
        out.into_owned()
    }

    async fn fails(&self, args: &[&str]) -> String {
        let o = self.run(args).await;
        assert!(!o.status.success(), "kubectl {args:?} succeeded");
        String::from_utf8_lossy(&o.stderr).into_owned()
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.0.dir.path().join(name), text).unwrap();
    }
}

/// The words of each line.
fn rows(out: &str) -> Vec<Vec<String>> {
    out.lines().map(|l| l.split_whitespace().map(str::to_owned).collect()).collect()
}

fn header(out: &str) -> String {
    out.lines().next().unwrap_or("").split("  ").map(str::trim).filter(|s| !s.is_empty()).collect::<Vec<_>>().join("|")
}

const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: 'web:1', ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {a: '1', b: '2'}
";

#[tokio::test]
async fn apply_get_change_and_delete() {
    let h = Host::tls().await;
    let k = Kubectl(&h);
    assert!(k.ok(&["version"]).await.contains("Server Version: v1.36"));
    k.file("shop.yaml", SHOP);
    let out = k.ok(&["apply", "-f", "shop.yaml"]).await;
    assert_eq!(rows(&out)[1], ["deployment.apps/web", "created"]);
    assert!(rows(&k.ok(&["apply", "-f", "shop.yaml"]).await).iter().all(|r| r[1] == "unchanged"));
    k.file("shop.yaml", &SHOP.replace("web:1", "web:2").replace(", b: '2'", ""));
    let out = k.ok(&["apply", "-f", "shop.yaml"]).await;
    assert_eq!(
        rows(&out).iter().map(|r| r[1].as_str()).collect::<Vec<_>>(),
        ["unchanged", "configured", "unchanged", "configured"]
    );
    assert_eq!(k.ok(&["get", "cm", "settings", "-n", "shop", "-o", "jsonpath={.data}"]).await, r#"{"a":"1"}"#);
    assert!(k.ok(&["diff", "-f", "shop.yaml"]).await.is_empty());

    assert_eq!(k.ok(&["-n", "shop", "scale", "deploy/web", "--replicas=5"]).await.trim(), "deployment.apps/web scaled");
    assert_eq!(
        k.ok(&["-n", "shop", "set", "image", "deploy/web", "c=web:3"]).await.trim(),
        "deployment.apps/web image updated"
    );
    assert_eq!(k.ok(&["-n", "shop", "label", "svc", "web", "tier=front"]).await.trim(), "service/web labeled");
    assert_eq!(k.ok(&["-n", "shop", "annotate", "svc", "web", "note=x"]).await.trim(), "service/web annotated");
    assert_eq!(k.ok(&["get", "svc", "-A", "-l", "tier=front", "-o", "name"]).await.trim(), "service/web");
    k.ok(&["-n", "shop", "patch", "svc", "web", "-p", r#"{"spec":{"ports":[{"port":81,"name":"alt"}]}}"#]).await;
    assert_eq!(k.ok(&["-n", "shop", "get", "svc", "web", "-o", "jsonpath={.spec.ports[*].port}"]).await, "80 81");
    k.ok(&["-n", "shop", "patch", "svc", "web", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/ports/1"}]"#])
        .await;
    k.ok(&["-n", "shop", "patch", "svc", "web", "--type=merge", "-p", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#])
        .await;
    assert_eq!(
        k.ok(&["-n", "shop", "get", "svc", "web", "-o", "jsonpath={.spec.ports[*].port} {.spec.sessionAffinity}"])
            .await,
        "80 ClientIP"
    );
    assert!(
        k.ok(&["-n", "shop", "describe", "svc", "web"]).await.contains("NodePort:                 http  30080/TCP")
    );
    assert!(k.ok(&["-n", "shop", "describe", "deploy", "web"]).await.contains("web:3"));
    k.ok(&["-n", "shop", "apply", "--server-side", "--force-conflicts", "-f", "shop.yaml"]).await;
    assert_eq!(
        k.ok(&["-n", "shop", "get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"]).await,
        "web:2"
    );
    k.ok(&["-n", "shop", "create", "configmap", "more", "--from-literal=x=y"]).await;
    k.ok(&["-n", "shop", "run", "one", "--image=x"]).await;
    k.ok(&["-n", "shop", "expose", "deploy", "web", "--name=web2", "--port=8080"]).await;

    // Waits for each to be gone, the namespace with everything in it.
    let out = k.ok(&["delete", "-f", "shop.yaml", "--timeout=10s"]).await;
    assert!(out.contains("namespace \"shop\" deleted"), "{out}");
    assert!(k.fails(&["get", "ns", "shop"]).await.contains("namespaces \"shop\" not found"));
}

#[tokio::test]
async fn columns_are_kubectls_own() {
    let h = Host::tls().await;
    let k = Kubectl(&h);
    h.create("/api/v1/nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/worker": ""}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
        "nodeInfo": {"kubeletVersion": "v1.2", "osImage": "Lab", "kernelVersion": "6.1", "containerRuntimeVersion": "lab://1"}}})).await;
    let mut p = pod("p");
    p["spec"]["nodeName"] = "n1".into();
    h.create(PODS, p).await;
    let s = json!({"status": {"phase": "Running", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}], "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2, "image": "i", "imageID": "", "state": {"running": {}}}]}});
    assert_eq!(h.patch(&format!("{PODS}/p/status"), "application/merge-patch+json", s).await.0, 200);
    let out = k.ok(&["get", "nodes", "-o", "wide"]).await;
    assert_eq!(
        header(&out),
        "NAME|STATUS|ROLES|AGE|VERSION|INTERNAL-IP|EXTERNAL-IP|OS-IMAGE|KERNEL-VERSION|CONTAINER-RUNTIME"
    );
    let r = &rows(&out)[1];
    assert_eq!(
        (r[1].as_str(), r[2].as_str(), r[4].as_str(), r[5].as_str(), r[6].as_str()),
        ("Ready", "worker", "v1.2", "192.0.2.1", "<none>")
    );
    let out = k.ok(&["get", "pods", "-o", "wide"]).await;
    assert_eq!(header(&out), "NAME|READY|STATUS|RESTARTS|AGE|IP|NODE|NOMINATED NODE|READINESS GATES");
    let r = &rows(&out)[1];
    assert_eq!(
        (r[0].as_str(), r[1].as_str(), r[2].as_str(), r[3].as_str(), r[5].as_str(), r[6].as_str()),
        ("p", "1/1", "Running", "2", "10.1.0.5", "n1")
    );
    assert_eq!(header(&k.ok(&["get", "pods"]).await), "NAME|READY|STATUS|RESTARTS|AGE");
    assert_eq!(header(&k.ok(&["get", "pods", "-A"]).await), "NAMESPACE|NAME|READY|STATUS|RESTARTS|AGE");
    let out = k.ok(&["get", "svc", "-o", "wide"]).await;
    assert_eq!(header(&out), "NAME|TYPE|CLUSTER-IP|EXTERNAL-IP|PORT(S)|AGE|SELECTOR");
    assert_eq!(rows(&out)[1][..5], ["kubernetes", "ClusterIP", "10.96.0.1", "<none>", "443/TCP"]);
    h.create(DEPLOYS, deployment("d")).await;
    let out = k.ok(&["get", "deploy", "-o", "wide"]).await;
    assert_eq!(header(&out), "NAME|READY|UP-TO-DATE|AVAILABLE|AGE|CONTAINERS|IMAGES|SELECTOR");
    assert_eq!(rows(&out)[1][1], "0/2");
    k.file("ds.yaml", "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: d}\nspec:\n  selector: {matchLabels: {a: b}}\n  template:\n    metadata: {labels: {a: b}}\n    spec: {containers: [{name: c, image: i}]}\n");
    k.ok(&["apply", "-f", "ds.yaml"]).await;
    let out = k.ok(&["get", "ds"]).await;
    assert_eq!(header(&out), "NAME|DESIRED|CURRENT|READY|UP-TO-DATE|AVAILABLE|NODE SELECTOR|AGE");
    assert_eq!(rows(&out)[1][1..7], ["0", "0", "0", "0", "0", "<none>"]);
    h.create(SLICES, json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.1.0.5"]}, {"addresses": ["10.1.0.6"]}], "ports": [{"port": 80}]})).await;
    let out = k.ok(&["get", "endpointslices"]).await;
    assert_eq!(header(&out), "NAME|ADDRESSTYPE|PORTS|ENDPOINTS|AGE");
    assert_eq!(rows(&out)[1][..4], ["s", "IPv4", "80", "10.1.0.5,10.1.0.6"]);
    let uid = h.get(&format!("{PODS}/p")).await["metadata"]["uid"].clone();
    h.create("/api/v1/namespaces/default/events", json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal", "reason": "Started",
        "message": "it runs", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default", "uid": uid}, "lastTimestamp": "2020-01-01T00:00:00Z"})).await;
    let out = k.ok(&["get", "events"]).await;
    assert_eq!(header(&out), "LAST SEEN|TYPE|REASON|OBJECT|MESSAGE");
    assert_eq!(rows(&out)[1][1..], ["Normal", "Started", "pod/p", "it", "runs"]);
    assert!(k.ok(&["describe", "pod", "p"]).await.contains("it runs"));
    assert_eq!(header(&k.ok(&["get", "ns"]).await), "NAME|STATUS|AGE");
    let out = k.ok(&["get", "all"]).await;
    assert!(out.contains("pod/p") && out.contains("deployment.apps/d") && out.contains("daemonset.apps/d"), "{out}");
    assert!(k.ok(&["get", "netpol,ing,ingressclass,lease,sa,secret,cm,ep,rs,sts", "-A"]).await.is_empty());
    let out = k.ok(&["get", "servicecidrs"]).await;
    assert_eq!(header(&out), "NAME|CIDRS|AGE");
    assert_eq!(rows(&out)[1][..2], ["kubernetes", "10.96.0.0/16,fd00:10:96::/112"]);
    let e = k.fails(&["delete", "servicecidr", "kubernetes"]).await;
    assert!(e.contains("MethodNotAllowed"), "{e}");
}

#[tokio::test]
async fn errors_read_as_they_do_on_a_cluster() {
    let h = Host::tls().await;
    let k = Kubectl(&h);
    k.file(
        "bad.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 70000}], type: Bogus}\n",
    );
    let e = k.fails(&["apply", "-f", "bad.yaml"]).await;
    assert!(
        e.contains("The Service \"s\" is invalid") && e.contains("spec.ports[0].port: Invalid value: 70000"),
        "{e}"
    );
    k.file("bad.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {prots: [{port: 70}]}\n");
    let e = k.fails(&["apply", "-f", "bad.yaml"]).await;
    assert!(e.contains("strict decoding error: unknown field \"spec.prots\""), "{e}");
    assert!(k.fails(&["get", "pod", "none"]).await.contains("Error from server (NotFound): pods \"none\" not found"));
    assert!(k.fails(&["get", "cm", "-n", "none", "x"]).await.contains("not found"));
    assert!(k.fails(&["create", "ns", "default"]).await.contains("AlreadyExists"));
    assert!(k.ok(&["explain", "service.spec.ports"]).await.contains("targetPort"));
    assert!(k.ok(&["api-resources"]).await.contains("endpointslices"));
    assert!(k.ok(&["get", "--raw", "/readyz"]).await.contains("ok"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_watch_and_rollout() {
    let h = Host::tls().await;
    let k = Kubectl(&h);
    h.create(PODS, pod("p")).await;
    let mut watch = k.command(&["get", "pods", "-w"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(watch.stdout.take().unwrap());
    // The columns and the pod are there: the watch is on.
    let (mut out, first) = tokio::task::spawn_blocking(move || {
        let mut first = String::new();
        for _ in 0..2 {
            std::io::BufRead::read_line(&mut out, &mut first).unwrap();
        }
        (out, first)
    })
    .await
    .unwrap();
    assert!(first.contains("Pending"), "{first}");
    let mut wait =
        k.command(&["wait", "--for=condition=Ready", "pod/p", "--timeout=15s"]).stdout(Stdio::piped()).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let s = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "image": "i", "imageID": "", "state": {"running": {}}}]}});
    assert_eq!(h.patch(&format!("{PODS}/p/status"), "application/merge-patch+json", s).await.0, 200);
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        line
    })
    .await
    .unwrap();
    assert!(line.contains("1/1") && line.contains("Running"), "{line}");
    watch.kill().unwrap();
    watch.wait().unwrap();
    let waited = tokio::task::spawn_blocking(move || wait.wait()).await.unwrap().unwrap();
    assert!(waited.success());

    h.create(DEPLOYS, deployment("d")).await;
    let mut rollout =
        k.command(&["rollout", "status", "deploy/d", "--timeout=15s"]).stdout(Stdio::null()).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let s = json!({"status": {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2}});
    assert_eq!(h.patch(&format!("{DEPLOYS}/d/status"), "application/merge-patch+json", s).await.0, 200);
    assert!(tokio::task::spawn_blocking(move || rollout.wait()).await.unwrap().unwrap().success());
    assert_eq!(k.ok(&["delete", "pod", "p", "--timeout=10s"]).await.trim(), "pod \"p\" deleted");
}

const RANGES: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ranges.example.com}
spec:
  group: example.com
  scope: Cluster
  names: {plural: ranges, kind: Range, shortNames: [rg], categories: [all]}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Cidr, type: string, jsonPath: .spec.cidr}
    - {name: Note, type: string, jsonPath: .spec.note, priority: 1}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        description: A range of addresses for pods.
        required: [spec]
        properties:
          spec:
            type: object
            required: [cidr]
            properties:
              cidr: {type: string, format: cidr, description: The range.}
              note: {type: string}
          status: {type: object, properties: {used: {type: integer}}}
"#;

#[tokio::test]
async fn custom_kinds_are_kinds_like_others() {
    let h = Host::tls().await;
    let k = Kubectl(&h);
    k.file("crd.yaml", RANGES);
    assert_eq!(
        k.ok(&["apply", "-f", "crd.yaml"]).await.trim(),
        "customresourcedefinition.apiextensions.k8s.io/ranges.example.com created"
    );
    k.ok(&["wait", "--for=condition=Established", "crd/ranges.example.com", "--timeout=10s"]).await;
    assert!(k.ok(&["apply", "-f", "crd.yaml"]).await.contains("unchanged"));
    assert_eq!(header(&k.ok(&["get", "crd"]).await), "NAME|CREATED AT");
    let one =
        "apiVersion: example.com/v1alpha1\nkind: Range\nmetadata: {name: one}\nspec: {cidr: 10.0.0.0/16, note: x}\n";
    k.file("one.yaml", one);
    assert_eq!(k.ok(&["apply", "-f", "one.yaml"]).await.trim(), "range.example.com/one created");
    assert_eq!(k.ok(&["apply", "-f", "one.yaml"]).await.trim(), "range.example.com/one unchanged");
    k.file("one.yaml", &one.replace(", note: x", ""));
    assert_eq!(k.ok(&["apply", "-f", "one.yaml"]).await.trim(), "range.example.com/one configured");
    assert_eq!(k.ok(&["get", "rg", "one", "-o", "jsonpath={.spec}"]).await, r#"{"cidr":"10.0.0.0/16"}"#);
    k.ok(&["apply", "--server-side", "-f", "one.yaml", "--force-conflicts"]).await;
    for words in [["get", "ranges"], ["get", "rg"], ["get", "range"], ["get", "Range"], ["get", "ranges.example.com"]] {
        let out = k.ok(&words).await;
        assert_eq!(header(&out), "NAME|CIDR|AGE");
        assert_eq!(rows(&out)[1][..2], ["one", "10.0.0.0/16"]);
    }
    assert_eq!(header(&k.ok(&["get", "rg", "-o", "wide"]).await), "NAME|CIDR|NOTE|AGE");
    assert!(k.ok(&["get", "all"]).await.contains("range.example.com/one"));
    assert!(k.ok(&["api-resources"]).await.contains("Range"));
    let out = k.ok(&["explain", "ranges.spec.cidr"]).await;
    assert!(out.contains("The range.") && out.contains("GROUP:      example.com"), "{out}");
    assert!(k.ok(&["explain", "ranges"]).await.contains("A range of addresses for pods."));
    assert!(k.ok(&["explain", "crd.spec.names"]).await.contains("shortNames"));
    k.ok(&["patch", "rg", "one", "--type=merge", "-p", r#"{"spec":{"note":"y"}}"#]).await;
    k.ok(&["label", "rg", "one", "a=b"]).await;
    k.ok(&["annotate", "rg", "one", "a=b"]).await;
    assert!(k.ok(&["describe", "rg", "one"]).await.contains("Cidr:  10.0.0.0/16"));
    assert!(k.ok(&["describe", "crd", "ranges.example.com"]).await.contains("NamesAccepted"));
    k.file("one.yaml", &one.replace("10.0.0.0/16", "10.0.0.0"));
    let e = k.fails(&["apply", "-f", "one.yaml"]).await;
    assert!(e.contains("The Range \"one\" is invalid: spec.cidr: Invalid value: \"10.0.0.0\""), "{e}");
    k.file("one.yaml", &one.replace("note", "nite"));
    let e = k.fails(&["apply", "-f", "one.yaml"]).await;
    assert!(e.contains("unknown field \"spec.nite\""), "{e}");
    let e = k.fails(&["patch", "rg", "one", "--type=strategic", "-p", "{}"]).await;
    assert!(e.contains("strategic"), "{e}");
    k.ok(&["delete", "crd", "ranges.example.com", "--timeout=10s"]).await;
    // Its cached discovery still knows the kind.
    assert!(k.fails(&["get", "rg"]).await.contains("could not find the requested resource"));
}
