//! The environment of a call (CNI specification, section 2 "Parameters").

use std::ffi::OsString;
use std::net::IpAddr;

use ipam::{Key, PodRef};
use types::Mac;

use crate::{Code, Error};

/// No variable of a sane call is longer.
const MAX_VALUE: usize = 4096;

/// What the plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Compare with the record.
    Check,
    /// Remove what is not listed as living.
    Gc,
    /// Say whether ADD could be served.
    Status,
    /// Say which versions are spoken.
    Version,
}

/// The variables as they are. Any may be missing.
#[derive(Debug, Clone, Default)]
pub struct Env {
    /// `CNI_COMMAND`.
    pub command: Option<OsString>,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<OsString>,
    /// `CNI_NETNS`.
    pub netns: Option<OsString>,
    /// `CNI_IFNAME`.
    pub ifname: Option<OsString>,
    /// `CNI_ARGS`.
    pub args: Option<OsString>,
    /// `CNI_PATH`: where plugins are, separated by colons.
    pub path: Option<OsString>,
}

impl Env {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let get = std::env::var_os;
        Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
            path: get("CNI_PATH"),
        }
    }

    /// `CNI_PATH`, empty when it is missing or no text.
    pub(crate) fn path_text(&self) -> &str {
        self.path.as_deref().and_then(|p| p.to_str()).unwrap_or_default()
    }
}

impl Command {
    /// As it is written in `CNI_COMMAND`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// A call, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub command: Command,
    /// On which interface of which container; for ADD, DEL and CHECK.
    pub key: Option<Key>,
    /// The namespace's path; always there for ADD and CHECK.
    pub netns: Option<Box<str>>,
    /// The pod.
    pub pod: Option<PodRef>,
    /// Addresses asked for by `IP=` in `CNI_ARGS`.
    pub ips: Vec<IpAddr>,
    /// `CNI_ARGS` as `KEY=VALUE` pairs, for plugins with keys of their own; see [`Call::arg`].
    pub args: Box<str>,
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(Code::InvalidEnvironment, format!("invalid environment: {what}"))
}

fn text<'a>(name: &str, value: Option<&'a OsString>) -> Result<Option<&'a str>, Error> {
    let Some(v) = value.filter(|v| !v.is_empty()) else { return Ok(None) };
    let v = v.to_str().ok_or_else(|| bad(format!("{name} is not UTF-8")))?;
    if v.len() > MAX_VALUE {
        return Err(bad(format!("{name} has {} bytes, at most {MAX_VALUE} are taken", v.len())));
    }
    if v.contains('\0') {
        return Err(bad(format!("{name} contains a zero byte")));
    }
    Ok(Some(v))
}

