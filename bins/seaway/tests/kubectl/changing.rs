//! Commands that change: apply, create, edit, patch, scale, rollout, delete, and their errors.

use super::*;

const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: 'web:1', ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {a: '1', b: '2'}
";

#[test]
fn apply_diff_and_whose_fields_they_are() {
    let k = Kube::up(&["--nodes", "1"]);
    k.file("shop.yaml", SHOP);
    assert!(k.ok("apply -f shop.yaml --dry-run=client").contains("service/web created (dry run)"));
    assert!(k.ok("apply -f shop.yaml").contains("deployment.apps/web created"));
    assert!(k.ok("apply -f shop.yaml --dry-run=server").contains("namespace/shop unchanged (server dry run)"));
    assert!(k.ok("apply -f shop.yaml").lines().all(|l| l.ends_with("unchanged")));
    // Diff: nothing, then something, with the exit codes that scripts read.
    assert_eq!(k.ok("diff -f shop.yaml"), "");
    k.file("shop.yaml", &SHOP.replace("web:1", "web:2").replace(", b: '2'", ""));
    let (code, out) = k.fails("diff -f shop.yaml");
    assert_eq!(code, 1);
    assert!(out.contains("-      - image: web:1") || out.contains("-        image: web:1"), "{out}");
    let out = k.ok("apply -f shop.yaml");
    assert!(out.contains("configmap/settings configured") && out.contains("service/web unchanged"), "{out}");
    assert_eq!(k.ok("get cm settings -n shop -o jsonpath={.data}"), r#"{"a":"1"}"#);
    assert!(k.ok("apply view-last-applied cm/settings -n shop").contains("a: \"1\""));

    // Server-side: fields have managers, and are not taken in silence.
    let cm = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: shop}\ndata: {a: 'A', b: 'B'}\n";
    k.file("cm.yaml", cm);
    k.ok("apply --server-side --field-manager=one -f cm.yaml");
    k.file("cm.yaml", &cm.replace("'A'", "'other'"));
    let (_, why) = k.fails("apply --server-side --field-manager=two -f cm.yaml");
    assert!(why.contains("conflict with \"one\": .data.a"), "{why}");
    assert_eq!(k.ok("get cm owned -n shop -o jsonpath={.data.a}"), "A");
    k.ok("apply --server-side --field-manager=two --force-conflicts -f cm.yaml");
    assert_eq!(k.ok("get cm owned -n shop -o jsonpath={.data.a}"), "other");
    let managers = "get cm owned -n shop --show-managed-fields -o jsonpath={.metadata.managedFields[*].manager}";
    assert_eq!(k.ok(managers), "one two");
    // What a manager no longer says goes, if it alone had said it.
    k.file("cm.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: shop}\ndata: {b: 'B'}\n");
    k.ok("apply --server-side --field-manager=two -f cm.yaml");
    assert_eq!(k.ok("get cm owned -n shop -o jsonpath={.data}"), r#"{"b":"B"}"#);

    // Errors name the object, the field and the fix, and change nothing.
    k.file("bad.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {prots: [{port: 80}]}\n");
    assert!(k.fails("apply -f bad.yaml").1.contains("unknown field \"spec.prots\""));
    k.file("bad.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 70000}]}\n");
    let (_, why) = k.fails("create -f bad.yaml");
    assert!(why.contains("spec.ports[0].port: Invalid value: 70000"), "{why}");
    assert!(k.fails("create ns shop").1.contains("AlreadyExists"));
    // A whole folder goes, its namespace with everything in it, and kubectl waits for it.
    let out = k.ok("delete -f shop.yaml --timeout=30s");
    assert!(out.contains("namespace \"shop\" deleted"), "{out}");
    assert!(k.fails("get ns shop").1.contains("NotFound"));
}

#[test]
fn create_edit_patch_scale_and_delete() {
    let k = Kube::up(&["--nodes", "2"]);
    // Create, by generators.
    for (line, want) in [
        ("create namespace n", "namespace/n created"),
        ("create configmap settings --from-literal=a=1", "configmap/settings created"),
        ("create secret generic hidden --from-literal=a=1", "secret/hidden created"),
        ("create serviceaccount robot", "serviceaccount/robot created"),
        ("create deployment web --image=web:1 --replicas=1 --port=8080", "deployment.apps/web created"),
        ("create service clusterip front --tcp=80:8080", "service/front created"),
        ("create service nodeport door --tcp=80:8080 --node-port=30081", "service/door created"),
        ("create service loadbalancer far --tcp=80:8080", "service/far created"),
        ("create service externalname away --external-name=example.com", "service/away created"),
        ("create ingress site --rule=example.com/*=web:80", "ingress.networking.k8s.io/site created"),
        ("run single --image=x --labels=app=single", "pod/single created"),
        ("expose deployment web --name=shown --port=80 --target-port=8080", "service/shown exposed"),
    ] {
        assert_eq!(k.ok(line).trim(), want);
    }
    assert!(k.ok("create deployment dry --image=x --dry-run=client -o yaml").contains("kind: Deployment"));
    assert!(k.ok("create cm dry --dry-run=server -o name").contains("configmap/dry"));
    assert!(k.fails("get cm dry").1.contains("NotFound"));
    k.file("gen.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: gen-}\n");
    assert!(k.ok("create -f gen.yaml").starts_with("configmap/gen-"));

    // Edit, by an editor that changes one line.
    let mut c = k.command(&["edit", "configmap", "settings"]);
    k.file("editor", "sed -i 's/a: \"1\"/a: edited/' \"$1\"\n");
    common::ok(c.env("KUBE_EDITOR", "sh editor"));
    assert_eq!(k.ok("get cm settings -o jsonpath={.data.a}"), "edited");
    // Patch: merge, json and strategic, also the status of a node.
    k.ok_with("patch svc front --type=merge -p", &[r#"{"spec":{"sessionAffinity":"ClientIP"}}"#]);
    k.ok_with("patch svc front -p", &[r#"{"spec":{"ports":[{"name":"more","port":81}]}}"#]);
    assert_eq!(k.ok("get svc front -o jsonpath={.spec.sessionAffinity}:{.spec.ports[*].port}"), "ClientIP:80 81");
    k.ok_with("patch svc front --type=json -p", &[r#"[{"op":"remove","path":"/spec/ports/1"}]"#]);
    assert_eq!(k.ok("get svc front -o jsonpath={.spec.ports[*].port}"), "80");
    let (_, why) = {
        let o = k.with("patch svc front --type=json -p", &[r#"[{"op":"test","path":"/spec/type","value":"x"}]"#]);
        (o.status.code(), text(&o.stderr))
    };
    assert!(why.contains("test"), "{why}");
    k.ok_with(
        "patch node node1 --subresource=status --type=merge -p",
        &[r#"{"status":{"capacity":{"example.com/a":"3"}}}"#],
    );
    assert!(k.ok("get node node1 -o jsonpath={.status.capacity}").contains("example.com/a"));
    k.ok("set image deploy/web *=web:2");
    k.ok("set env deploy/web A=b");
    k.ok("set selector svc/front app=web");
    assert_eq!(k.ok("get svc front -o jsonpath={.spec.selector.app}"), "web");

    // Labels and annotations, set, refused, overwritten, removed.
    assert_eq!(k.ok("label svc front tier=a").trim(), "service/front labeled");
    assert!(k.fails("label svc front tier=b").1.contains("--overwrite"));
    k.ok("label svc front tier=b --overwrite");
    k.ok("annotate svc front note=x");
    assert_eq!(k.ok("get svc -l tier=b -o name").trim(), "service/front");
    k.ok("label svc front tier-");
    assert_eq!(k.ok("annotate svc front note-").trim(), "service/front annotated");

    // Scale and roll out.
    assert_eq!(k.ok("scale deploy/web --replicas=3").trim(), "deployment.apps/web scaled");
    assert!(k.ok("rollout status deploy/web --timeout=60s").contains("successfully rolled out"));
    assert!(k.fails("scale deploy/web --current-replicas=9 --replicas=1").1.contains("Expected replicas"));
    k.ok("rollout restart deploy/web");
    assert!(k.ok("rollout status deploy/web --timeout=60s").contains("successfully rolled out"));
    k.ok("rollout pause deploy/web");
    k.ok("rollout resume deploy/web");
    k.ok("scale deploy/web --replicas=1");
    k.ok("wait --for=jsonpath={.status.replicas}=1 deploy/web --timeout=60s");

    // Nodes: a rehearsal of a drain moves nothing.
    let before = k.ok("get pods -o jsonpath={.items[*].metadata.uid}");
    k.ok("drain node1 --force --ignore-daemonsets --delete-emptydir-data --dry-run=server");
    assert_eq!(k.ok("get pods -o jsonpath={.items[*].metadata.uid}"), before);
    k.ok("cordon node2");
    assert!(k.ok("get node node2").contains("SchedulingDisabled"));
    k.ok("uncordon node2");
    k.ok("taint node node2 a=b:NoSchedule");
    k.ok("taint node node2 a-");

    // Replace.
    k.file("cm.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {z: '1'}\n");
    assert_eq!(k.ok("replace -f cm.yaml").trim(), "configmap/settings replaced");
    assert_eq!(k.ok("get cm settings -o jsonpath={.data}"), r#"{"z":"1"}"#);

    // Delete: by selector, in the foreground and the background, waiting and not, by force.
    k.ok("delete pods -l app=single --grace-period=1 --timeout=30s");
    assert!(k.fails("get pod single").1.contains("NotFound"));
    k.ok("delete deploy web --cascade=foreground --timeout=60s");
    assert_eq!(k.ok("get pods -l app=web -o name"), "", "the foreground waits for what belongs to it");
    k.ok("create deployment again --image=x");
    k.ok("rollout status deploy/again --timeout=60s");
    k.ok("delete deploy again --cascade=background --wait=false");
    k.ok("wait --for=delete pod -l app=again --timeout=60s");
    k.ok("create deployment orphans --image=x");
    k.ok("rollout status deploy/orphans --timeout=60s");
    k.ok("delete deploy orphans --cascade=orphan");
    assert_eq!(k.ok("get pods -l app=orphans -o name").lines().count(), 1);
    k.ok("delete pods --all --force --grace-period=0");
    k.ok("delete svc,cm,secret,ing,sa --all");
    k.ok("delete ns n --timeout=30s");
}
