//! Images and their parts as text in nft's own language: what `nft list table inet seaway` prints, and `nft -f` reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kernel_api::nft::{
    ChainKind, CmpOp, CtKey, DataType, DynsetOp, Expr, Hook, HookPoint, LookupInto, MetaKey, PayloadBase, Reg,
    RejectWith, SetData, Verdict,
};
use types::Proto;

use crate::image::{Data, Image, Key, Rule, Shape};
use crate::key::{KeyReader, addr_of};

/// The whole table.
#[must_use]
pub fn image(image: &Image) -> String {
    let mut out = String::new();
    if !image.present {
        return out;
    }
    // Writing to a String does not fail.
    let _ = writeln!(out, "table inet seaway {{");
    if image.flags & 1 != 0 {
        let _ = writeln!(out, "\tflags dormant\n");
    }
    for (name, set) in &image.sets {
        let _ = writeln!(out, "\t{} {name} {{\n\t\ttype {}", kind(&set.shape), types(&set.shape));
        if let Some(size) = set.shape.dynamic {
            let _ = writeln!(out, "\t\tsize {size}");
        }
        let flags = flags(&set.shape);
        if !flags.is_empty() {
            let _ = writeln!(out, "\t\tflags {flags}");
        }
        let elements: Vec<String> =
            set.elements.iter().map(|e| element(&set.shape, &e.to_key(), &e.to_data())).collect();
        if !elements.is_empty() {
            let _ = writeln!(out, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "));
        }
        let _ = writeln!(out, "\t}}\n");
    }
    for (n, (name, chain)) in image.chains.iter().enumerate() {
        let _ = writeln!(out, "{}\tchain {name} {{", if n == 0 { "" } else { "\n" });
        if let Some(h) = chain.hook {
            let _ = writeln!(out, "\t\t{}", hook(h));
        }
        for r in &chain.rules {
            let _ = writeln!(out, "\t\t{}", rule(r, &|set| image.sets.get(set).map(|s| s.shape.key.clone())));
        }
        let _ = writeln!(out, "\t}}");
    }
    out.push_str("}\n");
    out
}

/// `set`, or `map`.
pub(crate) fn kind(shape: &Shape) -> &'static str {
    if shape.data.is_some() { "map" } else { "set" }
}

/// `interval`, `dynamic,timeout`, or nothing.
pub(crate) fn flags(shape: &Shape) -> String {
    let all = [("interval", shape.interval), ("dynamic", shape.dynamic.is_some()), ("timeout", shape.timeout)];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect::<Vec<_>>().join(",")
}

/// `ipv4_addr . inet_proto . inet_service : verdict`
pub(crate) fn types(shape: &Shape) -> String {
    let concat = |t: &[DataType]| t.iter().map(|t| type_name(*t)).collect::<Vec<_>>().join(" . ");
    match &shape.data {
        None => concat(&shape.key),
        Some(SetData::Value(v)) => format!("{} : {}", concat(&shape.key), concat(v)),
        Some(SetData::Verdict) => format!("{} : verdict", concat(&shape.key)),
    }
}

const fn type_name(t: DataType) -> &'static str {
    match t {
        DataType::Ipv4Addr => "ipv4_addr",
        DataType::Ipv6Addr => "ipv6_addr",
        DataType::InetProto => "inet_proto",
        DataType::InetService => "inet_service",
        DataType::Mark => "mark",
        DataType::IfName => "ifname",
        DataType::EtherAddr => "ether_addr",
    }
}

/// `type nat hook prerouting priority -100; policy accept;`
pub(crate) fn hook(h: Hook) -> String {
    let kind = match h.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    };
    let point = match h.point {
        HookPoint::Prerouting => "prerouting",
        HookPoint::Input => "input",
        HookPoint::Forward => "forward",
        HookPoint::Output => "output",
        HookPoint::Postrouting => "postrouting",
    };
    let policy = if h.drop { "drop" } else { "accept" };
    format!("type {kind} hook {point} priority {}; policy {policy};", h.priority)
}

/// `10.96.0.1 . tcp . 443 : goto pick4_3`
pub(crate) fn element(shape: &Shape, key: &Key, data: &Data) -> String {
    let text = element_key(shape, key);
    match data {
        Data::Member => text,
        Data::Verdict(v) => format!("{text} : {}", verdict(v)),
        Data::Value(v) => match &shape.data {
            Some(SetData::Value(types)) => format!("{text} : {}", concatenation(types, v, v)),
            _ => format!("{text} : {}", hex(v)),
        },
    }
}

