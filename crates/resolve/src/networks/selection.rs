//! What a pod's annotations say about its networks, as text: names, interfaces, wishes. Nothing is looked up here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;
use types::{Family, IfName, Mac, ObjectName};

/// Networks of one pod at most.
pub const MOST: usize = 32;

/// One network that a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The NetworkAttachmentDefinition.
    pub name: ObjectName,
    /// `interface`.
    pub ifname: Option<IfName>,
    /// `ips`, each an address with or without prefix length.
    pub ips: Vec<Box<str>>,
    /// `mac`.
    pub mac: Option<Mac>,
    /// `default-route`: gateways, at most one of each family.
    pub default_route: Vec<IpAddr>,
    /// `cni-args`.
    pub args: BTreeMap<String, Value>,
}

impl Selection {
    fn named(name: ObjectName) -> Self {
        Self { name, ifname: None, ips: Vec::new(), mac: None, default_route: Vec::new(), args: BTreeMap::new() }
    }
}

/// What is wrong in an annotation: where in it (`[1].ips[0]`, empty for the whole), and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The place.
    pub at: String,
    /// Why, and the fix.
    pub why: String,
}

pub(super) fn wrong(at: impl Into<String>, why: impl Into<String>) -> Wrong {
    Wrong { at: at.into(), why: why.into() }
}

/// The value of `k8s.v1.cni.cncf.io/networks`, in its short or its JSON form, or of one network of the same forms.
/// Names without a namespace are of `namespace`.
///
/// # Errors
/// The first thing that is wrong. A pod with a wrong annotation gets no network at all, so nothing is guessed.
pub fn selections(text: &str, namespace: &str) -> Result<Vec<Selection>, Wrong> {
    let text = text.trim();
    let all = if text.starts_with(['[', '{']) { json_form(text, namespace)? } else { short_form(text, namespace)? };
    if all.len() > MOST {
        return Err(wrong("", format!("names {} networks: a pod may have {MOST}", all.len())));
    }
    let mut names = BTreeSet::new();
    for (i, s) in all.iter().enumerate() {
        if let Some(name) = &s.ifname
            && !names.insert(name.clone())
        {
            return Err(wrong(format!("[{i}].interface"), format!("{name} is asked for twice: choose another")));
        }
    }
    for family in [Family::V4, Family::V6] {
        let mut of = all.iter().enumerate().filter(|(_, s)| s.default_route.iter().any(|g| Family::of(*g) == family));
        if let (Some((a, _)), Some((b, _))) = (of.next(), of.next()) {
            let why = format!("[{a}] has the default route of {family} already: a pod has one of each family");
            return Err(wrong(format!("[{b}].default-route"), why));
        }
    }
    Ok(all)
}

/// The value of the older annotation `cni`: names with commas. Each is given with its place in the list.
///
/// # Errors
/// As [`selections`].
pub fn plain(text: &str, namespace: &str) -> Result<Vec<Selection>, Wrong> {
    let mut out = Vec::new();
    for (i, word) in text.split(',').map(str::trim).enumerate() {
        if word.contains(['/', '@']) {
            let why = format!("{word:?}: only names stand here: for more use the annotation {}", super::NETWORKS);
            return Err(wrong(format!("[{i}]"), why));
        }
        out.push(Selection::named(ObjectName::new(namespace, object(word, &format!("[{i}]"))?)));
        if out.len() > MOST {
            return Err(wrong("", format!("names more than {MOST} networks")));
        }
    }
    Ok(out)
}

