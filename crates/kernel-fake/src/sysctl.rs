//! A fake /proc/sys of one network namespace: the knobs that exist come and go with the links.

use std::collections::BTreeMap;

use kernel_api::{RequestError, errno};
use types::IfName;

/// Knobs that every link has, with the value a new link takes (net/ipv4/devinet.c, net/ipv6/addrconf.c).
const PER_LINK: [(&str, &str, &str); 7] = [
    ("net/ipv4/conf", "rp_filter", "0"),
    ("net/ipv4/conf", "forwarding", "0"),
    ("net/ipv4/conf", "proxy_arp", "0"),
    ("net/ipv6/conf", "forwarding", "0"),
    ("net/ipv6/conf", "accept_ra", "1"),
    ("net/ipv6/conf", "proxy_ndp", "0"),
    ("net/ipv6/conf", "disable_ipv6", "0"),
];

/// The knobs and their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeSysctls {
    values: BTreeMap<String, String>,
}

impl Default for FakeSysctls {
    fn default() -> Self {
        let mut this = Self { values: BTreeMap::new() };
        this.values.insert("net/ipv4/ip_forward".into(), "0".into());
        // Connection tracking is there (nf_conntrack_proto_tcp.c).
        this.values.insert("net/netfilter/nf_conntrack_tcp_be_liberal".into(), "0".into());
        this.values.insert("net/netfilter/nf_conntrack_tcp_timeout_close_wait".into(), "60".into());
        this.link_added("all");
        this.link_added("default");
        this
    }
}

impl FakeSysctls {
    /// A link came: its knobs take the values of `default`.
    pub(crate) fn link_added(&mut self, link: &str) {
        for (dir, knob, fallback) in PER_LINK {
            let value = self.values.get(&format!("{dir}/default/{knob}")).map_or(fallback, String::as_str).to_owned();
            self.values.insert(format!("{dir}/{link}/{knob}"), value);
        }
    }

    /// A link went.
    pub(crate) fn link_gone(&mut self, link: &IfName) {
        for (dir, knob, _) in PER_LINK {
            self.values.remove(&format!("{dir}/{link}/{knob}"));
        }
    }

    /// Reads a knob.
    #[must_use]
    pub fn value(&self, path: &str) -> Option<&str> {
        self.values.get(path).map(String::as_str)
    }

    /// Every knob and its value.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// Writes a knob as the kernel would.
    ///
    /// # Errors
    /// ENOENT for an unknown knob, EINVAL for a value that is no number.
    pub fn write(&mut self, path: &str, value: &str) -> Result<(), RequestError> {
        let err = |no| RequestError::new(format!("sysctl -w {path}={value}"), no);
        if !self.values.contains_key(path) {
            return Err(err(errno::ENOENT));
        }
        if value.trim().parse::<i32>().is_err() {
            return Err(err(errno::EINVAL));
        }
        self.values.insert(path.into(), value.trim().into());
        // `all` and the global switch write through (inet_forward_change, addrconf_fixup_forwarding).
        let family = match path {
            "net/ipv4/ip_forward" | "net/ipv4/conf/all/forwarding" => Some("net/ipv4/conf"),
            "net/ipv6/conf/all/forwarding" => Some("net/ipv6/conf"),
            _ => None,
        };
        if let Some(dir) = family {
            for (k, v) in &mut self.values {
                if (k.starts_with(dir) && k.ends_with("/forwarding"))
                    || (dir.contains("ipv4") && k == "net/ipv4/ip_forward")
                {
                    *v = value.trim().into();
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_follow_links_and_defaults() {
        let mut s = FakeSysctls::default();
        s.write("net/ipv4/conf/default/rp_filter", "1").unwrap();
        s.link_added("eth0");
        assert_eq!(s.value("net/ipv4/conf/eth0/rp_filter"), Some("1"));
        s.write("net/ipv4/ip_forward", "1").unwrap();
        assert_eq!(s.value("net/ipv4/conf/eth0/forwarding"), Some("1"));
        assert_eq!(s.value("net/ipv6/conf/eth0/forwarding"), Some("0"));
        s.link_gone(&"eth0".parse().unwrap());
        assert_eq!(s.value("net/ipv4/conf/eth0/rp_filter"), None);
        assert_eq!(s.write("net/ipv4/conf/eth0/rp_filter", "1").unwrap_err().errno, errno::ENOENT);
        assert_eq!(s.write("net/ipv4/ip_forward", "yes").unwrap_err().errno, errno::EINVAL);
    }
}
