//! In a network namespace of its own: what a pass over Services alone does, and what it leaves to a whole one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::cell::RefCell;

use kernel::Netns;

use resolve::{Event, Key, apply, parse_as};
use serde_json::{Value, json};
use types::ObjectName;

use super::super::look::{Host, host, look};
use super::super::turn::{Real, open};
use super::*;

/// A snapshot with the log of its changes.
#[derive(Default)]
struct Told(RefCell<(ClusterSnapshot, Vec<Key>)>);

impl Told {
    fn put(&self, kind: Kind, value: &Value) {
        let parsed = parse_as(kind, value);
        assert_eq!(parsed.problems, []);
        self.event(Event::Put(parsed));
    }

    fn event(&self, e: Event) {
        let (snapshot, log) = &mut *self.0.borrow_mut();
        log.extend(apply(snapshot, e));
    }
}

impl Cluster for Told {
    fn read<T>(&self, f: impl FnOnce(&ClusterSnapshot) -> T) -> T {
        f(&self.0.borrow().0)
    }

    fn read_since<T>(&self, seen: &mut Seen, f: impl FnOnce(&ClusterSnapshot, &Changes) -> T) -> T {
        let inner = self.0.borrow();
        let changes = match seen.count() {
            None => Changes::All,
            Some(n) => Changes::Some(inner.1.iter().skip(usize::try_from(n).unwrap()).cloned().collect()),
        };
        *seen = Seen::upto(inner.1.len() as u64);
        f(&inner.0, &changes)
    }
}

fn node(name: &str, range: &str, address: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"podCIDRs": [range]},
           "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

fn service(name: &str, ip: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"},
           "spec": {"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "type": "ClusterIP",
                    "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]}})
}

fn slice(name: &str, of: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
           "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
           "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]})
}

/// A whole pass: the ops of the fabric and of the table.
fn whole(d: &mut Real, eyes: &mut FabricKernel<Host>, c: &Told) -> (usize, usize) {
    let seen = look(eyes, &d.setup, &d.setup.node_addresses(c)).unwrap();
    let pass = d.pass(c, seen).unwrap();
    assert!(!pass.unfinished);
    let ops = |n: usize| *pass.planes[n].result.as_ref().unwrap();
    (ops(0), ops(1))
}

/// A pass over Services: the ops of their table, and whether that was all there is to do.
fn quick(d: &mut Real, c: &Told) -> Option<(usize, bool)> {
    let pass = d.services(c).unwrap()?;
    let [PlanePass { plane: Plane::Nftables, result, .. }] = &pass.planes[..] else { panic!("{:?}", pass.planes) };
    assert!(!pass.full, "nobody else committed");
    Some((*result.as_ref().unwrap(), !pass.unfinished))
}

#[test]
fn services_are_served_without_a_look_at_the_machine() {
    let (ns, dir) = (Netns::new().unwrap(), tempfile::tempdir().unwrap());
    ns.run(|| {
        let setup = Setup {
            node: "node1".parse().unwrap(),
            ipam_dir: dir.path().into(),
            cni_conf_dir: dir.path().into(),
            iface: None,
            missing: BTreeSet::new(),
            services_elsewhere: false,
        };
        let mut d = open(setup).unwrap();
        let mut eyes = FabricKernel::new(host().unwrap(), &Default::default());
        let c = Told::default();
        c.put(Kind::Node, &node("node1", "10.244.1.0/24", "10.0.0.1"));
        assert_eq!(quick(&mut d, &c), None, "nothing was seen of the machine yet");
        whole(&mut d, &mut eyes, &c);
        assert_eq!(quick(&mut d, &c), Some((0, true)));

        // The first Service wants connection tracking of the fabric, the second nothing.
        c.put(Kind::Service, &service("a", "10.96.0.1"));
        c.put(Kind::EndpointSlice, &slice("a-1", "a", "10.244.1.5"));
        let (ops, all) = quick(&mut d, &c).unwrap();
        assert!(ops > 0 && !all);
        let (fabric, table) = whole(&mut d, &mut eyes, &c);
        assert!(fabric > 0 && table == 0);
        c.put(Kind::Service, &service("b", "10.96.0.2"));
        c.put(Kind::EndpointSlice, &slice("b-1", "b", "10.244.1.6"));
        let (ops, all) = quick(&mut d, &c).unwrap();
        assert!(ops > 0 && all);
        let gone = Key { kind: Kind::Service, name: ObjectName::new("default", "b") };
        c.event(Event::Delete(gone));
        let (ops, all) = quick(&mut d, &c).unwrap();
        assert!(ops > 0 && all);
        assert_eq!(whole(&mut d, &mut eyes, &c), (0, 0), "it is what a whole pass makes");

        // Another node: nothing is planned, and nothing of the Service that came with it is lost.
        c.put(Kind::Node, &node("node2", "10.244.2.0/24", "10.0.0.2"));
        c.put(Kind::Service, &service("c", "10.96.0.3"));
        c.put(Kind::EndpointSlice, &slice("c-1", "c", "10.244.2.5"));
        assert_eq!(quick(&mut d, &c), None);
        assert_eq!(quick(&mut d, &c), None);
        let (_, table) = whole(&mut d, &mut eyes, &c);
        assert!(table > 0);
        assert_eq!(quick(&mut d, &c), Some((0, true)));
    })
    .unwrap();
}
