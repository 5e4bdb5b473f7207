//! `kubectl rollout`: history, undo, pause and the rest, of Deployments and DaemonSets.

use super::*;

const APPS: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {team: front, kubernetes.io/change-cause: the first}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: 'web:1', ports: [{containerPort: 80}]}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: log}
spec:
  selector: {matchLabels: {app: log}}
  template:
    metadata: {labels: {app: log}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: 'log:1'}]
";

/// Number and cause of each revision.
fn history(k: &Kube, what: &str) -> Vec<(String, String)> {
    let out = k.ok(&format!("rollout history {what}"));
    let lines = out.lines().skip(2).filter_map(|l| l.split_once(' '));
    lines.map(|(n, cause)| (n.to_owned(), cause.trim().to_owned())).collect()
}

fn is(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(n, c)| ((*n).to_owned(), (*c).to_owned())).collect()
}

/// The images of an application's pods that serve.
fn images(k: &Kube, app: &str) -> Vec<String> {
    let path = "jsonpath={range .items[?(@.status.phase==\"Running\")]}{.spec.containers[0].image}{\"\\n\"}{end}";
    k.ok_with(&format!("get pods -l app={app} -o"), &[path]).lines().map(str::to_owned).collect()
}

fn serves(k: &Kube, app: &str, image: &str) {
    common::eventually(&format!("two pods of {image}"), PATIENCE, || (images(k, app) == [image, image]).then_some(()));
}

