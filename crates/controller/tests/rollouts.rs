//! Deployments and DaemonSets that change: what rolls, what is remembered, and what comes back.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod sim;

use std::collections::{BTreeMap, BTreeSet};

use resolve::{ClusterSnapshot, Key, Kind, Workload};
use serde_json::{Value, json};
use sim::{Sim, node, ready, service, settings, workload};
use types::ObjectName;

fn deployment(s: &ClusterSnapshot) -> &Workload {
    s.workloads.iter().find(|(k, _)| k.kind == Kind::Deployment).unwrap().1
}

fn image(sim: &mut Sim, kind: Kind, name: &str, to: &str) {
    sim.edit(kind, name)["spec"]["template"]["spec"]["containers"][0]["image"] = to.into();
}

/// What `kubectl rollout history` reads: image and size of each revision's set.
fn history(s: &ClusterSnapshot) -> BTreeMap<String, (String, i64)> {
    let sets = s.workloads.iter().filter(|(k, _)| k.kind == Kind::ReplicaSet);
    sets.map(|(_, w)| {
        let image = w.spec.pointer("/template/spec/containers/0/image").unwrap().as_str().unwrap();
        let number = w.annotations.get("deployment.kubernetes.io/revision").unwrap();
        (number.to_owned(), (image.to_owned(), w.spec["replicas"].as_i64().unwrap()))
    })
    .collect()
}

/// The same, as a test writes it.
fn is(all: &[(&str, &str, i64)]) -> BTreeMap<String, (String, i64)> {
    all.iter().map(|(n, i, size)| ((*n).to_owned(), ((*i).to_owned(), *size))).collect()
}

