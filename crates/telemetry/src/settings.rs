//! The one table of settings. A row gives a setting its name, type, default and help; everything else follows by rule:
//! flag `--NAME`, environment variable `SEAWAY_NAME`, ConfigMap key `NAME`. [`Settings`] is the same table as a typed
//! value, so no setting exists that is not documented, and none is documented that does not exist.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use types::{Cidr, IfName, NodeName};

use crate::log::LogFormat;

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Kebab-case; also the flag without its dashes, and the ConfigMap key.
    pub name: &'static str,
    /// The heading it stands under.
    pub section: &'static str,
    /// The word for its type: what a person writes as its value.
    pub kind: &'static str,
    /// The default as text; empty means not set.
    pub default: &'static str,
    /// What it does, one or more sentences.
    pub help: &'static str,
    /// Says what is wrong with a text as a value of this setting.
    check: fn(&str) -> Result<(), String>,
}

impl Setting {
    /// The command line flag: `--vxlan-port`.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name)
    }

    /// The environment variable: `SEAWAY_VXLAN_PORT`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("SEAWAY_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// The key in the ConfigMap, which is also the file's name in the settings folder.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.name
    }

    /// Whether its value is `true` or `false`, so that the flag alone may stand for `true`.
    #[must_use]
    pub fn is_switch(&self) -> bool {
        self.kind == bool::KIND
    }

    /// Whether a text is a value of this setting.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, text: &str) -> Result<(), String> {
        (self.check)(text)
    }

    /// The row of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|s| s.name == name)
    }
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Flag,
    /// In the environment.
    Env,
    /// In a file of the settings folder (a mounted ConfigMap).
    File(PathBuf),
    /// Nowhere: the default.
    Default,
}

/// A setting that cannot be used: says where it was given, what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// The value is wrong.
    #[error("{place}: {problem}")]
    Value {
        /// The flag, variable or file.
        place: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A key of the ConfigMap that names no setting.
    #[error("{}: {:?} is no setting{}: remove it, or see docs/settings.md", .dir.display(), .key, .near.map_or_else(String::new, |n| format!(" (did you mean {n:?}?)")))]
    Unknown {
        /// The settings folder.
        dir: PathBuf,
        /// The key.
        key: String,
        /// A setting with a similar name.
        near: Option<&'static str>,
    },
    /// The settings folder cannot be read.
    #[error("{}: {source}: give --config-dir a readable folder with one file per setting", .path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A type that settings have.
trait Value: Sized {
    const KIND: &'static str;
    fn read(text: &str) -> Result<Self, String>;
}

impl<T: Value> Value for Option<T> {
    const KIND: &'static str = T::KIND;
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::read(text).map(Some) }
    }
}

impl<T: Value> Value for Vec<T> {
    const KIND: &'static str = T::KIND;
    fn read(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|p| !p.is_empty()).map(T::read).collect()
    }
}

macro_rules! value {
    ($($ty:ty = $kind:literal),+ $(,)?) => {$(
        impl Value for $ty {
            const KIND: &'static str = $kind;
            fn read(text: &str) -> Result<Self, String> {
                <$ty>::from_str(text).map_err(|e| format!("{text:?} is no {}: {e}", $kind))
            }
        }
    )+};
}
value!(
    NodeName = "node name",
    IfName = "interface name",
    Cidr = "CIDR",
    PathBuf = "path",
    SocketAddr = "address:port",
    u16 = "number up to 65535",
    u8 = "number up to 255",
    LogFormat = "human or json",
    Backend = "host-gw or vxlan",
);

impl Value for bool {
    const KIND: &'static str = "true or false";
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        }
    }
}

impl Value for Duration {
    const KIND: &'static str = "duration";
    fn read(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no duration: write a whole number and a unit, such as 500ms, 2s or 1m");
        let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let n: u64 = text[..unit].parse().map_err(|_| wrong())?;
        let ms = match &text[unit..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        n.checked_mul(ms).map(Self::from_millis).ok_or_else(wrong)
    }
}

/// A log level text, checked by the parser that will use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level(pub String);

impl Value for Level {
    const KIND: &'static str = "level or directives";
    fn read(text: &str) -> Result<Self, String> {
        crate::log::filter(text).map(|_| Self(text.to_owned())).map_err(|e| e.to_string())
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vni(pub u32);

impl Value for Vni {
    const KIND: &'static str = "number up to 16777215";
    fn read(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(n) if n < 1 << 24 => Ok(Self(n)),
            _ => Err(format!("{text:?} is no VXLAN network identifier: use a number from 0 to 16777215")),
        }
    }
}

/// The backend's name. The intent's own type is below another door; the words are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A route to each peer's pods by the peer's own address.
    HostGw,
    /// VXLAN with static entries.
    Vxlan,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::HostGw => "host-gw",
            Self::Vxlan => "vxlan",
        })
    }
}

