//! `IPPool`, `IPBlock`, `IPReservation`.

use types::Cidr;

use super::at::At;
use crate::pools::{
    BLOCK_SIZE, FINALIZER, IpBlock, IpPool, IpReservation, Lent, Request, Underlay, default_block_size,
};
use crate::selector::{Expression, Operator, Selector};

/// The largest number of addresses that a block may have, as a power of two: nodes go through a block one by one.
const LARGEST: u8 = 16;

/// A `metav1.LabelSelector`; absent selects all.
pub(super) fn selector(at: &At<'_>) -> Selector {
    let mut unreadable = at.is_set() && !at.value().is_object();
    if unreadable {
        at.bad("must be an object with matchLabels or matchExpressions; it selects nothing");
        return Selector { unreadable, ..Selector::default() };
    }
    let list = at.get("matchExpressions");
    let mut expressions = Vec::new();
    for e in list.items() {
        let op = e.get("operator");
        let operator = match op.str() {
            Some("In") => Operator::In,
            Some("NotIn") => Operator::NotIn,
            Some("Exists") => Operator::Exists,
            Some("DoesNotExist") => Operator::DoesNotExist,
            other => {
                op.bad(format!(
                    "{:?}: write In, NotIn, Exists or DoesNotExist; the selector selects nothing",
                    other.unwrap_or_default()
                ));
                unreadable = true;
                continue;
            }
        };
        let values = e.get("values").items().map(|v| v.boxed()).collect();
        expressions.push(Expression { key: e.get("key").boxed(), op: operator, values });
    }
    Selector { labels: at.get("matchLabels").labels(), expressions: expressions.into(), unreadable }
}

fn has_finalizer(metadata: &At<'_>) -> (bool, Box<[Box<str>]>) {
    let list = metadata.get("finalizers");
    let (ours, others): (Vec<_>, Vec<_>) = list.items().filter_map(|f| f.str()).partition(|f| *f == FINALIZER);
    (!ours.is_empty(), others.into_iter().map(Into::into).collect())
}

fn needed<T>(at: &At<'_>, value: Option<T>, what: &str) -> Option<T> {
    if value.is_none() && !at.is_set() {
        at.bad(format!("is missing: {what}"));
    }
    value
}

fn prefix_len(at: &At<'_>, cidr: Cidr) -> Option<u8> {
    let bits = cidr.family().bits();
    let least = cidr.len().max(bits.saturating_sub(LARGEST));
    at.int(least.into(), bits.into()).and_then(|n| u8::try_from(n).ok())
}

pub(super) fn pool(root: &At<'_>) -> Option<IpPool> {
    let (metadata, spec) = (root.get("metadata"), root.get("spec"));
    let at = spec.get("cidr");
    let cidr: Cidr = needed(&at, at.parse(), "the range that pods' addresses come from, e.g. 10.244.0.0/16")?;
    if cidr.addr().is_multicast() || cidr.addr().is_loopback() || cidr.len() == 0 {
        at.bad(format!("{cidr}: pods cannot have such addresses"));
        return None;
    }
    let size = spec.get("blockSize");
    let default = default_block_size(cidr.family()).max(cidr.len());
    let block_size = if size.is_set() { prefix_len(&size, cidr)? } else { default };
    let notes = metadata.get("annotations");
    let fixed = notes.get(BLOCK_SIZE);
    let fixed_size =
        fixed.str().and_then(|t| t.parse::<u8>().ok()).filter(|n| (cidr.len()..=cidr.family().bits()).contains(n));
    if let Some(n) = fixed_size
        && n != block_size
    {
        size.bad(format!(
            "{block_size} cannot be honoured: blocks of /{n} were claimed; write {n} again, and make another pool for blocks of /{block_size}"
        ));
    }
    let uses = spec.get("allowedUses");
    let mut automatic = !uses.is_set();
    for u in uses.items() {
        match u.str() {
            Some("Workload") => automatic = true,
            Some("OnRequest") => {}
            other => u.bad(format!(
                "{:?}: write Workload (pods get addresses without asking) or OnRequest",
                other.unwrap_or_default()
            )),
        }
    }
    let (adopted, finalizers) = has_finalizer(&metadata);
    let at = spec.get("underlay");
    Some(IpPool {
        uid: metadata.get("uid").boxed(),
        created: metadata.get("creationTimestamp").boxed(),
        version: metadata.get("resourceVersion").boxed(),
        cidr,
        block_size,
        fixed_size,
        disabled: spec.get("disabled").bool().unwrap_or(false),
        node_selector: selector(&spec.get("nodeSelector")),
        namespace_selector: selector(&spec.get("namespaceSelector")),
        automatic,
        strict_affinity: spec.get("strictAffinity").bool().unwrap_or(false),
        underlay: if at.is_set() { Some(underlay(&at, cidr)?) } else { None },
        nat_outgoing: spec.get("natOutgoing").bool(),
        adopted,
        finalizers,
        terminating: metadata.get("deletionTimestamp").is_set(),
        status: root.get("status").value().clone(),
    })
}