#[test]
fn a_deployments_history_undo_pause_and_restart() {
    let k = Kube::up(&["--nodes", "2"]);
    k.file("apps.yaml", APPS);
    k.ok("apply -f apps.yaml");
    assert!(k.ok("rollout status deploy/web --timeout=60s").contains("successfully rolled out"));
    assert_eq!(history(&k, "deploy/web"), is(&[("1", "the first")]));
    k.ok("set image deploy/web c=web:2");
    k.ok_with("annotate deploy/web --overwrite", &["kubernetes.io/change-cause=the second"]);
    k.ok("rollout status deploy/web --revision=2 --timeout=60s");
    common::eventually("the cause is told to the revision", PATIENCE, || {
        (history(&k, "deploy/web") == is(&[("1", "the first"), ("2", "the second")])).then_some(())
    });
    let out = k.ok("rollout history deploy/web --revision=1");
    assert!(out.contains("revision #1") && out.contains("web:1") && out.contains("pod-template-hash="), "{out}");
    serves(&k, "web", "web:2");
    // Its ReplicaSets are there for whoever looks.
    assert_eq!(firsts(&k.ok("get rs -l app=web -o wide")).len(), 2);
    let out = k.ok("describe deploy web");
    assert!(out.contains("OldReplicaSets:  web-") && out.contains("NewReplicaSet:   web-"), "{out}");
    assert!(out.contains("NewReplicaSetAvailable"), "{out}");
    let set = k.ok("get pods -l app=web -o jsonpath={.items[0].metadata.ownerReferences[0].kind}");
    assert_eq!(set, "ReplicaSet");

    // Back and forth.
    assert!(k.ok("rollout undo deploy/web --dry-run=server").contains("(server dry run)"));
    assert_eq!(k.ok("rollout undo deploy/web").trim(), "deployment.apps/web rolled back");
    k.ok("rollout status deploy/web --timeout=60s");
    serves(&k, "web", "web:1");
    assert_eq!(history(&k, "deploy/web"), is(&[("2", "the second"), ("3", "the first")]));
    assert_eq!(k.ok("get deploy web -o jsonpath={.metadata.annotations.team}"), "front");
    assert!(k.ok("rollout undo deploy/web --to-revision=3").contains("skipped rollback"));
    k.ok("rollout undo deploy/web --to-revision=2");
    k.ok("rollout status deploy/web --timeout=60s");
    serves(&k, "web", "web:2");
    assert!(k.fails("rollout undo deploy/web --to-revision=9").1.contains("unable to find specified revision 9"));
    assert!(k.fails("rollout status deploy/web --revision=1").1.contains("different from the running revision"));

    // Paused, a new template waits; a lost pod is replaced all the same, by one of the old template.
    assert_eq!(k.ok("rollout pause deploy/web").trim(), "deployment.apps/web paused");
    assert!(k.fails("rollout pause deploy/web").1.contains("already paused"));
    assert!(k.fails("rollout undo deploy/web").1.contains("paused"));
    k.ok("set image deploy/web c=web:3");
    let lost = k.ok("get pods -l app=web -o jsonpath={.items[0].metadata.name}");
    k.ok(&format!("delete pod {lost} --timeout=30s"));
    serves(&k, "web", "web:2");
    assert!(k.fails(&format!("get pod {lost}")).1.contains("NotFound"));
    k.ok("scale deploy/web --replicas=3");
    common::eventually("the size is followed", PATIENCE, || {
        (images(&k, "web") == ["web:2", "web:2", "web:2"]).then_some(())
    });
    k.ok("scale deploy/web --replicas=2");
    assert_eq!(k.ok("rollout resume deploy/web").trim(), "deployment.apps/web resumed");
    k.ok("rollout status deploy/web --timeout=60s");
    serves(&k, "web", "web:3");
    assert_eq!(k.ok("rollout restart deploy/web").trim(), "deployment.apps/web restarted");
    k.ok("rollout status deploy/web --timeout=60s");
    assert_eq!(history(&k, "deploy/web").len(), 4);

    // Left behind and taken up again: the pods are the same.
    let pods = || {
        let mut all: Vec<String> = k.ok("get pods -l app=web -o name").lines().map(str::to_owned).collect();
        all.sort();
        all
    };
    common::eventually("the old ones are gone", PATIENCE, || (pods().len() == 2).then_some(()));
    let before = pods();
    let mut web: serde_json::Value = serde_json::from_str(&k.ok("get deploy web -o json")).unwrap();
    k.ok("delete deploy web --cascade=orphan");
    let annotations = web["metadata"]["annotations"].take();
    web["metadata"] = serde_json::json!({"name": "web", "annotations": annotations});
    k.file("web.json", &web.to_string());
    k.ok("create -f web.json");
    k.ok("rollout status deploy/web --timeout=60s");
    assert_eq!(pods(), before);
    assert_eq!(history(&k, "deploy/web").len(), 4);
    k.ok("delete deploy web --cascade=foreground --timeout=60s");
    assert_eq!(k.ok("get rs,pods -l app=web -o name"), "");
}

#[test]
fn a_daemonsets_history_and_undo() {
    let k = Kube::up(&["--nodes", "2"]);
    k.file("apps.yaml", APPS);
    k.ok("apply -f apps.yaml");
    assert!(k.ok("rollout status ds/log --timeout=60s").contains("successfully rolled out"));
    k.ok("set image ds/log c=log:2");
    k.ok("rollout status ds/log --timeout=60s");
    serves(&k, "log", "log:2");
    assert_eq!(history(&k, "ds/log"), is(&[("1", "<none>"), ("2", "<none>")]));
    assert!(k.ok("rollout history ds/log --revision=1").contains("log:1"));
    let out = k.ok("get controllerrevisions -l app=log");
    assert_eq!(head(&out), ["NAME", "CONTROLLER", "REVISION", "AGE"]);
    assert!(out.contains("daemonset.apps/log"), "{out}");
    assert_eq!(k.ok("rollout undo ds/log").trim(), "daemonset.apps/log rolled back");
    k.ok("rollout status ds/log --timeout=60s");
    serves(&k, "log", "log:1");
    assert_eq!(history(&k, "ds/log"), is(&[("2", "<none>"), ("3", "<none>")]));
    k.ok("rollout undo ds/log --to-revision=2");
    serves(&k, "log", "log:2");
    k.ok("rollout restart ds/log");
    k.ok("rollout status ds/log --timeout=60s");
    assert_eq!(history(&k, "ds/log").len(), 3);
    k.ok("delete ds log --timeout=60s");
    common::eventually("its revisions go with it", PATIENCE, || {
        k.ok("get controllerrevisions,pods -l app=log -o name").is_empty().then_some(())
    });
}

