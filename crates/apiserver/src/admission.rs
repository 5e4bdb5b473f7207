//! What a Service is given when it is admitted: families, cluster IPs, node ports (`pkg/registry/core/service/storage`
//! of Kubernetes is the reference for every rule here). Runs inside the write's own transaction, so two Services can
//! never be given one value; the values are free again when the Service that holds them is gone.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use controller::alloc;
use serde_json::{Map, Value, json};
use types::{Cidr, Family};

use crate::error::Causes;
use crate::resource::{Claim, Resource};
use crate::store::Tx;
use crate::util::{int_at, list_at, obj, random_u64, str_at};

/// The ranges that admission hands out from.
#[derive(Debug, Clone)]
pub(crate) struct Ranges {
    /// One, or one of each family; the first is the default.
    pub(crate) services: Vec<Cidr>,
    pub(crate) node_ports: RangeInclusive<u16>,
}

fn family_name(f: Family) -> &'static str {
    match f {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn other(f: Family) -> Family {
    match f {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    }
}

fn has_ips(spec: &Value) -> bool {
    str_at(spec, &["type"]) != "ExternalName"
}

fn has_ports(spec: &Value) -> bool {
    match str_at(spec, &["type"]) {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn may_have_ports(spec: &Value) -> bool {
    matches!(str_at(spec, &["type"]), "NodePort" | "LoadBalancer")
}

fn needs_health_port(spec: &Value) -> bool {
    str_at(spec, &["type"]) == "LoadBalancer" && str_at(spec, &["externalTrafficPolicy"]) == "Local"
}

/// Fields that the new type cannot have and that the client only carried over from the old object go away; values that
/// were allocated and that the client left out are kept.
fn carry_over(spec: &mut Map<String, Value>, old: &Value) {
    let new = Value::Object(spec.clone());
    let had = |k: &str| old.get(k).is_some() && new.get(k) == old.get(k);
    let ty = str_at(&new, &["type"]);
    if ty == "ExternalName" && has_ips(old) {
        for k in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if had(k) {
                spec.remove(k);
            }
        }
    }
    if ty != "ExternalName" && !has_ips(old) && had("externalName") {
        spec.remove("externalName");
    }
    if !may_have_ports(&new) {
        if list_at(&new, &["externalIPs"]).is_empty() && had("externalTrafficPolicy") {
            spec.remove("externalTrafficPolicy");
        }
        for p in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let was = list_at(old, &["ports"]).iter().any(|o| o.get("nodePort") == p.get("nodePort"));
            if was {
                crate::util::remove(p, "nodePort");
            }
        }
    }
    if ty != "LoadBalancer" {
        for k in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "loadBalancerSourceRanges"] {
            if had(k) {
                spec.remove(k);
            }
        }
    }
    if !needs_health_port(&new) && had("healthCheckNodePort") {
        spec.remove("healthCheckNodePort");
    }
    if has_ips(old) && ty != "ExternalName" {
        // `clusterIP` alone was changed: the list follows it.
        let (now, before) = (new.get("clusterIP"), old.get("clusterIP"));
        if now.is_some() && now != before && new.get("clusterIPs") == old.get("clusterIPs") {
            spec.insert("clusterIPs".into(), json!([now]));
        }
        if now.is_none() && new.get("clusterIPs").is_none_or(|l| Some(l) == old.get("clusterIPs")) {
            for k in ["clusterIP", "clusterIPs"] {
                if let Some(v) = old.get(k) {
                    spec.insert(k.into(), v.clone());
                }
            }
        }
        for k in ["ipFamilyPolicy", "ipFamilies"] {
            if new.get(k).is_none()
                && let Some(v) = old.get(k)
            {
                spec.insert(k.into(), v.clone());
            }
        }
    }
    if has_ports(&new) && may_have_ports(old) {
        for p in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if int_at(p, &["nodePort"]).unwrap_or(0) != 0 {
                continue;
            }
            let same = |o: &&Value| o.get("port") == p.get("port") && o.get("protocol") == p.get("protocol");
            if let Some(n) = list_at(old, &["ports"]).iter().find(same).and_then(|o| o.get("nodePort")).cloned()
                && let Some(m) = p.as_object_mut()
            {
                m.insert("nodePort".into(), n);
            }
        }
    }
    if needs_health_port(&new)
        && int_at(&new, &["healthCheckNodePort"]).unwrap_or(0) == 0
        && let Some(n) = old.get("healthCheckNodePort")
    {
        spec.insert("healthCheckNodePort".into(), n.clone());
    }
}

