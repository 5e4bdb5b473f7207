//! What the agent says of a pod before it is attached: one file a pod, so that the plugin needs neither the agent nor
//! the API while it runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use intent::PodSpec;
use ipam::PodRef;

use crate::{Code, Error};

/// The longest that an ADD waits for the agent to hear of the pod: the runtime and the agent learn of it at the same
/// time. After that the runtime tries again.
const LIMIT: Duration = Duration::from_secs(3);
/// A file of that size is none of ours.
const MAX_BYTES: u64 = 4 << 20;

/// The file of a pod in `dir`. `_` stands in no name, so that two pods never share one.
#[must_use]
pub fn file_name(namespace: &str, name: &str) -> String {
    format!("{namespace}_{name}.json")
}

/// What `dir` says of a pod, waited for.
///
/// # Errors
/// Code 11 when the agent has not heard of it; code 7 when the pod asks for what cannot be.
pub(crate) fn wait(dir: &Path, pod: &PodRef) -> Result<PodSpec, Error> {
    if [&pod.namespace, &pod.name].iter().any(|n| n.is_empty() || n.contains(['/', '_', '\0']) || n.starts_with('.')) {
        let msg = format!("invalid environment: CNI_ARGS: {}/{} is no pod's name", pod.namespace, pod.name);
        return Err(Error::new(Code::InvalidEnvironment, msg));
    }
    let path = dir.join(file_name(&pod.namespace, &pod.name));
    let (mut pause, mut waited) = (Duration::from_millis(1), Duration::ZERO);
    loop {
        match read(&path)? {
            // A pod that was made anew: the file still speaks of the one before.
            Some(s) if pod.uid.as_ref().is_none_or(|u| *u == s.uid) => {
                return match s.refused {
                    Some(why) => Err(Error::new(Code::InvalidConfig, why)),
                    None => Ok(s),
                };
            }
            _ if waited >= LIMIT => {
                let msg = format!(
                    "the agent has not heard of pod {}/{} yet ({} is missing or of another pod): is `seaway agent` running, and does its /readyz answer?",
                    pod.namespace,
                    pod.name,
                    path.display()
                );
                return Err(Error::new(Code::TryAgainLater, msg));
            }
            _ => {
                std::thread::sleep(pause);
                waited += pause;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
    }
}

fn read(path: &Path) -> Result<Option<PodSpec>, Error> {
    let io = |e: io::Error| Error::new(Code::Io, format!("read {}: {e}", path.display()));
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
        Ok(m) if m.len() > MAX_BYTES => {
            return Err(Error::new(
                Code::Io,
                format!("{} has {} bytes: it is none of the agent's", path.display(), m.len()),
            ));
        }
        Ok(_) => {}
    }
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        r => r.map_err(io)?,
    };
    parse(&bytes).map(Some).map_err(|e| Error::new(Code::Io, format!("{} is damaged: {e}", path.display())))
}

/// Reads a file's bytes.
pub(crate) fn parse(bytes: &[u8]) -> Result<PodSpec, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// Brings `dir` to say exactly `specs`: for the agent. `last` is what it said after the last time, and becomes what it
/// says now; files that are not in it are looked for once, when it is empty.
///
/// # Errors
/// When a file cannot be written or removed; the others are as they shall be.
pub fn publish(
    dir: &Path,
    specs: &std::collections::BTreeMap<types::ObjectName, PodSpec>,
    last: &mut std::collections::BTreeMap<String, String>,
) -> io::Result<usize> {
    fs::create_dir_all(dir)?;
    let mut want = std::collections::BTreeMap::new();
    for (name, spec) in specs {
        want.insert(file_name(&name.namespace, &name.name), serde_json::to_string(spec)?);
    }
    if last.is_empty() {
        for e in fs::read_dir(dir)?.flatten() {
            last.insert(e.file_name().to_string_lossy().into_owned(), String::new());
        }
    }
    let mut changes = 0;
    let mut failed = None;
    for (file, text) in &want {
        if last.get(file) == Some(text) {
            continue;
        }
        match replace(&dir.join(file), text) {
            Ok(()) => {
                changes += 1;
                last.insert(file.clone(), text.clone());
            }
            Err(e) => failed = Some(e),
        }
    }
    let gone: Vec<String> = last.keys().filter(|f| !want.contains_key(*f)).cloned().collect();
    for file in gone {
        match fs::remove_file(dir.join(&file)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => failed = Some(e),
            _ => {
                changes += 1;
                last.remove(&file);
            }
        }
    }
    failed.map_or(Ok(changes), Err)
}

/// A reader sees the old text or the new. Nothing is synced: after a reboot the agent writes all of them.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let new: PathBuf = path.with_extension("new");
    let write = || {
        let mut f = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        io::Write::write_all(&mut f, text.as_bytes())?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}
