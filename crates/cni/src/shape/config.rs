//! `bandwidth` of a configuration or of a runtime's call.

use ipam::{Limits, Rate, Scope};
use kernel_api::tc::DESTINATIONS;
use types::Cidr;

use crate::{Error, Fields, IpNet, bad};

/// Bursts are kept in 32 bits of bytes.
const BURST_MAX: u64 = (u32::MAX as u64) * 8;

/// Reads `ingressRate`, `ingressBurst`, `egressRate`, `egressBurst`, in bits; `None` when none of them is there.
///
/// # Errors
/// Code 7, naming the field.
pub fn read(f: &Fields<'_>) -> Result<Option<Limits>, Error> {
    let names = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
    if names.iter().all(|n| f.value(n).is_none()) {
        return Ok(None);
    }
    let one = |rate: &str, burst: &str| -> Result<Option<Rate>, Error> {
        let (r, b) = (f.long(rate)?.unwrap_or(0), f.long(burst)?.unwrap_or(0));
        match (r, b) {
            (0, 0) => Ok(None),
            (0, _) => Err(bad(format!("{} is given without {}: say the rate too", f.name(burst), f.name(rate)))),
            (1..8, _) => Err(bad(format!("{} is {r}: at least 8 bit/s are needed", f.name(rate)))),
            (_, b) if b > BURST_MAX => {
                Err(bad(format!("{} is {b}: at most {BURST_MAX} bit, which is 4 GiB", f.name(burst))))
            }
            (_, 1..8) => Err(bad(format!("{} is {b}: at least 8 bit are needed", f.name(burst)))),
            (rate, b) => Ok(Some(Rate { rate, burst: Some(b).filter(|b| *b > 0) })),
        }
    };
    let (ingress, egress) = (one("ingressRate", "ingressBurst")?, one("egressRate", "egressBurst")?);
    // Without a limit the subnets do not matter.
    let scope = if ingress.is_none() && egress.is_none() { Scope::All } else { scope(f)? };
    Ok(Some(Limits { ingress, egress, scope }))
}

/// `shapedSubnets` or `unshapedSubnets`.
fn scope(f: &Fields<'_>) -> Result<Scope, Error> {
    let (only, but) = (subnets(f, "shapedSubnets")?, subnets(f, "unshapedSubnets")?);
    match (only.is_empty(), but.is_empty()) {
        (true, true) => Ok(Scope::All),
        (false, true) => Ok(Scope::Only(only)),
        (true, false) => Ok(Scope::AllBut(but)),
        (false, false) => Err(bad(format!(
            "{} and {} cannot be both specified: leave out one of them",
            f.name("unshapedSubnets"),
            f.name("shapedSubnets")
        ))),
    }
}

/// Host bits are cleared, as the reference does.
fn subnets(f: &Fields<'_>, field: &str) -> Result<Vec<Cidr>, Error> {
    let mut out = f.parsed_list::<IpNet>(field)?.into_iter().map(IpNet::network).collect::<Vec<_>>();
    out.sort();
    out.dedup();
    if out.len() > DESTINATIONS {
        let (name, n) = (f.name(field), out.len());
        return Err(bad(format!("{name} has {n} subnets: at most {DESTINATIONS} are possible; join some of them")));
    }
    Ok(out)
}

/// The limits of a call: those of the configuration itself, else those of the runtime (`runtimeConfig.bandwidth`), with
/// the configuration's subnets where the runtime says none.
///
/// # Errors
/// Code 7, naming the field.
pub fn limits(f: &Fields<'_>) -> Result<Limits, Error> {
    if let Some(own) = read(f)? {
        return Ok(own);
    }
    let runtime = match f.object("runtimeConfig")? {
        Some(r) => r.object("bandwidth")?,
        None => None,
    };
    let mut said = runtime.map(|b| read(&b)).transpose()?.flatten().unwrap_or_default();
    if !said.is_none() && said.scope.is_all() {
        said.scope = scope(f)?;
    }
    Ok(said)
}