/// `10.96.0.1 . tcp . 443`, `10.244.0.0-10.244.255.255`
pub(crate) fn element_key(shape: &Shape, key: &Key) -> String {
    concatenation(&shape.key, &key.first, key.last.as_ref().unwrap_or(&key.first))
}

fn concatenation(types: &[DataType], first: &[u8], last: &[u8]) -> String {
    let (mut lo, mut hi) = (KeyReader::new(first), KeyReader::new(last));
    let fields = types.iter().map(|t| match (lo.field(*t), hi.field(*t)) {
        (Some(a), Some(b)) if a == b => value(*t, a),
        (Some(a), Some(b)) => format!("{}-{}", value(*t, a), value(*t, b)),
        _ => "?".into(),
    });
    fields.collect::<Vec<_>>().join(" . ")
}

fn value(t: DataType, bytes: &[u8]) -> String {
    let short = |b: &[u8]| <[u8; 2]>::try_from(b).ok();
    match t {
        DataType::Ipv4Addr | DataType::Ipv6Addr => addr_of(bytes).map(|a| a.to_string()),
        DataType::InetProto => {
            bytes.first().map(|n| Proto::from_number(*n).map_or(n.to_string(), |p| p.to_string().to_lowercase()))
        }
        DataType::InetService => short(bytes).map(|b| u16::from_be_bytes(b).to_string()),
        DataType::Mark => bytes.try_into().ok().map(|b| format!("0x{:08x}", u32::from_ne_bytes(b))),
        DataType::IfName => Some(format!("{:?}", String::from_utf8_lossy(bytes).trim_end_matches('\0'))),
        DataType::EtherAddr => Some(bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")),
    }
    .unwrap_or_else(|| hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".into(), |s, b| format!("{s}{b:02x}"))
}

fn verdict(v: &Verdict) -> String {
    match v {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Continue => "continue".into(),
        Verdict::Return => "return".into(),
        Verdict::Jump(c) => format!("jump {c}"),
        Verdict::Goto(c) => format!("goto {c}"),
    }
}

/// What a register holds, as text.
#[derive(Clone)]
struct Term {
    text: String,
    of: Of,
}

/// What kind of value that is, to print the constants it is compared with.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    NfProto,
    Typed(DataType),
    /// A prefix of an address: the mask was of so many bits.
    Prefix(DataType, u32),
    /// `ct status` under this mask.
    Status(u32),
    CtStatus,
    /// Bytes of a header, in its order.
    Raw,
    /// A number of the host's order.
    Number,
}

/// One rule; `keys` gives the key types of a set.
pub(crate) fn rule(rule: &Rule, keys: &dyn Fn(&str) -> Option<Vec<DataType>>) -> String {
    let mut regs: BTreeMap<u8, Term> = BTreeMap::new();
    let mut out: Vec<String> = Vec::new();
    let mut v6 = false;
    let names_family = |e: &Expr| matches!(e, Expr::Payload { base: PayloadBase::Network, .. });
    // As nft: a field of the family's header says it already, unless a statement stands in between.
    let sets = |e: &Expr| matches!(e, Expr::SetMark { .. } | Expr::SetCtMark { .. });
    let family_shows = rule.exprs.iter().any(names_family) && !rule.exprs.iter().any(sets);
    for e in &rule.exprs {
        let get = |regs: &BTreeMap<u8, Term>, r: u8| {
            regs.get(&r).cloned().unwrap_or(Term { text: format!("reg{r}"), of: Of::Number })
        };
        match e {
            Expr::Meta { key, dreg } => {
                regs.insert(dreg.0, meta(*key));
            }
            Expr::SetMark { sreg } => out.push(format!("meta mark set {}", get(&regs, sreg.0).text)),
            Expr::SetCtMark { sreg } => out.push(format!("ct mark set {}", get(&regs, sreg.0).text)),
            Expr::Payload { base, offset, len, dreg } => {
                regs.insert(dreg.0, payload(*base, *offset, *len, v6));
            }
            Expr::Ct { key, dreg } => {
                regs.insert(dreg.0, ct(*key));
            }
            Expr::Cmp { sreg, op, data } => {
                let term = get(&regs, sreg.0);
                if term.of == Of::NfProto && *op == CmpOp::Eq {
                    v6 = data == &[10];
                    if family_shows {
                        continue;
                    }
                }
                out.push(comparison(&term, *op, data));
            }
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let term = masked(get(&regs, sreg.0), mask, xor);
                regs.insert(dreg.0, term);
            }
            Expr::Lookup { set, sreg, into, invert } => {
                let key = fields(keys(set), *sreg, |r| get(&regs, r).text);
                match into {
                    LookupInto::Nothing => out.push(format!("{key} {}@{set}", if *invert { "!= " } else { "" })),
                    LookupInto::Verdict => out.push(format!("{key} vmap @{set}")),
                    LookupInto::Reg(r) => {
                        regs.insert(r.0, Term { text: format!("{key} map @{set}"), of: Of::Number });
                    }
                }
            }
            Expr::Immediate { dreg, data } => {
                regs.insert(dreg.0, Term { text: hex(data), of: Of::Number });
            }
            Expr::Verdict(v) => out.push(verdict(v)),
            Expr::Numgen { dreg, modulus, offset, random } => {
                let how = if *random { "random" } else { "inc" };
                let offset = if *offset == 0 { String::new() } else { format!(" offset {offset}") };
                let text = format!("numgen {how} mod {modulus}{offset}");
                regs.insert(dreg.0, Term { text, of: Of::Number });
            }
            Expr::FibDaddrType { dreg } => {
                regs.insert(dreg.0, Term { text: "fib daddr type".into(), of: Of::Number });
            }
            Expr::Nat { dnat, v6, addr, port, flags } => {
                let what = if *dnat { "dnat" } else { "snat" };
                let family = if *v6 { "ip6" } else { "ip" };
                let to = addr.map_or(String::new(), |r| format!(" {}", get(&regs, r.0).text));
                // A map to address . port fills both registers and is written once.
                let port = port
                    .and_then(|r| regs.get(&r.0).filter(|_| !to.contains(" map @")))
                    .map(|t| format!(":{}", t.text));
                out.push(format!("{what} {family} to{to}{}{}", port.unwrap_or_default(), nat_flags(*flags)));
            }
            Expr::Dynset { set, op, key, data, timeout } => {
                let key = fields(keys(set), *key, |r| get(&regs, r).text);
                let data = data.map_or(String::new(), |r| format!(" : {}", get(&regs, r.0).text));
                let timeout = timeout.map_or(String::new(), |ms| format!(" timeout {}", time(ms)));
                let op = if *op == DynsetOp::Update { "update" } else { "delete" };
                out.push(format!("{op} @{set} {{ {key}{timeout}{data} }}"));
            }
            Expr::Masquerade { flags } => out.push(format!("masquerade{}", nat_flags(*flags))),
            Expr::Reject(RejectWith::TcpReset) => out.push("reject with tcp reset".into()),
            Expr::Reject(RejectWith::PortUnreachable) => out.push("reject".into()),
            Expr::Counter => out.push("counter".into()),
            Expr::Notrack => out.push("notrack".into()),
            Expr::Other(name) => out.push(format!("({name})")),
        }
    }
    if let Some(c) = &rule.comment {
        out.push(format!("comment {c:?}"));
    }
    out.join(" ")
}