fn underlay(at: &At<'_>, cidr: Cidr) -> Option<Underlay> {
    let field = at.get("subnet");
    let subnet: Cidr = needed(&field, field.parse(), "the network that the range is of, e.g. 192.168.5.0/24")?;
    if !subnet.contains_cidr(&cidr) {
        field.bad(format!("{subnet} does not contain the pool's range {cidr}"));
        return None;
    }
    let field = at.get("gateway");
    let gateway = if field.is_set() { Some(field.ip()?) } else { None };
    if let Some(gw) = gateway.filter(|g| !subnet.contains(*g)) {
        field.bad(format!("{gw} lies outside the network {subnet}: its stations could not reach it"));
        return None;
    }
    Some(Underlay { subnet, gateway })
}

pub(super) fn block(root: &At<'_>) -> Option<IpBlock> {
    let (metadata, spec) = (root.get("metadata"), root.get("spec"));
    let at = spec.get("cidr");
    let cidr: Cidr = needed(&at, at.parse(), "the block's range")?;
    let name = metadata.get("name");
    if name.value().as_str() != Some(&IpBlock::name_of(cidr)) {
        name.bad(format!("the block of {cidr} must be named {}, or two nodes could have it", IpBlock::name_of(cidr)));
        return None;
    }
    let inside = |at: &At<'_>| {
        let ip = at.ip()?;
        if !cidr.contains(ip) {
            at.bad(format!("{ip} lies outside the block {cidr}"));
            return None;
        }
        Some(ip)
    };
    let list = spec.get("lent");
    let mut lent: Vec<Lent> = Vec::new();
    for l in list.items() {
        let (Some(address), Some(node)) = (inside(&l.get("address")), l.get("node").parse()) else { continue };
        if !lent.iter().any(|o| o.address == address) {
            lent.push(Lent { address, node });
        }
    }
    let list = spec.get("requests");
    let requests = list
        .items()
        .filter_map(|r| Some(Request { node: r.get("node").parse()?, address: inside(&r.get("address")) }))
        .collect();
    Some(IpBlock {
        uid: metadata.get("uid").boxed(),
        created: metadata.get("creationTimestamp").boxed(),
        version: metadata.get("resourceVersion").boxed(),
        protected: has_finalizer(&metadata).0,
        cidr,
        pool: spec.get("pool").boxed(),
        node: spec.get("node").parse(),
        lent: lent.into(),
        requests,
        full: spec.get("full").bool().unwrap_or(false),
        terminating: metadata.get("deletionTimestamp").is_set(),
    })
}

