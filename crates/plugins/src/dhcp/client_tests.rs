#![allow(clippy::unwrap_used, clippy::panic)]
use proptest::prelude::*;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ADDR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn start() -> (Client, Message) {
    let options = vec![(code::CLIENT_ID, b"\0c/net/eth0".to_vec()), (code::PARAMETERS, vec![1, 3])];
    let params = Params { mac: MAC, options, broadcast: false, resend_max: s(62) };
    let (c, out) = Client::new(params, 7, s(100));
    (c, sent(&out))
}

fn sent(out: &[Output]) -> Message {
    match out {
        [Output::Broadcast(m) | Output::Unicast(m, _)] => m.clone(),
        o => panic!("{o:?}"),
    }
}

fn answer(to: &Message, kind: Kind, lease: u32) -> Message {
    let mut m = Message::new(kind, to.xid, MAC);
    m.reply = true;
    m.yiaddr = ADDR;
    m.set(code::SERVER, SERVER.octets().to_vec());
    m.set(code::LEASE_TIME, lease.to_be_bytes().to_vec());
    m
}

fn bound(lease: u32) -> Client {
    let (mut c, discover) = start();
    let request = sent(&c.receive(&answer(&discover, Kind::Offer, lease), s(100)));
    let out = c.receive(&answer(&request, Kind::Ack, lease), s(100));
    assert!(matches!(out[..], [Output::Bound(_)]));
    c
}

#[test]
fn four_messages_make_a_lease() {
    let (mut c, discover) = start();
    assert_eq!((discover.kind(), discover.secs), (Some(Kind::Discover), 0));
    let request = sent(&c.receive(&answer(&discover, Kind::Offer, 100), s(103)));
    assert_eq!((request.kind(), request.secs, request.xid), (Some(Kind::Request), 3, discover.xid));
    assert_eq!(request.addresses(code::REQUESTED), [ADDR]);
    assert_eq!(request.addresses(code::SERVER), [SERVER]);
    assert_eq!(request.ciaddr, Ipv4Addr::UNSPECIFIED);
    let [Output::Bound(lease)] = &c.receive(&answer(&request, Kind::Ack, 100), s(104))[..] else { panic!() };
    assert_eq!((lease.addr, lease.server), (ADDR, SERVER));
    assert_eq!(lease.times, Some(Times { renew: s(154), rebind: Duration::from_millis(191_500), expire: s(204) }));
    assert!(!c.listens());
}

#[test]
fn what_is_not_for_us_is_not_heard() {
    let (mut c, discover) = start();
    let good = answer(&discover, Kind::Offer, 100);
    let wrong: [fn(&mut Message); 7] = [
        |m| m.xid ^= 1,
        |m| m.chaddr = Mac([2, 0, 0, 0, 0, 2]),
        |m| m.reply = false,
        |m| m.options.retain(|(c, _)| *c != code::SERVER),
        |m| m.set(code::KIND, vec![Kind::Ack as u8]),
        |m| m.set(code::KIND, vec![]),
        |m| m.yiaddr = Ipv4Addr::UNSPECIFIED,
    ];
    for bend in wrong {
        let mut m = good.clone();
        bend(&mut m);
        assert_eq!(c.receive(&m, s(101)), [], "{m:?}");
    }
    let request = sent(&c.receive(&good, s(101)));
    let mut other = answer(&request, Kind::Ack, 100);
    other.set(code::SERVER, vec![10, 0, 0, 2]);
    assert_eq!(c.receive(&other, s(101)), []);
    // Another server's offer comes late.
    assert_eq!(c.receive(&good, s(101)), []);
}

#[test]
fn silence_and_refusal_begin_anew() {
    let (mut c, discover) = start();
    let mut now = s(100);
    for _ in 0..20 {
        let next = c.deadline().unwrap();
        assert!(next > now && next <= now + s(64), "{now:?} {next:?}");
        now = next;
        assert_eq!(sent(&c.tick(now)).kind(), Some(Kind::Discover));
    }
    sent(&c.receive(&answer(&discover, Kind::Offer, 100), now));
    let mut kinds = Vec::new();
    for _ in 0..5 {
        now = c.deadline().unwrap();
        kinds.push(sent(&c.tick(now)).kind().unwrap());
    }
    let r = Kind::Request;
    assert_eq!(kinds, [r, r, r, Kind::Discover, Kind::Discover]);
    let (mut c, discover) = start();
    let request = sent(&c.receive(&answer(&discover, Kind::Offer, 100), s(100)));
    assert_eq!(c.receive(&answer(&request, Kind::Nak, 0), s(100)), []);
    assert_eq!(sent(&c.tick(s(101))).kind(), Some(Kind::Discover));
}

