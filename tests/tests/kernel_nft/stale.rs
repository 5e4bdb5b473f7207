//! Connections and change: UDP flows forget endpoints that are gone at once, TCP flows to living ones never notice.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use intent::generate::{cluster_ip, node_addr, pod_addr, world};
use kernel::Ct;
use kernel_api::conntrack::Flow;
use plan::{Caps, Dataplane, Plan};
use plane_nft::NftPlane;
use types::{Family, Proto};

use crate::sctp;
use crate::world::{
    DUAL, PODS, Server, World, at, cluster, connect, key, nft, service, sh, to_pods, udp_ask, udp_socket,
};

#[test]
fn a_udp_flow_moves_when_its_endpoint_goes() {
    let mut w = World::new();
    let _a = Server::start(&w.pods[0], "a", 5353);
    let _b = Server::start(&w.pods[1], "b", 5353);
    for f in Family::BOTH {
        let mut i = cluster(DUAL);
        let dns = key("dns", Proto::Udp);
        let mut svc = service(DUAL, 10, 53);
        svc.node_port = Some(30053);
        to_pods(&mut svc, &[PODS[0]], 5353);
        i.services.insert(dns.clone(), svc.into());
        let before = w.converge(&i);
        // One socket each, so one flow each, through the whole story.
        let flows = [
            udp_socket(&w.pods[2], None, at(cluster_ip(f, 10), 53)).unwrap(),
            udp_socket(&w.node, None, at(cluster_ip(f, 10), 53)).unwrap(),
            udp_socket(&w.out, Some(world(f, 1)), at(node_addr(f, 0), 30053)).unwrap(),
        ];
        for s in &flows {
            assert_eq!(udp_ask(s).unwrap().0, "a");
        }
        to_pods(Arc::make_mut(i.services.get_mut(&dns).unwrap()), &[PODS[1]], 5353);
        let after = NftPlane.compile(&i, &Caps::default()).image;
        let text = Plan { batches: NftPlane.plan(&after, &before) }.to_string();
        assert!(text.contains("forget UDP connections to 10.96.0.10:53"), "{text}");
        w.converge(&i);
        for s in &flows {
            assert_eq!(udp_ask(s).unwrap().0, "b", "{f}");
        }
        // The Service ends: refused, not sent on to the old endpoint.
        let mut none = i.clone();
        Arc::make_mut(none.services.get_mut(&dns).unwrap()).endpoints.clear();
        w.converge(&none);
        for s in &flows {
            assert!(udp_ask(s).is_err());
        }
        // And comes back, for the same socket.
        w.converge(&i);
        for s in &flows {
            // An error of the refusal may still wait on the socket.
            let got = udp_ask(s).or_else(|_| udp_ask(s)).unwrap();
            assert_eq!(got.0, "b", "{f}");
        }
        w.converge(&cluster(DUAL));
    }
}

/// A client that spoke to the address before the Service was there: its flow was tracked untranslated.
#[test]
fn a_udp_flow_from_before_the_service_is_translated_afterwards() {
    let mut w = World::new();
    let _a = Server::start(&w.pods[0], "a", 5353);
    // The world swallows what it does not know, so that the flow stays tracked.
    nft(
        &w.out,
        "table inet hole { chain c { type filter hook prerouting priority -300; ip daddr 10.96.0.0/16 drop; ip6 daddr fd00:10:96::/64 drop; } ; }",
    );
    w.converge(&cluster(DUAL));
    for f in Family::BOTH {
        let s = udp_socket(&w.pods[2], None, at(cluster_ip(f, 10), 53)).unwrap();
        udp_ask(&s).unwrap_err();
        let mut i = cluster(DUAL);
        let mut svc = service(DUAL, 10, 53);
        to_pods(&mut svc, &[PODS[0]], 5353);
        i.services.insert(key("dns", Proto::Udp), svc.into());
        w.converge(&i);
        assert_eq!(udp_ask(&s).unwrap().0, "a", "{f}");
        w.converge(&cluster(DUAL));
    }
}

