//! What every plugin does around its verbs: environment, versions, errors, `prevResult`, and delegation.

use std::io;

use ipam::Key;
use kernel_api::machine::{Machine, Netns};
use serde_json::{Map, Value, json};

use crate::args::{Call, Command, Env};
use crate::config;
use crate::fields::{Fields, bad};
use crate::result::CniResult;
use crate::{Code, Error, Version};

/// What a call leaves on standard output, and whether it went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// JSON, or nothing.
    pub stdout: String,
    /// The process's exit code.
    pub exit: u8,
}

/// A plugin's verbs. Any may be called at any time, together with others, again, or after a crash in the middle.
pub trait Plugin<M: Machine> {
    /// ADD: attaches, and leaves nothing behind when it fails.
    ///
    /// # Errors
    /// What the specification has a code for, with object, field and fix.
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error>;

    /// DEL: removes whatever is there; all may be gone already, the namespace too.
    ///
    /// # Errors
    /// Only what a later try may mend.
    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error>;

    /// CHECK: compares the machine with `prevResult`.
    ///
    /// # Errors
    /// What differs.
    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error>;

    /// GC: removes what is not in `cni.dev/valid-attachments`.
    ///
    /// # Errors
    /// What could not be removed.
    fn gc(&self, _cx: &mut Context<'_, M>) -> Result<(), Error> {
        Ok(())
    }

    /// STATUS: whether an ADD could be served.
    ///
    /// # Errors
    /// Code 50 or 51.
    fn status(&self, _cx: &mut Context<'_, M>) -> Result<(), Error> {
        Ok(())
    }
}

/// The plugins that are built in, by the name that a configuration's `type` has.
pub type Registry<M> = fn(&str) -> Option<Box<dyn Plugin<M>>>;

/// One call of one plugin.
pub struct Context<'a, M: Machine> {
    /// The machine.
    pub machine: &'a mut M,
    /// The environment as it came, for whoever is delegated to.
    pub env: &'a Env,
    /// The environment, checked.
    pub call: &'a Call,
    /// The configuration.
    pub conf: &'a Map<String, Value>,
    /// Its `cniVersion`.
    pub version: Version,
    /// `prevResult`: what the plugins before us in the chain (ADD), or all of it (CHECK, DEL), made.
    pub prev: Option<CniResult>,
    /// Seconds since 1970.
    pub now: u64,
    /// The plugins built in.
    pub registry: Registry<M>,
}

impl<'a, M: Machine> Context<'a, M> {
    /// The configuration's fields.
    #[must_use]
    pub fn fields(&self) -> Fields<'a> {
        Fields::new(self.conf, "")
    }

    /// The network's name.
    #[must_use]
    pub fn network(&self) -> &'a str {
        self.conf.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// Which interface of which container; ADD, DEL and CHECK have one.
    ///
    /// # Errors
    /// Code 4 in a GC or STATUS, which have none.
    pub fn key(&self) -> Result<&'a Key, Error> {
        let says = "invalid environment: CNI_CONTAINERID and CNI_IFNAME are needed";
        self.call.key.as_ref().ok_or_else(|| Error::new(Code::InvalidEnvironment, says))
    }

    /// `CNI_IFNAME`.
    ///
    /// # Errors
    /// As [`Context::key`].
    pub fn ifname(&self) -> Result<types::IfName, Error> {
        Ok(self.key()?.ifname.clone())
    }

    /// The path of the container's namespace as it was given.
    #[must_use]
    pub fn netns_path(&self) -> &'a str {
        self.call.netns.as_deref().unwrap_or_default()
    }

    /// The container's namespace, which must be there and must not be the node's own.
    ///
    /// # Errors
    /// Code 3 or 4.
    pub fn netns(&mut self) -> Result<M::Netns, Error> {
        crate::ops::open_netns(self.machine, self.call.netns.as_deref().unwrap_or_default())
    }

    /// For DEL: the container's namespace if it is still there.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn netns_if_there(&mut self) -> Result<Option<M::Netns>, Error> {
        if self.call.netns.is_none() {
            return Ok(None);
        }
        match self.netns() {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.code == Code::UnknownContainer => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Rtnetlink of the node's own namespace.
    ///
    /// # Errors
    /// Code 100.
    pub fn host(&mut self) -> Result<<M::Netns as Netns>::Rt, Error> {
        crate::ops::host(self.machine)
    }

    /// `prevResult`, for a plugin that works on what others made.
    ///
    /// # Errors
    /// Code 7 when there is none.
    pub fn chained(&self) -> Result<&CniResult, Error> {
        let says =
            "prevResult is missing: this plugin works on an interface that a plugin before it made; chain it after one";
        self.prev.as_ref().ok_or_else(|| bad(says))
    }

    /// `cni.dev/valid-attachments`, for GC. None is an empty list: libcni leaves it out when a runtime lists nothing.
    ///
    /// # Errors
    /// Code 7 when it is malformed.
    pub fn valid_attachments(&self) -> Result<Vec<Key>, Error> {
        // The second is what the released specification 1.1.0 calls it (containernetworking/cni issue 1101).
        let named = |f| self.fields().list(f).and_then(config::attachments);
        let valid = named("cni.dev/valid-attachments")?;
        if valid.is_empty() { named("cni.dev/attachments") } else { Ok(valid) }
    }
}

