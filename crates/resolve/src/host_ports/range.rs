//! The range that a node's random host ports come from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// First and last port, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl Default for PortRange {
    /// 20000-29999: below Kubernetes' node ports (30000-32767) and the ports that Linux gives to outgoing connections
    /// (32768-60999, `net.ipv4.ip_local_port_range`).
    fn default() -> Self {
        Self { first: 20_000, last: 29_999 }
    }
}

/// Ports below are for well-known services.
const LEAST: u16 = 1024;
/// Kubernetes' node ports (`--service-node-port-range`, its default).
const NODE_PORTS: PortRange = PortRange { first: 30_000, last: 32_767 };

impl PortRange {
    /// The first port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// How many ports it has, at least 1.
    #[must_use]
    pub fn size(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Whether a port lies in it.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let says =
            || format!("{s:?}: write two ports from {LEAST} to 65535, the lesser first, e.g. {}", Self::default());
        let (a, b) = s.split_once('-').ok_or_else(says)?;
        let port = |t: &str| t.trim().parse::<u16>().map_err(|_| says());
        let range = Self { first: port(a)?, last: port(b)? };
        if range.first < LEAST || range.last < range.first {
            return Err(says());
        }
        if range.first <= NODE_PORTS.last && NODE_PORTS.first <= range.last {
            return Err(format!(
                "{s:?} meets the node ports of Services, {NODE_PORTS}, which come first: write another range"
            ));
        }
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let r: PortRange = " 20000 - 20009".parse().unwrap();
        assert_eq!(
            (r.size(), r.contains(20_009), r.contains(20_010), r.to_string().as_str()),
            (10, true, false, "20000-20009")
        );
        assert_eq!("65535-65535".parse::<PortRange>().unwrap().size(), 1);
        for bad in [
            "",
            "20000",
            "20000-",
            "5-4000",
            "4000-3000",
            "20000-70000",
            "29000-30000",
            "32767-33000",
            "1024-65535",
            "-1-5",
        ] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }
}
