//! What a rule must hold: when it is added, and of the table as a whole.

use kernel_api::errno;
use kernel_api::nft::CtKey;
use kernel_api::nft::{Chain, ChainKind, Expr, Hook, HookPoint, LookupInto, MetaKey, Reg, Rule, SetData, Verdict};

use super::state::{State, check_lookup, padded};

/// `EMLINK`: what the kernel says to chains that call each other too deep, or in a circle.
const EMLINK: i32 = 31;
/// `EOVERFLOW`
const EOVERFLOW: i32 = 75;
/// `ENODATA`: a register is read that nothing wrote.
const ENODATA: i32 = 61;
/// `NFT_JUMP_STACK_SIZE`
const JUMP_STACK: usize = 16;
const REGISTERS: usize = 16;

/// Which registers hold something.
#[derive(Default)]
struct Regs([bool; REGISTERS]);

impl Regs {
    fn range(reg: Reg, len: usize) -> Result<std::ops::Range<usize>, i32> {
        let first = usize::from(reg.0);
        let end = first + len.div_ceil(4);
        if len == 0 {
            return Err(errno::EINVAL);
        }
        if first < REGISTERS && end <= REGISTERS { Ok(first..end) } else { Err(errno::ERANGE) }
    }

    fn store(&mut self, reg: Reg, len: usize) -> Result<(), i32> {
        let range = Self::range(reg, len)?;
        self.0[range].fill(true);
        Ok(())
    }

    fn load(&self, reg: Reg, len: usize) -> Result<(), i32> {
        let range = Self::range(reg, len)?;
        if self.0[range].iter().all(|r| *r) { Ok(()) } else { Err(ENODATA) }
    }
}

/// What is checked when a rule is added: its registers, and that what it names is there.
pub(super) fn check(t: &State, rule: &Rule) -> Result<(), i32> {
    let mut regs = Regs::default();
    for e in &rule.exprs {
        match e {
            Expr::Meta { key, dreg } => regs.store(*dreg, meta_len(*key))?,
            Expr::SetMark { sreg } | Expr::SetCtMark { sreg } => regs.load(*sreg, 4)?,
            Expr::Payload { len, dreg, .. } => regs.store(*dreg, *len as usize)?,
            Expr::Cmp { sreg, data, .. } => regs.load(*sreg, data.len())?,
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                if mask.len() != xor.len() {
                    return Err(errno::EINVAL);
                }
                regs.load(*sreg, mask.len())?;
                regs.store(*dreg, mask.len())?;
            }
            Expr::Lookup { set, sreg, into, invert } => {
                let s = t.sets.get(set).ok_or(errno::ENOENT)?;
                regs.load(*sreg, s.key_len())?;
                let len = check_lookup(s, *into, *invert)?;
                if let LookupInto::Reg(r) = into {
                    regs.store(*r, len)?;
                }
            }
            Expr::Immediate { dreg, data } => regs.store(*dreg, data.len())?,
            Expr::Verdict(v) => t.check_verdict(v)?,
            Expr::Numgen { dreg, modulus, offset, .. } => {
                if *modulus == 0 {
                    return Err(errno::ERANGE);
                }
                offset.checked_add(modulus - 1).ok_or(EOVERFLOW)?;
                regs.store(*dreg, 4)?;
            }
            Expr::FibDaddrType { dreg } => regs.store(*dreg, 4)?,
            Expr::Ct { key, dreg } => regs.store(*dreg, ct_len(*key))?,
            Expr::Nat { v6, addr, port, .. } => {
                if let Some(r) = addr {
                    regs.load(*r, if *v6 { 16 } else { 4 })?;
                }
                if let Some(r) = port {
                    regs.load(*r, 2)?;
                }
            }
            Expr::Dynset { set, key, data, timeout, .. } => {
                let s = t.sets.get(set).ok_or(errno::ENOENT)?;
                // Sets of ranges take no elements from packets, nor does one without lifetimes take any with one.
                if s.set.interval || timeout.is_some() && !s.set.timeout {
                    return Err(errno::EOPNOTSUPP);
                }
                if s.set.constant {
                    return Err(errno::EBUSY);
                }
                regs.load(*key, s.key_len())?;
                match (data, &s.set.data) {
                    (None, None) => {}
                    (Some(r), Some(SetData::Value(v))) => regs.load(*r, padded(v))?,
                    (Some(_), _) => return Err(errno::EOPNOTSUPP),
                    (None, Some(_)) => return Err(errno::EINVAL),
                }
            }
            Expr::Masquerade { .. } | Expr::Reject(_) | Expr::Counter | Expr::Notrack => {}
            // There is no such expression to write.
            Expr::Other(_) => return Err(errno::EOPNOTSUPP),
        }
    }
    Ok(())
}

const fn meta_len(key: MetaKey) -> usize {
    match key {
        MetaKey::Mark | MetaKey::Iif => 4,
        MetaKey::NfProto | MetaKey::L4Proto => 1,
        MetaKey::IifName | MetaKey::OifName => 16,
    }
}

const fn ct_len(key: CtKey) -> usize {
    match key {
        CtKey::State | CtKey::Status | CtKey::Mark | CtKey::OriginalDaddr4 => 4,
        CtKey::OriginalDaddr6 => 16,
        CtKey::OriginalDport => 2,
    }
}

/// What is checked of a whole table after each request (`nft_table_validate`): from every hook, each rule that can be
/// reached fits it.
pub(super) fn validate(t: &State) -> Result<(), i32> {
    t.chains.iter().filter_map(|c| c.hook.map(|h| (c, h))).try_for_each(|(c, h)| walk(t, c, h, 0))
}

fn walk(t: &State, chain: &Chain, hook: Hook, depth: usize) -> Result<(), i32> {
    if depth >= JUMP_STACK {
        return Err(EMLINK);
    }
    let follow = |v: &Verdict| match v {
        Verdict::Jump(c) | Verdict::Goto(c) => t.chain(c).map_or(Ok(()), |c| walk(t, c, hook, depth + 1)),
        _ => Ok(()),
    };
    for e in t.rules.iter().filter(|r| r.chain == chain.name).flat_map(|r| &r.exprs) {
        fits(e, hook)?;
        match e {
            Expr::Verdict(v) => follow(v)?,
            Expr::Lookup { set, into: LookupInto::Verdict, .. } => {
                // Many elements lead to few chains.
                let mut seen: Vec<&Verdict> = Vec::new();
                for v in t.sets.get(set).into_iter().flat_map(|s| s.verdicts()) {
                    if !seen.contains(&v) {
                        seen.push(v);
                        follow(v)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether an expression may be met from this hook.
fn fits(e: &Expr, hook: Hook) -> Result<(), i32> {
    use HookPoint::{Forward, Input, Output, Postrouting, Prerouting};
    let nat = hook.kind == ChainKind::Nat;
    let ok = match e {
        Expr::Nat { dnat: true, .. } => nat && matches!(hook.point, Prerouting | Output),
        Expr::Nat { dnat: false, .. } => nat && matches!(hook.point, Postrouting | Input),
        Expr::Masquerade { .. } => nat && hook.point == Postrouting,
        Expr::Reject(_) => matches!(hook.point, Prerouting | Input | Forward | Output),
        _ => true,
    };
    if ok { Ok(()) } else { Err(errno::EOPNOTSUPP) }
}