/// One call of `plugin` from environment and standard input to standard output. `now` is seconds since 1970.
pub fn serve<M: Machine>(
    plugin: &dyn Plugin<M>,
    registry: Registry<M>,
    machine: &mut M,
    env: &Env,
    stdin: &mut dyn io::Read,
    now: u64,
) -> Outcome {
    let mut version = Version::NEWEST;
    match call(plugin, registry, machine, env, stdin, now, &mut version) {
        Ok(Some(v)) => Outcome { stdout: v.to_string(), exit: 0 },
        Ok(None) => Outcome { stdout: String::new(), exit: 0 },
        Err(e) => Outcome { stdout: e.to_json(version), exit: 1 },
    }
}

fn call<M: Machine>(
    plugin: &dyn Plugin<M>,
    registry: Registry<M>,
    machine: &mut M,
    env: &Env,
    stdin: &mut dyn io::Read,
    now: u64,
    version: &mut Version,
) -> Result<Option<Value>, Error> {
    let call = Call::lenient(env)?;
    // Some ask with nothing on standard input.
    if call.command == Command::Version {
        return Ok(Some(spoken()));
    }
    let conf = config::object(&config::read(stdin)?)?;
    *version = config::version(&conf)?;
    let mut cx = Context { machine, env, call: &call, conf: &conf, version: *version, prev: None, now, registry };
    Ok(verb(plugin, &mut cx)?.map(|r| r.write(*version)))
}

/// The answer to VERSION: it does not depend on what was asked, so that a runtime of any age learns what is spoken.
pub(crate) fn spoken() -> Value {
    json!({"cniVersion": Version::NEWEST.as_str(), "supportedVersions": Version::ALL.map(Version::as_str)})
}

/// Whether a version has a command.
///
/// # Errors
/// Code 1 when it has not.
pub(crate) fn has_command(version: Version, command: Command) -> Result<(), Error> {
    let since = match command {
        Command::Check => Version::V0_4_0,
        Command::Gc | Command::Status => Version::V1_1_0,
        _ => Version::V0_3_0,
    };
    if version < since {
        return Err(Error::new(Code::IncompatibleVersion, "incompatible CNI versions")
            .with(format!("the configuration's cniVersion is {version}; this command exists since {since}")));
    }
    Ok(())
}

/// Runs the call's verb, here or as somebody's delegate.
pub(crate) fn verb<M: Machine>(plugin: &dyn Plugin<M>, cx: &mut Context<'_, M>) -> Result<Option<CniResult>, Error> {
    has_command(cx.version, cx.call.command)?;
    let name = cx.fields().needed("name")?;
    if !crate::args::is_identifier(name) || name.len() > 253 {
        return Err(bad(format!("name is {name:?}: letters, digits, '_', '.' and '-', the first a letter or digit")));
    }
    if let Some(prev) = cx.fields().map("prevResult")? {
        cx.prev = Some(CniResult::read(prev, "prevResult")?);
    }
    match cx.call.command {
        Command::Add => plugin.add(cx).map(Some),
        Command::Del => plugin.del(cx).map(|()| None),
        Command::Check => plugin.check(cx).map(|()| None),
        Command::Gc => plugin.gc(cx).map(|()| None),
        Command::Status => plugin.status(cx).map(|()| None),
        Command::Version => Ok(None),
    }
}
