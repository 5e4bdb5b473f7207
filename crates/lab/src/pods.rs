//! The pods of a lab as their runners recorded them: works with every process of the lab dead.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::name::NodeDir;
use crate::ns::{self, Enter};
use crate::record::Lab;
use crate::runner::{Network, PodDir, Record};
use crate::{Doing, LabError};

/// A pod that runs, or ran, on a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// The path of its network namespace: its node's for one on the node's network, none when it gave it back.
    pub netns: Option<PathBuf>,
    /// Its directory.
    pub dir: PodDir,
    /// Its record.
    pub record: Record,
}

/// All, by namespace and name.
#[must_use]
pub fn all(lab: &Lab) -> Vec<Found> {
    let of = |n: &crate::topology::Node| of_node(&n.name, &n.netns, &lab.spec.name.dir().node(&n.name));
    let mut v: Vec<Found> = lab.nodes.iter().flat_map(of).collect();
    v.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    v
}

/// Those of one node, by UID.
#[must_use]
pub fn of_node(node: &str, netns: &str, dir: &NodeDir) -> Vec<Found> {
    let found = |(uid, dir): (String, PodDir)| {
        let record = dir.load().ok().flatten()?;
        let netns = match &record.network {
            Network::Host => Some(ns::path(netns)),
            Network::Begun { netns, .. } | Network::Attached { netns, .. } => Some(ns::path(netns)),
            Network::Released => None,
        };
        let m = &record.pod.metadata;
        Some(Found {
            namespace: m.namespace.clone().unwrap_or_default(),
            name: m.name.clone().unwrap_or_default(),
            uid,
            node: node.to_owned(),
            netns,
            dir,
            record,
        })
    };
    PodDir::all(&dir.pods()).into_iter().filter_map(found).collect()
}

/// The pod a person means: `NAMESPACE/NAME`, `NAME`, or the beginning of a name as far as a dash (`web` for
/// `web-7d4b9-x2x1z`); of several that begin so, the first.
///
/// # Errors
/// When there is none, or the name is in several namespaces.
pub fn find(lab: &Lab, text: &str) -> Result<Found, LabError> {
    choose(all(lab), text)
}

fn choose(all: Vec<Found>, text: &str) -> Result<Found, LabError> {
    let (namespace, name) = text.split_once('/').map_or((None, text), |(ns, n)| (Some(ns), n));
    let here: Vec<Found> = all.into_iter().filter(|p| namespace.is_none_or(|n| n == p.namespace)).collect();
    let exact: Vec<&Found> = here.iter().filter(|p| p.name == name).collect();
    let prefix = format!("{name}-");
    let near: Vec<&Found> = here.iter().filter(|p| p.name.starts_with(&prefix)).collect();
    let pick = if exact.is_empty() { near } else { exact };
    let mut spaces: Vec<&str> = pick.iter().map(|p| p.namespace.as_str()).collect();
    spaces.dedup();
    match (pick.first(), spaces.len()) {
        (None, _) => Err(LabError::new(format!("pod {text:?}: not in this lab; `seaway lab get pods -A` lists pods"))),
        (Some(p), 1) => Ok((*p).clone()),
        (Some(_), _) => {
            let list = spaces.iter().map(|s| format!("{s}/{name}")).collect::<Vec<_>>().join(", ");
            Err(LabError::new(format!("pod {text:?}: in several namespaces: say which: {list}")))
        }
    }
}

