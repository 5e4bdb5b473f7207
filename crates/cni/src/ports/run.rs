//! The table's effects: read, decide, commit; again when somebody was quicker.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use kernel_api::conntrack::{Among, Flow};
use kernel_api::nft::{Element, NftRequest};
use kernel_api::rt::{ObservedRoute, RouteTo};
use kernel_api::{Conntrack, Nft, RequestError, Sysctl, errno};
use types::{Cidr, Family, IfName, Proto};

use super::image::Image;
use super::layout::{SetName, table};
use super::owner::Owner;
use super::want::{Masquerade, Ports};
use crate::{Code, Error, IpNet};

/// How often another may be quicker. Each time it is, somebody else's work got done.
const TRIES: usize = 10_000;

/// Reads the table.
///
/// # Errors
/// When it cannot be read.
pub fn observe(nft: &mut impl Nft) -> Result<Image, RequestError> {
    Ok(Image::parse(nft.table(&table())?.as_ref()))
}

/// Changes the image by `change` and makes the table so, unless `change` says that nothing is to be done; it may be
/// asked again, each time with what is there.
fn edit(nft: &mut impl Nft, mut change: impl FnMut(&mut Image) -> Result<bool, Error>) -> Result<(), Error> {
    for _ in 0..TRIES {
        let generation = nft.generation()?;
        let have = observe(nft)?;
        let mut want = have.clone();
        let plan: Vec<NftRequest> = if change(&mut want)? { want.plan(&have) } else { Vec::new() };
        if plan.is_empty() {
            return Ok(());
        }
        match nft.commit_at(generation, &plan) {
            Err(e) if e.errno == errno::ERESTART => {}
            // Perhaps only the answer was lost.
            Err(e) => return if want.plan(&observe(nft)?).is_empty() { Ok(()) } else { Err(e.into()) },
            Ok(()) => return Ok(()),
        }
    }
    let says = format!("table inet {} is changed by others all the time; try again", table());
    Err(Error::new(Code::TryAgainLater, says))
}

/// Gives a container its mappings: all of them, or none when this fails.
///
/// # Errors
/// When another container has one of the ports, or the kernel refuses.
pub fn claim(nft: &mut impl Nft, ports: &Ports<'_>) -> Result<(), Error> {
    edit(nft, |image| match image.put(ports) {
        Ok(()) => Ok(true),
        Err(clash) => Err(Error::new(Code::PortTaken, clash.to_string())),
    })
}

/// The same for a container that has none yet: what it costs does not grow with what others have. Says false, with
/// nothing done, where that is not enough and [`claim`] is to be asked.
///
/// No reading of a whole table has to hold for this: two containers that ask for one port are told apart by the kernel,
/// which takes no second element of another value for a key (EEXIST).
///
/// # Errors
/// When another container has one of the ports, or the kernel refuses to answer.
pub(super) fn claim_first(nft: &mut impl Nft, ports: &Ports<'_>) -> Result<bool, Error> {
    let mut have = Image::parse(nft.frame(&table())?.as_ref());
    have.add(&held(nft, ports)?);
    let mut want = have.clone();
    want.put(ports).map_err(|clash| Error::new(Code::PortTaken, clash.to_string()))?;
    let plan = want.plan(&have);
    // Anything else rests on what others have.
    if !plan.iter().all(|r| matches!(r, NftRequest::ElementsAdd(..))) {
        return Ok(false);
    }
    Ok(plan.is_empty() || nft.commit(&plan).is_ok())
}

/// Takes these mappings of a container away, so far as they are its own; gives them. What it costs does not grow with
/// what others have. `None`, with nothing done, where the kernel refuses and [`release`] is to be asked.
///
/// # Errors
/// When the kernel refuses to answer.
pub(super) fn release_these(
    nft: &mut impl Nft,
    ports: &Ports<'_>,
) -> Result<Option<Vec<(ipam::PortMapping, IpAddr)>>, Error> {
    let mut own = Image::default();
    own.add(&held(nft, ports)?);
    // What is this container's stays its own until it gives it up, and nobody else does that in its place but a sweep:
    // then the commit is refused.
    let (plan, gone) = (own.removal(&ports.owner), own.mappings(|o| *o == ports.owner));
    Ok((plan.is_empty() || nft.commit(&plan).is_ok()).then_some(gone))
}