#[test]
fn a_replicaset_of_ones_own_and_how_things_are_explained() {
    let k = Kube::up(&["--nodes", "1"]);
    k.file(
        "rs.yaml",
        "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: own}\nspec:\n  replicas: 2\n  \
         selector: {matchLabels: {app: own}}\n  template:\n    metadata: {labels: {app: own}}\n    \
         spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: x}]}\n",
    );
    k.ok("create -f rs.yaml");
    k.ok("wait --for=jsonpath={.status.readyReplicas}=2 rs/own --timeout=60s");
    k.ok("scale rs/own --replicas=1");
    k.ok("wait --for=jsonpath={.status.replicas}=1 rs/own --timeout=60s");
    assert!(k.ok("describe rs own").contains("1 current / 1 desired"));
    k.ok("delete rs own --timeout=60s");
    k.ok("wait --for=delete pod -l app=own --timeout=60s");

    // Each kind says what it is, and each of its fields, down to where they are of one type.
    for kind in k.ok("api-resources -o name").lines() {
        for what in [kind.to_owned(), format!("{kind}.spec"), format!("{kind}.status"), format!("{kind}.metadata")] {
            let o = k.with(&format!("explain {what}"), &[]);
            let (out, err) = (text(&o.stdout), text(&o.stderr));
            assert!(o.status.success() || err.contains("does not exist"), "{what}: {err}");
            for nothing in ["<empty>", "<no description>"] {
                assert!(!out.contains(nothing), "explain {what}: {out}");
            }
        }
    }
    for (what, said) in [
        ("services.spec.externalTrafficPolicy", "Local keeps traffic from outside on the node it came to"),
        ("pod.spec.containers.ports.hostPort", "A port of the node that leads here"),
        ("deploy.spec.paused", "Whether a new template waits"),
        ("networkpolicies.spec.ingress.from.ipBlock.except", "Ranges inside it"),
        ("ippools.spec.nodeSelector.matchExpressions.operator", "How the label is compared"),
        ("ippools.status", "FIELDS"),
    ] {
        let out = k.ok(&format!("explain {what}"));
        assert!(out.contains(said), "{what}: {out}");
    }
}

#[test]
fn a_rollout_that_cannot_go_on_fails_by_itself() {
    let k = Kube::up(&["--nodes", "1"]);
    k.file("apps.yaml", APPS);
    k.ok("apply -f apps.yaml");
    k.ok("rollout status deploy/web --timeout=60s");
    assert_eq!(k.ok("get deploy web -o jsonpath={.spec.progressDeadlineSeconds}"), "600");
    // A template that fits no node.
    let template = r#"{"spec":{"progressDeadlineSeconds":2,"template":{"spec":{"nodeSelector":{"no":"such"}}}}}"#;
    k.ok_with("patch deploy web -p", &[template]);
    let (code, why) = k.fails("rollout status deploy/web --timeout=60s");
    assert!(code == 1 && why.contains("deployment \"web\" exceeded its progress deadline"), "{why}");
    let progressing = "jsonpath={.status.conditions[?(@.type==\"Progressing\")].reason}";
    assert_eq!(k.ok(&format!("get deploy web -o {progressing}")), "ProgressDeadlineExceeded");
    assert!(k.ok("describe deploy web").contains("ProgressDeadlineExceeded"));
    k.ok("wait --for=condition=Available deploy/web --timeout=30s");
    assert_eq!(k.ok("rollout undo deploy/web").trim(), "deployment.apps/web rolled back");
    assert!(k.ok("rollout status deploy/web --timeout=60s").contains("successfully rolled out"));
    assert_eq!(k.ok(&format!("get deploy web -o {progressing}")), "NewReplicaSetAvailable");
}
