//! Conditions under which mappings hold (`conditionsV4`, `conditionsV6`).

use kernel_api::nft::{CmpOp, Expr, MetaKey, PayloadBase, Reg, Rule};
use types::{Family, IfName};

use super::image::between;
use super::layout::{SetName, mask};
use crate::{Error, IpNet, bad};

/// In whose words a condition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// Arguments of iptables: `-s 10.0.0.0/8 ! -i eth0`.
    Iptables,
    /// A match of nft: `ip saddr 10.0.0.0/8 iifname != eth0`.
    Nft,
}

/// A condition of one family.
#[derive(Debug, Clone, PartialEq)]
pub struct When {
    number: u32,
    family: Family,
    text: String,
    exprs: Vec<Expr>,
}

impl Eq for When {}

impl PartialOrd for When {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for When {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.number, self.family, &self.text).cmp(&(other.number, other.family, &other.text))
    }
}

/// One match.
struct Match {
    field: Field,
    not: bool,
    value: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Source,
    Destination,
    In,
    Out,
}

const IPTABLES: &str = "-s, -d and -i (each also after !, and as --source, --destination, --in-interface)";
const NFT: &str = "ip saddr, ip daddr (ip6 for IPv6) and iifname, each also with !=";

impl When {
    /// Reads the words of a field; `None` when there are none.
    ///
    /// # Errors
    /// Code 7 with the field's name, the word that is not understood, and what is.
    pub fn read(field: &str, family: Family, syntax: Syntax, words: &[String]) -> Result<Option<Self>, Error> {
        let words: Vec<&str> = words.iter().flat_map(|w| w.split_ascii_whitespace()).collect();
        if words.is_empty() {
            return Ok(None);
        }
        if words.len() > 32 {
            return Err(bad(format!("{field} has {} words; at most 32 are taken", words.len())));
        }
        let matches = match syntax {
            Syntax::Iptables => iptables(field, &words)?,
            Syntax::Nft => nft(field, family, &words)?,
        };
        let mut exprs = Vec::new();
        let mut text = Vec::new();
        for m in matches {
            text.push(m.exprs(field, family, &mut exprs)?);
        }
        let text = text.join(" ");
        let seed = if family == Family::V4 { 4 } else { 6 };
        let number = text.bytes().fold(0x811c_9dc5 ^ seed, |h: u32, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Ok(Some(Self { number, family, text, exprs }))
    }

    /// The condition of a rule of ours, as it was read from the kernel.
    pub(super) fn observed(r: &Rule) -> Option<Self> {
        let (set, exprs) = between(r)?;
        let text = r.comment.as_deref()?.strip_prefix("if ")?;
        let (SetName::Bound(family, Some(number)) | SetName::Any(family, Some(number))) = set else { return None };
        Some(Self { number, family, text: text.into(), exprs: exprs.to_vec() })
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// What it is known by: the same words, the same number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn exprs(&self) -> &[Expr] {
        &self.exprs
    }

    /// The comment of its rules.
    pub(super) fn comment(&self) -> String {
        let text = format!("if {}", self.text);
        let end = (0..=127.min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
        text.get(..end).unwrap_or_default().to_owned()
    }
}

fn iptables(field: &str, words: &[&str]) -> Result<Vec<Match>, Error> {
    let mut out = Vec::new();
    let mut words = words.iter();
    while let Some(&w) = words.next() {
        let (not, w) = if w == "!" { (true, words.next().copied().unwrap_or("!")) } else { (false, w) };
        let which = match w {
            "-s" | "--source" | "--src" => Field::Source,
            "-d" | "--destination" | "--dst" => Field::Destination,
            "-i" | "--in-interface" => Field::In,
            "-o" | "--out-interface" => Field::Out,
            _ => {
                return Err(bad(format!("{field} has {w:?}, which is not understood here; understood are {IPTABLES}")));
            }
        };
        let value = words.next().ok_or_else(|| bad(format!("{field}: a value is missing after {w}")))?;
        out.push(Match { field: which, not, value: (*value).into() });
    }
    Ok(out)
}

fn nft(field: &str, family: Family, words: &[&str]) -> Result<Vec<Match>, Error> {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let mut out = Vec::new();
    let mut words = words.iter().copied().peekable();
    while let Some(w) = words.next() {
        let which = match (w, words.peek().copied()) {
            (w, Some("saddr")) if w == ip => {
                words.next();
                Field::Source
            }
            (w, Some("daddr")) if w == ip => {
                words.next();
                Field::Destination
            }
            ("meta", Some("iifname")) => {
                words.next();
                Field::In
            }
            ("iifname", _) => Field::In,
            ("oifname", _) => Field::Out,
            _ => return Err(bad(format!("{field} has {w:?}, which is not understood here; understood are {NFT}"))),
        };
        let not = words.next_if(|w| matches!(*w, "!=" | "==")).is_some_and(|w| w == "!=");
        let value = words.next().ok_or_else(|| bad(format!("{field}: a value is missing after {w}")))?;
        if value.starts_with(['{', '@']) {
            return Err(bad(format!("{field} has {value:?}: sets are not understood here; understood are {NFT}")));
        }
        out.push(Match { field: which, not, value: value.trim_matches('"').into() });
    }
    Ok(out)
}

impl Match {
    /// Its expressions, and its words in nft's form.
    fn exprs(&self, field: &str, family: Family, out: &mut Vec<Expr>) -> Result<String, Error> {
        let op = if self.not { CmpOp::Neq } else { CmpOp::Eq };
        let not = if self.not { "!= " } else { "" };
        let v4 = family == Family::V4;
        let address = |offset4: u32, offset6: u32, what: &str, out: &mut Vec<Expr>| -> Result<String, Error> {
            let whole =
                if self.value.contains('/') { self.value.clone() } else { format!("{}/{}", self.value, family.bits()) };
            let net: IpNet = whole.parse().map_err(|_| {
                bad(format!(
                    "{field} has {:?}: an address or prefix is needed; sets and ranges are not understood here",
                    self.value
                ))
            })?;
            let net = net.network();
            if net.family() != family {
                return Err(bad(format!("{field} has {net}, which is of the other family")));
            }
            let (offset, len) = if v4 { (offset4, 4) } else { (offset6, 16) };
            out.push(Expr::Payload { base: PayloadBase::Network, offset, len, dreg: Reg(0) });
            let bits = mask(family, net.len());
            if net.len() < family.bits() {
                out.push(Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), xor: vec![0; bits.len()], mask: bits });
            }
            let bytes = match net.addr() {
                std::net::IpAddr::V4(a) => a.octets().to_vec(),
                std::net::IpAddr::V6(a) => a.octets().to_vec(),
            };
            out.push(Expr::Cmp { sreg: Reg(0), op, data: bytes });
            Ok(format!("{} {what} {not}{net}", if v4 { "ip" } else { "ip6" }))
        };
        match self.field {
            Field::Source => address(12, 8, "saddr", out),
            Field::Destination => address(16, 24, "daddr", out),
            Field::In => {
                let name: IfName = self.value.parse().map_err(|e| bad(format!("{field}: {e}")))?;
                if name.as_str().ends_with(['+', '*']) {
                    return Err(bad(format!("{field} has {name}: a whole interface name is needed here")));
                }
                let mut data = name.as_str().as_bytes().to_vec();
                data.resize(16, 0);
                out.push(Expr::Meta { key: MetaKey::IifName, dreg: Reg(0) });
                out.push(Expr::Cmp { sreg: Reg(0), op, data });
                Ok(format!("iifname {not}{name}"))
            }
            Field::Out => Err(bad(format!(
                "{field} asks for the interface a packet leaves by, which is not known yet where ports are mapped"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(family: Family, syntax: Syntax, words: &str) -> Result<When, String> {
        let words: Vec<String> = words.split(',').map(str::to_owned).collect();
        When::read("conditionsV4", family, syntax, &words).map(Option::unwrap).map_err(|e| e.msg)
    }

    #[test]
    fn both_languages_say_the_same() {
        for (iptables, nft, family) in [
            ("-s,10.0.0.0/8", "ip saddr 10.0.0.0/8", Family::V4),
            ("!,-s,10.1.0.0/16,-i,eth0", "ip,saddr,!=,10.1.0.0/16,iifname,\"eth0\"", Family::V4),
            ("! -d 192.0.2.1", "ip daddr != 192.0.2.1", Family::V4),
            ("-d 2001:db8::/32 ! -i lo", "ip6 daddr 2001:db8::/32 meta iifname != lo", Family::V6),
        ] {
            let a = read(family, Syntax::Iptables, iptables).unwrap();
            assert_eq!(a, read(family, Syntax::Nft, nft).unwrap(), "{iptables}");
        }
        assert_eq!(When::read("f", Family::V4, Syntax::Nft, &[]).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_said_is_refused_by_name() {
        for (syntax, words, says) in [
            (Syntax::Iptables, "-m,set,--match-set,x,src", "conditionsV4 has \"-m\", which is not understood here"),
            (Syntax::Iptables, "-s", "a value is missing after -s"),
            (Syntax::Iptables, "-s,2001:db8::/32", "other family"),
            (Syntax::Iptables, "-o,eth0", "leaves by"),
            (Syntax::Iptables, "-i,eth+", "whole interface name"),
            (Syntax::Nft, "ip saddr { 10.0.0.1 }", "\"{\": sets are not understood"),
            (Syntax::Nft, "tcp dport 80", "\"tcp\", which is not understood"),
            (Syntax::Nft, "ip6 saddr ::1", "\"ip6\", which is not understood"),
        ] {
            let e = read(Family::V4, syntax, words).unwrap_err();
            assert!(e.contains(says), "{words}: {e}");
        }
    }
}
