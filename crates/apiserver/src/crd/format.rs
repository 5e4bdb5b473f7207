//! The values of `format` that are checked (kube-openapi `strfmt`). Others are taken and ignored, with a warning.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;
use types::Cidr;

/// A format of text, or the width of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Ipv4,
    Ipv6,
    Cidr,
    Mac,
    /// Any version, or the one named.
    Uuid(Option<u8>),
    Uri,
    Email,
    Hostname,
    Date,
    DateTime,
    Duration,
    Byte,
    HexColor,
    RgbColor,
    BsonObjectId,
    /// Taken as it is: a hint for people.
    Password,
    Int32,
    Int64,
    Float,
    Double,
}

const NAMES: [(&str, Format); 24] = [
    ("ipv4", Format::Ipv4),
    ("ipv6", Format::Ipv6),
    ("cidr", Format::Cidr),
    ("mac", Format::Mac),
    ("uuid", Format::Uuid(None)),
    ("uuid3", Format::Uuid(Some(3))),
    ("uuid4", Format::Uuid(Some(4))),
    ("uuid5", Format::Uuid(Some(5))),
    ("uri", Format::Uri),
    ("email", Format::Email),
    ("hostname", Format::Hostname),
    ("date", Format::Date),
    ("date-time", Format::DateTime),
    ("datetime", Format::DateTime),
    ("duration", Format::Duration),
    ("byte", Format::Byte),
    ("hexcolor", Format::HexColor),
    ("rgbcolor", Format::RgbColor),
    ("bsonobjectid", Format::BsonObjectId),
    ("password", Format::Password),
    ("int32", Format::Int32),
    ("int64", Format::Int64),
    ("float", Format::Float),
    ("double", Format::Double),
];

fn hex(s: &str) -> bool {
    s.bytes().all(|b| b.is_ascii_hexdigit())
}

/// `net.ParseMAC`: 6, 8 or 20 bytes, divided by `:` or `-`, or in groups of two bytes by `.`.
fn mac(s: &str) -> bool {
    let groups = |sep: char, width: usize, counts: [usize; 3]| {
        let parts: Vec<&str> = s.split(sep).collect();
        counts.contains(&parts.len()) && parts.iter().all(|p| p.len() == width && hex(p))
    };
    groups(':', 2, [6, 8, 20]) || groups('-', 2, [6, 8, 20]) || groups('.', 4, [3, 4, 10])
}

fn uuid(s: &str, version: Option<u8>) -> bool {
    let bare: String = s.chars().filter(|c| *c != '-').collect();
    // A dash may be missing, but not stand elsewhere.
    let places = s.char_indices().filter(|(_, c)| *c == '-').enumerate().all(|(n, (i, _))| {
        let digits = i - n;
        [8, 12, 16, 20].contains(&digits)
    });
    let doubled = s.contains("--");
    let digit = |i: usize| bare.as_bytes().get(i).copied().unwrap_or(0);
    bare.len() == 32
        && hex(&bare)
        && places
        && !doubled
        && version.is_none_or(|v| {
            digit(12) == b'0' + v && (v == 3 || matches!(digit(16).to_ascii_lowercase(), b'8' | b'9' | b'a' | b'b'))
        })
}

