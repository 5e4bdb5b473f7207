//! In a network namespace of its own: who commits to what, and what the next pass looks at.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use intent::{Endpoint, Ports, ServiceKey, ServicePort};
use kernel::{Ct, Netns, Nftables};
use kernel_api::nft::{DataType, Element, NftRequest, Set, TableName};
use plane_nft::NftKernel;
use types::{Family, ObjectName, Proto};

use super::*;

/// A monitor during whose deafness somebody may commit.
struct Interrupted(Monitor, Option<Vec<NftRequest>>);

impl Ears for Interrupted {
    fn hear(&mut self) -> io::Result<Changed> {
        self.0.hear()
    }
    fn deaf(&mut self) -> io::Result<()> {
        self.0.deaf()?;
        if let Some(requests) = self.1.take() {
            Nftables::open().unwrap().commit(&requests).unwrap();
        }
        Ok(())
    }
    fn listen(&mut self) -> io::Result<()> {
        self.0.listen()
    }
}

type Real = Table<Nftables, NftKernel<Nftables, Ct>, Interrupted>;

fn open() -> Real {
    let (reads, writes) = (Nftables::open().unwrap(), Nftables::open().unwrap());
    let mut monitor = Monitor::open().unwrap();
    monitor.ignore(writes.port()).unwrap();
    monitor.watch_table(plane_nft::table());
    Table::new(reads, NftKernel::new(writes, Ct::open().unwrap()), Interrupted(monitor, None))
}

fn intent(services: u32) -> NodeIntent {
    let mut i = NodeIntent::empty("node1".parse().unwrap());
    for n in 0..services {
        let service = ObjectName::new("default", &format!("s{n}"));
        let port = ServicePort {
            cluster_ips: [Ipv4Addr::from(0x0a60_0000 + n).into()].into(),
            port: 80,
            families: [Family::V4].into_iter().collect(),
            endpoints: [Endpoint { addr: Ipv4Addr::from(0x0a80_0000 + n).into(), port: 80 }].into(),
            ..ServicePort::default()
        };
        i.services.insert(ServiceKey { service, port: "".into(), proto: Proto::Tcp }, port.into());
    }
    i
}

/// A pass in which no Service changed: the ops, and whether all was looked at.
fn idle(t: &mut Real, i: &NodeIntent) -> (usize, bool) {
    let done = t.pass(i, &Caps::default(), &ServiceChanges::Some(BTreeMap::new()));
    (done.result.unwrap(), done.full)
}

/// As the agent's loop between passes.
fn turn(t: &mut Real) {
    let changed = t.ears.0.changed().unwrap();
    if changed.table {
        t.forget();
    } else if let Some(generation) = changed.generation {
        t.others_went_to(generation);
    }
}

fn elements(table: &TableName, n: u32) -> [NftRequest; 3] {
    let set = Set::new("big", vec![DataType::Ipv4Addr]);
    let all = (0..n).map(|i| Element::new(i.to_be_bytes().to_vec(), None)).collect();
    [
        NftRequest::TableAdd(table.clone()),
        NftRequest::SetAdd(table.clone(), set),
        NftRequest::ElementsAdd(table.clone(), "big".into(), all),
    ]
}

#[test]
fn only_who_commits_to_our_table_makes_us_look_at_it() {
    let ns = Netns::new().unwrap();
    ns.run(|| {
        let mut t = open();
        let mut other = Nftables::open().unwrap();
        let theirs = TableName::recognise("seaway-other").unwrap();
        let i = intent(10);
        let first = t.pass(&i, &Caps::default(), &ServiceChanges::All);
        assert!(first.full && first.result.unwrap() > 50);
        assert_eq!(idle(&mut t, &i), (0, false));
        // Others' tables, whether we heard of it before the pass or not.
        for heard in [true, false] {
            for n in [1, 3000] {
                other.commit(&elements(&theirs, n)).unwrap();
                if heard {
                    turn(&mut t);
                }
                assert_eq!(idle(&mut t, &i), (0, false), "{n} elements, heard early: {heard}");
                turn(&mut t);
                assert_eq!(idle(&mut t, &i), (0, false));
                other.commit(&[NftRequest::TableDel(theirs.clone())]).unwrap();
            }
        }
        // Ours: put right, by whichever way it is heard.
        for heard in [true, false] {
            let damage = NftRequest::SetFlush(plane_nft::table(), "endpoints4".into());
            other.commit(&[NftRequest::TableAdd(theirs.clone()), damage]).unwrap();
            if heard {
                turn(&mut t);
            }
            assert_eq!(idle(&mut t, &i), (10, true), "heard early: {heard}");
            turn(&mut t);
            idle(&mut t, &i);
            assert_eq!(idle(&mut t, &i), (0, false));
        }
        // More at once than the socket holds: nobody knows of what, so everything is looked at, once.
        other.commit(&elements(&theirs, 200_000)).unwrap();
        turn(&mut t);
        assert_eq!(idle(&mut t, &i), (0, true));
        while t.ears.0.changed().unwrap().any() {}
        assert_eq!(idle(&mut t, &i), (0, false));
    })
    .unwrap();
}

#[test]
fn a_large_commit_is_not_listened_to_and_who_meets_it_is_found_out() {
    let ns = Netns::new().unwrap();
    ns.run(|| {
        let mut t = open();
        let i = intent(3000);
        let first = t.pass(&i, &Caps::default(), &ServiceChanges::All);
        assert!(first.full && first.result.unwrap() > 9000);
        assert!(!t.is_uncertain());
        turn(&mut t);
        assert_eq!(idle(&mut t, &i), (0, false), "known from the first on");
        // All go and come again; meanwhile somebody commits.
        let none = intent(0);
        let gone: BTreeMap<ObjectName, Ports> =
            i.services.iter().map(|(k, p)| (k.service.clone(), vec![(k.clone(), p.clone())])).collect();
        t.pass(&none, &Caps::default(), &ServiceChanges::Some(gone)).result.unwrap();
        t.forget();
        t.ears.1 = Some(vec![NftRequest::TableAdd(TableName::recognise("seaway-other").unwrap())]);
        let done = t.pass(&i, &Caps::default(), &ServiceChanges::All);
        assert!(done.full && done.result.unwrap() > 9000 && t.ears.1.is_none());
        assert!(t.is_uncertain(), "another pass is asked for");
        assert_eq!(idle(&mut t, &i), (0, true));
        assert_eq!(idle(&mut t, &i), (0, false));
    })
    .unwrap();
}

#[test]
fn changes_of_thousands_at_once_leave_what_a_whole_comparison_makes() {
    let ns = Netns::new().unwrap();
    ns.run(|| {
        let mut t = open();
        let mut i = intent(10);
        t.pass(&i, &Caps::default(), &ServiceChanges::All).result.unwrap();
        for n in [500, 20_000, 40_000, 15_000, 10, 9_000] {
            let next = intent(n);
            let were = |k: &ServiceKey| i.services.get(k).map(|p| (k.clone(), p.clone())).into_iter().collect();
            let changed: BTreeMap<ObjectName, Ports> = next
                .services
                .keys()
                .chain(i.services.keys())
                .filter(|k| i.services.contains_key(*k) != next.services.contains_key(*k))
                .map(|k| (k.service.clone(), were(k)))
                .collect();
            let done = t.pass(&next, &Caps::default(), &ServiceChanges::Some(changed));
            assert!(!done.full && done.result.unwrap() > 1400, "{n}");
            i = next;
            t.forget();
            assert_eq!(idle(&mut t, &i), (0, true), "{n}");
        }
    })
    .unwrap();
}
