//! Which labs there are, and what each is.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::Cidr;

use crate::name::{LABS_DIR, LabName};
use crate::procs::{read_json, write_json};
use crate::topology::{Node, Spec, plan};
use crate::{LabError, ns};

/// How packets travel between the nodes of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Plain routes; needs one segment.
    HostGw,
    /// VXLAN.
    Vxlan,
}

impl Backend {
    /// As ConfigMap kube-system/seaway spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostGw => "host-gw",
            Self::Vxlan => "vxlan",
        }
    }
}

/// A lab, as its `lab.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    /// What was asked for.
    pub spec: Spec,
    /// The backend it began with.
    pub backend: Backend,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The host beyond the cluster.
    pub outside: Vec<IpAddr>,
    /// Ranges of pods.
    pub cluster_cidrs: Vec<Cidr>,
    /// Ranges of Services.
    pub service_cidrs: Vec<Cidr>,
    /// The folder of manifests it was started with.
    pub manifests: Option<PathBuf>,
    /// When it began (RFC 3339).
    pub created: String,
    /// Whether `up` came to its end. False: it is under way, or was interrupted.
    pub complete: bool,
}

impl Lab {
    /// Reads a lab's record.
    ///
    /// # Errors
    /// When there is no such lab, or the file is damaged.
    pub fn load(name: &LabName) -> Result<Self, LabError> {
        read_json(&name.dir().record())?.ok_or_else(|| {
            LabError::new(format!("lab {name}: not up: {}; start it with `seaway lab up --name {name}`", others()))
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result<(), LabError> {
        write_json(&self.spec.name.dir().record(), self)
    }

    /// Its node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == name)
    }
}

fn others() -> String {
    match list().as_slice() {
        [] => "no lab is".into(),
        v => format!("there is {}", v.iter().map(LabName::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// The labs that have a directory, whole or not, sorted.
#[must_use]
pub fn list() -> Vec<LabName> {
    let Ok(dir) = std::fs::read_dir(LABS_DIR) else { return Vec::new() };
    let mut v: Vec<LabName> = dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    v.sort();
    v
}

/// The lab a person means: the one named, else the only one.
///
/// # Errors
/// When none is up, or there are several and none was named; the text says which.
pub fn choose(name: Option<&str>) -> Result<LabName, LabError> {
    match (name, list().as_slice()) {
        (Some(n), _) => {
            let name: LabName = n.parse()?;
            Lab::load(&name).map(|l| l.spec.name)
        }
        (None, []) => Err(LabError::new("no lab is up: start one with `seaway lab up examples/shop`")),
        (None, [one]) => Ok(one.clone()),
        (None, many) => Err(LabError::new(format!(
            "several labs are up ({}): say which with --name",
            many.iter().map(LabName::to_string).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The path of a namespace.
#[must_use]
pub fn netns_path(netns: &str) -> PathBuf {
    ns::path(netns)
}

/// The addresses of the host outside a lab.
///
/// # Errors
/// When the lab is not up.
pub fn outside_addresses(name: &LabName) -> Result<Vec<IpAddr>, LabError> {
    let lab = Lab::load(name)?;
    Ok(plan(&lab.spec)?.outside)
}

/// The program that is running: what a lab starts its processes from.
///
/// # Errors
/// When it was removed meanwhile.
pub fn own_program() -> Result<PathBuf, LabError> {
    let exe = std::env::current_exe().map_err(|e| LabError::new(format!("own program: {e}")))?;
    if exe.is_file() {
        Ok(exe)
    } else {
        Err(LabError::new(format!("{}: was replaced while it ran: start it again", exe.display())))
    }
}

/// Where CNI plugins are looked for: beside the program first, then where distributions put them.
#[must_use]
pub fn cni_path(exe: &Path) -> Vec<PathBuf> {
    let beside = exe.parent().map(Path::to_path_buf);
    beside.into_iter().chain(["/opt/cni/bin".into(), "/usr/lib/cni".into()]).collect()
}
