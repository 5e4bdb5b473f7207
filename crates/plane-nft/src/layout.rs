//! The layout: names, sets, chains and the rules of each. Nothing here depends on a Service; the number of chains grows
//! only with the distinct numbers of endpoints that Services have.
//!
//! ```text
//! prerouting -> prerouting4 -+-> (services4) pick4_N          dnat to a random one of N
//! output ----> output4 ------+-> (nodeports4) node4_N
//!                            +-> sticky4_N_Ts | sticky_node4_N_Ts   to the one that affinity4 remembers, see `sticky`
//!                            +-> reject_no_endpoints | reject_unused_port | drop_no_local | drop_source_range
//! late_prerouting, late_output -> unserved4 -> reject_unused_port | drop_no_service
//! postrouting --------------> (externals4) masquerade_external | masquerade_local4, or masquerade_cluster4
//! ```
//!
//! All three hooks are of type nat, so only the first packet of a flow meets these rules; the rest follows conntrack.
//! Where there are tunnels between nodes, `raw_prerouting` and `raw_output` before them leave their outside untracked: each
//! packet there is tracked once already, inside. Where there are none, neither are these two: a chain that every packet
//! goes through costs 1 to 2 % of a TCP stream, whatever is in it.
//!
//! Reject is allowed in nat chains at prerouting (Linux 5.9) and output.
//!
//! The packet mark: nft's text wants a mark in front of the concatenated key, so the rule that picks an endpoint sets it
//! to the slot number, and puts the packet's own mark back, kept in a register, before it translates. The mark of ours
//! therefore never leaves one rule: no routing rule, no chain of others and no later hook sees it, whatever mark or
//! connection mark the packet came with. (Text saved with `nft list` and loaded again loses the register: it lists as
//! `meta mark set meta mark`. The next pass sees that the rule is not ours and puts it right.)

use std::sync::Arc;

use intent::{Masquerade, Vxlan};
use kernel_api::nft::{
    ChainKind, CmpOp, CtKey, DataType, Expr, Hook, HookPoint, LookupInto, MetaKey, PayloadBase, Reg, RejectWith,
    SetData, Verdict,
};
use types::{Family, Mark, Proto};

use crate::image::{Rule, Shape};
use crate::key::addr_type;
use crate::sticky;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (include/uapi/linux/netfilter/nf_nat.h).
const RANDOM_FULLY: u32 = 16;
/// `IPS_DST_NAT` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const DST_NAT: u32 = 32;

/// In the slot mark: the slot counts this node's endpoints only.
pub(crate) const LOCAL_SLOT: u32 = 0x0008_0000;
/// The most endpoints a Service port can have: the slot is what [`Mark::OURS_MASK`] and [`LOCAL_SLOT`] leave.
pub const MAX_ENDPOINTS: usize = LOCAL_SLOT as usize;

/// Chains that end a packet; [`crate::NftPlane`]'s trace knows the reason by them.
pub(crate) const REJECT_NO_ENDPOINTS: &str = "reject_no_endpoints";
pub(crate) const REJECT_UNUSED_PORT: &str = "reject_unused_port";
pub(crate) const DROP_NO_LOCAL: &str = "drop_no_local";
pub(crate) const DROP_SOURCE_RANGE: &str = "drop_source_range";
pub(crate) const DROP_NO_SERVICE: &str = "drop_no_service";
pub(crate) const MASQUERADE_EXTERNAL: &str = "masquerade_external";
/// How the name of a chain ends that picks from this node's endpoints.
pub(crate) const LOCAL: &str = "_local";
/// Where a rule that borrows the packet's mark keeps it.
pub(crate) const OWN: Reg = Reg(15);