/// Decides `ipFamilyPolicy` and `ipFamilies`; returns the families that need an address, in order.
fn families(spec: &mut Map<String, Value>, old: Option<&Value>, ranges: &Ranges, c: &mut Causes) -> Vec<Family> {
    let v = Value::Object(spec.clone());
    let configured: Vec<Family> = ranges.services.iter().map(Cidr::family).collect();
    let headless = str_at(&v, &["clusterIP"]) == "None" || list_at(&v, &["clusterIPs"]).first() == Some(&"None".into());
    let selectorless = v["selector"].as_object().is_none_or(Map::is_empty);
    let mut want: Vec<Family> = Vec::new();
    for (i, f) in list_at(&v, &["ipFamilies"]).iter().enumerate() {
        let at = format!("spec.ipFamilies[{i}]");
        let family = match f.as_str().unwrap_or("") {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => {
                c.unsupported(&at, f, &["IPv4", "IPv6"]);
                continue;
            }
        };
        if want.contains(&family) {
            c.duplicate(&at, f);
        } else if !(configured.contains(&family) || headless && selectorless) {
            c.invalid(
                &at,
                f,
                &format!("not configured on this cluster: its service range has no {} part", family_name(family)),
            );
        } else {
            want.push(family);
        }
    }
    let given: Vec<IpAddr> =
        list_at(&v, &["clusterIPs"]).iter().filter_map(|i| i.as_str().and_then(|s| s.parse().ok())).collect();
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    let policy = match v.get("ipFamilyPolicy") {
        Some(p) if !policies.contains(&p.as_str().unwrap_or("")) => {
            c.unsupported("spec.ipFamilyPolicy", p, &policies);
            "SingleStack"
        }
        Some(p) => p.as_str().unwrap_or("SingleStack"),
        None if headless && selectorless => "RequireDualStack",
        None => "SingleStack",
    }
    .to_owned();
    let two = list_at(&v, &["ipFamilies"]).len() > 1 || list_at(&v, &["clusterIPs"]).len() > 1;
    if policy == "SingleStack" && two {
        // A dual-stack Service whose policy alone was changed gives its second address back.
        let downgrade = old.is_some_and(|o| {
            str_at(o, &["ipFamilyPolicy"]) != "SingleStack"
                && o.get("clusterIPs") == v.get("clusterIPs")
                && o.get("ipFamilies") == v.get("ipFamilies")
        });
        if downgrade {
            want.truncate(1);
            if let Some(ips) = spec.get_mut("clusterIPs").and_then(Value::as_array_mut) {
                ips.truncate(1);
            }
        } else {
            let why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple `ipFamilies` or `clusterIPs` are specified";
            c.invalid("spec.ipFamilyPolicy", v.get("ipFamilyPolicy").unwrap_or(&Value::Null), why);
        }
    }
    // Addresses that were asked for decide the families that were not.
    for (i, ip) in given.iter().enumerate().take(if policy == "SingleStack" { 1 } else { 2 }) {
        let f = Family::of(*ip);
        match want.get(i) {
            None if !want.contains(&f) => want.push(f),
            Some(w) if *w == f => {}
            _ => c.invalid(
                &format!("spec.clusterIPs[{i}]"),
                &ip.to_string().into(),
                "does not match `ipFamilies` at this place",
            ),
        }
    }
    if want.is_empty() {
        want.extend(configured.first());
    }
    if policy != "SingleStack" && want.len() == 1 {
        let second = other(want[0]);
        if configured.contains(&second) || (headless && selectorless) {
            want.push(second);
        } else if policy == "RequireDualStack" {
            c.invalid(
                "spec.ipFamilyPolicy",
                &policy.as_str().into(),
                "this cluster is not configured for dual-stack services",
            );
        }
    }
    spec.insert("ipFamilyPolicy".into(), policy.into());
    spec.insert("ipFamilies".into(), want.iter().map(|f| family_name(*f)).collect::<Vec<_>>().into());
    want
}