impl FromStr for Backend {
    type Err = &'static str;
    fn from_str(s: &str) -> Result<Self, &'static str> {
        match s.to_ascii_lowercase().as_str() {
            "host-gw" => Ok(Self::HostGw),
            "vxlan" => Ok(Self::Vxlan),
            _ => Err("use host-gw or vxlan"),
        }
    }
}

macro_rules! settings {
    ($($section:literal { $($field:ident: $ty:ty = $name:literal, $default:literal, $help:literal;)+ })+) => {
        /// Every setting, in the order of the page.
        pub const SETTINGS: &[Setting] = &[$($(Setting {
            name: $name,
            section: $section,
            kind: <$ty as Value>::KIND,
            default: $default,
            help: $help,
            check: |text| <$ty as Value>::read(text).map(drop),
        },)+)+];

        /// The table's values. The field's documentation is the row's help.
        #[derive(Debug, Clone)]
        pub struct Settings {
            $($(#[doc = $help] pub $field: $ty,)+)+
        }

        impl Settings {
            fn build(mut text: impl FnMut(&'static Setting) -> (Origin, String)) -> Result<Self, Vec<SettingError>> {
                let mut errors = Vec::new();
                $($(let $field = read::<$ty>($name, &mut text, &mut errors);)+)+
                match ($($($field,)+)+) {
                    ($($(Some($field),)+)+) if errors.is_empty() => Ok(Self { $($($field,)+)+ }),
                    _ => Err(errors),
                }
            }
        }
    };
}

fn read<T: Value>(
    name: &str,
    text: &mut impl FnMut(&'static Setting) -> (Origin, String),
    errors: &mut Vec<SettingError>,
) -> Option<T> {
    let setting = Setting::named(name)?;
    let (origin, text) = text(setting);
    T::read(&text)
        .map_err(|problem| {
            let place = match origin {
                Origin::Flag => setting.flag(),
                Origin::Env => setting.env(),
                Origin::File(p) => p.display().to_string(),
                Origin::Default => format!("default of {}", setting.flag()),
            };
            errors.push(SettingError::Value { place, problem });
        })
        .ok()
}

settings! {
    "Which node, which API" {
        node_name: Option<NodeName> = "node-name", "",
            "The Node object this agent works for. Not set: the machine's host name in lower case.";
        kubeconfig: Option<PathBuf> = "kubeconfig", "",
            "The kubeconfig of the Kubernetes API. Not set: the `KUBECONFIG` variable, then the service account of the pod it runs in.";
        api_socket: Option<PathBuf> = "api-socket", "",
            "The unix socket of an embedded API server on this machine, instead of a kubeconfig.";
    }
    "Between nodes" {
        backend: Backend = "backend", "vxlan",
            "How packets travel to other nodes. `host-gw` needs all nodes on one link and costs nothing; `vxlan` needs only IP between them and 50 bytes (70 over IPv6) of each packet. May be changed on a running cluster, node by node.";
        iface: Option<IfName> = "iface", "",
            "The interface that leads to other nodes. Not set: that of the default route, else the one that holds the Node's address.";
        vxlan_vni: Vni = "vxlan-vni", "1",
            "VXLAN network identifier; the same on all nodes.";
        vxlan_port: u16 = "vxlan-port", "8472",
            "UDP destination port of VXLAN; the same on all nodes. 8472 is Linux's and flannel's, 4789 IANA's.";
    }
    "Pods" {
        cluster_cidr: Vec<Cidr> = "cluster-cidr", "",
            "The pod ranges of the whole cluster, one or one of each family, with commas. Traffic to them is never masqueraded. Not set: the pod ranges of all Nodes.";
        masquerade: bool = "masquerade", "true",
            "Give packets from pods to outside the cluster the node's address, with fully random source ports.";
        cni_conf_dir: PathBuf = "cni-conf-dir", "/etc/cni/net.d",
            "Where the CNI configuration `10-seaway.conflist` is written once the node is ready.";
        state_dir: PathBuf = "state-dir", "/var/lib/seaway",
            "State that must survive a reboot or kill: the journal of pod addresses.";
        run_dir: PathBuf = "run-dir", "/run/seaway",
            "State of this boot: the lock that keeps a second agent out.";
    }
    "Agent" {
        config_dir: Option<PathBuf> = "config-dir", "",
            "A folder with one file per setting, named as the setting: a mounted ConfigMap. An unknown file name is an error.";
        listen: Option<SocketAddr> = "listen", "127.0.0.1:9642",
            "Where `/metrics`, `/healthz` and `/readyz` are served over HTTP. Empty: nowhere.";
        observe_interval: Duration = "observe-interval", "1s",
            "How often the kernel is compared with the intent when nothing happened. Bounds the time until what somebody else removed is back.";
        log_level: Level = "log-level", "info",
            "`error`, `warn`, `info`, `debug` or `trace`; or directives such as `info,source=debug`.";
        log_format: LogFormat = "log-format", "human",
            "`human` has colours on a terminal and none elsewhere; `json` is one object a line.";
    }
}

impl Settings {
    /// Reads every setting: command line before environment before folder before default. The folder is the
    /// `config-dir` of the first two.
    ///
    /// # Errors
    /// All that is wrong, not only the first.
    pub fn load(
        flags: &BTreeMap<String, String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<SettingError>> {
        let dir = flags.get("config-dir").cloned().or_else(|| env("SEAWAY_CONFIG_DIR")).filter(|d| !d.is_empty());
        let (files, mut errors) = dir.map_or_else(Default::default, |d| folder(Path::new(&d)));
        let built = Self::build(|s| {
            if let Some(v) = flags.get(s.name) {
                (Origin::Flag, v.clone())
            } else if let Some(v) = env(&s.env()) {
                (Origin::Env, v)
            } else if let Some((path, v)) = files.get(s.name) {
                (Origin::File(path.clone()), v.clone())
            } else {
                (Origin::Default, s.default.to_owned())
            }
        });
        match built {
            Ok(s) if errors.is_empty() => Ok(s),
            Ok(_) => Err(errors),
            Err(more) => {
                errors.extend(more);
                Err(errors)
            }
        }
    }
}

type Files = BTreeMap<String, (PathBuf, String)>;

/// A setting's value has no business being longer.
const MAX_FILE: u64 = 64 * 1024;

/// The files of a settings folder. Names with a leading dot are how the kubelet swaps a ConfigMap's versions.
fn folder(dir: &Path) -> (Files, Vec<SettingError>) {
    let (mut files, mut errors) = (Files::new(), Vec::new());
    let entries = match std::fs::read_dir(dir) {
        Ok(e) => e,
        Err(source) => return (files, vec![SettingError::Read { path: dir.to_owned(), source }]),
    };
    for entry in entries.flatten() {
        let (path, key) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if key.starts_with('.') {
            continue;
        }
        if Setting::named(&key).is_none() {
            errors.push(SettingError::Unknown { dir: dir.to_owned(), near: nearest(&key), key });
            continue;
        }
        match read_bounded(&path) {
            Ok(text) => drop(files.insert(key, (path, text.trim().to_owned()))),
            Err(source) => errors.push(SettingError::Read { path, source }),
        }
    }
    (files, errors)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other("longer than 64 KiB"));
    }
    Ok(text)
}

/// The setting whose name is at most two edits away.
fn nearest(key: &str) -> Option<&'static str> {
    // Longer keys are no typing mistake, and the table below would cost their length squared.
    if key.len() > 64 {
        return None;
    }
    SETTINGS.iter().map(|s| (distance(key, s.name), s.name)).filter(|(d, _)| *d <= 2).min().map(|(_, n)| n)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn every_default_is_a_value_and_every_name_is_one() {
        let s = Settings::load(&BTreeMap::new(), none).expect("defaults are good");
        assert_eq!((s.backend, s.vxlan_vni, s.vxlan_port), (Backend::Vxlan, Vni(1), 8472));
        assert_eq!(s.observe_interval, Duration::from_secs(1));
        assert!(s.node_name.is_none() && s.masquerade);
        let mut names: Vec<_> = SETTINGS.iter().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
        for s in SETTINGS {
            assert!(s.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", s.name);
            assert!(s.help.ends_with('.') && !s.help.contains('\n'), "{}", s.name);
            s.check(s.default).unwrap_or_else(|e| panic!("{}: {e}", s.name));
        }
    }

    #[test]
    fn the_command_line_wins_then_the_environment_then_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let dir_text = dir.path().to_str().unwrap();
        for (k, v) in [("backend", "host-gw\n"), ("vxlan-vni", "7"), ("vxlan-port", "4789"), ("masquerade", "false")] {
            std::fs::write(dir.path().join(k), v).unwrap();
        }
        std::fs::create_dir(dir.path().join("..data")).unwrap();
        let env = |n: &str| match n {
            "SEAWAY_VXLAN_VNI" => Some("8".to_owned()),
            "SEAWAY_VXLAN_PORT" => Some("1".to_owned()),
            _ => None,
        };
        let s = Settings::load(&flags(&[("config-dir", dir_text), ("vxlan-port", "2")]), env).unwrap();
        assert_eq!((s.backend, s.vxlan_vni, s.vxlan_port, s.masquerade), (Backend::HostGw, Vni(8), 2, false));
    }

    #[test]
    fn errors_name_the_place_the_value_and_the_fix() {
        for (name, value, want) in [
            ("backend", "ipip", "--backend: \"ipip\" is no host-gw or vxlan: use host-gw or vxlan"),
            ("vxlan-vni", "16777216", "--vxlan-vni: \"16777216\" is no VXLAN network identifier: use a number"),
            ("vxlan-port", "65536", "--vxlan-port: \"65536\" is no number up to 65535"),
            ("observe-interval", "2", "--observe-interval: \"2\" is no duration: write a whole number and a unit"),
            ("observe-interval", "999999999999999999h", "is no duration"),
            ("cluster-cidr", "10.0.0.0/8,10.0.0.0/33", "--cluster-cidr: \"10.0.0.0/33\" is no CIDR"),
            ("masquerade", "yes", "--masquerade: \"yes\" is neither true nor false"),
            ("listen", "9642", "--listen: \"9642\" is no address:port"),
            ("log-level", "a=b=c", "--log-level: log level \"a=b=c\""),
            ("log-format", "xml", "--log-format: \"xml\" is no"),
            ("iface", "a/b", "--iface: \"a/b\" is no interface name"),
            ("node-name", "Ä", "--node-name: \"Ä\" is no node name"),
        ] {
            let errors = Settings::load(&flags(&[(name, value)]), none).expect_err(name);
            assert_eq!(errors.len(), 1, "{name}");
            let text = errors[0].to_string();
            assert!(text.contains(want), "{text}\n wants {want}");
        }
    }

    #[test]
    fn all_errors_come_at_once_and_unknown_keys_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (k, v) in [("backand", "vxlan"), ("vxlan-port", "x"), ("colour-of-the-sea", "blue")] {
            std::fs::write(dir.path().join(k), v).unwrap();
        }
        let mut text: Vec<String> = Settings::load(&flags(&[("config-dir", dir.path().to_str().unwrap())]), none)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        text.sort();
        assert_eq!(text.len(), 3, "{text:#?}");
        let all = text.join("\n");
        assert!(all.contains("\"backand\" is no setting (did you mean \"backend\"?)"), "{all}");
        assert!(all.contains("\"colour-of-the-sea\" is no setting: remove it"), "{all}");
        assert!(all.contains("vxlan-port: \"x\" is no number"), "{all}");

        let gone = Settings::load(&flags(&[("config-dir", "/nonexistent/seaway")]), none).unwrap_err();
        assert!(gone[0].to_string().starts_with("/nonexistent/seaway: "), "{}", gone[0]);

        std::fs::remove_file(dir.path().join("backand")).unwrap();
        std::fs::remove_file(dir.path().join("colour-of-the-sea")).unwrap();
        std::fs::write(dir.path().join("vxlan-port"), "1".repeat(70_000)).unwrap();
        let long = Settings::load(&flags(&[("config-dir", dir.path().to_str().unwrap())]), none).unwrap_err();
        assert!(long[0].to_string().contains("longer than 64 KiB"), "{}", long[0]);
    }

    #[test]
    fn distances() {
        for (a, b, d) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("backand", "backend", 1)] {
            assert_eq!(distance(a, b), d);
        }
    }
}