/// `a, ns/b, ns/c@eth1`
fn short_form(text: &str, namespace: &str) -> Result<Vec<Selection>, Wrong> {
    if text.is_empty() {
        return Err(wrong("", "is empty: remove it, or write NAMESPACE/NAME@INTERFACE with commas between"));
    }
    let mut out = Vec::new();
    for (i, word) in text.split(',').map(str::trim).enumerate() {
        let at = format!("[{i}]");
        let (name, ifname) = match word.split_once('@') {
            Some((n, f)) => (n, Some(interface(f.trim(), &at)?)),
            None => (word, None),
        };
        let (ns, name) = match name.trim().split_once('/') {
            Some((ns, n)) => (self::namespace(ns, &at)?, n),
            None => (namespace, name.trim()),
        };
        let mut s = Selection::named(ObjectName::new(ns, object(name, &at)?));
        s.ifname = ifname;
        out.push(s);
        if out.len() > MOST {
            break;
        }
    }
    Ok(out)
}

fn json_form(text: &str, namespace: &str) -> Result<Vec<Selection>, Wrong> {
    let value: Value = serde_json::from_str(text).map_err(|e| wrong("", format!("is no JSON: {e}")))?;
    let Value::Array(list) = value else {
        return Err(wrong("", "must be a JSON list of objects, each with a name"));
    };
    if list.len() > MOST {
        return Err(wrong("", format!("names {} networks: a pod may have {MOST}", list.len())));
    }
    list.iter().enumerate().map(|(i, v)| element(v, &format!("[{i}]"), namespace)).collect()
}

fn element(v: &Value, at: &str, default: &str) -> Result<Selection, Wrong> {
    let Value::Object(m) = v else { return Err(wrong(at, "must be an object with a name")) };
    let text = |key: &str| match m.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.as_str())),
        Some(other) => Err(wrong(format!("{at}.{key}"), format!("{other} must be text"))),
    };
    let texts = |key: &str| match m.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(l)) => l
            .iter()
            .enumerate()
            .map(|(i, x)| x.as_str().ok_or_else(|| wrong(format!("{at}.{key}[{i}]"), format!("{x} must be text"))))
            .collect(),
        Some(other) => Err(wrong(format!("{at}.{key}"), format!("{other} must be a list of text"))),
    };
    for key in m.keys() {
        let place = format!("{at}.{key}");
        match key.as_str() {
            "name" | "namespace" | "interface" | "ips" | "mac" | "default-route" | "cni-args" => {}
            "infiniband-guid" => {
                return Err(wrong(place, "no plugin here sets InfiniBand GUIDs: remove it"));
            }
            "portMappings" | "bandwidth" | "deviceID" | "ipam-claim-reference" => {
                return Err(wrong(place, "is not honoured for further networks: remove it"));
            }
            _ => {
                let known = "name, namespace, interface, ips, mac, default-route and cni-args";
                return Err(wrong(place, format!("is no field of a network: there are {known}")));
            }
        }
    }
    let Some(name) = text("name")? else { return Err(wrong(format!("{at}.name"), "is missing: each network has one")) };
    let namespace = match text("namespace")? {
        None | Some("") => default,
        Some(ns) => self::namespace(ns, &format!("{at}.namespace"))?,
    };
    let mut s = Selection::named(ObjectName::new(namespace, object(name, &format!("{at}.name"))?));
    s.ifname = match text("interface")? {
        None | Some("") => None,
        Some(f) => Some(interface(f, &format!("{at}.interface"))?),
    };
    s.mac = match text("mac")? {
        None | Some("") => None,
        Some(t) => Some(mac(t, &format!("{at}.mac"))?),
    };
    for (i, ip) in texts("ips")?.into_iter().enumerate() {
        s.ips.push(address(ip, &format!("{at}.ips[{i}]"))?.into());
    }
    for (i, gateway) in texts("default-route")?.into_iter().enumerate() {
        let place = format!("{at}.default-route[{i}]");
        let Ok(ip) = gateway.parse::<IpAddr>() else {
            return Err(wrong(place, format!("{gateway:?} is no address: write the gateway's, without prefix length")));
        };
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            return Err(wrong(place, format!("{ip} can be no gateway")));
        }
        if s.default_route.iter().any(|g| Family::of(*g) == Family::of(ip)) {
            return Err(wrong(place, "is a second one of its family: a pod has one default route of each"));
        }
        s.default_route.push(ip);
    }
    s.args = match m.get("cni-args") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(Value::Object(o)) => o.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        Some(other) => return Err(wrong(format!("{at}.cni-args"), format!("{other} must be an object"))),
    };
    Ok(s)
}

