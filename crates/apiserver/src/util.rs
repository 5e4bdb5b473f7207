//! Small helpers: paths into JSON values, times, random text.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// The text at a path, e.g. `str_at(v, &["metadata", "name"])`; empty when absent or no text.
pub(crate) fn str_at<'a>(v: &'a Value, path: &[&str]) -> &'a str {
    at(v, path).and_then(Value::as_str).unwrap_or("")
}

/// The value at a path.
pub(crate) fn at<'a>(v: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(v, |v, k| v.get(k))
}

/// The list at a path; empty when absent.
pub(crate) fn list_at<'a>(v: &'a Value, path: &[&str]) -> &'a [Value] {
    at(v, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(crate) fn int_at(v: &Value, path: &[&str]) -> Option<i64> {
    at(v, path).and_then(Value::as_i64)
}

pub(crate) fn bool_at(v: &Value, path: &[&str]) -> bool {
    at(v, path).and_then(Value::as_bool).unwrap_or(false)
}

/// The object at a key, made when missing or of another type.
pub(crate) fn obj<'a>(v: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !v.is_object() {
        *v = Value::Object(Map::new());
    }
    let slot = &mut v[key];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(m) => m,
        // Made an object just above.
        _ => unreachable!(),
    }
}

/// Sets a key that is absent.
pub(crate) fn default(m: &mut Map<String, Value>, key: &str, v: impl Into<Value>) {
    if !m.contains_key(key) {
        m.insert(key.to_owned(), v.into());
    }
}

/// Drops a key of an object.
pub(crate) fn remove(v: &mut Value, key: &str) -> Option<Value> {
    v.as_object_mut().and_then(|m| m.remove(key))
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Seconds since 1970 as RFC 3339 in UTC, e.g. `2026-11-21T03:00:00Z`.
pub(crate) fn rfc3339(secs: u64) -> String {
    let (days, rest) = (secs / 86400, secs % 86400);
    // Days to civil date: 400-year eras that begin on 1 March, so that the leap day is last.
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let d = doy - (153 * mp + 2) / 5 + 1;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    let y = yoe + era * 400 + u64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Seconds since 1970 of an RFC 3339 time; fractions are cut. `None` when it is none or before 1970.
pub(crate) fn parse_rfc3339(s: &str) -> Option<u64> {
    let b = s.as_bytes();
    if b.len() < 20
        || !s.is_ascii()
        || b[4] != b'-'
        || b[7] != b'-'
        || !matches!(b[10], b'T' | b't')
        || b[13] != b':'
        || b[16] != b':'
    {
        return None;
    }
    let n = |r: std::ops::Range<usize>| -> Option<i64> {
        let t = &s[r];
        t.bytes().all(|c| c.is_ascii_digit()).then(|| t.parse().ok()).flatten()
    };
    let (y, m, d) = (n(0..4)?, n(5..7)?, n(8..10)?);
    let (hh, mm, ss) = (n(11..13)?, n(14..16)?, n(17..19)?);
    let month_days = [
        31,
        if y % 4 == 0 && (y % 100 != 0 || y % 400 == 0) { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let last = *month_days.get(usize::try_from(m - 1).ok()?)?;
    if !(1..=last).contains(&d) || hh > 23 || mm > 59 || ss > 60 {
        return None;
    }
    let mut rest = &s[19..];
    if let Some(f) = rest.strip_prefix('.') {
        let digits = f.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        rest = &f[digits..];
    }
    let offset = match rest.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (h, m) = (rest[1..3].parse::<i64>().ok()?, rest[4..6].parse::<i64>().ok()?);
            (h * 3600 + m * 60) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    let (y2, m2) = if m <= 2 { (y - 1, m + 9) } else { (y, m - 3) };
    let era = y2.div_euclid(400);
    let yoe = y2 - era * 400;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + (153 * m2 + 2) / 5 + d - 1;
    let days = era * 146_097 + doe - 719_468;
    u64::try_from(days * 86400 + hh * 3600 + mm * 60 + ss - offset).ok()
}

pub(crate) fn is_rfc3339(s: &str) -> bool {
    parse_rfc3339(s).is_some()
}

/// A Kubernetes quantity: sign, decimal number, and a suffix (`m`, `Ki`, `M`, `e3`...).
pub(crate) fn is_quantity(s: &str) -> bool {
    let s = s.strip_prefix(['+', '-']).unwrap_or(s);
    let digits = s.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (num, suffix) = s.split_at(digits);
    let ok = num.bytes().any(|b| b.is_ascii_digit()) && num.bytes().filter(|b| *b == b'.').count() <= 1;
    let exp = suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i32>().is_ok());
    ok && (exp
        || matches!(
            suffix,
            "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei"
        ))
}

/// Fills a buffer with random bytes of the system.
fn random(buf: &mut [u8]) {
    if rustls::crypto::ring::default_provider().secure_random.fill(buf).is_err() {
        // Uniqueness is checked at every use, so the clock is good enough when the system has no entropy.
        let mut x = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64) | 1;
        for b in buf {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *b = x as u8;
        }
    }
}

pub(crate) fn random_u64() -> u64 {
    let mut b = [0; 8];
    random(&mut b);
    u64::from_le_bytes(b)
}

/// A version 4 UUID (RFC 9562 section 5.4).
pub(crate) fn uid() -> String {
    let mut b = [0u8; 16];
    random(&mut b);
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let x = u128::from_be_bytes(b);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        x >> 96,
        x >> 80 & 0xffff,
        x >> 64 & 0xffff,
        x >> 48 & 0xffff,
        x & 0xffff_ffff_ffff
    )
}

/// Five characters for a generated name, without vowels and look-alikes.
pub(crate) fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut b = [0u8; 5];
    random(&mut b);
    b.iter().map(|x| char::from(ALPHABET[usize::from(*x) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_794_898_800), "2026-11-17T07:00:00Z");
        assert_eq!(parse_rfc3339("2026-11-17T09:00:00.123456+02:00"), Some(1_794_898_800));
        for bad in ["", "2026-02-30T00:00:00Z", "2026-11-17 07:00:00Z", "2026-11-17T07:00:00", "2026-11-17T25:00:00Z"] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }

    #[test]
    fn quantities() {
        for good in ["1", "1.5", "100m", "1Gi", "1e3", "-1", ".5"] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "Gi", "1 Gi", "1.1.1", "1Kib", "1e"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn times_round_trip(s in 0u64..20_000_000_000) { prop_assert_eq!(parse_rfc3339(&rfc3339(s)), Some(s)); }
        #[test]
        fn any_text_is_survived(s in "\\PC{0,40}") { let _ = (is_rfc3339(&s), is_quantity(&s)); }
    }
}
