//! What `deploy/` says against what the code reads: settings, rights, flags.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::collections::BTreeSet;
use std::path::Path;

use controller::{Options, Which};
use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Event, apply, parse};
use serde::Deserialize;
use serde_json::{Value, json};

fn documents(name: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    let text = std::fs::read_to_string(file).unwrap();
    serde_yaml::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap()).collect()
}

fn find<'a>(all: &'a [Value], kind: &str) -> &'a Value {
    all.iter().find(|v| v["kind"] == kind).unwrap_or_else(|| panic!("the manifest has a {kind}"))
}

#[test]
fn the_config_map_is_understood() {
    let all = documents("seaway.yaml");
    let data = find(&all, "ConfigMap")["data"].as_object().unwrap();
    let (settings, problems) = resolve::Settings::parse(data.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())));
    assert!(problems.is_empty(), "{problems:?}");
    assert!(settings.present && settings.cluster_cidrs.len() == 1);
}

/// No container is privileged, and the capabilities that one has are those that the page gives reasons for.
#[test]
fn containers_have_the_capabilities_that_are_justified_and_no_other() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/install.md")).unwrap();
    let all = documents("seaway.yaml");
    let mut seen = 0;
    for kind in ["DaemonSet", "Deployment"] {
        let pod = &find(&all, kind)["spec"]["template"]["spec"];
        for c in [&pod["initContainers"], &pod["containers"]].into_iter().filter_map(Value::as_array).flatten() {
            let (name, s) = (c["name"].as_str().unwrap(), &c["securityContext"]);
            seen += 1;
            assert!(s["privileged"].is_null(), "{name}");
            assert_eq!(s["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(s["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(s["capabilities"]["drop"], json!(["ALL"]), "{name}");
            let has: BTreeSet<_> =
                s["capabilities"]["add"].as_array().into_iter().flatten().map(|v| v.as_str().unwrap()).collect();
            let rows = page.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next());
            let said: BTreeSet<_> = rows.filter(|w| w.contains('_') && !w.chars().any(char::is_lowercase)).collect();
            assert_eq!(has, if name == "agent" { said } else { BTreeSet::new() }, "{name}");
            let token = |m: &Value| m["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount";
            let mounted = c["volumeMounts"].as_array().into_iter().flatten().any(token);
            assert_eq!(mounted, name == "agent", "{name}: the token of the service account");
        }
    }
    assert_eq!(seen, 3);
    assert_eq!(find(&all, "DaemonSet")["spec"]["template"]["spec"]["automountServiceAccountToken"], false);
}

/// Group, resource and verb of everything that the roles of these kinds allow.
type Rights = BTreeSet<(String, String, String)>;

fn rights(all: &[Value], roles: &[&str]) -> Rights {
    let mut rights = BTreeSet::new();
    for role in roles {
        for rule in find(all, role)["rules"].as_array().unwrap() {
            let list = |k: &str| {
                rule[k].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            for (g, r) in
                list("apiGroups").iter().flat_map(|g| list("resources").into_iter().map(move |r| (g.clone(), r)))
            {
                rights.extend(list("verbs").into_iter().map(|v| (g.clone(), r.clone(), v)));
            }
        }
    }
    rights
}

fn right(group: &str, resource: &str, verb: &str) -> (String, String, String) {
    (group.to_owned(), resource.to_owned(), verb.to_owned())
}

/// Every kind that an agent watches may be listed and watched, and nothing else may; what it writes are Nodes, Pods and pools, by patch, blocks and Events.
#[test]
fn an_agent_has_the_rights_it_needs_and_no_other() {
    let all = documents("seaway.yaml");
    let rights = rights(&all, &["ClusterRole", "Role"]);
    let mut wants: BTreeSet<_> = ["nodes", "nodes/status"].map(|r| right("", r, "patch")).into();
    wants.insert((String::new(), "pods".to_owned(), "patch".to_owned()));
    // Blocks are claimed, lent and given up; pools get the finalizer and their status.
    for (plural, verbs) in [("ipblocks", &["create", "delete", "patch"][..]), ("ippools", &["patch"])] {
        wants.extend(verbs.iter().map(|v| ("seaway.io".to_owned(), plural.to_owned(), (*v).to_owned())));
    }
    wants.extend(["create", "get", "patch"].map(|v| (String::new(), "events".to_owned(), v.to_owned())));
    // Who announces which load balancer address.
    let verbs = ["create", "delete", "get", "list", "patch", "watch"];
    wants.extend(verbs.map(|v| right("coordination.k8s.io", "leases", v)));
    for kind in resolve::Kind::AGENT {
        let r = resolve::api::Resource::from(kind);
        // An Event is written with its object's uid; nothing is wrong with what the server has checked itself.
        let checked = matches!(kind, resolve::Kind::EndpointSlice | resolve::Kind::ServiceCidr);
        let verbs: &[&str] = if checked { &["list", "watch"] } else { &["get", "list", "watch"] };
        wants.extend(verbs.iter().map(|v| right(&r.group, &r.plural, v)));
    }
    assert_eq!(rights, wants);
    let role = find(&all, "Role");
    assert_eq!(role["metadata"]["namespace"], resolve::settings::NAMESPACE);
    assert_eq!(role["rules"][0]["resourceNames"][0], resolve::settings::NAME);
}

/// The controller may read what it looks at and do what it ever does, and nothing else.
#[test]
fn the_controller_has_the_rights_it_needs_and_no_other() {
    let all: Vec<Value> =
        documents("seaway.yaml").into_iter().filter(|v| v["metadata"]["name"] == "seaway-controller").collect();
    let container = &find(&all, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let only =
        container["args"].as_array().unwrap().iter().find_map(|a| a.as_str().unwrap().strip_prefix("--only=")).unwrap();
    let options =
        Options { which: only.split(',').map(|w| w.parse::<Which>().unwrap()).collect(), ..Options::default() };
    assert_eq!(options.which.len(), 2);

    // A cluster in which it has everything to do that it ever does.
    let own = |kind: &str, name: &str, metadata: Value, spec: Value| {
        let mut m = metadata;
        m["name"] = name.into();
        json!({"apiVersion": "seaway.io/v1alpha1", "kind": kind, "metadata": m, "spec": spec})
    };
    let kept = || json!({"finalizers": ["seaway.io/addresses-in-use"]});
    let mut going = kept();
    going["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let block = |cidr: &str, name: &str, node: &str, lent: Value| {
        own("IPBlock", name, kept(), json!({"cidr": cidr, "pool": "a", "node": node, "lent": lent}))
    };
    let mut snapshot = ClusterSnapshot::default();
    for v in [
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "here"}}),
        own("IPPool", "a", json!({}), json!({"cidr": "10.0.0.0/16"})),
        own("IPPool", "b", going, json!({"cidr": "10.1.0.0/16"})),
        block("10.0.0.0/26", "10-0-0-0-26", "gone", json!([])),
        block("10.0.0.64/26", "10-0-0-64-26", "gone", json!([{"address": "10.0.0.65", "node": "here"}])),
        own("LoadBalancerPool", "p", json!({}), json!({"addresses": ["192.0.2.1"]})),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]}}),
    ] {
        apply(&mut snapshot, Event::Put(parse(&v).unwrap()));
    }
    let does = controller::reconcile(&snapshot, &options).writes;
    assert!(does.len() >= 7, "{does:?}");
    let mut wants: Rights = does.iter().map(needed).collect();
    // What cannot be had is told; and which of the replicas works.
    wants.extend(["create", "get", "patch"].map(|v| right("", "events", v)));
    wants.extend(["create", "get", "update"].map(|v| right("coordination.k8s.io", "leases", v)));
    for kind in options.kinds() {
        let r = resolve::api::Resource::from(kind);
        wants.extend(["list", "watch"].map(|v| right(&r.group, &r.plural, v)));
    }
    // Events at Services have their uid.
    wants.insert(right("", "services", "get"));
    assert_eq!(rights(&all, &["ClusterRole", "Role"]), wants);
    for (binding, role) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        let account = &find(&all, "ServiceAccount")["metadata"];
        let bound = find(&all, binding);
        let subject = &bound["subjects"][0];
        assert_eq!((&subject["name"], &subject["namespace"]), (&account["name"], &account["namespace"]));
        assert_eq!((&bound["roleRef"]["kind"], &bound["roleRef"]["name"]), (&json!(role), &account["name"]));
    }
}

/// The right that a write needs.
fn needed(w: &ApiWrite) -> (String, String, String) {
    let (plural, group) = (w.resource.plural.to_string(), w.resource.group.to_string());
    match &w.op {
        WriteOp::Patch(_) => right(&group, &plural, "patch"),
        WriteOp::PatchStatus(_) => right(&group, &format!("{plural}/status"), "patch"),
        WriteOp::Delete { .. } => right(&group, &plural, "delete"),
        other => panic!("{w}: {other:?} is new: give it a right"),
    }
}