/// The name of a NetworkAttachmentDefinition (RFC 1123 subdomain).
fn object<'a>(name: &'a str, at: &str) -> Result<&'a str, Wrong> {
    let label = |p: &str| {
        p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && p.starts_with(|c: char| c.is_ascii_alphanumeric())
            && p.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(name)
    } else {
        let why = format!(
            "{name:?} is no name of a NetworkAttachmentDefinition: write it as kubectl shows it, e.g. macvlan-conf"
        );
        Err(wrong(at, why))
    }
}

fn namespace<'a>(ns: &'a str, at: &str) -> Result<&'a str, Wrong> {
    match object(ns, at) {
        Ok(ns) if ns.len() <= 63 && !ns.contains('.') => Ok(ns),
        _ => Err(wrong(at, format!("{ns:?} is no namespace: write NAMESPACE/NAME"))),
    }
}

fn interface(name: &str, at: &str) -> Result<IfName, Wrong> {
    match name.parse::<IfName>() {
        Ok(n) if n.as_str() != "lo" => Ok(n),
        Ok(n) => Err(wrong(at, format!("{n} is every pod's loopback: choose another interface name"))),
        Err(e) => Err(wrong(at, format!("{name:?} is no interface name: {e}"))),
    }
}

fn mac(text: &str, at: &str) -> Result<Mac, Wrong> {
    let bad = |why: &str| wrong(at, format!("{text:?}: {why}"));
    let mac: Mac = text.parse().map_err(|_| bad("write six bytes in hex with colons, e.g. 02:00:00:00:00:01"))?;
    let first = mac.0[0];
    if first & 1 == 1 || mac.0 == [0; 6] {
        return Err(bad("is no address of one interface: the first byte is even, e.g. 02, and not all are 0"));
    }
    Ok(mac)
}

