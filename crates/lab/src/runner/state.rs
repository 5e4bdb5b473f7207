//! What the pod runner must not forget: one directory per pod, written before the act it speaks of.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cni::{Attachment, ConfList};
use crate::procs::{read_json, write_json};
use crate::shim::RunFiles;
use crate::{Doing, LabError};

/// How far the network of a pod is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage")]
pub enum Network {
    /// The pod is on its node's network.
    Host,
    /// A namespace may exist, and ADD may have been called with this list: DEL is due.
    Begun {
        /// The namespace's name.
        netns: String,
        /// The list that ADD was, or is about to be, called with.
        list: Option<ConfList>,
        /// What ADD was called with.
        attachment: Attachment,
    },
    /// ADD succeeded.
    Attached {
        /// The namespace's name.
        netns: String,
        /// The list it was called with; DEL takes the same.
        list: ConfList,
        /// What it was called with.
        attachment: Attachment,
        /// Its result.
        result: Value,
    },
    /// DEL succeeded and the namespace is gone.
    Released,
}

/// A pod that this node has begun to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The object as it was when it was admitted.
    pub pod: Pod,
    /// Its network.
    pub network: Network,
    /// When it was admitted (RFC 3339).
    pub admitted: String,
    /// Every container ended for good and the network was given back.
    #[serde(default)]
    pub finished: bool,
}

/// The directory of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// Of the pod with this UID. A UID is a file name here, so odd ones are refused.
    ///
    /// # Errors
    /// When it is not made of letters, digits and dashes.
    pub fn new(pods: &Path, uid: &str) -> Result<Self, LabError> {
        if uid.is_empty() || uid.len() > 128 || !uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(LabError::new(format!("pod UID {uid:?}: not letters, digits and dashes")));
        }
        Ok(Self(pods.join(uid)))
    }

    /// All that exist.
    #[must_use]
    pub fn all(pods: &Path) -> Vec<(String, Self)> {
        let Ok(dir) = std::fs::read_dir(pods) else { return Vec::new() };
        let mut v: Vec<_> = dir
            .flatten()
            .filter_map(|e| {
                let uid = e.file_name().into_string().ok()?;
                Some((uid.clone(), Self::new(pods, &uid).ok()?))
            })
            .collect();
        v.sort_by(|a, b| a.0.cmp(&b.0));
        v
    }

    /// The record, if the pod was admitted.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn load(&self) -> Result<Option<Record>, LabError> {
        read_json(&self.0.join("pod.json"))
    }

    /// Writes the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, record: &Record) -> Result<(), LabError> {
        std::fs::create_dir_all(&self.0).doing(|| format!("{}", self.0.display()))?;
        write_json(&self.0.join("pod.json"), record)
    }

    /// The file to see at /etc/hosts.
    #[must_use]
    pub fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    /// The file to see at /etc/resolv.conf.
    #[must_use]
    pub fn resolv(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    /// The directory of a container. Names are DNS labels (the API server sees to it).
    #[must_use]
    pub fn container(&self, name: &str) -> PathBuf {
        self.0.join("containers").join(name)
    }

    /// How often a container was started, less one; `None` before the first time.
    #[must_use]
    pub fn attempt(&self, container: &str) -> Option<u32> {
        read_json(&self.container(container).join("attempt.json")).ok().flatten()
    }

    /// Says that attempt `n` begins.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin_attempt(&self, container: &str, n: u32) -> Result<RunFiles, LabError> {
        let dir = self.container(container);
        std::fs::create_dir_all(&dir).doing(|| format!("{}", dir.display()))?;
        write_json(&dir.join("attempt.json"), &n)?;
        // Of old runs only the last is kept, for `logs --previous`.
        if let Some(old) = n.checked_sub(2) {
            let f = RunFiles::new(&dir, old);
            for p in [f.log(), f.times(), f.started(), f.ended()] {
                let _ = std::fs::remove_file(p);
            }
        }
        Ok(RunFiles::new(&dir, n))
    }

    /// The files of attempt `n`.
    #[must_use]
    pub fn run_files(&self, container: &str, n: u32) -> RunFiles {
        RunFiles::new(&self.container(container), n)
    }

    /// Forgets the pod.
    pub fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_never_a_path() {
        let d = tempfile::tempdir().unwrap();
        for bad in ["", "..", "a/b", "a b", &"x".repeat(129)] {
            assert!(PodDir::new(d.path(), bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn records_and_attempts_read_back() {
        let d = tempfile::tempdir().unwrap();
        let p = PodDir::new(d.path(), "0-1").unwrap();
        assert_eq!((p.load().unwrap(), p.attempt("c")), (None, None));
        let r = Record { pod: Pod::default(), network: Network::Host, admitted: "x".into(), finished: false };
        p.save(&r).unwrap();
        assert_eq!(p.load().unwrap(), Some(r));
        for n in 0..4 {
            std::fs::write(p.begin_attempt("c", n).unwrap().log(), "x").unwrap();
        }
        assert_eq!(p.attempt("c"), Some(3));
        let logs: Vec<bool> = (0..4).map(|n| p.run_files("c", n).log().exists()).collect();
        assert_eq!(logs, [false, false, true, true]);
        assert_eq!(PodDir::all(d.path()).len(), 1);
        p.remove();
        assert!(PodDir::all(d.path()).is_empty());
    }
}