/// The elements that are there for what a container is to have, its own or another's.
fn held(nft: &mut impl Nft, ports: &Ports<'_>) -> Result<Vec<(SetName, Vec<Element>)>, RequestError> {
    let mut keys: BTreeMap<SetName, Vec<Vec<u8>>> = BTreeMap::new();
    for i in ports.items() {
        keys.entry(i.set).or_default().push(i.key);
    }
    keys.into_iter().map(|(set, keys)| Ok((set, nft.find_elements(&table(), &set.to_string(), &keys)?))).collect()
}

/// Takes a container's mappings away, whichever they are; gives them, with the address each led to.
///
/// # Errors
/// When the kernel refuses.
pub fn release(nft: &mut impl Nft, owner: &Owner) -> Result<Vec<(ipam::PortMapping, IpAddr)>, Error> {
    remove(nft, |o| o == owner)
}

/// Takes the mappings of a network away whose owners are not `valid`; gives them.
///
/// # Errors
/// When the kernel refuses.
pub fn sweep(nft: &mut impl Nft, network: &str, valid: &[Owner]) -> Result<Vec<(ipam::PortMapping, IpAddr)>, Error> {
    remove(nft, |o| o.is_of(network) && !valid.contains(o))
}

fn remove(nft: &mut impl Nft, gone: impl Fn(&Owner) -> bool) -> Result<Vec<(ipam::PortMapping, IpAddr)>, Error> {
    let mut out = Vec::new();
    edit(nft, |image| {
        out = image.mappings(&gone);
        // Where nothing is to be taken away, not even the table is made.
        Ok(image.remove(&gone))
    })?;
    Ok(out)
}

/// Compares the table with what a container is to have; gives what differs.
///
/// # Errors
/// When the table cannot be read.
pub fn check(nft: &mut impl Nft, ports: &Ports<'_>) -> Result<Vec<String>, Error> {
    Ok(observe(nft)?.lacks(ports))
}

/// Forgets tracked UDP and SCTP connections that would go on past mappings that were just made (`added`), or to a
/// container that is gone. `local` are the node's own addresses: a connection to elsewhere is none of ours, though its
/// port be the same.
///
/// # Errors
/// When the connections cannot be read.
pub(super) fn forget_stale(
    conntrack: &mut impl Conntrack,
    mappings: &[(ipam::PortMapping, IpAddr)],
    added: bool,
    local: &[IpAddr],
) -> Result<usize, RequestError> {
    let mut n = 0;
    for (proto, family) in [Proto::Udp, Proto::Sctp].into_iter().flat_map(|p| Family::BOTH.map(|f| (p, f))) {
        let of = mappings.iter().filter(|(m, to)| m.proto == proto && Family::of(*to) == family);
        let of: Vec<_> = of.collect();
        if of.is_empty() {
            continue;
        }
        let among = Among::all(proto, family, of.iter().map(|(m, _)| (None, m.host_port)));
        let mut stale = |f: &Flow| {
            of.iter().any(|(m, to)| {
                let here = match m.host_ip.filter(|a| !a.is_unspecified()) {
                    Some(a) => f.original.dst == a,
                    None => f.dnat || local.contains(&f.original.dst),
                };
                let same = f.original.dport == m.host_port && here;
                let leads_here = f.reply.src == *to && f.reply.sport == m.container_port;
                same && (if added { !leads_here } else { f.dnat && leads_here })
            })
        };
        n += conntrack.delete(&among, &mut stale)?;
    }
    Ok(n)
}

/// The address that a container is to be reached at from 127.0.0.0/8, if it is.
pub(super) fn on_loopback(ports: &Ports<'_>) -> Option<IpNet> {
    let loopback = Cidr::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8);
    let on_loopback = |a: IpAddr| a.is_unspecified() || loopback.is_some_and(|l| l.contains(a));
    let wanted = ports.masquerade != Masquerade::Never
        && ports.pairs().any(|(m, to, _)| to.addr.is_ipv4() && m.host_ip.is_none_or(on_loopback));
    ports.address(Family::V4).filter(|_| wanted)
}