fn address<'a>(text: &'a str, at: &str) -> Result<&'a str, Wrong> {
    let (ip, len) = match text.split_once('/') {
        Some((ip, len)) => (ip, Some(len)),
        None => (text, None),
    };
    let bad = || wrong(at, format!("{text:?} is no address: write e.g. 10.10.0.5/24 or 10.10.0.5"));
    let parsed: IpAddr = ip.parse().map_err(|_| bad())?;
    if let Some(len) = len {
        let n: u8 = len.parse().map_err(|_| bad())?;
        if n > Family::of(parsed).bits() || len.starts_with('+') {
            return Err(bad());
        }
    }
    if parsed.is_unspecified() || parsed.is_multicast() || parsed.is_loopback() {
        return Err(wrong(at, format!("{parsed} can be no pod's address")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(s: &Selection) -> String {
        format!("{}@{}", s.name, s.ifname.as_ref().map_or("", |i| i.as_str()))
    }

    #[test]
    fn the_forms_of_the_standard() {
        let all = selections(" a , ns/b@eth1,c.d@x ", "default").unwrap();
        assert_eq!(all.iter().map(shown).collect::<Vec<_>>(), ["default/a@", "ns/b@eth1", "default/c.d@x"]);
        let text = r#"[{"name": "a"}, {"name": "b", "namespace": "ns", "interface": "eth1", "mac": "02:00:00:00:00:05",
            "ips": ["10.1.0.5/24", "fd00::5"], "default-route": ["10.1.0.1", "fd00::1"], "cni-args": {"x": {"y": 1}}}]"#;
        let all = selections(text, "default").unwrap();
        assert_eq!(all.iter().map(shown).collect::<Vec<_>>(), ["default/a@", "ns/b@eth1"]);
        let b = &all[1];
        assert_eq!((b.ips.len(), b.default_route.len(), &b.args["x"]["y"]), (2, 2, &Value::from(1)));
        assert_eq!(selections("[]", "default").unwrap(), []);
        // One network twice is two interfaces.
        assert_eq!(selections("a,a", "default").unwrap().len(), 2);
        assert_eq!(
            plain("a, b", "default").unwrap().iter().map(shown).collect::<Vec<_>>(),
            ["default/a@", "default/b@"]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, at, why) in [
            ("", "", "is empty"),
            ("a,,b", "[1]", "no name of a NetworkAttachmentDefinition"),
            ("A", "[0]", "no name"),
            ("a/b/c", "[0]", "no name"),
            ("N/b", "[0]", "no namespace"),
            ("a@", "[0]", "no interface name"),
            ("a@waytoolonginterface", "[0]", "no interface name"),
            ("a@lo", "[0]", "loopback"),
            ("a@x,b@x", "[1].interface", "asked for twice"),
            ("{}", "", "must be a JSON list"),
            ("[", "", "is no JSON"),
            ("[5]", "[0]", "must be an object"),
            ("[{}]", "[0].name", "is missing"),
            (r#"[{"name": 5}]"#, "[0].name", "must be text"),
            (r#"[{"name": "a", "interfaces": "x"}]"#, "[0].interfaces", "is no field of a network"),
            (r#"[{"name": "a", "infiniband-guid": "x"}]"#, "[0].infiniband-guid", "remove it"),
            (r#"[{"name": "a", "bandwidth": {}}]"#, "[0].bandwidth", "not honoured"),
            (r#"[{"name": "a", "mac": "01:00:00:00:00:01"}]"#, "[0].mac", "first byte is even"),
            (r#"[{"name": "a", "mac": "x"}]"#, "[0].mac", "six bytes"),
            (r#"[{"name": "a", "ips": "10.0.0.1"}]"#, "[0].ips", "must be a list of text"),
            (r#"[{"name": "a", "ips": ["10.0.0.1/33"]}]"#, "[0].ips[0]", "no address"),
            (r#"[{"name": "a", "ips": ["224.0.0.1"]}]"#, "[0].ips[0]", "no pod's address"),
            (r#"[{"name": "a", "default-route": ["10.0.0.0/8"]}]"#, "[0].default-route[0]", "no address"),
            (r#"[{"name": "a", "default-route": ["10.0.0.1", "10.0.0.2"]}]"#, "[0].default-route[1]", "second one"),
            (
                r#"[{"name": "a", "default-route": ["10.0.0.1"]}, {"name": "b", "default-route": ["10.0.0.2"]}]"#,
                "[1].default-route",
                "[0] has the default route",
            ),
            (r#"[{"name": "a", "cni-args": []}]"#, "[0].cni-args", "must be an object"),
        ] {
            let e = selections(text, "default").unwrap_err();
            assert!(e.at == at && e.why.contains(why), "{text}: {e:?}");
        }
        let many = vec!["a"; MOST + 1].join(",");
        assert!(selections(&many, "default").unwrap_err().why.contains("a pod may have 32"));
        assert!(plain("a@b", "d").unwrap_err().why.contains(super::super::NETWORKS));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}") {
            let _ = (selections(&text, "default"), plain(&text, "default"));
        }

        /// The short form and the JSON form of the same networks are read the same.
        #[test]
        fn both_forms_say_the_same(nets in prop::collection::vec(("[a-z][a-z0-9]{0,8}", prop::option::of("[a-z]{1,5}")), 1..6)) {
            let mut short = Vec::new();
            let mut json = Vec::new();
            for (i, (name, ns)) in nets.iter().enumerate() {
                let interface = format!("if{i}");
                short.push(format!("{}{name}@{interface}", ns.as_ref().map(|n| format!("{n}/")).unwrap_or_default()));
                let mut o = serde_json::json!({"name": name, "interface": interface});
                if let Some(ns) = ns {
                    o["namespace"] = ns.as_str().into();
                }
                json.push(o);
            }
            prop_assert_eq!(selections(&short.join(","), "default"), selections(&Value::from(json).to_string(), "default"));
        }
    }
}
