//! Whose an element is.

use std::fmt;

use ipam::Key;

/// An interface of a container in a network, as the comment of an nf_tables element.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(Box<str>);

/// A comment's bytes at most (nft's `NFTNL_UDATA_COMMENT_MAXLEN`, less the final NUL).
const MAX: usize = 127;

impl Owner {
    /// Of one interface of one container.
    #[must_use]
    pub fn new(network: &str, key: &Key) -> Self {
        let text = format!("{} {key}", network_part(network));
        if text.len() <= MAX {
            return Self(text.into());
        }
        // The network's part is 80 bytes at most.
        Self(format!("{} #{:016x}", network_part(network), hash(&key.to_string())).into())
    }

    /// As a comment says it. Anything is an owner: what we did not write is another's.
    #[must_use]
    pub fn of_comment(comment: &str) -> Self {
        Self(comment.into())
    }

    /// Whether it is of that network.
    #[must_use]
    pub fn is_of(&self, network: &str) -> bool {
        self.0.strip_prefix(&*network_part(network)).is_some_and(|rest| rest.starts_with(' '))
    }

    /// A number that tells it from others.
    #[must_use]
    pub fn hash(&self) -> u64 {
        hash(&self.0)
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A network's name, or what stands for one that is too long. `#` starts no network name.
fn network_part(network: &str) -> String {
    if network.len() <= 80 { network.into() } else { format!("#{:016x}", hash(network)) }
}

/// FNV-1a, 64 bit.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once(' ') {
            Some((network, key)) => write!(f, "{key} of network {network}"),
            None => f.write_str(&self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_still_fits_a_comment_and_tells_its_network() {
        let key = |c: &str| Key { container: c.into(), ifname: "eth0".parse().unwrap() };
        let short = Owner::new("net", &key("abc"));
        assert_eq!((short.as_str(), short.to_string().as_str()), ("net abc/eth0", "abc/eth0 of network net"));
        for network in ["n".repeat(80), "n".repeat(81), "n".repeat(253)] {
            let owners = [Owner::new(&network, &key(&"c".repeat(200))), Owner::new(&network, &key(&"d".repeat(200)))];
            assert_ne!(owners[0], owners[1]);
            for o in owners {
                assert!(o.as_str().len() <= MAX, "{o:?}");
                assert!(o.is_of(&network) && !o.is_of("n") && !o.is_of(&network[1..]), "{o:?}");
            }
        }
        assert!(!Owner::of_comment("by hand").is_of("b"));
    }
}
