//! What the agent says of a pod before it is attached: one file a pod, so that the plugin needs neither the agent nor
//! the API while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use intent::PodSpec;
use ipam::{IfThere, PodRef};
use types::ObjectName;

use crate::{Code, Error};

/// The longest that an ADD waits for the agent to hear of the pod: the runtime and the agent learn of it at the same
/// time. After that the runtime tries again.
const LIMIT: Duration = Duration::from_secs(3);
/// Ends the name of the file that says which pod was turned away once.
const SEEN: &str = "seen";
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
            Some(s) if pod.uid.as_ref().is_none_or(|u| *u == s.uid) && !s.untold => {
                return match s.refused {
                    Some(why) => Err(Error::new(Code::InvalidConfig, why)),
                    None if s.in_environment => seen(&path, &s).map(|()| s),
                    None => Ok(s),
                };
            }
            Some(s) if s.untold && waited >= LIMIT => {
                let msg = format!(
                    "the host ports of pod {}/{} are not told at the Pod yet: does the agent reach the API server?",
                    pod.namespace, pod.name
                );
                return Err(Error::new(Code::TryAgainLater, msg));
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

/// A kubelet makes the environment of containers from the Pod as it was when it began, which may be before the ports were
/// told. So the first attempt of such a pod is turned away: the next begins with the Pod as it is now.
fn seen(path: &Path, spec: &PodSpec) -> Result<(), Error> {
    let mark = path.with_extension(SEEN);
    let io = |e: io::Error| Error::new(Code::Io, format!("{}: {e}", mark.display()));
    match fs::read(&mark).if_there().map_err(io)? {
        Some(uid) if *uid == *spec.uid.as_bytes() => Ok(()),
        _ => {
            fs::write(&mark, spec.uid.as_bytes()).map_err(io)?;
            let msg =
                "the pod's environment has its host ports, which were told just now: the runtime reads the Pod again";
            Err(Error::new(Code::TryAgainLater, msg))
        }
    }
}

fn read(path: &Path) -> Result<Option<PodSpec>, Error> {
    let io = |e: io::Error| Error::new(Code::Io, format!("read {}: {e}", path.display()));
    let Some(m) = fs::metadata(path).if_there().map_err(io)? else { return Ok(None) };
    if m.len() > MAX_BYTES {
        let msg = format!("{} has {} bytes: it is none of the agent's", path.display(), m.len());
        return Err(Error::new(Code::Io, msg));
    }
    let Some(bytes) = fs::read(path).if_there().map_err(io)? else { return Ok(None) };
    parse(&bytes).map(Some).map_err(|e| Error::new(Code::Io, format!("{} is damaged: {e}", path.display())))
}

/// Reads a file's bytes.
pub(crate) fn parse(bytes: &[u8]) -> Result<PodSpec, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// What a directory says of pods, so that what did not change costs a comparison.
#[derive(Debug, Default)]
pub struct Published {
    said: BTreeMap<ObjectName, PodSpec>,
    /// Files of nobody that are still to go; `None` while nobody has looked.
    strays: Option<BTreeSet<OsString>>,
}

impl Published {
    /// Brings `dir` to say exactly `specs`: for the agent. Gives the number of files that changed. What was there before is
    /// looked for once.
    ///
    /// # Errors
    /// When a file cannot be written or removed; the others are as they shall be, and the next call tries again.
    pub fn follow(&mut self, dir: &Path, specs: &BTreeMap<ObjectName, PodSpec>) -> io::Result<usize> {
        let strays = match &mut self.strays {
            Some(s) => s,
            None => {
                fs::create_dir_all(dir)?;
                self.strays.insert(fs::read_dir(dir)?.flatten().map(|e| e.file_name()).collect())
            }
        };
        let (mut changes, mut failed) = (0, None);
        let mut done = |result: io::Result<()>| match result {
            Ok(()) => {
                changes += 1;
                true
            }
            Err(e) => {
                failed = Some(e);
                false
            }
        };
        if !strays.is_empty() {
            let wanted: BTreeSet<OsString> = specs.keys().map(|n| file_of(n).into()).collect();
            strays.retain(|f| !wanted.contains(f) && !done(remove(&dir.join(f))));
        }
        for (name, spec) in specs {
            if self.said.get(name) == Some(spec) {
                continue;
            }
            let file = dir.join(file_of(name));
            if done(serde_json::to_string(spec).map_err(Into::into).and_then(|text| replace(&file, &text))) {
                self.said.insert(name.clone(), spec.clone());
            }
        }
        self.said.retain(|name, _| {
            specs.contains_key(name) || {
                let file = dir.join(file_of(name));
                !done(remove(&file.with_extension(SEEN)).and_then(|()| remove(&file)))
            }
        });
        // Somebody took the directory away, and with it what was said.
        if failed.as_ref().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) {
            *self = Self::default();
        }
        failed.map_or(Ok(changes), Err)
    }
}