/// A set: its name without family, and the family.
pub(crate) type SetId = (&'static str, Family);

/// A set's name in one family: `services4`.
pub(crate) fn in_family(name: &str, family: Family) -> String {
    format!("{name}{}", digit(family))
}

const fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// Sets whose elements belong to one Service port, named without family; the key holds address, protocol and port.
pub(crate) const VIP_SETS: [&str; 8] =
    ["services", "local_services", "endpoints", "sticky_a", "sticky_b", "externals", "firewalled", "source_ranges"];
/// The same for node ports; the key holds protocol and port.
pub(crate) const NODE_SETS: [&str; 6] =
    ["nodeports", "local_nodeports", "node_endpoints", "sticky_node_a", "sticky_node_b", "external_ports"];

/// The shape of each set, by name without family.
pub(crate) fn shapes(family: Family) -> Vec<(&'static str, Arc<Shape>)> {
    use DataType::{InetProto, InetService, Mark};
    let addr = addr_type(family);
    let vip = vec![addr, InetProto, InetService];
    let node = vec![InetProto, InetService];
    let marked = |key: &[DataType]| [&[Mark], key].concat();
    let endpoint = || Some(SetData::Value(vec![addr, InetService]));
    let verdict = || Some(SetData::Verdict);
    let shape = |key: Vec<DataType>, data: Option<SetData>, interval: bool| {
        Arc::new(Shape { key, data, interval, timeout: false, constant: false, dynamic: None })
    };
    let number = || Some(SetData::Value(vec![Mark]));
    let affinity = Arc::new(Shape {
        key: vec![Mark, Mark, addr],
        data: number(),
        interval: false,
        timeout: true,
        constant: false,
        dynamic: Some(sticky::REMEMBERED),
    });
    vec![
        ("services", shape(vip.clone(), verdict(), false)),
        ("local_services", shape(vip.clone(), verdict(), false)),
        ("endpoints", shape(marked(&vip), endpoint(), false)),
        ("externals", shape(vip.clone(), verdict(), false)),
        ("firewalled", shape(vip.clone(), None, false)),
        ("source_ranges", shape([&vip[..], &[addr]].concat(), None, true)),
        ("nodeports", shape(node.clone(), verdict(), false)),
        ("local_nodeports", shape(node.clone(), verdict(), false)),
        ("node_endpoints", shape(marked(&node), endpoint(), false)),
        ("external_ports", shape(node.clone(), verdict(), false)),
        ("sticky_a", shape(vip.clone(), number(), false)),
        ("sticky_b", shape(vip.clone(), number(), false)),
        ("sticky_node_a", shape(node.clone(), number(), false)),
        ("sticky_node_b", shape(node.clone(), number(), false)),
        ("sticky_slots", shape(vec![Mark, Mark, Mark], number(), false)),
        ("sticky_endpoints", shape(vec![Mark, Mark, Mark, InetProto], endpoint(), false)),
        ("local_sticky_endpoints", shape(vec![Mark, Mark, Mark, InetProto], endpoint(), false)),
        ("affinity", affinity),
        ("cluster_cidrs", shape(vec![addr], None, true)),
        ("cluster_ips", shape(vec![addr], None, false)),
        ("service_cidrs", shape(vec![addr], None, true)),
        ("outside_ips", shape(vec![addr], None, false)),
        ("balancer_ranges", shape(vec![addr], None, true)),
        ("hairpin", shape(vec![addr, addr], None, false)),
        ("masqueraded", shape(vec![addr], None, true)),
        ("node_addresses", shape(vec![addr], None, false)),
        ("own_addresses", shape(vec![addr], None, false)),
        ("own_pods", shape(vec![addr], None, true)),
        ("node_port_addresses", shape(vec![addr], None, false)),
        ("sources", shape(vec![InetProto], Some(SetData::Value(vec![addr])), false)),
        ("stale", shape(vip, None, false)),
    ]
}

/// Which endpoints a chain picks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pick {
    pub family: Family,
    /// The packet came to a node port, not to an address of the Service.
    pub node: bool,
    /// Of this node only.
    pub local: bool,
    /// How many there are.
    pub count: u32,
    /// Session affinity, with its timeout in seconds.
    pub sticky: Option<u32>,
}