/// The same of a port of the node and of an external address: what a client began before they were anybody's.
#[test]
fn udp_flows_from_before_a_node_port_or_external_address_are_translated_afterwards() {
    let mut w = World::new();
    let _a = Server::start(&w.pods[0], "a", 5353);
    w.converge(&cluster(DUAL));
    for f in Family::BOTH {
        let external: IpAddr = if f == Family::V4 { "192.0.2.99" } else { "fd00:c0::99" }.parse().unwrap();
        sh(&w.out, &format!("ip route add {external} via {}", node_addr(f, 0)));
        // Swallowed behind the filter of the node, so that the flow stays tracked.
        nft(
            &w.node,
            &format!(
                "table inet hole {{ chain c {{ type filter hook forward priority 10; ip{} daddr {external} drop; }} ; }}",
                if f == Family::V4 { "" } else { "6" }
            ),
        );
        sh(&w.node, &format!("ip route add {external} dev up"));
        let flows = [
            udp_socket(&w.out, Some(world(f, 1)), at(node_addr(f, 0), 30053)).unwrap(),
            udp_socket(&w.node, None, at(node_addr(f, 0), 30053)).unwrap(),
            udp_socket(&w.out, Some(world(f, 1)), at(external, 53)).unwrap(),
        ];
        for s in &flows {
            udp_ask(s).unwrap_err();
        }
        let mut i = cluster(DUAL);
        let mut svc = service(DUAL, 10, 53);
        (svc.node_port, svc.external_ips) = (Some(30053), [external].into());
        to_pods(&mut svc, &[PODS[0]], 5353);
        i.services.insert(key("dns", Proto::Udp), svc.into());
        w.converge(&i);
        for s in &flows {
            // An error of the refusal may still wait on the socket.
            let got = udp_ask(s).or_else(|_| udp_ask(s)).unwrap();
            assert_eq!(got.0, "a", "{f} {:?}", s.peer_addr());
        }
        w.converge(&cluster(DUAL));
        sh(&w.node, "nft delete table inet hole");
    }
}