/// What the registers from `first` on hold for a key of these types.
fn fields(types: Option<Vec<DataType>>, first: Reg, text: impl Fn(u8) -> String) -> String {
    let mut at = first.0;
    let mut out = Vec::new();
    for t in types.unwrap_or_default() {
        out.push(text(at));
        at += u8::try_from(t.padded() / 4).unwrap_or(0);
    }
    if out.is_empty() { text(first.0) } else { out.join(" . ") }
}

/// As nft writes it: `3h`, `1m30s`.
fn time(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut rest = ms;
    let mut out = String::new();
    for (name, size) in units {
        if rest >= size {
            let _ = write!(out, "{}{name}", rest / size);
            rest %= size;
        }
    }
    out
}

fn nat_flags(flags: u32) -> &'static str {
    // NF_NAT_RANGE_PROTO_RANDOM 4, PERSISTENT 8, RANDOM_FULLY 16.
    match flags {
        0 => "",
        4 => " random",
        8 => " persistent",
        16 => " fully-random",
        _ => " (flags)",
    }
}

fn meta(key: MetaKey) -> Term {
    let (text, of) = match key {
        MetaKey::Mark => ("meta mark", Of::Typed(DataType::Mark)),
        MetaKey::NfProto => ("meta nfproto", Of::NfProto),
        MetaKey::L4Proto => ("meta l4proto", Of::Typed(DataType::InetProto)),
        MetaKey::IifName => ("iifname", Of::Typed(DataType::IfName)),
        MetaKey::OifName => ("oifname", Of::Typed(DataType::IfName)),
        MetaKey::Iif => ("iif", Of::Number),
    };
    Term { text: text.into(), of }
}