impl Found {
    /// Its containers' names, init containers last.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        let spec = self.record.pod.spec.clone().unwrap_or_default();
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| c.name.clone()).collect()
    }

    fn container(&self, asked: Option<&str>) -> Result<String, LabError> {
        let all = self.containers();
        match asked {
            None => all.first().cloned().ok_or_else(|| LabError::new(format!("pod {}: has no container", self.name))),
            Some(c) if all.iter().any(|x| x == c) => Ok(c.to_owned()),
            Some(c) => Err(LabError::new(format!("pod {}: no container {c:?}: it has {}", self.name, all.join(", ")))),
        }
    }

    /// What to enter to be inside it, and the environment of a container's process, if that lives.
    ///
    /// # Errors
    /// When it has no such container, or no network any more.
    pub fn inside(&self, container: Option<&str>) -> Result<(Enter, Vec<(String, String)>), LabError> {
        let name = self.container(container)?;
        let netns = self.netns.clone().ok_or_else(|| LabError::new(format!("pod {}: has ended", self.name)))?;
        let exists = |p: PathBuf| p.is_file().then_some(p);
        let enter = Enter {
            netns: Some(netns),
            hosts: exists(self.dir.hosts()),
            resolv: exists(self.dir.resolv()),
            hostname: Some(match self.record.network {
                Network::Host => self.node.clone(),
                _ => crate::dns_files::hostname(&self.record.pod),
            }),
        };
        let started = self.dir.attempt(&name).and_then(|n| self.dir.run_files(&name, n).read_started());
        let env = started.filter(|s| s.process.alive()).map(|s| {
            let raw = std::fs::read(format!("/proc/{}/environ", s.process.pid)).unwrap_or_default();
            raw.split(|b| *b == 0)
                .filter_map(|v| std::str::from_utf8(v).ok()?.split_once('='))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect()
        });
        Ok((enter, env.unwrap_or_default()))
    }

    /// The log file of a container's last run, or of the one before.
    ///
    /// # Errors
    /// When there is no such container or run.
    pub fn log(&self, container: Option<&str>, previous: bool) -> Result<PathBuf, LabError> {
        let name = self.container(container)?;
        let none = || LabError::new(format!("container {name} of pod {}: has not run yet", self.name));
        let last = self.dir.attempt(&name).ok_or_else(none)?;
        let n = if previous {
            last.checked_sub(1).ok_or_else(|| LabError::new(format!("container {name}: has no previous run")))?
        } else {
            last
        };
        Ok(self.dir.run_files(&name, n).log())
    }
}

/// Copies a log to `out`; with `follow` for as long as the pod is there, over restarts of the container.
///
/// # Errors
/// When it cannot be read or written.
pub fn logs(
    pod: &Found,
    container: Option<&str>,
    previous: bool,
    follow: bool,
    out: &mut dyn Write,
) -> Result<(), LabError> {
    let mut path = pod.log(container, previous)?;
    let mut at = 0;
    loop {
        if let Ok(mut f) = std::fs::File::open(&path) {
            f.seek(SeekFrom::Start(at)).doing(|| "log")?;
            let mut buf = Vec::new();
            at += f.read_to_end(&mut buf).doing(|| "log")? as u64;
            match out.write_all(&buf).and_then(|()| out.flush()) {
                // The reader has seen enough: `| head`.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                r => r.doing(|| "write")?,
            }
        }
        if !follow || pod.dir.load().ok().flatten().is_none() {
            return Ok(());
        }
        let now = pod.log(container, previous)?;
        if now != path {
            path = now;
            at = 0;
        } else {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn pod(namespace: &str, name: &str) -> Found {
        Found {
            namespace: namespace.into(),
            name: name.into(),
            uid: "u".into(),
            node: "node1".into(),
            netns: None,
            dir: PodDir::new(Path::new("/nowhere"), "u").unwrap(),
            record: Record {
                pod: k8s_openapi::api::core::v1::Pod::default(),
                network: Network::Released,
                admitted: String::new(),
                finished: false,
            },
        }
    }

    #[test]
    fn names_are_found_as_people_say_them() {
        let all =
            || vec![pod("a", "web-1-x"), pod("a", "web-1-y"), pod("b", "web-1-z"), pod("b", "db"), pod("b", "webby")];
        let name = |t: &str| choose(all(), t).map(|p| format!("{}/{}", p.namespace, p.name)).map_err(|e| e.to_string());
        assert_eq!(name("a/web").unwrap(), "a/web-1-x");
        assert_eq!(name("web-1-z").unwrap(), "b/web-1-z");
        assert_eq!(name("db").unwrap(), "b/db");
        assert!(name("web").unwrap_err().contains("say which: a/web, b/web"));
        assert!(name("nope").unwrap_err().contains("get pods"));
        assert!(name("a/db").is_err());
    }
}
