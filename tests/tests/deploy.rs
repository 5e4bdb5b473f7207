//! What `deploy/` says against what the code reads: settings, rights, flags.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

fn documents() -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/seaway.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    serde_yaml::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap()).collect()
}

fn find<'a>(all: &'a [Value], kind: &str) -> &'a Value {
    all.iter().find(|v| v["kind"] == kind).unwrap_or_else(|| panic!("deploy/seaway.yaml has a {kind}"))
}

#[test]
fn the_config_map_is_understood() {
    let all = documents();
    let data = find(&all, "ConfigMap")["data"].as_object().unwrap();
    let (settings, problems) = resolve::Settings::parse(data.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())));
    assert!(problems.is_empty(), "{problems:?}");
    assert!(settings.present && settings.cluster_cidrs.len() == 1);
}

/// Every kind that an agent watches may be listed and watched, and nothing else may; what it writes are Nodes, Pods and pools, by patch, blocks and Events.
#[test]
fn an_agent_has_the_rights_it_needs_and_no_other() {
    let all = documents();
    let mut rights = BTreeSet::new();
    for role in ["ClusterRole", "Role"] {
        for rule in find(&all, role)["rules"].as_array().unwrap() {
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
    let mut wants = BTreeSet::from([(String::new(), "nodes".to_owned(), "patch".to_owned())]);
    wants.insert((String::new(), "pods".to_owned(), "patch".to_owned()));
    // Blocks are claimed, lent and given up; pools get the finalizer and their status.
    for (plural, verbs) in [("ipblocks", &["create", "delete", "patch"][..]), ("ippools", &["patch"])] {
        wants.extend(verbs.iter().map(|v| ("seaway.io".to_owned(), plural.to_owned(), (*v).to_owned())));
    }
    wants.extend(["create", "delete", "get", "patch"].map(|v| (String::new(), "events".to_owned(), v.to_owned())));
    for kind in resolve::Kind::AGENT {
        let r = resolve::api::Resource::from(kind);
        wants.extend(["get", "list", "watch"].map(|v| (r.group.to_string(), r.plural.to_string(), v.to_owned())));
    }
    // What announcers agree by; the rest of the role's namespace is nothing to them.
    let leases = ["get", "list", "watch", "create", "patch", "delete"];
    wants.extend(leases.map(|v| ("coordination.k8s.io".to_owned(), "leases".to_owned(), v.to_owned())));
    assert_eq!(rights, wants);
    let role = find(&all, "Role");
    assert_eq!(role["metadata"]["namespace"], resolve::settings::NAMESPACE);
    assert_eq!(role["rules"][0]["resourceNames"][0], resolve::settings::NAME);
}