fn hostname(s: &str) -> bool {
    let part = |p: &str| {
        p.len() <= 63
            && p.starts_with(char::is_alphanumeric)
            && p.ends_with(char::is_alphanumeric)
            && p.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    let parts: Vec<&str> = s.split('.').collect();
    let top = parts.last().is_some_and(|t| parts.len() == 1 || t.len() >= 2 && t.chars().all(char::is_alphabetic));
    s.len() <= 255 && top && parts.iter().all(|p| part(p))
}

/// Days of a month of the Gregorian calendar.
fn date(s: &str) -> bool {
    let b = s.as_bytes();
    if b.len() != 10 || b[4] != b'-' || b[7] != b'-' {
        return false;
    }
    let number = |r: std::ops::Range<usize>| s.get(r).filter(|t| t.bytes().all(|c| c.is_ascii_digit()))?.parse().ok();
    let (Some(y), Some(m), Some(d)): (Option<u32>, Option<u32>, Option<u32>) =
        (number(0..4), number(5..7), number(8..10))
    else {
        return false;
    };
    let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let last = match m {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=last).contains(&d)
}

fn date_time(s: &str) -> bool {
    let Some((day, time)) = s.split_once(['T', 't']) else { return false };
    let two = |r: std::ops::Range<usize>, max: &str| {
        time.get(r).is_some_and(|t| t.bytes().all(|c| c.is_ascii_digit()) && t <= max)
    };
    let b = time.as_bytes();
    if !date(day) || b.len() < 9 || b[2] != b':' || b[5] != b':' {
        return false;
    }
    let Some(rest) = time.get(8..) else { return false };
    let digits = rest.strip_prefix('.').map_or(0, |f| 1 + f.bytes().take_while(u8::is_ascii_digit).count());
    let zone = rest.get(digits..).unwrap_or("");
    let offset = |z: &str| {
        let z = z.as_bytes();
        z.len() == 6
            && matches!(z[0], b'+' | b'-')
            && z[3] == b':'
            && [1, 2, 4, 5].iter().all(|i| z[*i].is_ascii_digit())
    };
    two(0..2, "23") && two(3..5, "59") && two(6..8, "59") && digits != 1 && (matches!(zone, "z" | "Z") || offset(zone))
}

/// Go's durations (`1h30m`), and whole numbers with a unit in words (`3 days`).
fn duration(s: &str) -> bool {
    let t = s.strip_prefix(['+', '-']).unwrap_or(s);
    if t == "0" {
        return true;
    }
    let mut rest = t;
    let mut any = false;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        if number.parse::<f64>().is_err() {
            return false;
        }
        let tail = tail.trim_start();
        let letters = tail.find(|c: char| !c.is_alphabetic()).unwrap_or(tail.len());
        let (unit, after) = tail.split_at(letters);
        let words = ["nano", "micro", "milli", "sec", "min", "hour", "day", "week"];
        let short = ["ns", "us", "µs", "μs", "ms", "s", "m", "h", "d", "w", "hr"];
        let lower = unit.to_lowercase();
        if !short.contains(&lower.as_str()) && !words.iter().any(|w| lower.starts_with(w)) {
            return false;
        }
        any = true;
        rest = after.trim_start();
    }
    any
}

fn email(s: &str) -> bool {
    // `Name <a@b>` too, as net/mail reads it.
    let addr = s.trim().strip_suffix('>').and_then(|t| t.rsplit_once('<')).map_or(s.trim(), |(_, a)| a);
    addr.rsplit_once('@').is_some_and(|(local, domain)| {
        let plain = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
        let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
        let dots = |t: &str| !t.is_empty() && !t.starts_with('.') && !t.ends_with('.') && !t.contains("..");
        (quoted || dots(local) && local.chars().all(plain)) && dots(domain) && domain.chars().all(plain)
    })
}

/// `url.ParseRequestURI`: absolute, or a path from the root.
fn uri(s: &str) -> bool {
    let clean = !s.is_empty() && !s.chars().any(|c| c.is_control() || c == ' ');
    let scheme = s.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    });
    clean && (s.starts_with('/') || scheme)
}