/// Two Services share protocol and ports, one loses an endpoint: its flows by every kind of address go, those to the
/// endpoint that stays, the other's, and TCP's to the endpoint that goes are the same entries as before.
#[test]
fn only_the_stale_entries_go() {
    let mut w = World::new();
    let servers: Vec<Server> = (0..2).map(|n| Server::start(&w.pods[n], ["a", "b"][n], 5353)).collect();
    let mut i = cluster(DUAL);
    let external: Vec<IpAddr> = vec!["192.0.2.99".parse().unwrap(), "fd00:c0::99".parse().unwrap()];
    let (dns, other) = (key("dns", Proto::Udp), key("other", Proto::Udp));
    let mut svc = service(DUAL, 10, 53);
    (svc.node_port, svc.external_ips) = (Some(30053), external.iter().copied().collect());
    to_pods(&mut svc, &PODS[..2], 5353);
    i.services.insert(key("dns", Proto::Tcp), svc.clone().into());
    i.services.insert(dns.clone(), svc.into());
    let mut svc = service(DUAL, 11, 53);
    to_pods(&mut svc, &PODS[..1], 5353);
    i.services.insert(other, svc.into());
    w.converge(&i);
    let mut flows = Vec::new();
    for f in Family::BOTH {
        let external = external[usize::from(f == Family::V6)];
        sh(&w.out, &format!("ip route add {external} via {}", node_addr(f, 0)));
        for _ in 0..8 {
            for (ns, src, to) in [
                (&w.pods[2], None, at(cluster_ip(f, 10), 53)),
                (&w.node, None, at(cluster_ip(f, 10), 53)),
                (&w.node, None, at(node_addr(f, 0), 30053)),
                (&w.out, Some(world(f, 1)), at(node_addr(f, 0), 30053)),
                (&w.out, Some(world(f, 1)), at(external, 53)),
                (&w.pods[2], None, at(cluster_ip(f, 11), 53)),
            ] {
                let s = udp_socket(ns, src, to).unwrap();
                let who = udp_ask(&s).unwrap().0;
                flows.push((s, who));
            }
            w.pods[2].run(|| connect(None, at(cluster_ip(f, 10), 53))).unwrap().unwrap();
        }
    }
    let entries = |w: &World| {
        let mut all = BTreeSet::new();
        let mut ct = Ct::open_in(&w.node).unwrap();
        let mut put = |f: &Flow| {
            all.insert((f.proto, f.original.src, f.original.sport, f.original.dst, f.reply.src, f.reply.dport));
        };
        ct.each(None, &mut put).unwrap();
        all
    };
    let before = entries(&w);
    let gone = pod_addr(Family::V4, 0, PODS[0]);
    let gone6 = pod_addr(Family::V6, 0, PODS[0]);
    to_pods(Arc::make_mut(i.services.get_mut(&dns).unwrap()), &PODS[1..2], 5353);
    to_pods(Arc::make_mut(i.services.get_mut(&key("dns", Proto::Tcp)).unwrap()), &PODS[1..2], 5353);
    w.converge(&i);
    let others: [IpAddr; 2] = Family::BOTH.map(|f| cluster_ip(f, 11));
    let stale = |e: &&(Proto, IpAddr, u16, IpAddr, IpAddr, u16)| {
        e.0 == Proto::Udp && !others.contains(&e.3) && (e.4 == gone || e.4 == gone6)
    };
    let (dead, living): (Vec<_>, Vec<_>) = before.iter().partition(stale);
    assert!(!dead.is_empty() && living.len() > dead.len() / 4, "{before:?}");
    assert_eq!(entries(&w), living.into_iter().copied().collect());
    assert_eq!(w.kernel.forgotten(), dead.len());
    drop(servers);
    let _b = Server::start(&w.pods[1], "b", 5353);
    for (s, who) in &flows {
        let to = s.peer_addr().unwrap();
        if !others.contains(&to.ip()) {
            assert_eq!(udp_ask(s).or_else(|_| udp_ask(s)).unwrap().0, "b", "{to} was {who}'s");
        }
    }
}

/// The same of SCTP: entries to the endpoint that goes, those to the one that stays.
#[test]
fn sctp_entries_go_with_their_endpoint_and_no_others() {
    let mut w = World::new();
    // Nobody answers an INIT here, and then the kernel forgets it after 3 s by itself.
    sh(&w.node, "echo 600 > /proc/sys/net/netfilter/nf_conntrack_sctp_timeout_cookie_wait");
    let mut i = cluster(DUAL);
    let sigtran = key("sigtran", Proto::Sctp);
    let mut svc = service(DUAL, 5, 2905);
    svc.node_port = Some(30905);
    to_pods(&mut svc, &PODS[..2], 9999);
    i.services.insert(sigtran.clone(), svc.into());
    w.converge(&i);
    let places = [("a", &w.pods[0]), ("b", &w.pods[1])];
    for f in Family::BOTH {
        for _ in 0..10 {
            sctp::reached(&w.pods[2], None, at(cluster_ip(f, 5), 2905), &places).unwrap();
            sctp::reached(&w.node, None, at(cluster_ip(f, 5), 2905), &places).unwrap();
            sctp::reached(&w.out, Some(world(f, 1)), at(node_addr(f, 0), 30905), &places).unwrap();
        }
    }
    let entries = |w: &World| {
        let mut all = BTreeSet::new();
        let mut put = |f: &Flow| {
            let (o, r) = (f.original, f.reply);
            all.extend((f.proto == Proto::Sctp).then_some((o.src, o.sport, o.dst, r.src, r.dport)));
        };
        Ct::open_in(&w.node).unwrap().each(None, &mut put).unwrap();
        all
    };
    let gone = Family::BOTH.map(|f| pod_addr(f, 0, PODS[0]));
    let (dead, living): (BTreeSet<_>, BTreeSet<_>) = entries(&w).into_iter().partition(|e| gone.contains(&e.3));
    assert!(dead.len() + living.len() == 60 && !dead.is_empty() && !living.is_empty(), "{dead:?} {living:?}");
    to_pods(Arc::make_mut(i.services.get_mut(&sigtran).unwrap()), &PODS[1..2], 9999);
    w.converge(&i);
    assert_eq!(entries(&w), living);
    // The Service goes, and all of its.
    w.converge(&cluster(DUAL));
    assert_eq!(entries(&w), BTreeSet::new());
}