/// Lets connections from 127.0.0.0/8 leave by the interface that leads to a container, as its mappings on 127.0.0.1 need
/// (`route_localnet`). The answers do not come in by it unasked: see the rule in chain `localnet`.
///
/// # Errors
/// When the sysctl cannot be written.
pub(super) fn localnet(sysctl: &mut impl Sysctl, link: &IfName) -> Result<(), RequestError> {
    let path = format!("net/ipv4/conf/{link}/route_localnet");
    // Read first: on a bridge it is set for all by the first.
    if sysctl.get(&path)?.as_deref() == Some("1") {
        return Ok(());
    }
    sysctl.set(&path, "1")
}

/// The link that the longest prefix with this address leads to.
pub(super) fn leads_by(routes: &[ObservedRoute], addr: IpAddr) -> Option<IfName> {
    let to = routes.iter().map(|r| &r.route).filter(|r| r.dst.contains(addr) && r.family() == Family::of(addr));
    let best = to.max_by_key(|r| (r.dst.len(), std::cmp::Reverse(r.metric)))?;
    match &best.to {
        RouteTo::Link(l) | RouteTo::Via { link: l, .. } => Some(l.clone()),
        RouteTo::Blackhole | RouteTo::Unreachable | RouteTo::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use kernel_fake::nft::FakeNft;

    use super::*;
    use ipam::{Key, PortMapping};

    const ADDRESSES: [&str; 3] = ["10.1.0.2/24", "10.1.0.3/24", "fd00::3/64"];

    fn ports<'a>(container: &str, mappings: &'a [PortMapping], addresses: &'a [IpNet]) -> Ports<'a> {
        let key = Key { container: container.into(), ifname: "eth0".parse().unwrap() };
        let owner = Owner::new("net", &key);
        Ports { owner, mappings, addresses, masquerade: Masquerade::Near, when: &[] }
    }

    #[test]
    fn a_new_container_is_mapped_as_any_other_and_unmapped_again() {
        let [a, b, c] = ADDRESSES.map(|a| a.parse::<IpNet>().unwrap());
        let map = |host_port| PortMapping { proto: Proto::Tcp, host_ip: None, host_port, container_port: 80 };
        let (one, two, both) = ([map(8080)], [map(8081)], [map(8081), map(8080)]);
        let (own, others) = ([a], [b, c]);
        let (first, second) = (ports("a", &one, &own), ports("b", &two, &others));
        let mut nft = FakeNft::new();
        assert!(!claim_first(&mut nft, &first).unwrap(), "no table yet");
        claim(&mut nft, &first).unwrap();
        let alone = observe(&mut nft).unwrap();
        assert!(!claim_first(&mut nft, &second).unwrap(), "no set for sources of fd00::/64 yet");
        claim(&mut nft, &second).unwrap();
        let want = observe(&mut nft).unwrap();
        // Its own are gone, the other's stay.
        let gone = release_these(&mut nft, &second).unwrap().unwrap();
        assert_eq!(gone, [(two[0], b.addr), (two[0], c.addr)]);
        assert_eq!(observe(&mut nft).unwrap().mappings(|_| true), alone.mappings(|_| true));
        assert_eq!(release_these(&mut nft, &second).unwrap(), Some(vec![]));
        // And the same as a claim that reads everything.
        assert!(claim_first(&mut nft, &second).unwrap());
        assert_eq!(observe(&mut nft).unwrap(), want);
        assert!(claim_first(&mut nft, &second).unwrap(), "again is nothing");
        // One of two ports is another's: neither is taken, and giving them up takes nothing from the other.
        let e = claim_first(&mut nft, &ports("c", &both, &[b])).unwrap_err();
        assert!(e.code == Code::PortTaken && e.msg.contains("8080/TCP"), "{e:?}");
        assert_eq!(release_these(&mut nft, &ports("c", &both, &[b])).unwrap(), Some(vec![]));
        assert_eq!(observe(&mut nft).unwrap(), want);
        // A chain that somebody emptied is put right.
        nft.tamper(&table(), |mut t| {
            t.rules.retain(|r| r.chain != "postrouting");
            Some(t)
        });
        release_these(&mut nft, &second).unwrap().unwrap();
        assert!(!claim_first(&mut nft, &second).unwrap());
        claim(&mut nft, &second).unwrap();
        assert_eq!(observe(&mut nft).unwrap(), want);
    }
}