fn file_of(name: &ObjectName) -> String {
    file_name(&name.namespace, &name.name)
}

fn remove(file: &Path) -> io::Result<()> {
    fs::remove_file(file).if_there().map(|_| ())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn host_ports_are_waited_for_and_an_environment_with_them_needs_a_second_look() {
        let dir = tempfile::tempdir().unwrap();
        let name = ObjectName::new("default", "web");
        let pod = |uid: &str| PodRef { namespace: "default".into(), name: "web".into(), uid: Some(uid.into()) };
        let mut published = Published::default();
        let mut say = |spec: Option<PodSpec>| {
            let all = spec.map(|s| (name.clone(), s)).into_iter().collect();
            published.follow(dir.path(), &all).unwrap();
        };
        let spec = PodSpec { uid: "a".into(), in_environment: true, ..PodSpec::default() };
        say(Some(PodSpec { untold: true, ..spec.clone() }));
        let e = wait(dir.path(), &pod("a")).unwrap_err();
        assert!(e.code == Code::TryAgainLater && e.msg.contains("not told at the Pod yet"), "{e}");
        for uid in ["a", "b"] {
            say(Some(PodSpec { uid: uid.into(), ..spec.clone() }));
            let e = wait(dir.path(), &pod(uid)).unwrap_err();
            assert!(e.code == Code::TryAgainLater && e.msg.contains("the runtime reads the Pod again"), "{e}");
            for _ in 0..2 {
                wait(dir.path(), &pod(uid)).unwrap();
            }
        }
        say(None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of it");
    }

    #[test]
    fn only_what_changed_is_written_and_what_nobody_has_goes() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().join("pods");
        fs::create_dir(&pods).unwrap();
        for stray in ["default_gone.json", "default_gone.seen", "default_a.new"] {
            fs::write(pods.join(stray), "{}").unwrap();
        }
        // What an agent before this one said, of a pod that is as it was and of one that is not.
        fs::write(pods.join("default_a.json"), "{}").unwrap();
        let spec = |uid: &str| PodSpec { uid: uid.into(), ..PodSpec::default() };
        let mut all: BTreeMap<ObjectName, PodSpec> =
            ["a", "b"].map(|n| (ObjectName::new("default", n), spec(n))).into_iter().collect();
        let mut published = Published::default();
        let files = || {
            let mut f: Vec<_> = fs::read_dir(&pods).unwrap().map(|e| e.unwrap().file_name()).collect();
            f.sort();
            f
        };
        assert_eq!(published.follow(&pods, &all).unwrap(), 5);
        assert_eq!(files(), ["default_a.json", "default_b.json"]);
        let told = |n: &str| read(&pods.join(file_name("default", n))).unwrap().unwrap();
        assert_eq!((told("a"), told("b")), (spec("a"), spec("b")));
        assert_eq!(published.follow(&pods, &all).unwrap(), 0);

        // What cannot be written is tried again; the rest is as it shall be.
        all.insert(ObjectName::new("default", "b"), spec("b2"));
        all.insert(ObjectName::new("default", "c"), spec("c"));
        fs::create_dir(pods.join("default_c.new")).unwrap();
        published.follow(&pods, &all).unwrap_err();
        assert_eq!(told("b"), spec("b2"));
        fs::remove_dir(pods.join("default_c.new")).unwrap();
        assert_eq!(published.follow(&pods, &all).unwrap(), 1);
        assert_eq!(told("c"), spec("c"));

        // Somebody takes everything away.
        fs::remove_dir_all(&pods).unwrap();
        all.insert(ObjectName::new("default", "c"), spec("c2"));
        published.follow(&pods, &all).unwrap_err();
        assert_eq!(published.follow(&pods, &all).unwrap(), 3);
        assert_eq!((told("a"), told("b"), told("c")), (spec("a"), spec("b2"), spec("c2")));

        fs::write(pods.join("default_c.seen"), "c").unwrap();
        all.clear();
        assert_eq!(published.follow(&pods, &all).unwrap(), 3);
        assert!(files().is_empty(), "{:?}", files());
    }
}