fn cluster_ips(
    tx: &Tx<'_>,
    res: &Resource,
    key: &str,
    spec: &mut Map<String, Value>,
    old: Option<&Value>,
    ranges: &Ranges,
    c: &mut Causes,
) {
    let one = spec.get("clusterIP").and_then(Value::as_str).unwrap_or("").to_owned();
    let list: Vec<String> = spec
        .get("clusterIPs")
        .and_then(Value::as_array)
        .map(|l| l.iter().map(|v| v.as_str().unwrap_or("").to_owned()).collect())
        .unwrap_or_default();
    if one.is_empty() {
        spec.remove("clusterIP");
    }
    let list = match (one.is_empty(), list.is_empty()) {
        (false, true) => vec![one.clone()],
        _ => list,
    };
    if !one.is_empty() && list.first() != Some(&one) {
        c.invalid("spec.clusterIPs", &list.clone().into(), "first value must match `clusterIP`");
        return;
    }
    if let Some(old) = old.filter(|o| has_ips(o)) {
        let was = str_at(old, &["clusterIP"]);
        if !was.is_empty() && list.first().map(String::as_str) != Some(was) {
            c.invalid("spec.clusterIPs[0]", &list.clone().into(), "may not change once set");
            return;
        }
    }
    if list.is_empty() {
        spec.remove("clusterIPs");
    } else {
        spec.insert("clusterIPs".into(), list.clone().into());
    }
    for (i, text) in list.iter().enumerate() {
        if text != "None" && text.parse::<IpAddr>().is_err() {
            c.invalid(
                &format!("spec.clusterIPs[{i}]"),
                &text.as_str().into(),
                "must be empty, 'None', or a valid IP address",
            );
        }
    }
    if list.len() > 2 {
        c.too_many("spec.clusterIPs", list.len(), 2);
    }
    if list.len() > 1 && list.iter().any(|t| t == "None") {
        c.invalid("spec.clusterIPs", &list.clone().into(), "'None' must be the first and only value");
    }
    if !c.0.is_empty() {
        return;
    }
    let want = families(spec, old, ranges, c);
    if !c.0.is_empty() {
        return;
    }
    if list.first().map(String::as_str) == Some("None") {
        spec.insert("clusterIP".into(), "None".into());
        spec.insert("clusterIPs".into(), json!(["None"]));
        return;
    }
    let mut ips: Vec<Value> = Vec::new();
    for (i, family) in want.iter().enumerate() {
        let Some(range) = ranges.services.iter().find(|r| r.family() == *family) else { continue };
        let taken = |ip: IpAddr| tx.claimed(res, &Claim::Ip(ip), key);
        let kept = spec.get("clusterIPs").and_then(|l| l.get(i)).and_then(Value::as_str).and_then(|s| s.parse().ok());
        let got = match kept {
            Some(ip) => alloc::wanted_ip(range, ip, taken).map(|()| ip),
            None => alloc::next_ip(range, random_u64(), taken),
        };
        match got {
            Ok(ip) => ips.push(ip.to_string().into()),
            Err(e) => {
                let shown = kept.map_or(Value::Null, |ip: IpAddr| json!([ip.to_string()]));
                c.invalid("spec.clusterIPs", &shown, &e.to_string());
            }
        }
    }
    if let Some(first) = ips.first() {
        spec.insert("clusterIP".into(), first.clone());
        spec.insert("clusterIPs".into(), ips.into());
    }
}