#[test]
fn a_new_template_rolls_and_keeps_enough_ready() {
    let mut sim = Sim::new(&[
        settings("10.244.0.0/16"),
        node("node1"),
        node("node2"),
        workload("Deployment", "web", 4, "a"),
        service("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]})),
    ]);
    let old: BTreeSet<_> = sim.snapshot().pods.keys().cloned().collect();
    assert_eq!(old.len(), 4);
    sim.edit(Kind::Deployment, "web")["spec"]["template"]["spec"]["containers"][0]["image"] = "b".into();
    sim.edit(Kind::Deployment, "web")["metadata"]["generation"] = 2.into();
    while sim.step() {
        let s = sim.snapshot();
        // Defaults: 25 % of 4 may be missing, and be too many.
        assert!(ready(&s) >= 3, "only {} ready", ready(&s));
        assert!(s.pods.values().filter(|p| !p.terminating).count() <= 5);
    }
    let s = sim.snapshot();
    assert_eq!(s.pods.len(), 4);
    assert!(s.pods.keys().all(|n| !old.contains(n)));
    let status = &deployment(&s).status;
    assert_eq!(
        (&status["observedGeneration"], &status["updatedReplicas"], &status["availableReplicas"]),
        (&json!(2), &json!(4), &json!(4))
    );
    assert_eq!(status["conditions"][0]["status"], "True");
    assert_eq!(s.slices.values().map(|x| x.endpoints.len()).sum::<usize>(), 4);
}

#[test]
fn scaling_deleting_and_recreate() {
    let mut sim = Sim::new(&[node("node1"), workload("Deployment", "web", 3, "a")]);
    sim.edit(Kind::Deployment, "web")["spec"]["replicas"] = 1.into();
    sim.settle();
    assert_eq!(sim.snapshot().pods.len(), 1);
    sim.edit(Kind::Deployment, "web")["spec"]["strategy"] = json!({"type": "Recreate"});
    sim.edit(Kind::Deployment, "web")["spec"]["template"]["spec"]["containers"][0]["image"] = "b".into();
    let mut none = false;
    while sim.step() {
        let s = sim.snapshot();
        assert!(s.pods.len() <= 1, "old and new together");
        none |= s.pods.is_empty();
    }
    assert!(none && ready(&sim.snapshot()) == 1);
    sim.objects.retain(|k, _| k.kind != Kind::Deployment);
    sim.settle();
    assert!(sim.snapshot().pods.is_empty(), "its pods go with it");
}

#[test]
fn a_daemonset_rolls_one_node_at_a_time_and_follows_nodes() {
    let mut sim = Sim::new(&[
        settings("10.244.0.0/16"),
        node("node1"),
        node("node2"),
        node("node3"),
        workload("DaemonSet", "log", 0, "a"),
    ]);
    assert_eq!(ready(&sim.snapshot()), 3);
    sim.edit(Kind::DaemonSet, "log")["spec"]["template"]["spec"]["containers"][0]["image"] = "b".into();
    while sim.step() {
        assert!(ready(&sim.snapshot()) >= 2);
    }
    assert_eq!(ready(&sim.snapshot()), 3);
    // A node that vanishes takes its pods along; one that is no more selected loses its own.
    sim.objects.remove(&Key { kind: Kind::Node, name: ObjectName::new("", "node3") });
    sim.edit(Kind::DaemonSet, "log")["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    sim.settle();
    let s = sim.snapshot();
    assert_eq!(s.pods.values().map(|p| p.node.as_ref().unwrap().as_str()).collect::<Vec<_>>(), ["node1"]);
    assert_eq!(s.workloads.values().next().unwrap().status["desiredNumberScheduled"], 1);
}

#[test]
fn each_template_is_a_revision_and_an_old_one_comes_back_as_the_newest() {
    let mut sim = Sim::new(&[node("node1"), workload("Deployment", "web", 2, "a")]);
    assert_eq!(history(&sim.snapshot()), is(&[("1", "a", 2)]));
    sim.edit(Kind::Deployment, "web")["metadata"]["annotations"]["kubernetes.io/change-cause"] = "to b".into();
    image(&mut sim, Kind::Deployment, "web", "b");
    sim.settle();
    assert_eq!(history(&sim.snapshot()), is(&[("1", "a", 0), ("2", "b", 2)]));
    let s = sim.snapshot();
    assert_eq!(deployment(&s).annotations.get("deployment.kubernetes.io/revision"), Some("2"));
    let cause = |w: &Workload| w.annotations.get("kubernetes.io/change-cause").map(str::to_owned);
    let caused: Vec<_> = s.workloads.values().filter_map(cause).collect();
    assert_eq!(caused, ["to b", "to b"], "the Deployment and the set of its template");
    // Back, as kubectl writes a template that it read as a type.
    let d = sim.edit(Kind::Deployment, "web");
    d["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
    d["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
    image(&mut sim, Kind::Deployment, "web", "a");
    sim.settle();
    assert_eq!(history(&sim.snapshot()), is(&[("2", "b", 0), ("3", "a", 2)]));
    // As many are remembered as are asked for.
    sim.edit(Kind::Deployment, "web")["spec"]["revisionHistoryLimit"] = 1.into();
    image(&mut sim, Kind::Deployment, "web", "c");
    sim.settle();
    assert_eq!(history(&sim.snapshot()), is(&[("3", "a", 0), ("4", "c", 2)]));
    // A pod that is lost is made again by its set.
    let lost = sim.snapshot().pods.keys().next().unwrap().clone();
    sim.objects.remove(&Key { kind: Kind::Pod, name: lost });
    sim.settle();
    assert_eq!(ready(&sim.snapshot()), 2);
}

#[test]
fn a_paused_deployment_keeps_its_size_and_its_template() {
    let mut sim = Sim::new(&[node("node1"), workload("Deployment", "web", 4, "a")]);
    image(&mut sim, Kind::Deployment, "web", "b");
    sim.step();
    sim.edit(Kind::Deployment, "web")["spec"]["paused"] = true.into();
    sim.settle();
    let before = history(&sim.snapshot());
    assert_eq!(before.len(), 2, "half way: {before:?}");
    // What is lost is replaced, of its own template.
    for name in sim.snapshot().pods.keys().take(2) {
        sim.objects.remove(&Key { kind: Kind::Pod, name: name.clone() });
    }
    image(&mut sim, Kind::Deployment, "web", "c");
    sim.settle();
    assert_eq!(history(&sim.snapshot()), before);
    let total: i64 = before.values().map(|(_, n)| n).sum();
    assert_eq!(i64::try_from(ready(&sim.snapshot())).unwrap(), total);
    let condition = |s: &ClusterSnapshot| deployment(s).status["conditions"][1].clone();
    assert_eq!(condition(&sim.snapshot())["reason"], "DeploymentPaused");
    // Its size is followed, shared out as it is.
    for size in [8, 3, 0, 5] {
        sim.edit(Kind::Deployment, "web")["spec"]["replicas"] = size.into();
        sim.settle();
        assert_eq!(ready(&sim.snapshot()), usize::try_from(size).unwrap());
    }
    sim.edit(Kind::Deployment, "web")["spec"].as_object_mut().unwrap().remove("paused");
    sim.settle();
    let now = history(&sim.snapshot());
    assert_eq!(now.get("3"), Some(&("c".to_owned(), 5)), "{now:?}");
    assert_eq!(condition(&sim.snapshot())["reason"], "NewReplicaSetAvailable");
}

#[test]
fn what_was_left_behind_is_taken_up_again_and_what_is_owned_by_others_is_not() {
    let mut sim = Sim::new(&[node("node1"), workload("Deployment", "web", 2, "a")]);
    let names = |sim: &Sim| sim.snapshot().pods.keys().cloned().collect::<Vec<_>>();
    let before = names(&sim);
    // Deleted without what it owns, and made again: nothing new is made.
    let web = Key { kind: Kind::Deployment, name: ObjectName::new("shop", "web") };
    let mut again = sim.objects.remove(&web).unwrap();
    for v in sim.objects.values_mut().filter(|v| v["kind"] == "ReplicaSet") {
        v["metadata"]["ownerReferences"] = json!([]);
    }
    sim.settle();
    assert_eq!(names(&sim), before, "the set goes on by itself");
    again["metadata"]["uid"] = "another".into();
    sim.objects.insert(web.clone(), again);
    sim.settle();
    assert_eq!(names(&sim), before);
    let s = sim.snapshot();
    let set = s.workloads.iter().find(|(k, _)| k.kind == Kind::ReplicaSet).unwrap().1;
    assert_eq!(set.owner.as_ref().map(|o| &*o.uid), Some("another"));
    // The same of a set's pods.
    for v in sim.objects.values_mut().filter(|v| v["kind"] == "Pod") {
        v["metadata"]["ownerReferences"] = json!([]);
    }
    sim.settle();
    assert_eq!(names(&sim), before);
    assert!(sim.snapshot().pods.values().all(|p| p.owner.is_some()));
    // With the owner, set and pods go.
    sim.objects.remove(&web);
    sim.settle();
    assert_eq!(sim.snapshot().workloads.len() + sim.snapshot().pods.len(), 0);
    // A name that another has is said.
    let mut sim = Sim::new(&[node("node1"), workload("Deployment", "web", 1, "a")]);
    let key = sim.objects.keys().find(|k| k.kind == Kind::ReplicaSet).unwrap().clone();
    sim.objects.get_mut(&key).unwrap()["metadata"]["ownerReferences"][0]["uid"] = "other".into();
    sim.objects.get_mut(&key).unwrap()["metadata"]["ownerReferences"][0]["kind"] = "Rollout".into();
    let found = controller::reconcile(&sim.snapshot(), &controller::Options::default()).problems;
    assert!(found.iter().any(|p| p.to_string().contains("belongs to another owner")), "{found:?}");
}

#[test]
fn a_daemonsets_templates_are_revisions() {
    let mut sim = Sim::new(&[node("node1"), workload("DaemonSet", "log", 0, "a")]);
    sim.edit(Kind::DaemonSet, "log")["spec"]["revisionHistoryLimit"] = 1.into();
    let numbers = |sim: &Sim| {
        let all = sim.objects.iter().filter(|(k, _)| k.kind == Kind::ControllerRevision);
        all.map(|(_, v)| {
            let template = &v["data"]["spec"]["template"];
            assert_eq!(template["$patch"], "replace");
            (v["revision"].as_i64().unwrap(), template["spec"]["containers"][0]["image"].as_str().unwrap().to_owned())
        })
        .collect::<BTreeMap<_, _>>()
    };
    let of = |all: &[(i64, &str)]| all.iter().map(|(n, i)| (*n, (*i).to_owned())).collect::<BTreeMap<_, _>>();
    assert_eq!(numbers(&sim), of(&[(1, "a")]));
    image(&mut sim, Kind::DaemonSet, "log", "b");
    sim.settle();
    assert_eq!(numbers(&sim), of(&[(1, "a"), (2, "b")]));
    image(&mut sim, Kind::DaemonSet, "log", "a");
    sim.settle();
    assert_eq!(numbers(&sim), of(&[(2, "b"), (3, "a")]));
    image(&mut sim, Kind::DaemonSet, "log", "c");
    sim.settle();
    assert_eq!(numbers(&sim), of(&[(3, "a"), (4, "c")]), "one is remembered");
    sim.objects.retain(|k, _| k.kind != Kind::DaemonSet);
    sim.settle();
    assert_eq!(numbers(&sim), of(&[]));
}

/// Status, reason and when it last changed, of a Deployment's condition.
fn progress(sim: &Sim, kind: &str) -> (String, String, String) {
    let s = sim.snapshot();
    let all = deployment(&s).status["conditions"].as_array().unwrap().clone();
    let c = all.iter().find(|c| c["type"] == kind).unwrap();
    let field = |f: &str| c[f].as_str().unwrap().to_owned();
    (field("status"), field("reason"), field("lastTransitionTime"))
}

fn says(status: &str, reason: &str, since: &str) -> (String, String, String) {
    (status.into(), reason.into(), format!("1970-01-01T00:{since}Z"))
}

#[test]
fn a_rollout_that_gets_nowhere_in_time_has_failed_until_it_gets_further() {
    let mut sim = Sim::new(&[node("node1"), workload("Deployment", "web", 4, "a")]);
    assert_eq!(progress(&sim, "Progressing"), says("True", "NewReplicaSetAvailable", "00:00"));
    assert_eq!(sim.outcome().again, None, "what is complete has no deadline");
    // Kubernetes' default of ten minutes, from the last step.
    sim.broken = "b";
    (sim.now, sim.edit(Kind::Deployment, "web")["metadata"]["generation"]) = (60, 2.into());
    image(&mut sim, Kind::Deployment, "web", "b");
    sim.step();
    assert_eq!(progress(&sim, "Progressing"), says("True", "NewReplicaSetCreated", "00:00"));
    sim.now = 70;
    sim.settle();
    assert_eq!(progress(&sim, "Progressing"), says("True", "ReplicaSetUpdated", "00:00"));
    assert_eq!(sim.outcome().again.map(|d| d.as_secs()), Some(601));
    sim.now = 670;
    assert!(!sim.step());
    assert_eq!(sim.outcome().again.map(|d| d.as_secs()), Some(1));
    sim.now = 671;
    sim.settle();
    assert_eq!(progress(&sim, "Progressing"), says("False", "ProgressDeadlineExceeded", "11:11"));
    // What served goes on serving, and what has failed stays so without another look.
    assert_eq!((progress(&sim, "Available").0.as_str(), sim.outcome().again), ("True", None));
    sim.now = 800;
    assert!(!sim.step());
    // Back to what works: a rollout like any other.
    image(&mut sim, Kind::Deployment, "web", "a");
    sim.settle();
    assert_eq!(progress(&sim, "Progressing"), says("True", "NewReplicaSetAvailable", "13:20"));
    // A pod that is lost much later is no rollout.
    let lost = sim.snapshot().pods.keys().next().unwrap().clone();
    sim.objects.remove(&Key { kind: Kind::Pod, name: lost });
    (sim.now, sim.broken) = (3000, "a");
    sim.settle();
    assert_eq!(ready(&sim.snapshot()), 3);
    assert_eq!(progress(&sim, "Progressing"), says("True", "NewReplicaSetAvailable", "13:20"));
    sim.now = 30_000;
    assert!(!sim.step());
}

#[test]
fn a_deadline_stands_still_while_paused_and_can_be_none() {
    let mut sim = Sim::new(&[node("node1"), workload("Deployment", "web", 2, "a")]);
    sim.broken = "b";
    sim.edit(Kind::Deployment, "web")["spec"]["progressDeadlineSeconds"] = 5.into();
    image(&mut sim, Kind::Deployment, "web", "b");
    sim.settle();
    sim.edit(Kind::Deployment, "web")["spec"]["paused"] = true.into();
    sim.now = 100;
    sim.settle();
    assert_eq!(progress(&sim, "Progressing"), says("Unknown", "DeploymentPaused", "01:40"));
    sim.edit(Kind::Deployment, "web")["spec"]["paused"] = false.into();
    sim.now = 200;
    sim.settle();
    assert_eq!(progress(&sim, "Progressing"), says("Unknown", "DeploymentResumed", "01:40"));
    assert_eq!(sim.outcome().again.map(|d| d.as_secs()), Some(6));
    sim.now = 206;
    sim.settle();
    assert_eq!(progress(&sim, "Progressing"), says("False", "ProgressDeadlineExceeded", "03:26"));
    // Another's condition stays, whatever we write.
    let foreign = json!({"type": "Example", "status": "True", "reason": "Mine"});
    sim.edit(Kind::Deployment, "web")["status"]["conditions"].as_array_mut().unwrap().push(foreign);
    // The greatest number is none.
    sim.edit(Kind::Deployment, "web")["spec"]["progressDeadlineSeconds"] = i32::MAX.into();
    sim.now = 20_000;
    sim.settle();
    let s = sim.snapshot();
    let kinds: Vec<_> =
        deployment(&s).status["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!((kinds, sim.outcome().again), (vec!["Available", "Example"], None));
}
