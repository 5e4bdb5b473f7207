//! Running another plugin: IPAM, a meta-plugin's delegate, one of several networks (CNI specification, section 4).
//!
//! A plugin that is built in runs right here, without a process, unless `CNI_PATH` has another program of that name:
//! what the administrator put there is what runs.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use kernel_api::machine::Machine;
use serde_json::{Map, Value};

use crate::args::Command;
use crate::config;
use crate::fields::bad;
use crate::result::CniResult;
use crate::skel::{Context, has_command, verb};
use crate::{Call, Code, Error};

/// Bytes of an answer that are read at most.
const MAX_ANSWER: u64 = 4 << 20;

/// Where a delegate runs.
enum Where {
    Here,
    Program(PathBuf),
}

impl<M: Machine> Context<'_, M> {
    /// Runs the plugin `kind` with `conf`, a full configuration (`cniVersion` and `name` are ours where it has none), for the call's
    /// own container and interface. `command` need not be the call's: an ADD that fails undoes with DEL.
    ///
    /// # Errors
    /// The delegate's own, or code 7 when there is none of that name.
    pub fn delegate(
        &mut self,
        kind: &str,
        conf: Map<String, Value>,
        command: Command,
    ) -> Result<Option<CniResult>, Error> {
        self.delegate_as(kind, conf, command, None)
    }

    /// As [`Context::delegate`], for another interface name of the same container.
    ///
    /// # Errors
    /// As there.
    pub fn delegate_as(
        &mut self,
        kind: &str,
        conf: Map<String, Value>,
        command: Command,
        ifname: Option<&types::IfName>,
    ) -> Result<Option<CniResult>, Error> {
        self.run_at(self.find(kind)?, kind, conf, command, ifname)
    }

    /// As [`Context::delegate_as`], by the plugin that is built in whatever `CNI_PATH` has, where there is one.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn delegate_own(
        &mut self,
        kind: &str,
        conf: Map<String, Value>,
        command: Command,
        ifname: Option<&types::IfName>,
    ) -> Result<Option<CniResult>, Error> {
        let place = if (self.registry)(kind).is_some() { Where::Here } else { self.find(kind)? };
        self.run_at(place, kind, conf, command, ifname)
    }

    fn run_at(
        &mut self,
        place: Where,
        kind: &str,
        mut conf: Map<String, Value>,
        command: Command,
        ifname: Option<&types::IfName>,
    ) -> Result<Option<CniResult>, Error> {
        // A further network's list is of a version of its own.
        conf.entry("cniVersion").or_insert_with(|| self.version.as_str().into());
        let version = config::version(&conf)?;
        has_command(version, command)?;
        conf.entry("name").or_insert_with(|| self.network().into());
        let mut call = self.call.clone();
        call.command = command;
        if let (Some(name), Some(key)) = (ifname, call.key.as_mut()) {
            key.ifname = name.clone();
        }
        match place {
            Where::Here => {
                let Some(plugin) = (self.registry)(kind) else { return Err(missing(kind, self.env.path_text())) };
                let mut cx = Context {
                    machine: &mut *self.machine,
                    env: self.env,
                    call: &call,
                    conf: &conf,
                    version,
                    prev: None,
                    now: self.now,
                    registry: self.registry,
                };
                verb(plugin.as_ref(), &mut cx)
            }
            Where::Program(path) => run(&path, self.env, &call, conf),
        }
    }

    /// Whether there is a plugin of that name.
    #[must_use]
    pub fn has_plugin(&self, kind: &str) -> bool {
        self.find(kind).is_ok()
    }

    fn find(&self, kind: &str) -> Result<Where, Error> {
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') || kind.contains('\0') {
            return Err(bad(format!("type is {kind:?}: the name of a plugin's program is needed")));
        }
        let here = (self.registry)(kind).is_some();
        let own = if here { std::fs::metadata("/proc/self/exe").ok() } else { None };
        for dir in self.env.path_text().split(':').filter(|d| d.starts_with('/')) {
            let path = Path::new(dir).join(kind);
            let Ok(m) = std::fs::metadata(&path) else { continue };
            if !m.is_file() {
                continue;
            }
            return Ok(match &own {
                Some(o) if o.ino() == m.ino() && o.dev() == m.dev() => Where::Here,
                _ => Where::Program(path),
            });
        }
        if here { Ok(Where::Here) } else { Err(missing(kind, self.env.path_text())) }
    }
}

fn missing(kind: &str, path: &str) -> Error {
    bad(format!("type is {kind:?}: there is no such plugin in CNI_PATH ({path}) and none is built in"))
}

/// Another program, by the protocol.
fn run(path: &Path, env: &crate::Env, call: &Call, conf: Map<String, Value>) -> Result<Option<CniResult>, Error> {
    let io = |what: &str, e: std::io::Error| Error::new(Code::Io, format!("{what} plugin {}: {e}", path.display()));
    let mut process = Process::new(path);
    process.env("CNI_COMMAND", call.command.as_str()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let given = [("CNI_CONTAINERID", &env.container_id), ("CNI_ARGS", &env.args), ("CNI_PATH", &env.path)];
    for (name, value) in given.into_iter().chain([("CNI_NETNS", &env.netns), ("CNI_IFNAME", &env.ifname)]) {
        match value {
            Some(v) => process.env(name, v),
            None => process.env_remove(name),
        };
    }
    if let Some(key) = &call.key {
        process.env("CNI_IFNAME", key.ifname.as_str());
    }
    let mut child = process.spawn().map_err(|e| io("start", e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that does not read its configuration says so by its exit.
        let _ = stdin.write_all(Value::Object(conf).to_string().as_bytes());
    }
    let mut answer = Vec::new();
    if let Some(out) = child.stdout.take() {
        out.take(MAX_ANSWER).read_to_end(&mut answer).map_err(|e| io("read the answer of", e))?;
    }
    let status = child.wait().map_err(|e| io("wait for", e))?;
    let object = || config::object(&answer);
    if !status.success() {
        // The error's own object, as it came: its code and message are what the runtime shall see.
        return Err(match object() {
            Ok(m) => foreign(path, &m),
            Err(_) => Error::new(Code::Delegate, format!("plugin {} failed ({status}) without a word", path.display())),
        });
    }
    if call.command != Command::Add {
        return Ok(None);
    }
    let m = object().map_err(|e| {
        Error::new(Code::Delegate, format!("plugin {} answered no result", path.display())).with(e.to_string())
    })?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    CniResult::read(&m, &format!("the result of {name}")).map(Some)
}

fn foreign(path: &Path, m: &Map<String, Value>) -> Error {
    let text = |k: &str| m.get(k).and_then(Value::as_str).unwrap_or_default().to_string();
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let code = m.get("code").and_then(Value::as_u64).and_then(|c| u32::try_from(c).ok()).unwrap_or(999);
    Error { code: Code::of(code), msg: format!("plugin {name}: {}", text("msg")), details: text("details") }
}