impl Pick {
    /// The chain's name: `pick4_3`, `node6_1_local`, `sticky4_3_10800s`, `sticky_node4_2_60s_local`.
    pub(crate) fn chain(self) -> String {
        let Self { family, node, local, count, sticky } = self;
        let base = match (sticky, node) {
            (None, false) => "pick",
            (None, true) => "node",
            (Some(_), false) => "sticky",
            (Some(_), true) => "sticky_node",
        };
        let timeout = sticky.map_or(String::new(), |t| format!("_{t}s"));
        format!("{base}{}_{count}{timeout}{}", digit(family), if local { LOCAL } else { "" })
    }

    /// The mark of a slot.
    pub(crate) fn slot_mark(self, slot: u32) -> u32 {
        Mark::OURS.0 | if self.local { LOCAL_SLOT } else { 0 } | slot
    }

    /// `meta mark set numgen random mod N offset M meta mark set meta mark dnat ip to meta mark . .. map @endpoints`.
    pub(crate) fn rules(self) -> Vec<Rule> {
        // A slot that is not there means that somebody changed the map: nothing is better than the wrong endpoint.
        let end = plain(vec![Expr::Verdict(Verdict::Drop)]);
        match self.sticky {
            None => vec![self.random(), end],
            Some(timeout) => {
                let [remembered, learned, full] = sticky::rules(self, timeout);
                vec![remembered, learned, full, end]
            }
        }
    }

    fn random(self) -> Rule {
        let mut r = RuleBuilder::of(self.family);
        r.push(Expr::Meta { key: MetaKey::Mark, dreg: OWN });
        r.push(Expr::Numgen { dreg: Reg(0), modulus: self.count, offset: self.slot_mark(0), random: true });
        r.push(Expr::SetMark { sreg: Reg(0) });
        r.push(Expr::Meta { key: MetaKey::Mark, dreg: Reg(0) });
        let mut next = 1;
        if !self.node {
            r.push(r.daddr(Reg(next)));
            next += words(self.family);
        }
        r.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(next) });
        r.push(dport(Reg(next + 1)));
        let map = in_family(if self.node { "node_endpoints" } else { "endpoints" }, self.family);
        r.push(Expr::Lookup { set: map, sreg: Reg(0), into: LookupInto::Reg(Reg(0)), invert: false });
        r.push(Expr::SetMark { sreg: OWN });
        r.push(Expr::Nat {
            dnat: true,
            v6: self.family == Family::V6,
            addr: Some(Reg(0)),
            port: Some(Reg(words(self.family))),
            flags: 0,
        });
        r.done()
    }
}

/// Registers that an address takes.
pub(crate) const fn words(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

pub(crate) const fn dport(dreg: Reg) -> Expr {
    // Same place in TCP, UDP and SCTP.
    Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg }
}

pub(crate) fn plain(exprs: Vec<Expr>) -> Rule {
    Rule { exprs, comment: None }
}

pub(crate) fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.into()))
}

/// Composes one rule for packets of one family.
pub(crate) struct RuleBuilder {
    family: Family,
    exprs: Vec<Expr>,
}

