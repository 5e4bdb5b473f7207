//! `LoadBalancerPool`, `Lease`, and what a Service asks of load balancers.

use std::net::IpAddr;

use types::{AddressRange, Family};

use super::at::At;
use super::pools::selector;
use crate::load_balancer::{Ask, FROM, GIVEN_FROM, Lease, LoadBalancerPool, Means, SHARING, SHARING_ACROSS, WANTED};

/// Ranges of one pool beyond these are not read.
const MOST: usize = 1024;

pub(super) fn pool(root: &At<'_>) -> Option<LoadBalancerPool> {
    let (metadata, spec) = (root.get("metadata"), root.get("spec"));
    let list = spec.get("addresses");
    if !list.is_set() {
        list.bad("is missing: the addresses to give, e.g. [192.0.2.0/28, 192.0.2.40-192.0.2.49, 2001:db8::/120]");
        return None;
    }
    let mut ranges = Vec::new();
    for (i, at) in list.items().enumerate() {
        if i == MOST {
            list.bad(format!("more than {MOST} entries: the rest is not read; make another pool"));
            break;
        }
        let Some(r) = at.parse::<AddressRange>() else { continue };
        match unusable(&r) {
            Some(why) => at.bad(format!("{r} has {why}: Services cannot have such addresses; the entry is left out")),
            None => ranges.push(r),
        }
    }
    let announce = spec.get("announce");
    let means = match announce.str() {
        None | Some("" | "L2") => Means::L2,
        Some("None") => Means::None,
        Some(other) => {
            announce.bad(format!(
                "{other:?}: write L2 (a node answers ARP and neighbour solicitations) or None; taken as None"
            ));
            Means::None
        }
    };
    let interfaces = spec.get("interfaces");
    let terminating = metadata.get("deletionTimestamp").is_set();
    Some(LoadBalancerPool {
        created: metadata.get("creationTimestamp").boxed(),
        ranges: AddressRange::merged(ranges).into(),
        avoid_buggy: spec.get("avoidBuggyIPs").bool().unwrap_or(false),
        automatic: spec.get("autoAssign").bool().unwrap_or(true),
        disabled: spec.get("disabled").bool().unwrap_or(false) || terminating,
        terminating,
        service_selector: selector(&spec.get("serviceSelector")),
        namespace_selector: selector(&spec.get("namespaceSelector")),
        means,
        node_selector: selector(&spec.get("nodeSelector")),
        interfaces: interfaces.items().map(|i| i.boxed()).filter(|i| !i.is_empty()).collect(),
        status: root.get("status").value().clone(),
    })
}

/// Why no Service can have the addresses of a range.
fn unusable(r: &AddressRange) -> Option<&'static str> {
    let bad = |text: &str| text.parse::<AddressRange>().is_ok_and(|b| b.overlaps(r));
    [
        ("0.0.0.0/8", "addresses of 0.0.0.0/8"),
        ("127.0.0.0/8", "loopback addresses"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/3", "multicast or reserved addresses"),
        ("::/127", "the unspecified or the loopback address"),
        ("::ffff:0.0.0.0/96", "IPv4-mapped addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
    ]
    .into_iter()
    .find(|(text, _)| bad(text))
    .map(|(_, why)| why)
}

/// The words of a comma separated text.
fn words(text: &str) -> Box<[Box<str>]> {
    text.split(',').map(str::trim).filter(|w| !w.is_empty()).map(Into::into).collect()
}

/// What a Service asks of load balancers; `balanced`: it is of type LoadBalancer.
pub(super) fn ask(metadata: &At<'_>, spec: &At<'_>, status: &At<'_>, balanced: bool) -> Option<Box<Ask>> {
    let notes = metadata.get("annotations");
    let first = |keys: &[&'static str]| {
        keys.iter().find_map(|k| notes.get(k).str().filter(|t| !t.trim().is_empty()).map(|t| (*k, t)))
    };
    let balancer = status.get("loadBalancer");
    let ingress = balancer.get("ingress");
    let given_from = notes.get(GIVEN_FROM).str().map(words).unwrap_or_default();
    if !balanced && given_from.is_empty() && !ingress.is_set() {
        return None;
    }
    let mut ask = Ask {
        labels: metadata.get("labels").labels(),
        class: spec.get("loadBalancerClass").str().filter(|c| !c.is_empty()).map(Into::into),
        pools: first(&FROM).map(|(_, t)| words(t)).unwrap_or_default(),
        sharing: first(&SHARING).map(|(_, t)| t.trim().into()).unwrap_or_default(),
        sharing_across: first(&SHARING_ACROSS).map(|(_, t)| words(t)).unwrap_or_default(),
        given_from,
        foreign: ingress.items().any(|i| {
            i.get("hostname").is_set() || i.get("ipMode").value().as_str() == Some("Proxy") || !i.get("ip").is_set()
        }),
        conditions: status.get("conditions").value().clone(),
        terminating: metadata.get("deletionTimestamp").is_set(),
        ..Ask::default()
    };
    let mut wanted: Vec<IpAddr> = Vec::new();
    if let Some((key, text)) = first(&WANTED) {
        let at = notes.get(key);
        for word in words(text) {
            match word.parse::<IpAddr>() {
                Ok(ip) if wanted.iter().any(|w| Family::of(*w) == Family::of(ip)) => {
                    at.bad(format!("{ip} is a second {} address: a Service has one of each family", Family::of(ip)));
                    ask.unreadable = true;
                }
                Ok(ip) => wanted.push(ip),
                Err(_) => {
                    at.bad(format!(
                        "{:?} is no IP address: write addresses with commas between; none is given",
                        &*word
                    ));
                    ask.unreadable = true;
                }
            }
        }
        ask.wanted_field = format!("metadata.annotations[{key}]").into();
    } else {
        let at = spec.get("loadBalancerIP");
        if at.str().is_some_and(|t| !t.is_empty()) {
            ask.wanted_field = "spec.loadBalancerIP".into();
            match at.ip() {
                Some(ip) => wanted.push(ip),
                None => ask.unreadable = true,
            }
        }
    }
    ask.wanted = wanted.into();
    Some(Box::new(ask))
}

pub(super) fn lease(root: &At<'_>) -> Lease {
    let (metadata, spec) = (root.get("metadata"), root.get("spec"));
    let number = |key: &str| spec.get(key).int(0, u32::MAX.into()).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    Lease {
        uid: metadata.get("uid").boxed(),
        version: metadata.get("resourceVersion").boxed(),
        holder: spec.get("holderIdentity").boxed(),
        seconds: number("leaseDurationSeconds"),
        transitions: number("leaseTransitions"),
    }
}
