//! Limits of pods by annotation, as Kubernetes' own (`pkg/util/bandwidth`): bits per second as a quantity.

use intent::Bandwidth;

use crate::annotations::{EGRESS_BANDWIDTH, INGRESS_BANDWIDTH};
use crate::pods::{Notes, annotation};
use crate::problem::Problem;

/// What Kubernetes takes for reasonable: 1k to 1P.
const LEAST: u64 = 1_000;
const MOST: u64 = 1_000_000_000_000_000;

/// The limits that a pod's annotations ask for.
pub(crate) fn of(notes: &Notes<'_>) -> Result<Bandwidth, Problem> {
    let rate = |key: &str| match notes.get(key) {
        None => Ok(0),
        Some(n) => bits(n.value).map_err(|e| annotation(&n.object, key, e)),
    };
    let (ingress_rate, egress_rate) = (rate(INGRESS_BANDWIDTH)?, rate(EGRESS_BANDWIDTH)?);
    // The bursts are chosen by whoever makes the buckets.
    Ok(Bandwidth { ingress_rate, egress_rate, ..Bandwidth::default() })
}

/// Reads `10M`, `1.5G`, `512Ki`, `1e6`: bits per second.
fn bits(text: &str) -> Result<u64, String> {
    let says = || format!("is {text:?}: bits per second from 1k to 1P are needed, e.g. 10M");
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let scale: f64 = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0_f64.powi(4),
        s => match s.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
            Some(Ok(n)) if (-20..=20).contains(&n) => 10_f64.powi(n),
            _ => return Err(says()),
        },
    };
    let value = number.parse::<f64>().map_err(|_| says())? * scale;
    // Exact for every rate that is taken: far below 2^53.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bits = if value.is_finite() && value <= MOST as f64 { value.round() as u64 } else { return Err(says()) };
    if bits < LEAST { Err(says()) } else { Ok(bits) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_kubernetes_writes_them() {
        for (text, want) in [
            ("10M", 10_000_000),
            ("1000", 1_000),
            ("1.5G", 1_500_000_000),
            ("512Ki", 524_288),
            ("1e6", 1_000_000),
            ("2500000m", 2_500),
            (" 1P ", MOST),
        ] {
            assert_eq!(bits(text), Ok(want), "{text}");
        }
        for text in ["", "M", "999", "2P", "-1M", "10 M", "10Mbit", "1e99", "0x10", "1.2.3M", "NaN"] {
            assert!(bits(text).is_err(), "{text}");
        }
    }
}