/// An agent that died between the commit and the forgetting: the mark is in the kernel, and the next pass sees it.
#[test]
fn what_a_dead_agent_did_not_forget_the_next_pass_forgets() {
    let mut w = World::new();
    let _a = Server::start(&w.pods[0], "a", 5353);
    let _b = Server::start(&w.pods[1], "b", 5353);
    let mut i = cluster(DUAL);
    let dns = key("dns", Proto::Udp);
    let mut svc = service(DUAL, 10, 53);
    to_pods(&mut svc, &[PODS[0]], 5353);
    i.services.insert(dns.clone(), svc.into());
    let before = w.converge(&i);
    let s = udp_socket(&w.pods[2], None, at(cluster_ip(Family::V4, 10), 53)).unwrap();
    assert_eq!(udp_ask(&s).unwrap().0, "a");
    to_pods(Arc::make_mut(i.services.get_mut(&dns).unwrap()), &[PODS[1]], 5353);
    let want = NftPlane.compile(&i, &Caps::default()).image;
    let plan = NftPlane.plan(&want, &before);
    plan::Kernel::commit(&mut w.kernel, &plan[0]).unwrap();
    assert_eq!(udp_ask(&s).unwrap().0, "a", "the flow is still the old one");
    w.converge(&i);
    assert_eq!(udp_ask(&s).unwrap().0, "b");
    assert!(sh(&w.node, "nft list set inet seaway stale4").lines().all(|l| !l.contains("elements")));
}

/// A TCP connection through a Service lives through everything that happens around it.
#[test]
fn tcp_flows_to_living_endpoints_never_break() {
    let mut w = World::new();
    for f in Family::BOTH {
        let listener = w.pods[0].run(|| TcpListener::bind(at(intent::generate::pod_addr(f, 0, PODS[0]), 8080)));
        let listener = listener.unwrap().unwrap();
        let mut i = cluster(DUAL);
        let web = key("web", Proto::Tcp);
        let mut svc = service(DUAL, 1, 80);
        to_pods(&mut svc, &[PODS[0]], 8080);
        i.services.insert(web.clone(), svc.into());
        w.converge(&i);
        let mut client = w.pods[1].run(|| connect(None, at(cluster_ip(f, 1), 80))).unwrap().unwrap();
        let mut server = listener.accept().unwrap().0;
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut speak = |what: &str| {
            client.write_all(b"ping").unwrap();
            let mut b = [0; 4];
            server.read_exact(&mut b).unwrap_or_else(|e| panic!("{f} {what}: {e}"));
            server.write_all(&b).unwrap();
            client.read_exact(&mut b).unwrap_or_else(|e| panic!("{f} {what}: {e}"));
        };
        speak("at first");
        to_pods(Arc::make_mut(i.services.get_mut(&web).unwrap()), &PODS, 8080);
        w.converge(&i);
        speak("more endpoints");
        to_pods(Arc::make_mut(i.services.get_mut(&web).unwrap()), &PODS[1..], 8080);
        w.converge(&i);
        speak("its endpoint is draining");
        let gone = cluster(DUAL);
        w.converge(&gone);
        speak("the Service is gone");
        // A sleeping table is replaced as a whole.
        sh(&w.node, "nft add table inet seaway '{ flags dormant; }'");
        w.converge(&i);
        speak("the table was replaced");
        // Meanwhile no packet is translated, as the kernel translates only while some nat chain hangs.
        sh(&w.node, "nft flush ruleset");
        w.converge(&i);
        speak("healed");
    }
}