#[test]
fn a_lease_is_renewed_rebound_and_lost() {
    let mut c = bound(1000);
    assert_eq!((c.deadline(), c.tick(s(599))), (Some(s(600)), vec![]));
    let [Output::Unicast(renew, SERVER)] = &c.tick(s(600))[..] else { panic!() };
    assert_eq!((renew.ciaddr, renew.option(code::SERVER), renew.option(code::REQUESTED)), (ADDR, None, None));
    let mut ack = answer(renew, Kind::Ack, 2000);
    ack.options.retain(|(c, _)| *c != code::SERVER);
    assert!(matches!(&c.receive(&ack, s(601))[..], [Output::Bound(l)] if l.times.unwrap().expire == s(2601)));
    // Nobody answers: half of what is left, then everybody is asked, then it is over.
    let mut c = bound(1000);
    let mut asked = Vec::new();
    loop {
        let now = c.deadline().unwrap();
        match &c.tick(now)[..] {
            [Output::Unicast(..)] => asked.push(('u', now.as_secs())),
            [Output::Broadcast(_)] => asked.push(('b', now.as_secs())),
            [Output::Lost(_)] => {
                assert_eq!(now, s(1100));
                break;
            }
            o => panic!("{o:?}"),
        }
    }
    assert_eq!(asked, [('u', 600), ('u', 787), ('u', 881), ('u', 941), ('b', 975), ('b', 1037), ('b', 1097)]);
    assert_eq!((c.deadline(), c.lease()), (None, None));
}

#[test]
fn a_lease_that_is_taken_back_or_changed_is_lost_and_one_without_end_stays() {
    for change in [true, false] {
        let mut c = bound(1000);
        let renew = sent(&c.tick(s(600)));
        let mut m = answer(&renew, if change { Kind::Ack } else { Kind::Nak }, 100);
        m.yiaddr = Ipv4Addr::new(10, 0, 0, 10);
        assert!(matches!(c.receive(&m, s(601))[..], [Output::Lost(_)]));
    }
    let mut c = bound(u32::MAX);
    assert_eq!((c.deadline(), c.tick(s(1 << 40))), (None, vec![]));
    let [Output::Unicast(m, SERVER)] = &c.release()[..] else { panic!() };
    assert_eq!((m.kind(), m.ciaddr, m.addresses(code::SERVER)), (Some(Kind::Release), ADDR, vec![SERVER]));
    assert_eq!(c.release(), []);
}

proptest! {
    /// Whatever comes, whenever: time of the next call never stands still or runs away, an address once given changes
    /// only by way of `Lost`, and after that nothing is said.
    #[test]
    fn any_order_of_events(events in prop::collection::vec((0u8..8, 0u32..4000, 0u64..2000, any::<bool>()), 1..60)) {
        let (mut c, mut last) = start();
        let mut now = s(100);
        let mut lost = false;
        for (kind, lease, pass, early) in events {
            let out = match kind {
                0..5 => {
                    let kinds = [Kind::Offer, Kind::Ack, Kind::Ack, Kind::Nak, Kind::Inform];
                    let mut m = answer(&last, kinds[usize::from(kind)], lease);
                    m.set(code::T1, (lease / 3).to_be_bytes().to_vec());
                    if early { m.set(code::T2, (lease / 4).to_be_bytes().to_vec()); }
                    c.receive(&m, now)
                }
                _ => {
                    now = if early { now + s(pass) } else { c.deadline().unwrap_or(now).max(now) };
                    c.tick(now)
                }
            };
            prop_assert!(!lost || out.is_empty());
            for o in &out {
                match o {
                    Output::Broadcast(m) | Output::Unicast(m, _) => last = m.clone(),
                    Output::Bound(l) => {
                        prop_assert_eq!(l.addr, ADDR);
                        if let Some(t) = l.times {
                            prop_assert!(now < t.renew && t.renew < t.rebind && t.rebind < t.expire);
                        }
                    }
                    Output::Lost(_) => lost = true,
                }
            }
            if c.listens() && !out.is_empty() {
                prop_assert!(c.deadline().unwrap() > now);
            }
            prop_assert_eq!(c.deadline().is_none() && !lost, c.lease().is_some_and(|l| l.times.is_none()));
        }
    }
}
