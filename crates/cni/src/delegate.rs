//! Running another plugin: IPAM, a meta-plugin's delegate, one of several networks (CNI specification, section 4).
//!
//! A plugin that is built in runs right here, without a process, unless `CNI_PATH` has another program of that name:
//! what the administrator put there is what runs.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kernel_api::machine::{Exec, Machine};
use serde_json::{Map, Value};

use crate::args::Command;
use crate::config;
use crate::fields::bad;
use crate::result::CniResult;
use crate::skel::{Context, has_command, verb};
use crate::{Call, Code, Error};

/// Bytes of an answer that are read at most.
const MAX_ANSWER: usize = 4 << 20;
/// How long a plugin may take; a kubelet gives up on the whole pod after as long.
const TIME: Duration = Duration::from_secs(120);

/// Where a delegate runs.
enum Where {
    Here,
    Program(PathBuf),
}

impl<M: Machine> Context<'_, M> {
    /// Runs the plugin `kind` with `conf`, a full configuration (`cniVersion` and `name` are ours where it has none), for
    /// the call's own container and interface. `command` need not be the call's: an ADD that fails undoes with DEL.
    ///
    /// # Errors
    /// The delegate's own, or code 7 when there is none of that name.
    pub fn delegate(
        &mut self,
        kind: &str,
        conf: Map<String, Value>,
        command: Command,
    ) -> Result<Option<CniResult>, Error> {
        self.run_at(self.find(kind)?, kind, conf, command, None)
    }

    /// As [`Context::delegate`], for an interface of the same container by name; with `own` by the plugin that is built
    /// in, where there is one, whatever `CNI_PATH` has.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn delegate_for(
        &mut self,
        ifname: &types::IfName,
        own: bool,
        kind: &str,
        conf: Map<String, Value>,
        command: Command,
    ) -> Result<Option<CniResult>, Error> {
        let place = if own && (self.registry)(kind).is_some() { Where::Here } else { self.find(kind)? };
        self.run_at(place, kind, conf, command, Some(ifname))
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
            Where::Program(path) => run(self.machine, &path, self.env, &call, conf),
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
fn run<M: Machine>(
    machine: &mut M,
    path: &Path,
    env: &crate::Env,
    call: &Call,
    conf: Map<String, Value>,
) -> Result<Option<CniResult>, Error> {
    let program = Exec {
        program: path.to_owned(),
        env: environment(env, call),
        stdin: Value::Object(conf).to_string().into_bytes(),
        limit: MAX_ANSWER,
        timeout: TIME,
    };
    let out = machine.exec(&program).map_err(|e| {
        let what = match e.kind() {
            io::ErrorKind::TimedOut => format!("did not end within {} s", TIME.as_secs()),
            io::ErrorKind::FileTooLarge => format!("said more than {MAX_ANSWER} bytes"),
            _ => format!("could not be run: {e}"),
        };
        Error::new(Code::Io, format!("plugin {} {what}", path.display()))
    })?;
    let object = || config::object(&out.stdout);
    if out.code != Some(0) {
        let ended = out.code.map_or_else(|| "by a signal".into(), |c| format!("with exit code {c}"));
        // The error's own object, as it came: its code and message are what the runtime shall see.
        return Err(match object() {
            Ok(m) => foreign(path, &m),
            Err(_) => {
                Error::new(Code::Delegate, format!("plugin {} failed ({ended}) without an error", path.display()))
                    .with(String::from_utf8_lossy(&out.stderr).trim().to_owned())
            }
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

/// What a delegate finds in its environment: ours (its own programs are searched in `PATH`), with the call's `CNI_*`.
fn environment(env: &crate::Env, call: &Call) -> Vec<(String, String)> {
    let text = |v: &Option<OsString>| v.as_ref().and_then(|v| v.to_str()).map(str::to_owned);
    let ifname = call.key.as_ref().map(|k| k.ifname.to_string()).or_else(|| text(&env.ifname));
    let given = [
        ("CNI_COMMAND", Some(call.command.as_str().to_owned())),
        ("CNI_CONTAINERID", text(&env.container_id)),
        ("CNI_NETNS", text(&env.netns)),
        ("CNI_IFNAME", ifname),
        ("CNI_ARGS", text(&env.args)),
        ("CNI_PATH", text(&env.path)),
    ];
    let inherited = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let mut out: Vec<_> = inherited.filter(|(k, _)| !k.starts_with("CNI_")).collect();
    out.extend(given.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))));
    out
}

pub(crate) fn foreign(path: &Path, m: &Map<String, Value>) -> Error {
    let text = |k: &str| m.get(k).and_then(Value::as_str).unwrap_or_default().to_string();
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let code = m.get("code").and_then(Value::as_u64).and_then(|c| u32::try_from(c).ok()).unwrap_or(999);
    Error { code: Code::of(code), msg: format!("plugin {name}: {}", text("msg")), details: text("details") }
}