pub(super) fn reservation(root: &At<'_>) -> IpReservation {
    let spec = root.get("spec");
    let list = spec.get("reservedCIDRs");
    let read = |at: At<'_>| {
        let text = at.str()?;
        match text.parse::<std::net::IpAddr>() {
            Ok(ip) => Some(Cidr::host(ip)),
            Err(_) => at.parse(),
        }
    };
    IpReservation { cidrs: list.items().filter_map(read).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::events::Object;
    use crate::snapshot::Kind;

    fn read(kind: Kind, mut v: Value) -> (Option<Object>, Vec<String>) {
        if v["metadata"]["name"].is_null() {
            v["metadata"]["name"] = "p".into();
        }
        let p = crate::parse_as(kind, &v);
        (p.object, p.problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn defaults_of_a_pool() {
        for (cidr, size) in [("10.0.0.0/16", 26), ("10.0.0.0/28", 28), ("fd00::/48", 122)] {
            let (o, problems) = read(Kind::IPPool, json!({"spec": {"cidr": cidr}}));
            let Some(Object::IPPool(p)) = o else { panic!("{problems:?}") };
            assert_eq!((p.block_size, p.automatic, p.open(), p.strict_affinity), (size, true, true, false), "{cidr}");
            assert!(p.node_selector.is_empty() && p.namespace_selector.is_empty() && problems.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (kind, v, usable, why) in [
            (Kind::IPPool, json!({"spec": {}}), false, "IPPool/p spec.cidr: is missing"),
            (Kind::IPPool, json!({"spec": {"cidr": "10.0.0.1/24"}}), false, "host bits set"),
            (Kind::IPPool, json!({"spec": {"cidr": "224.0.0.0/8"}}), false, "pods cannot have"),
            (Kind::IPPool, json!({"spec": {"cidr": "10.0.0.0/24", "blockSize": 20}}), false, "from 24 to 32"),
            (Kind::IPPool, json!({"spec": {"cidr": "fd00::/48", "blockSize": 64}}), false, "from 112 to 128"),
            (
                Kind::IPPool,
                json!({"metadata": {"annotations": {"seaway.io/block-size": "26"}}, "spec": {"cidr": "10.0.0.0/24", "blockSize": 28}}),
                true,
                "28 cannot be honoured: blocks of /26 were claimed",
            ),
            (
                Kind::IPPool,
                json!({"spec": {"cidr": "10.0.0.0/24", "underlay": {"subnet": "10.0.0.0/25"}}}),
                false,
                "does not contain the pool's range 10.0.0.0/24",
            ),
            (
                Kind::IPPool,
                json!({"spec": {"cidr": "10.0.0.0/24", "underlay": {"subnet": "10.0.0.0/23", "gateway": "10.0.2.1"}}}),
                false,
                "10.0.2.1 lies outside the network",
            ),
            (
                Kind::IPPool,
                json!({"spec": {"cidr": "10.0.0.0/24", "underlay": {}}}),
                false,
                "underlay.subnet: is missing",
            ),
            (
                Kind::IPPool,
                json!({"spec": {"cidr": "10.0.0.0/24", "nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}}),
                true,
                "selects nothing",
            ),
            (Kind::IPBlock, json!({"spec": {"cidr": "10.0.0.0/26"}}), false, "must be named 10-0-0-0-26"),
            (
                Kind::IPBlock,
                json!({"metadata": {"name": "10-0-0-0-26"}, "spec": {"cidr": "10.0.0.0/26", "lent": [{"address": "10.0.1.1", "node": "b"}]}}),
                true,
                "10.0.1.1 lies outside the block",
            ),
            (Kind::IPReservation, json!({"spec": {"reservedCIDRs": ["10.0.0.7", "x"]}}), true, "no prefix length"),
        ] {
            let (o, problems) = read(kind, v.clone());
            assert_eq!(o.is_some(), usable, "{v}: {problems:?}");
            assert!(problems.len() == 1 && problems[0].contains(why), "{v}: {problems:?}");
        }
    }
}