impl Format {
    /// The format of a name; `None` for one that is not checked.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
    }

    /// The name in messages.
    pub(crate) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, f)| *f == self).map_or("", |(n, _)| n)
    }

    /// Whether it is one of text.
    pub(crate) fn is_text(self) -> bool {
        !matches!(self, Self::Int32 | Self::Int64 | Self::Float | Self::Double)
    }

    /// Whether a text has it. Formats of numbers say yes.
    pub(crate) fn takes(self, s: &str) -> bool {
        match self {
            Self::Ipv4 => s.parse::<Ipv4Addr>().is_ok(),
            Self::Ipv6 => s.parse::<Ipv6Addr>().is_ok(),
            Self::Cidr => s.split_once('/').is_some_and(|(a, l)| {
                // Host bits may be set, as net.ParseCIDR has it; a Cidr of ours refuses them.
                let length = l.parse::<u8>().ok().filter(|_| l.bytes().all(|b| b.is_ascii_digit()));
                let max = if a.contains(':') { 128 } else { 32 };
                a.parse::<std::net::IpAddr>().is_ok() && length.is_some_and(|n| n <= max) || s.parse::<Cidr>().is_ok()
            }),
            Self::Mac => mac(s),
            Self::Uuid(v) => uuid(s, v),
            Self::Uri => uri(s),
            Self::Email => email(s),
            Self::Hostname => hostname(s),
            Self::Date => date(s),
            Self::DateTime => date_time(s),
            Self::Duration => duration(s),
            Self::Byte => !s.is_empty() && base64::engine::general_purpose::STANDARD.decode(s).is_ok(),
            Self::HexColor => {
                let h = s.strip_prefix('#').unwrap_or(s);
                matches!(h.len(), 3 | 6) && hex(h)
            }
            Self::RgbColor => s.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')')).is_some_and(|t| {
                let parts: Vec<&str> = t.split(',').map(str::trim).collect();
                parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok())
            }),
            Self::BsonObjectId => s.len() == 24 && hex(s),
            Self::Password | Self::Int32 | Self::Int64 | Self::Float | Self::Double => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn formats() {
        for (name, yes, no) in [
            ("ipv4", vec!["10.0.0.1"], vec!["10.0.0.256", "::1", "", "10.0.0.01"]),
            ("ipv6", vec!["::1", "fd00::ffff:1.2.3.4"], vec!["10.0.0.1", "fd00:::"]),
            (
                "cidr",
                vec!["10.0.0.0/8", "10.0.0.1/8", "fd00::/64"],
                vec!["10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/8", "10.0.0.0/+8"],
            ),
            (
                "mac",
                vec!["02:00:00:00:00:01", "02-00-00-00-00-01", "0200.0000.0001"],
                vec!["02:00:00:00:00", "zz:00:00:00:00:01"],
            ),
            (
                "uuid",
                vec!["123e4567-e89b-12d3-a456-426614174000"],
                vec!["123e4567", "123e4567-e89b-12d3-a456-42661417400g"],
            ),
            ("uuid4", vec!["123e4567-e89b-42d3-a456-426614174000"], vec!["123e4567-e89b-12d3-a456-426614174000"]),
            ("uri", vec!["https://a/b", "/a"], vec!["a b", ""]),
            ("email", vec!["a@b.c", "A B <a@b.c>"], vec!["a", "@b", "a@"]),
            ("hostname", vec!["a", "a-b.example.com", "1.example.com"], vec!["-a", "a.b1", "a_b", ""]),
            ("date", vec!["2024-02-29"], vec!["2023-02-29", "2024-13-01", "24-01-01"]),
            (
                "date-time",
                vec!["2024-02-29T23:59:59Z", "2024-02-29t00:00:00.5+01:00"],
                vec!["2024-02-29", "2024-02-29T24:00:00Z", "2024-02-29T00:00:00"],
            ),
            ("duration", vec!["1h30m", "5 days", "0", "1.5s"], vec!["", "h", "5 parsecs", "5"]),
            ("byte", vec!["YQ=="], vec!["a", "YQ"]),
            ("hexcolor", vec!["#fff", "a0b1c2"], vec!["#ffff", "#xyz"]),
            ("rgbcolor", vec!["rgb(1, 2,255)"], vec!["rgb(1,2,256)", "rgb(1,2)"]),
        ] {
            let f = Format::parse(name).unwrap();
            assert_eq!(f.name(), name);
            for y in yes {
                assert!(f.takes(y), "{name} takes {y:?}");
            }
            for n in no {
                assert!(!f.takes(n), "{name} refuses {n:?}");
            }
        }
        assert_eq!(Format::parse("isbn"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(s in "\\PC{0,40}") { for (_, f) in NAMES { let _ = f.takes(&s); } }
    }
}
