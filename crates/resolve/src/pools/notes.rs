//! What annotations of pods and namespaces ask of addresses.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use types::Family;

/// Annotations, ours first: of two names of one thing ours counts.
pub const NAMES: [(Asks, [&str; 2]); 4] = [
    (Asks::Pools(Family::V4), ["seaway.io/ipv4pools", "cni.projectcalico.org/ipv4pools"]),
    (Asks::Pools(Family::V6), ["seaway.io/ipv6pools", "cni.projectcalico.org/ipv6pools"]),
    (Asks::Fixed, ["seaway.io/ip-addrs", "cni.projectcalico.org/ipAddrs"]),
    (Asks::Outside, ["seaway.io/ip-addrs-no-ipam", "cni.projectcalico.org/ipAddrsNoIpam"]),
];

/// Entries of one annotation at most.
const MOST: usize = 64;

/// What an annotation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Addresses of these pools, in this order.
    Pools(Family),
    /// These addresses, out of pools.
    Fixed,
    /// These addresses, out of no pool.
    Outside,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Notes {
    /// Names or ranges of IPv4 pools, in order.
    pub v4: Option<Box<[Box<str>]>>,
    /// Names or ranges of IPv6 pools, in order.
    pub v6: Option<Box<[Box<str>]>>,
    /// Addresses that must lie in pools.
    pub fixed: Box<[IpAddr]>,
    /// Addresses out of no pool.
    pub outside: Box<[IpAddr]>,
    /// Annotations that make no sense, and why. An object with one gets nothing: neither what it did not mean nor
    /// what it did not ask for.
    pub wrong: Box<[(Box<str>, Box<str>)]>,
}

impl Notes {
    /// What was asked for in a family.
    #[must_use]
    pub fn pools(&self, family: Family) -> Option<&[Box<str>]> {
        match family {
            Family::V4 => self.v4.as_deref(),
            Family::V6 => self.v6.as_deref(),
        }
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads the annotations of a pod or namespace.
pub fn read_notes<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Notes {
    let mut out = Notes::default();
    let mut wrong = Vec::new();
    let mut given: [Option<&str>; 2] = [None, None];
    for (asks, names) in NAMES {
        let Some((name, text)) = names.into_iter().find_map(|n| get(n).map(|t| (n, t))) else { continue };
        let mut bad = |why: String| wrong.push((name.into(), why.into_boxed_str()));
        let list = match entries(text) {
            Ok(l) => l,
            Err(why) => {
                bad(why);
                continue;
            }
        };
        match asks {
            Asks::Pools(Family::V4) => out.v4 = Some(list),
            Asks::Pools(Family::V6) => out.v6 = Some(list),
            Asks::Fixed | Asks::Outside => {
                let addrs = match addresses(&list) {
                    Ok(a) => a,
                    Err(why) => {
                        bad(why);
                        continue;
                    }
                };
                if asks == Asks::Fixed {
                    (given[0], out.fixed) = (Some(name), addrs);
                } else {
                    (given[1], out.outside) = (Some(name), addrs);
                }
            }
        }
    }
    if let [Some(a), Some(b)] = given {
        wrong.push((
            a.into(),
            format!("excludes {b}: an address comes out of a pool or it does not; remove one of the two").into(),
        ));
    }
    out.wrong = wrong.into();
    out
}

/// A JSON list of texts, or texts separated by commas.
fn entries(text: &str) -> Result<Box<[Box<str>]>, String> {
    let text = text.trim();
    let list: Vec<Box<str>> = if text.starts_with('[') {
        serde_json::from_str(text)
            .map_err(|e| format!("{text:.80?} is no list: {e}; write [\"one\", \"two\"] or one, two"))?
    } else {
        text.split(',').map(|t| t.trim().into()).collect()
    };
    if list.is_empty() || list.iter().any(|t| t.is_empty()) {
        return Err(format!("{text:.80?} has an empty entry: write [\"one\", \"two\"], or remove the annotation"));
    }
    if list.len() > MOST {
        return Err(format!("{} entries, at most {MOST} are read", list.len()));
    }
    Ok(list.into())
}

fn addresses(list: &[Box<str>]) -> Result<Box<[IpAddr]>, String> {
    let all = list
        .iter()
        .map(|t| t.parse::<IpAddr>().map_err(|_| format!("{t:?} is no IP address")))
        .collect::<Result<Vec<_>, _>>()?;
    for (i, a) in all.iter().enumerate() {
        if let Some(b) = all[i + 1..].iter().find(|b| Family::of(**b) == Family::of(*a)) {
            return Err(format!(
                "{a} and {b} are both {}: a pod has at most one address of each family",
                Family::of(*a)
            ));
        }
        if let Some(why) = crate::unusable_endpoint(*a) {
            return Err(format!("{a} is {why}: no pod can have it"));
        }
    }
    Ok(all.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Notes {
        read_notes(|k| pairs.iter().find(|(n, _)| *n == k).map(|(_, v)| *v))
    }

    #[test]
    fn both_spellings_and_both_forms() {
        let n =
            read(&[("cni.projectcalico.org/ipv4pools", r#"["a", "10.0.0.0/24"]"#), ("seaway.io/ipv6pools", "b , c")]);
        assert_eq!(n.pools(Family::V4).unwrap(), ["a".into(), "10.0.0.0/24".into()]);
        assert_eq!(n.pools(Family::V6).unwrap(), ["b".into(), "c".into()]);
        let n = read(&[("seaway.io/ip-addrs", "10.0.0.7,fd00::7"), ("cni.projectcalico.org/ipAddrs", "[]")]);
        assert_eq!(n.fixed.len(), 2, "ours counts, so theirs is not even read: {n:?}");
        assert!(n.wrong.is_empty());
        assert!(read(&[]).is_empty());
    }

    #[test]
    fn each_wrong_use_says_why() {
        for (key, value, why) in [
            ("seaway.io/ipv4pools", "[\"a\"", "is no list"),
            ("seaway.io/ipv4pools", "[]", "empty entry"),
            ("seaway.io/ipv4pools", "a,,b", "empty entry"),
            ("seaway.io/ipv4pools", "[1]", "is no list"),
            ("seaway.io/ip-addrs", "web", "\"web\" is no IP address"),
            ("seaway.io/ip-addrs", "10.0.0.1,10.0.0.2", "at most one address of each family"),
            ("seaway.io/ip-addrs", "127.0.0.1", "no pod can have it"),
        ] {
            let n = read(&[(key, value)]);
            assert!(
                n.wrong.len() == 1 && &*n.wrong[0].0 == key && n.wrong[0].1.contains(why),
                "{value}: {:?}",
                n.wrong
            );
        }
        let n = read(&[("seaway.io/ip-addrs", "10.0.0.1"), ("seaway.io/ip-addrs-no-ipam", "10.9.0.1")]);
        assert!(n.wrong[0].1.contains("excludes seaway.io/ip-addrs-no-ipam"), "{:?}", n.wrong);
    }
}
