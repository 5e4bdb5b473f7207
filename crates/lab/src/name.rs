//! A lab's name and the places that belong to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::LabError;

/// Where every lab has its directory. On a tmpfs: a reboot leaves nothing, as it leaves no namespace.
pub const LABS_DIR: &str = "/run/seaway/labs";

/// Where named network namespaces are, as iproute2 has it, so that `ip netns` shows a lab's.
pub const NETNS_DIR: &str = "/run/netns";

/// The environment variable that every process of a lab carries; its value is the lab's name.
pub const LAB_MARKER: &str = "SEAWAY_LAB";

/// The environment variable that every process of a pod carries; its value is the pod's UID.
pub const POD_MARKER: &str = "SEAWAY_POD";

/// A lab's name: a lower-case letter, then lower-case letters and digits, at most 20 in all.
///
/// No dash, so that `NAME-node1` cannot belong to two labs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace of a node.
    #[must_use]
    pub fn node_netns(&self, node: &str) -> String {
        format!("{}-{node}", self.0)
    }

    /// The namespace of the switches and the router.
    #[must_use]
    pub fn switch_netns(&self) -> String {
        format!("{}-switch", self.0)
    }

    /// The namespace of the host beyond the cluster.
    #[must_use]
    pub fn outside_netns(&self) -> String {
        format!("{}-outside", self.0)
    }

    /// The namespace of a pod. A name longer than a file name may be is cut and gets a part of the UID instead.
    #[must_use]
    pub fn pod_netns(&self, namespace: &str, pod: &str, uid: &str) -> String {
        let full = format!("{}-pod-{namespace}-{pod}", self.0);
        if full.len() <= 200 { full } else { format!("{}-{}", &full[..180], &uid[..uid.len().min(13)]) }
    }

    /// Whether a namespace of this name is one that this lab makes.
    #[must_use]
    pub fn owns_netns(&self, netns: &str) -> bool {
        let Some(rest) = netns.strip_prefix(self.as_str()).and_then(|r| r.strip_prefix('-')) else { return false };
        rest == "switch"
            || rest == "outside"
            || rest.starts_with("pod-")
            || rest.strip_prefix("node").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    }

    /// The lab's directory and what is in it.
    #[must_use]
    pub fn dir(&self) -> LabDir {
        LabDir { root: Path::new(LABS_DIR).join(&self.0) }
    }
}

impl FromStr for LabName {
    type Err = LabError;
    fn from_str(s: &str) -> Result<Self, LabError> {
        let ok = s.len() <= 20
            && s.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if ok {
            Ok(Self(s.into()))
        } else {
            Err(LabError::new(format!(
                "lab name {s:?}: must begin with a lower-case letter and hold only lower-case letters and digits, at \
                 most 20: use for example --name demo2"
            )))
        }
    }
}

impl TryFrom<String> for LabName {
    type Error = LabError;
    fn try_from(s: String) -> Result<Self, LabError> {
        s.parse()
    }
}

impl From<LabName> for String {
    fn from(n: LabName) -> Self {
        n.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The paths of one lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabDir {
    root: PathBuf,
}

impl LabDir {
    /// The directory itself (mode 0700).
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// What the lab is: [`crate::record::Lab`] as JSON.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.root.join("lab.json")
    }
    /// The API server's unix socket.
    #[must_use]
    pub fn api_sock(&self) -> PathBuf {
        self.root.join("api.sock")
    }
    /// The API server's store.
    #[must_use]
    pub fn api_store(&self) -> PathBuf {
        self.root.join("api.redb")
    }
    /// The kubeconfig for `kubectl`.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }
    /// Process ids, one file per process.
    #[must_use]
    pub fn pids(&self) -> PathBuf {
        self.root.join("pids")
    }
    /// Logs of the lab's own processes.
    #[must_use]
    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("logs").join(format!("{process}.log"))
    }
    /// The paths of a node.
    #[must_use]
    pub fn node(&self, node: &str) -> NodeDir {
        NodeDir { root: self.root.join(node) }
    }
}

/// The paths of one node of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDir {
    root: PathBuf,
}

impl NodeDir {
    /// At a given place.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }
    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The CNI configuration, as /etc/cni/net.d.
    #[must_use]
    pub fn cni(&self) -> PathBuf {
        self.root.join("cni")
    }
    /// The address journal.
    #[must_use]
    pub fn ipam(&self) -> PathBuf {
        self.root.join("ipam")
    }
    /// Where the pod runner serves logs, commands and ports of its pods.
    #[must_use]
    pub fn kubelet_sock(&self) -> PathBuf {
        self.root.join("kubelet.sock")
    }
    /// One directory per pod, by UID.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_namespaces() {
        for bad in ["", "1a", "a-b", "A", "a_b", "a/b", "abcdefghijklmnopqrstu"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad:?}");
        }
        let n: LabName = "lab".parse().unwrap();
        assert_eq!(n.pod_netns("shop", "web-1", "u"), "lab-pod-shop-web-1");
        assert!(n.pod_netns(&"n".repeat(63), &"p".repeat(253), "0123456789abcdef").len() < 255);
        for ours in ["lab-node1", "lab-node12", "lab-switch", "lab-outside", "lab-pod-a-b"] {
            assert!(n.owns_netns(ours), "{ours}");
        }
        for foreign in ["lab", "lab-", "lab-node", "lab-nodex", "lab2-node1", "lab-foo", "xlab-node1"] {
            assert!(!n.owns_netns(foreign), "{foreign}");
        }
    }
}