fn node_ports(tx: &Tx<'_>, res: &Resource, key: &str, spec: &mut Map<String, Value>, ranges: &Ranges, c: &mut Causes) {
    let whole = Value::Object(spec.clone());
    let allocate = has_ports(&whole);
    // Ports of one Service may share a node port when their protocols differ.
    let mut mine: Vec<(i64, String, u16)> = Vec::new();
    let ports = list_at(&whole, &["ports"]);
    for p in ports {
        if let Some(n) = int_at(p, &["nodePort"]).and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0) {
            mine.push((int_at(p, &["port"]).unwrap_or(0), str_at(p, &["protocol"]).into(), n));
        }
    }
    for (i, p) in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let at = format!("spec.ports[{i}].nodePort");
        let taken = |n: u16| tx.claimed(res, &Claim::Port(n), key);
        let (port, proto) = (int_at(p, &["port"]).unwrap_or(0), str_at(p, &["protocol"]).to_owned());
        let have = int_at(p, &["nodePort"]).unwrap_or(0);
        let Some(m) = p.as_object_mut() else { continue };
        if have != 0 {
            if may_have_ports(&whole) {
                let n = u16::try_from(have).unwrap_or(0);
                if let Err(e) = alloc::wanted_port(&ranges.node_ports, n, taken) {
                    c.invalid(&at, &have.into(), &e.to_string());
                }
            }
            continue;
        }
        m.remove("nodePort");
        if !allocate {
            continue;
        }
        let shared = mine
            .iter()
            .find(|(o, pr, n)| *o == port && *pr != proto && !mine.iter().any(|(_, pr, m)| m == n && *pr == proto));
        let got = match shared {
            Some((_, _, n)) => Ok(*n),
            None => {
                alloc::next_port(&ranges.node_ports, random_u64(), |n| taken(n) || mine.iter().any(|(_, _, m)| *m == n))
            }
        };
        match got {
            Ok(n) => {
                m.insert("nodePort".into(), n.into());
                mine.push((port, proto, n));
            }
            Err(e) => c.invalid(&at, &Value::Null, &e.to_string()),
        }
    }
    if needs_health_port(&whole) {
        let taken = |n: u16| tx.claimed(res, &Claim::Port(n), key) || mine.iter().any(|(_, _, m)| *m == n);
        let got = match int_at(&whole, &["healthCheckNodePort"]).unwrap_or(0) {
            0 => alloc::next_port(&ranges.node_ports, random_u64(), taken),
            n => {
                let n = u16::try_from(n).unwrap_or(0);
                alloc::wanted_port(&ranges.node_ports, n, taken).map(|()| n)
            }
        };
        match got {
            Ok(n) => drop(spec.insert("healthCheckNodePort".into(), n.into())),
            Err(e) => c.invalid("spec.healthCheckNodePort", &whole["healthCheckNodePort"], &e.to_string()),
        }
    } else if int_at(&whole, &["healthCheckNodePort"]).unwrap_or(0) == 0 {
        spec.remove("healthCheckNodePort");
    } else {
        c.invalid(
            "spec.healthCheckNodePort",
            &whole["healthCheckNodePort"],
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
}

/// Admits a Service: fills in what the server decides, or says why not.
pub(crate) fn service(
    tx: &Tx<'_>,
    res: &Resource,
    key: &str,
    v: &mut Value,
    old: Option<&Value>,
    ranges: &Ranges,
    c: &mut Causes,
) {
    let old = old.map(|o| &o["spec"]);
    let spec = obj(v, "spec");
    if let Some(old) = old {
        carry_over(spec, old);
    }
    let whole = Value::Object(spec.clone());
    if has_ips(&whole) {
        cluster_ips(tx, res, key, spec, old, ranges, c);
    } else {
        for k in ["ipFamilies", "ipFamilyPolicy"] {
            if spec.get(k).is_some() {
                c.forbidden(&format!("spec.{k}"), "may not be used when `type` is 'ExternalName'");
            }
        }
    }
    node_ports(tx, res, key, spec, ranges, c);
}
