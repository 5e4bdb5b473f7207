//! What this kernel lacks, found by trying each thing in a namespace made for that.

use std::collections::BTreeSet;

use kernel_api::nft::{
    Chain, ChainKind, CtKey, DataType, Expr, Hook, HookPoint, NftRequest, Reg, RejectWith, Rule, Set, TableName,
};
use kernel_api::rt::{BridgeParams, NewLink, NewLinkKind, RtRequest, VxlanParams};
use kernel_api::{Nft as _, RequestError, Rtnetlink as _};

use crate::{Ct, Netns, Nftables, Rt};

/// Names of features this kernel lacks, as its configuration names them without `CONFIG_`, in lower case: `ipv6`,
/// `veth`, `bridge`, `vxlan`, `nf_tables`, `nft_nat`, `nft_masq`, `nft_numgen`, `nft_reject`, `nft_ct`, `nft_fib`,
/// `nf_conntrack`, `net_ns` (when no namespace can be made to try in, which makes all others unknown and left out).
#[must_use]
pub fn missing_features() -> BTreeSet<String> {
    let tried = Netns::new().and_then(|ns| ns.run(probe));
    tried.unwrap_or_else(|_| ["net_ns"].into()).into_iter().map(str::to_owned).collect()
}

fn link(name: &str, kind: NewLinkKind) -> Option<RtRequest> {
    let name = name.parse().ok()?;
    Some(RtRequest::LinkAdd(NewLink::new(name, kind)))
}

fn probe() -> BTreeSet<&'static str> {
    let mut missing = BTreeSet::new();
    let mut note = |name, there: bool| {
        if !there {
            missing.insert(name);
        }
        there
    };
    note("ipv6", std::fs::exists("/proc/sys/net/ipv6").unwrap_or(false));
    if let (Ok(mut rt), Ok(peer)) = (Rt::open(), "probe1".parse()) {
        let veth = NewLinkKind::Veth { peer, peer_netns: None, peer_mac: None };
        let vxlan = VxlanParams { vni: 1, port: 8472, local: None, lower: None, learning: false };
        for (name, kind) in [
            ("veth", veth),
            ("bridge", NewLinkKind::Bridge(BridgeParams::default())),
            ("vxlan", NewLinkKind::Vxlan(vxlan)),
        ] {
            let there = link(&format!("p-{name}"), kind).is_some_and(|r| rt.run(&[r]).is_ok());
            note(name, there);
        }
    }
    note("nf_conntrack", Ct::open().is_ok_and(|mut ct| ct.each(None, &mut |_| {}).is_ok()));
    let Ok(mut nft) = Nftables::open() else {
        note("nf_tables", false);
        return missing;
    };
    let Some(table) = TableName::recognise("seaway-probe") else { return missing };
    let set = Set::new("s", vec![DataType::Ipv4Addr]);
    if !note("nf_tables", try_commit(&mut nft, vec![NftRequest::SetAdd(table.clone(), set)], &table).is_ok()) {
        return missing;
    }
    let r = Reg(0);
    let nat = Expr::Nat { dnat: true, v6: false, addr: Some(r), port: None, flags: 0 };
    let trials = [
        (
            "nft_nat",
            ChainKind::Nat,
            HookPoint::Prerouting,
            vec![Expr::Immediate { dreg: r, data: vec![192, 0, 2, 1] }, nat],
        ),
        ("nft_masq", ChainKind::Nat, HookPoint::Postrouting, vec![Expr::Masquerade { flags: 16 }]),
        (
            "nft_numgen",
            ChainKind::Filter,
            HookPoint::Prerouting,
            vec![Expr::Numgen { dreg: r, modulus: 2, offset: 0, random: true }],
        ),
        ("nft_reject", ChainKind::Filter, HookPoint::Input, vec![Expr::Reject(RejectWith::PortUnreachable)]),
        ("nft_ct", ChainKind::Filter, HookPoint::Input, vec![Expr::Ct { key: CtKey::State, dreg: r }]),
        ("nft_fib", ChainKind::Filter, HookPoint::Input, vec![Expr::FibDaddrType { dreg: r }]),
    ];
    for (name, kind, point, exprs) in trials {
        let hook = Some(Hook { kind, point, priority: 0, drop: false });
        let chain = NftRequest::ChainAdd(table.clone(), Chain { name: "c".into(), hook });
        let rule = Rule { chain: "c".into(), handle: 0, exprs, comment: None };
        let requests = vec![chain, NftRequest::RuleAdd(table.clone(), rule)];
        note(name, try_commit(&mut nft, requests, &table).is_ok());
    }
    missing
}

/// Makes the table with `requests` in it, and removes it again.
fn try_commit(nft: &mut Nftables, mut requests: Vec<NftRequest>, table: &TableName) -> Result<(), RequestError> {
    requests.insert(0, NftRequest::TableAdd(table.clone()));
    nft.commit(&requests)?;
    nft.commit(&[NftRequest::TableDel(table.clone())])
}
