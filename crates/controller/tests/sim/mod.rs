//! A cluster of plain values, and manifests for it.
#![allow(dead_code)] // each test file has its own copy, and not each needs all

use std::collections::BTreeMap;

use controller::offline::{Settled, merge, settle};
use controller::{Options, Outcome, lb::Memory, reconcile_with};
use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Event, Key, Kind, apply, parse_as};
use serde_json::{Value, json};
use types::{Cidr, ObjectName};

pub fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"disk": if name == "node1" {"ssd"} else {"hdd"}}},
           "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.0.{}", name.trim_start_matches("node"))}]}})
}

pub fn settings(cidrs: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seaway", "namespace": "kube-system"}, "data": {"clusterCIDR": cidrs}})
}

pub fn workload(kind: &str, name: &str, replicas: i64, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "shop"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}}}})
}

pub fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

pub fn ranges() -> Vec<Cidr> {
    ["10.96.0.0/16", "fd00:10:96::/112"].map(|c| c.parse().unwrap()).into()
}

pub fn run(objects: &[Value]) -> Settled {
    settle(objects, &Options::default(), &ranges())
}

/// A cluster whose pods become ready one pass after they are made and vanish one pass after they are deleted.
pub struct Sim {
    pub objects: BTreeMap<Key, Value>,
    /// Seconds since 1970, at most a day of them.
    pub now: u64,
    /// Pods of this image never become ready.
    pub broken: &'static str,
    clock: u64,
}

impl Sim {
    pub fn new(objects: &[Value]) -> Self {
        let settled = run(objects);
        Self { objects: settled.objects, now: 0, broken: "", clock: 0 }
    }

    pub fn snapshot(&self) -> ClusterSnapshot {
        let mut s = ClusterSnapshot::default();
        for (k, v) in &self.objects {
            apply(&mut s, Event::Put(parse_as(k.kind, v)));
        }
        s
    }

    /// What the controllers would do now.
    pub fn outcome(&self) -> Outcome {
        let now = format!("1970-01-01T{:02}:{:02}:{:02}Z", self.now / 3600, self.now / 60 % 60, self.now % 60);
        reconcile_with(&self.snapshot(), &Options::default(), &mut Memory::default(), &now)
    }

    /// One pass of the controllers and one of the nodes; `false` when nothing changed.
    pub fn step(&mut self) -> bool {
        let before = self.objects.clone();
        let writes = self.outcome().writes;
        // What was going is gone; what was bound is ready.
        self.objects.retain(|_, v| v.pointer("/metadata/deletionTimestamp").is_none());
        for v in self.objects.values_mut() {
            let broken = v["spec"]["containers"][0]["image"] == self.broken;
            if v["kind"] == "Pod" && v.pointer("/spec/nodeName").is_some() && v.get("status").is_none() && !broken {
                self.clock += 1;
                let ip = format!("10.244.9.{}", self.clock % 250 + 1);
                v["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]});
            }
        }
        for w in writes {
            self.write(w);
        }
        self.objects != before
    }

    pub fn write(&mut self, w: ApiWrite) {
        let kind = Kind::of(&w.resource.api_version(), &w.resource.kind).unwrap();
        let key = Key { kind, name: w.name };
        match w.op {
            WriteOp::Create(mut v) => {
                assert!(!self.objects.contains_key(&key), "{key} made twice");
                self.clock += 1;
                v["metadata"]["name"] = (*key.name.name).into();
                v["metadata"]["namespace"] = (*key.name.namespace).into();
                v["metadata"]["uid"] = format!("uid{}", self.clock).into();
                self.objects.insert(key, v);
            }
            WriteOp::Patch(p) | WriteOp::PatchStatus(p) => {
                if let Some(o) = self.objects.get_mut(&key) {
                    merge(o, &p);
                }
            }
            WriteOp::Bind { node } => self.objects.get_mut(&key).unwrap()["spec"]["nodeName"] = node.into(),
            WriteOp::Delete { force, .. } => {
                let graceful = kind == Kind::Pod && !force;
                if graceful {
                    if let Some(o) = self.objects.get_mut(&key) {
                        o["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                    }
                } else {
                    self.objects.remove(&key);
                }
            }
        }
    }

    pub fn settle(&mut self) {
        for _ in 0..60 {
            if !self.step() {
                return;
            }
        }
        panic!("does not settle");
    }

    pub fn edit(&mut self, kind: Kind, name: &str) -> &mut Value {
        self.objects.get_mut(&Key { kind, name: ObjectName::new("shop", name) }).unwrap()
    }
}

pub fn ready(s: &ClusterSnapshot) -> usize {
    s.pods.values().filter(|p| p.ready && !p.terminating).count()
}