fn ct(key: CtKey) -> Term {
    let (text, of) = match key {
        CtKey::State => ("ct state", Of::Number),
        CtKey::Status => ("ct status", Of::CtStatus),
        CtKey::Mark => ("ct mark", Of::Typed(DataType::Mark)),
        CtKey::OriginalDaddr4 => ("ct original ip daddr", Of::Typed(DataType::Ipv4Addr)),
        CtKey::OriginalDaddr6 => ("ct original ip6 daddr", Of::Typed(DataType::Ipv6Addr)),
        CtKey::OriginalDport => ("ct original proto-dst", Of::Typed(DataType::InetService)),
    };
    Term { text: text.into(), of }
}

fn payload(base: PayloadBase, offset: u32, len: u32, v6: bool) -> Term {
    let known = match (base, offset, len, v6) {
        (PayloadBase::Network, 12, 4, false) => Some(("ip saddr", DataType::Ipv4Addr)),
        (PayloadBase::Network, 16, 4, false) => Some(("ip daddr", DataType::Ipv4Addr)),
        (PayloadBase::Network, 8, 16, true) => Some(("ip6 saddr", DataType::Ipv6Addr)),
        (PayloadBase::Network, 24, 16, true) => Some(("ip6 daddr", DataType::Ipv6Addr)),
        (PayloadBase::Transport, 0, 2, _) => Some(("th sport", DataType::InetService)),
        (PayloadBase::Transport, 2, 2, _) => Some(("th dport", DataType::InetService)),
        _ => None,
    };
    match known {
        Some((text, t)) => Term { text: text.into(), of: Of::Typed(t) },
        None => {
            let base = if base == PayloadBase::Network { "nh" } else { "th" };
            Term { text: format!("@{base},{},{}", u64::from(offset) * 8, u64::from(len) * 8), of: Of::Raw }
        }
    }
}

fn masked(term: Term, mask: &[u8], xor: &[u8]) -> Term {
    let plain = xor.iter().all(|b| *b == 0);
    let ones: u32 = mask.iter().map(|b| b.leading_ones()).sum();
    let is_prefix = ones == mask.iter().map(|b| b.count_ones()).sum::<u32>()
        && mask.iter().skip_while(|b| **b == 0xff).skip(1).all(|b| *b == 0);
    match (term.of, plain) {
        (Of::Typed(t @ (DataType::Ipv4Addr | DataType::Ipv6Addr)), true) if is_prefix => {
            Term { text: term.text, of: Of::Prefix(t, ones) }
        }
        (Of::CtStatus, true) => {
            let bits = mask.try_into().map_or(0, u32::from_ne_bytes);
            Term { text: term.text, of: Of::Status(bits) }
        }
        _ => {
            let xor = if plain { String::new() } else { format!(" ^ {}", hex(xor)) };
            Term { text: format!("{} & {}{xor}", term.text, hex(mask)), of: Of::Number }
        }
    }
}

fn comparison(term: &Term, op: CmpOp, data: &[u8]) -> String {
    let sign = match op {
        CmpOp::Eq => "",
        CmpOp::Neq => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Lte => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Gte => ">= ",
    };
    let text = &term.text;
    let constant = match term.of {
        Of::NfProto => match data {
            [2] => "ipv4".into(),
            [10] => "ipv6".into(),
            other => hex(other),
        },
        Of::Typed(t) => value(t, data),
        Of::Raw => hex(data),
        Of::Prefix(t, len) => format!("{}/{len}", value(t, data)),
        // IPS_SRC_NAT, IPS_DST_NAT
        Of::Status(bits @ (16 | 32)) if op == CmpOp::Neq && data.iter().all(|b| *b == 0) => {
            return format!("{text} {}", if bits == 16 { "snat" } else { "dnat" });
        }
        Of::Status(bits) => return format!("{text} & 0x{bits:x} {sign}{}", hex(data)),
        Of::Number | Of::CtStatus => match <[u8; 4]>::try_from(data) {
            Ok(b) => u32::from_ne_bytes(b).to_string(),
            Err(_) => hex(data),
        },
    };
    format!("{text} {sign}{constant}")
}