impl RuleBuilder {
    /// Begins with the family's match: without it `nft list` cannot name the header fields.
    pub(crate) fn of(family: Family) -> Self {
        let nfproto = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        let exprs = vec![
            Expr::Meta { key: MetaKey::NfProto, dreg: Reg(0) },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![nfproto] },
        ];
        Self { family, exprs }
    }

    pub(crate) fn push(&mut self, e: Expr) {
        self.exprs.push(e);
    }

    pub(crate) fn saddr(&self, dreg: Reg) -> Expr {
        let (offset, len) = if self.family == Family::V4 { (12, 4) } else { (8, 16) };
        Expr::Payload { base: PayloadBase::Network, offset, len, dreg }
    }

    pub(crate) fn daddr(&self, dreg: Reg) -> Expr {
        let (offset, len) = if self.family == Family::V4 { (16, 4) } else { (24, 16) };
        Expr::Payload { base: PayloadBase::Network, offset, len, dreg }
    }

    fn lookup(&mut self, set: &str, into: LookupInto, invert: bool) {
        let set = in_family(set, self.family);
        self.push(Expr::Lookup { set, sreg: Reg(0), into, invert });
    }

    /// `ip saddr [!=] @set`
    pub(crate) fn saddr_in(mut self, set: &str, invert: bool) -> Self {
        self.push(self.saddr(Reg(0)));
        self.lookup(set, LookupInto::Nothing, invert);
        self
    }

    /// `ip daddr [!=] @set`
    pub(crate) fn daddr_in(mut self, set: &str, invert: bool) -> Self {
        self.push(self.daddr(Reg(0)));
        self.lookup(set, LookupInto::Nothing, invert);
        self
    }

    /// Loads `ip daddr . meta l4proto . th dport`; returns the next free register.
    fn load_vip(&mut self) -> u8 {
        self.load_vip_at(Reg(0))
    }

    /// The same from another register on.
    pub(crate) fn load_vip_at(&mut self, at: Reg) -> u8 {
        self.push(self.daddr(at));
        let n = at.0 + words(self.family);
        self.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(n) });
        self.push(dport(Reg(n + 1)));
        n + 2
    }

    /// `ip daddr . meta l4proto . th dport vmap @set`
    fn vip_vmap(mut self, set: &str) -> Rule {
        self.load_vip();
        self.lookup(set, LookupInto::Verdict, false);
        self.done()
    }

    /// `meta l4proto . th dport vmap @set`
    fn port_vmap(mut self, set: &str) -> Rule {
        self.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) });
        self.push(dport(Reg(1)));
        self.lookup(set, LookupInto::Verdict, false);
        self.done()
    }

    fn original_daddr(&self) -> CtKey {
        match self.family {
            Family::V4 => CtKey::OriginalDaddr4,
            Family::V6 => CtKey::OriginalDaddr6,
        }
    }

    /// `meta l4proto udp udp dport P @th,64,32 0x08000000 @th,96,32 VNI<<8 ip daddr @node_addresses notrack`: the header of
    /// every packet of a tunnel is the flag that there is an identifier, and that (RFC 7348, section 5). In two halves,
    /// since the kernel reads up to four bytes on a fast path that eight do not take.
    fn tunnel(self, v: &Vxlan) -> Rule {
        let mut r = self.proto(Proto::Udp);
        r.push(dport(Reg(0)));
        r.push(Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: v.port.to_be_bytes().into() });
        for (offset, half) in [(8, 0x0800_0000), (12, v.vni << 8)] {
            r.push(Expr::Payload { base: PayloadBase::Transport, offset, len: 4, dreg: Reg(0) });
            r.push(Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: half.to_be_bytes().into() });
        }
        r.daddr_in("node_addresses", false).then(Expr::Notrack)
    }

    /// `snat ip to meta l4proto map @sources fully-random`: this node's address, whichever way the packet leaves.
    fn snat(mut self) -> Rule {
        self.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) });
        self.lookup("sources", LookupInto::Reg(Reg(0)), false);
        let v6 = self.family == Family::V6;
        self.then(Expr::Nat { dnat: false, v6, addr: Some(Reg(0)), port: None, flags: RANDOM_FULLY })
    }

    /// `meta l4proto P`: nft's text knows the width of `ct original proto-dst` only after it.
    fn proto(mut self, proto: Proto) -> Self {
        self.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) });
        self.push(Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![proto.number()] });
        self
    }

    /// `ct original ip daddr @set`
    fn original_daddr_in(mut self, set: &str) -> Self {
        self.push(Expr::Ct { key: self.original_daddr(), dreg: Reg(0) });
        self.lookup(set, LookupInto::Nothing, false);
        self
    }

    /// `ct original ip daddr . meta l4proto . ct original proto-dst vmap @set`
    fn original_vip_vmap(mut self, set: &str) -> Rule {
        self.push(Expr::Ct { key: self.original_daddr(), dreg: Reg(0) });
        let n = words(self.family);
        self.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(n) });
        self.push(Expr::Ct { key: CtKey::OriginalDport, dreg: Reg(n + 1) });
        self.lookup(set, LookupInto::Verdict, false);
        self.done()
    }

    /// `meta l4proto . ct original proto-dst vmap @set`
    fn original_port_vmap(mut self, set: &str) -> Rule {
        self.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) });
        self.push(Expr::Ct { key: CtKey::OriginalDport, dreg: Reg(1) });
        self.lookup(set, LookupInto::Verdict, false);
        self.done()
    }

    /// `ip daddr != 224.0.0.0/4`, `ip6 daddr != ff00::/8`
    fn not_to_multicast(mut self) -> Self {
        let (mask, net) = match self.family {
            Family::V4 => (vec![0xf0, 0, 0, 0], vec![0xe0, 0, 0, 0]),
            Family::V6 => {
                let mut b = vec![0; 16];
                b[0] = 0xff;
                (b.clone(), b)
            }
        };
        self.push(self.daddr(Reg(0)));
        let xor = vec![0; mask.len()];
        self.push(Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask, xor });
        self.push(Expr::Cmp { sreg: Reg(0), op: CmpOp::Neq, data: net });
        self
    }

    /// `ip saddr . ip daddr @hairpin`
    fn hairpin(mut self) -> Self {
        self.push(self.saddr(Reg(0)));
        self.push(self.daddr(Reg(words(self.family))));
        self.lookup("hairpin", LookupInto::Nothing, false);
        self
    }

    /// `iif 0`: a packet that this machine made.
    fn made_here(mut self) -> Self {
        self.push(Expr::Meta { key: MetaKey::Iif, dreg: Reg(0) });
        self.push(Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![0; 4] });
        self
    }

    /// `ct status dnat`
    fn translated(mut self) -> Self {
        self.push(Expr::Ct { key: CtKey::Status, dreg: Reg(0) });
        let mask = DST_NAT.to_ne_bytes().to_vec();
        self.push(Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask, xor: vec![0; 4] });
        self.push(Expr::Cmp { sreg: Reg(0), op: CmpOp::Neq, data: vec![0; 4] });
        self
    }

    pub(crate) fn then(mut self, e: Expr) -> Rule {
        self.push(e);
        self.done()
    }

    pub(crate) fn done(self) -> Rule {
        plain(self.exprs)
    }
}

