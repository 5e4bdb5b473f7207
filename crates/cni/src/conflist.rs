//! The file that tells a runtime to use us.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use intent::Wiring;
use serde_json::{Map, Value, json};
use types::Cidr;

use crate::{CAPABILITIES, TYPE, Version};

/// What a runtime that does not read `cniVersions` is to speak: libcni before 1.2 (containerd 1.x, podman 4) takes
/// `cniVersion` as it is and fails on an answer in a version that it does not know. Those from 1.2 on choose the newest
/// of `cniVersions` that they speak (CNI specification 1.1.0, section 1).
const OLDEST: Version = Version::V0_4_0;

/// What the agent knows that the plugin needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflistSpec {
    /// The network's name.
    pub name: String,
    /// This node's pod ranges, at most one per family.
    pub ranges: Vec<Cidr>,
    /// Instead of ranges: the file in which the agent says what the node may give out of address pools.
    pub pools: Option<String>,
    /// The uplink's MTU minus the backend's overhead, in bytes.
    pub mtu: u32,
    /// Where the journal is.
    pub data_dir: String,
    /// How pods are wired that do not say.
    pub wiring: Wiring,
    /// Where the agent says what each pod is to have.
    pub pods: Option<String>,
    /// Configurations of plugins to run after ours, e.g. `{"type": "portmap", "capabilities": {"portMappings": true}}`.
    pub chained: Vec<Value>,
}

/// The text of the conflist: the same spec always gives the same text.
#[must_use]
pub fn conflist(spec: &ConflistSpec) -> String {
    let mut ours = json!({
        "type": TYPE,
        "ranges": spec.ranges,
        "mtu": spec.mtu,
        "dataDir": spec.data_dir,
        "mode": spec.wiring.mode,
        "capabilities": CAPABILITIES.iter().map(|c| ((*c).to_owned(), true.into())).collect::<Map<_, Value>>(),
    });
    if !spec.wiring.options.is_empty() {
        ours["modeOptions"] = json!(spec.wiring.options);
    }
    if let Some(dir) = &spec.pods {
        ours["pods"] = dir.as_str().into();
    }
    if let (Some(file), Some(m)) = (&spec.pools, ours.as_object_mut()) {
        m.remove("ranges");
        m.insert("ipam".into(), json!({"type": "seaway", "pools": file}));
    }
    let mut plugins = vec![ours];
    plugins.extend(spec.chained.iter().cloned());
    let list = json!({
        "cniVersion": OLDEST.as_str(),
        "cniVersions": Version::ALL.iter().filter(|v| **v >= OLDEST).map(|v| v.as_str()).collect::<Vec<_>>(),
        "name": spec.name,
        "plugins": plugins,
    });
    // `{:#}` of a JSON value is its indented form.
    format!("{list:#}\n")
}

/// Puts `text` at `path` so that a reader sees the old file or the new one, and both after a crash are whole. Makes the
/// directory when it is missing. Does nothing when the file holds `text` already, so that runtimes which watch the
/// directory are not woken; tells whether it wrote.
///
/// # Errors
/// When a file cannot be written; the old one is then as it was.
pub fn write_atomically(path: &Path, text: &str) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|have| have == text.as_bytes()) {
        return Ok(false);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let mut temp = path.as_os_str().to_owned();
    // Not .conf, .conflist or .json, which runtimes would read.
    temp.push(".new");
    let write = || {
        let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temp)?;
        f.write_all(text.as_bytes())?;
        // This one must survive a power loss: runtimes read it at boot, before the agent runs.
        f.sync_all()?;
        fs::rename(&temp, path)?;
        File::open(dir)?.sync_all()
    };
    write().map(|()| true).inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}
