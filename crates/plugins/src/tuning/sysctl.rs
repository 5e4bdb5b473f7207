//! Which sysctls may be set, and where they are.

use std::io;
use std::path::Path;

use cni::{Code, Error, bad};
use ipam::IfThere;
use types::IfName;

/// The list of what may be set, a regular expression a line; without the file everything of the network may.
pub(super) const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";
/// No list is longer.
const LIST_MAX: u64 = 1 << 20;

/// The lines of the list, if there is one.
pub(super) fn allowlist(path: &Path) -> Result<Option<Vec<String>>, Error> {
    let says = |e: io::Error| Error::new(Code::Io, format!("read {}: {e}", path.display()));
    let Some(m) = std::fs::metadata(path).if_there().map_err(says)? else { return Ok(None) };
    if m.len() > LIST_MAX {
        return Err(Error::new(Code::Io, format!("{} is larger than {LIST_MAX} bytes", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(says)?;
    Ok(Some(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()))
}

/// Whether the list has a sysctl, as it is written in the configuration.
pub(super) fn allowed(list: &[String], key: &str) -> Result<(), Error> {
    for line in list {
        let r = regex_lite::Regex::new(line).map_err(|e| bad(format!("{ALLOWLIST}: {line:?}: {e}")))?;
        if r.is_match(key) {
            return Ok(());
        }
    }
    Err(bad(format!("sysctl {key} is not allowed by {ALLOWLIST}: add a line for it there, or leave it out")))
}

/// The path below /proc/sys. `IFNAME` stands for the interface.
pub(super) fn path(key: &str, ifname: &IfName) -> Result<String, Error> {
    let path = key.replace('.', "/").replacen("IFNAME", ifname.as_str(), 1);
    let sound = path.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
    // Of a key with slashes already, dots may be those of an interface's name.
    let path = if key.contains('/') { key.replacen("IFNAME", ifname.as_str(), 1) } else { path };
    let safe = !path.split('/').any(|p| p.is_empty() || p == "." || p == "..");
    if path.starts_with("net/") && sound && safe {
        return Ok(path);
    }
    Err(bad(format!("sysctl {key} is not of the network: only net.* belongs to the container")))
}

/// Whether a value is what was written; the kernel separates several by tabs.
pub(super) fn same(want: &str, have: &str) -> bool {
    want.split_ascii_whitespace().eq(have.split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_network_is_reached() {
        let eth: IfName = "eth0.5".parse().unwrap();
        for (key, want) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.IFNAME.rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
            ("net/ipv4/conf/eth0.7/rp_filter", "net/ipv4/conf/eth0.7/rp_filter"),
        ] {
            assert_eq!(path(key, &eth).unwrap(), want);
        }
        for key in ["kernel.hostname", "net", "net.", "net.ipv4/../../kernel/hostname", "net/../kernel/x", "/net/a", ""]
        {
            assert!(path(key, &eth).is_err(), "{key}");
        }
        assert!(same("4096 87380 6291456", "4096\t87380\t6291456") && !same("1", "0"));
    }

    #[test]
    fn the_list_is_of_regular_expressions() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("allowlist.conf");
        assert_eq!(allowlist(&file).unwrap(), None);
        std::fs::write(&file, "\n ^net.ipv4.conf.[a-z0-9]*.arp_accept$ \nnet.core.somaxconn\n").unwrap();
        let list = allowlist(&file).unwrap().unwrap();
        allowed(&list, "net.ipv4.conf.IFNAME.arp_accept").unwrap_err();
        allowed(&list, "net.ipv4.conf.eth0.arp_accept").unwrap();
        allowed(&list, "net.core.somaxconn").unwrap();
        let e = allowed(&list, "net.ipv4.ip_forward").unwrap_err();
        assert!(e.msg.contains("sysctl net.ipv4.ip_forward is not allowed"), "{e}");
        assert!(allowed(&["(".into()], "net.x").unwrap_err().msg.contains("\"(\""));
    }
}
