//! What `cargo metadata` says, as far as the checks read it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The metadata of a workspace, format version 1.
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
    pub workspace_members: BTreeSet<String>,
    pub workspace_root: String,
    pub resolve: Option<Resolve>,
}

/// A package.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    pub id: String,
    pub name: String,
    pub version: String,
    #[serde(default)]
    pub license: Option<String>,
    #[serde(default)]
    pub license_file: Option<String>,
    pub manifest_path: String,
    pub dependencies: Vec<Dependency>,
}

/// A dependency as the manifest declares it: also optional ones and those of other platforms.
#[derive(Debug, Clone, Deserialize)]
pub struct Dependency {
    pub name: String,
    /// `None` is normal; else `dev` or `build`.
    #[serde(default)]
    pub kind: Option<String>,
}

/// The graph that cargo resolved.
#[derive(Debug, Clone, Deserialize)]
pub struct Resolve {
    pub nodes: Vec<Node>,
}

/// A package in the graph.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    pub id: String,
    pub deps: Vec<Edge>,
}

/// An edge of the graph.
#[derive(Debug, Clone, Deserialize)]
pub struct Edge {
    pub pkg: String,
    pub dep_kinds: Vec<EdgeKind>,
}

/// One reason for an edge.
#[derive(Debug, Clone, Deserialize)]
pub struct EdgeKind {
    #[serde(default)]
    pub kind: Option<String>,
}

impl Metadata {
    /// Asks cargo, for the platform we run on.
    pub fn load(root: &Path) -> Result<Self> {
        let rustc = Command::new("rustc").arg("-vV").output().context("run rustc -vV")?;
        let text = String::from_utf8_lossy(&rustc.stdout).into_owned();
        let host = text.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc -vV names no host")?.to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let out = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--filter-platform", &host])
            .current_dir(root)
            .output()
            .context("run cargo metadata")?;
        if !out.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
        }
        serde_json::from_slice(&out.stdout).context("cargo metadata prints JSON of format version 1")
    }

    /// The members by room: the folder below `crates/`, or the whole path for others (`bins/seaway`, `tests`).
    pub fn rooms(&self) -> BTreeMap<String, &Package> {
        self.packages.iter().filter(|p| self.workspace_members.contains(&p.id)).map(|p| (self.room(p), p)).collect()
    }

    fn room(&self, p: &Package) -> String {
        let folder = Path::new(&p.manifest_path).parent().unwrap_or(Path::new(""));
        let folder = folder.strip_prefix(&self.workspace_root).unwrap_or(folder);
        folder.strip_prefix("crates").unwrap_or(folder).display().to_string()
    }
}