impl Rule {
    /// With the reason for which it replaces the source, for people and for the trace.
    fn why(self, why: Masquerade) -> Self {
        Self { comment: Some(why.to_string()), ..self }
    }
}

/// To anywhere but a pod. To a pod it would not do: the kernel forgets a masqueraded connection when its packets begin
/// to leave by another interface (`nf_nat_oif_changed`), as they do when a backend is switched under it.
fn masquerade() -> Expr {
    Expr::Masquerade { flags: RANDOM_FULLY }
}

/// A chain: name, hook, rules.
pub(crate) type ChainRow = (String, Option<Hook>, Vec<Rule>);

/// The chains of a node with this VXLAN device: a packet is tracked inside the tunnel; outside it has no business with any
/// Service. Only what is the tunnel's by its header is left untracked: a connection that was translated may have been given
/// the tunnel's port, of all there are, and its answers would not find back.
pub(crate) fn tunnel_chains(v: &Vxlan) -> [ChainRow; 2] {
    [("raw_prerouting", HookPoint::Prerouting), ("raw_output", HookPoint::Output)].map(|(name, point)| {
        let hook = Hook { kind: ChainKind::Filter, point, priority: -300, drop: false };
        (name.into(), Some(hook), vec![RuleBuilder::of(Family::of(v.local)).tunnel(v)])
    })
}

/// Every chain but those of [`Pick`], of tunnels and the late ones.
pub(crate) fn chains() -> Vec<ChainRow> {
    let hook = |point, priority| Some(Hook { kind: ChainKind::Nat, point, priority, drop: false });
    let by_family = |base: &str| -> Vec<Rule> {
        Family::BOTH.into_iter().map(|f| RuleBuilder::of(f).then(goto(&in_family(base, f)))).collect()
    };
    let mut out = vec![
        ("prerouting".into(), hook(HookPoint::Prerouting, -100), by_family("prerouting")),
        ("output".into(), hook(HookPoint::Output, -100), by_family("output")),
        ("postrouting".into(), hook(HookPoint::Postrouting, 100), by_family("postrouting")),
        (REJECT_NO_ENDPOINTS.into(), None, reject()),
        (REJECT_UNUSED_PORT.into(), None, reject()),
        (DROP_NO_LOCAL.into(), None, vec![plain(vec![Expr::Verdict(Verdict::Drop)])]),
        (DROP_SOURCE_RANGE.into(), None, vec![plain(vec![Expr::Verdict(Verdict::Drop)])]),
        (
            MASQUERADE_EXTERNAL.into(),
            None,
            by_family("as_node").into_iter().map(|r| r.why(Masquerade::PolicyCluster)).collect(),
        ),
    ];
    out.extend(Family::BOTH.into_iter().flat_map(family_chains));
    out
}