/// Starts with a letter or digit; the rest letters, digits, `_`, `.`, `-`: the rule for container ids and network
/// names.
pub(crate) fn is_identifier(s: &str) -> bool {
    s.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl Call {
    /// Checks the variables that `CNI_COMMAND` calls for, and that every key of `CNI_ARGS` is known.
    ///
    /// # Errors
    /// Code 4, naming every variable that is missing, or the one that is wrong.
    pub fn parse(env: &Env) -> Result<Self, Error> {
        let mut call = Self::lenient(env)?;
        (call.pod, call.ips) = parse_args(&call.args)?;
        Ok(call)
    }

    /// The value of a key of `CNI_ARGS`.
    #[must_use]
    pub fn arg(&self, key: &str) -> Option<&str> {
        self.args.split(';').filter_map(|p| p.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// The hardware address asked for by `MAC=` in `CNI_ARGS`: podman's way.
    ///
    /// # Errors
    /// Code 4 when it is none.
    pub fn mac(&self) -> Result<Option<Mac>, Error> {
        self.arg("MAC").map_or(Ok(None), hardware)
    }

    /// Checks the variables that `CNI_COMMAND` calls for; the keys of `CNI_ARGS` are left to who reads them.
    ///
    /// # Errors
    /// Code 4, naming every variable that is missing, or the one that is wrong.
    pub fn lenient(env: &Env) -> Result<Self, Error> {
        let command = match text("CNI_COMMAND", env.command.as_ref())? {
            Some("ADD") => Command::Add,
            Some("DEL") => Command::Del,
            Some("CHECK") => Command::Check,
            Some("GC") => Command::Gc,
            Some("STATUS") => Command::Status,
            Some("VERSION") => Command::Version,
            None => return Err(bad("CNI_COMMAND is missing: one of ADD, DEL, CHECK, GC, STATUS, VERSION")),
            Some(c) => return Err(bad(format!("CNI_COMMAND is {c:?}: one of ADD, DEL, CHECK, GC, STATUS, VERSION"))),
        };
        let mut call = Self { command, key: None, netns: None, pod: None, ips: Vec::new(), args: "".into() };
        if matches!(command, Command::Gc | Command::Status | Command::Version) {
            return Ok(call);
        }
        let container = text("CNI_CONTAINERID", env.container_id.as_ref())?;
        let ifname = text("CNI_IFNAME", env.ifname.as_ref())?;
        let netns = text("CNI_NETNS", env.netns.as_ref())?;
        let mut missing = Vec::new();
        if container.is_none() {
            missing.push("CNI_CONTAINERID");
        }
        if netns.is_none() && command != Command::Del {
            missing.push("CNI_NETNS");
        }
        if ifname.is_none() {
            missing.push("CNI_IFNAME");
        }
        let (Some(container), Some(ifname), true) = (container, ifname, missing.is_empty()) else {
            return Err(bad(format!("{} missing", missing.join(", "))));
        };
        if !is_identifier(container) {
            return Err(bad(format!(
                "CNI_CONTAINERID is {container:?}: letters, digits, '_', '.' and '-', the first a letter or digit"
            )));
        }
        let ifname = ifname.parse().map_err(|e| bad(format!("CNI_IFNAME: {e}")))?;
        call.key = Some(Key { container: container.into(), ifname });
        if let Some(path) = netns {
            if !path.starts_with('/') {
                return Err(bad(format!("CNI_NETNS is {path:?}: an absolute path is needed")));
            }
            call.netns = Some(path.into());
        }
        call.args = text("CNI_ARGS", env.args.as_ref())?.unwrap_or_default().into();
        Ok(call)
    }
}

/// Reads `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`. Known are `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID`,
/// `K8S_POD_INFRA_CONTAINER_ID`, `IP` (comma separated), `MAC` (see [`Call::mac`]) and `IgnoreUnknown`.
///
/// # Errors
/// Code 4, naming the key.
pub fn parse_args(args: &str) -> Result<(Option<PodRef>, Vec<IpAddr>), Error> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    let mut ips = Vec::new();
    let mut unknown = None;
    let mut ignore = false;
    for pair in args.split(';').filter(|p| !p.is_empty()) {
        let Some((k, v)) = pair.split_once('=') else {
            return Err(bad(format!("CNI_ARGS: {pair:?} is not KEY=VALUE")));
        };
        let short = || {
            if v.len() > 253 { Err(bad(format!("CNI_ARGS: {k} has more than 253 bytes"))) } else { Ok(Box::from(v)) }
        };
        match k {
            "K8S_POD_NAMESPACE" => namespace = Some(short()?),
            "K8S_POD_NAME" => name = Some(short()?),
            "K8S_POD_UID" => uid = if v.is_empty() { None } else { Some(short()?) },
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IgnoreUnknown" => {
                ignore = match v.to_ascii_lowercase().as_str() {
                    "1" | "true" | "t" => true,
                    "0" | "false" | "f" => false,
                    _ => return Err(bad(format!("CNI_ARGS: IgnoreUnknown is {v:?}: true or false"))),
                }
            }
            "MAC" => drop(hardware(v)?),
            "IP" => {
                for ip in v.split(',').filter(|s| !s.is_empty()) {
                    ips.push(address(ip).ok_or_else(|| bad(format!("CNI_ARGS: IP {ip:?} is no address")))?);
                }
            }
            _ => unknown = unknown.or(Some(k)),
        }
    }
    if let Some(k) = unknown.filter(|_| !ignore) {
        return Err(bad(format!("CNI_ARGS: {k} is not known; add IgnoreUnknown=1 to have such keys ignored")));
    }
    let pod = match (namespace, name) {
        (Some(namespace), Some(name)) => Some(PodRef { namespace, name, uid }),
        _ => None,
    };
    Ok((pod, ips))
}

fn hardware(text: &str) -> Result<Option<Mac>, Error> {
    let says = || bad(format!("CNI_ARGS: MAC {text:?} is no station's hardware address, e.g. 02:00:00:00:00:17"));
    let mac = || text.parse().ok().filter(|m: &Mac| m.is_station());
    if text.is_empty() { Ok(None) } else { mac().map(Some).ok_or_else(says) }
}

/// An address, with or without a prefix length, which is ignored: ours are always host routes.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}