fn reject() -> Vec<Rule> {
    vec![
        plain(vec![
            Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![Proto::Tcp.number()] },
            Expr::Reject(RejectWith::TcpReset),
        ]),
        plain(vec![Expr::Reject(RejectWith::PortUnreachable)]),
    ]
}

fn family_chains(f: Family) -> Vec<ChainRow> {
    let rule = || RuleBuilder::of(f);
    let firewall = || {
        let mut r = rule();
        r.load_vip();
        r.lookup("firewalled", LookupInto::Nothing, false);
        let next = r.load_vip();
        r.push(r.saddr(Reg(next)));
        r.lookup("source_ranges", LookupInto::Nothing, true);
        r.then(goto(DROP_SOURCE_RANGE))
    };
    let as_node = || goto(&in_family("as_node", f));
    let rest = in_family("to_node", f);
    let postrouting = vec![
        // A pod to outside the cluster, also when its Service sent it there.
        rule()
            .saddr_in("masqueraded", false)
            .daddr_in("cluster_cidrs", true)
            .daddr_in("node_addresses", true)
            .not_to_multicast()
            .then(masquerade())
            .why(Masquerade::LeavesCluster),
        rule().translated().then(goto(&in_family("translated", f))),
    ];
    let mut translated: Vec<Rule> = Vec::new();
    translated.extend(Proto::ALL.map(|p| rule().proto(p).original_vip_vmap("externals")));
    // Before the node's own addresses, as in the spec: a cluster address has no node ports.
    translated.push(rule().original_daddr_in("cluster_ips").then(goto(&in_family("masquerade_cluster", f))));
    translated.extend(
        Proto::ALL
            .map(|p| rule().proto(p).original_daddr_in("node_port_addresses").original_port_vmap("external_ports")),
    );
    vec![
        (
            in_family("prerouting", f),
            None,
            vec![
                firewall(),
                rule().saddr_in("cluster_cidrs", true).vip_vmap("local_services"),
                rule().vip_vmap("services"),
                rule().saddr_in("own_pods", true).daddr_in("node_port_addresses", false).port_vmap("local_nodeports"),
                rule().then(goto(&rest)),
            ],
        ),
        (
            in_family("output", f),
            None,
            // A process of the node is inside the cluster: no local_services, no local_nodeports.
            vec![firewall(), rule().vip_vmap("services"), rule().then(goto(&rest))],
        ),
        (rest, None, vec![rule().daddr_in("node_port_addresses", false).port_vmap("nodeports")]),
        (in_family("postrouting", f), None, postrouting),
        (in_family("translated", f), None, translated),
        (
            in_family("masquerade_cluster", f),
            None,
            vec![
                rule().saddr_in("cluster_cidrs", true).then(as_node()).why(Masquerade::NoPod),
                rule().hairpin().then(as_node()).why(Masquerade::Hairpin),
            ],
        ),
        (
            in_family("as_node", f),
            None,
            vec![rule().daddr_in("cluster_cidrs", false).snat(), rule().then(masquerade())],
        ),
        (
            in_family("masquerade_local", f),
            None,
            vec![
                // A pod of this node is answered through this node whatever address it has.
                rule()
                    .saddr_in("cluster_cidrs", false)
                    .saddr_in("own_pods", true)
                    .then(as_node())
                    .why(Masquerade::InsideToOutside),
                rule().made_here().then(as_node()).why(Masquerade::InsideToOutside),
                rule().hairpin().then(as_node()).why(Masquerade::Hairpin),
            ],
        ),
    ]
}
