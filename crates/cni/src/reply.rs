//! The answer to ADD in each version's form (CNI specification, section 5 "ADD Success").

use std::net::IpAddr;

use ipam::Record;
use serde_json::{Map, Value, json};

use crate::plan::{GATEWAY_V4, GATEWAY_V6, HOST_MAC, pod_mac};
use crate::{Code, Error, NetConf, Version};

/// The result for an attachment alone.
#[must_use]
pub fn result(r: &Record, version: Version, dns: Option<&Value>) -> Value {
    let mut out = Map::new();
    out.insert("cniVersion".into(), version.as_str().into());
    append(&mut out, r, version);
    out.insert("dns".into(), dns.cloned().unwrap_or_else(|| json!({})));
    Value::Object(out)
}

/// The result after the plugins before us in the chain: theirs, and ours appended.
///
/// # Errors
/// Code 7 when `prevResult` has a list that is none, or is of another version than the configuration.
pub fn merged(r: &Record, conf: &NetConf) -> Result<Value, Error> {
    let Some(prev) = &conf.prev_result else { return Ok(result(r, conf.version, conf.dns.as_ref())) };
    let bad = |says: String| Error::new(Code::InvalidConfig, format!("invalid network configuration: {says}"));
    let mut out = prev.clone();
    match out.get("cniVersion").map(|v| v.as_str()) {
        None => {}
        Some(Some(v)) if v == conf.version.as_str() => {}
        Some(v) => {
            let v = v.unwrap_or("no text");
            return Err(bad(format!("prevResult.cniVersion is {v}, the configuration's is {}", conf.version)));
        }
    }
    out.insert("cniVersion".into(), conf.version.as_str().into());
    for list in ["interfaces", "ips", "routes"] {
        match out.get(list) {
            None | Some(Value::Array(_)) => {}
            Some(Value::Null) => {
                out.remove(list);
            }
            Some(_) => return Err(bad(format!("prevResult.{list} is no list"))),
        }
    }
    append(&mut out, r, conf.version);
    if let Some(dns) = &conf.dns {
        out.insert("dns".into(), dns.clone());
    } else {
        out.entry("dns").or_insert_with(|| json!({}));
    }
    Ok(Value::Object(out))
}

fn push(out: &mut Map<String, Value>, list: &str, v: Value) -> usize {
    let list = out.entry(list).or_insert_with(|| Value::Array(Vec::new()));
    match list {
        Value::Array(a) => {
            a.push(v);
            a.len() - 1
        }
        _ => 0,
    }
}

fn append(out: &mut Map<String, Value>, r: &Record, version: Version) {
    let mut host = json!({"name": r.link.as_str(), "mac": HOST_MAC.to_string()});
    let mut pod =
        json!({"name": r.key.ifname.as_str(), "mac": pod_mac(&r.link).to_string(), "sandbox": r.netns.as_ref()});
    if version >= Version::V1_1_0 {
        host["mtu"] = r.mtu.into();
        pod["mtu"] = r.mtu.into();
    }
    push(out, "interfaces", host);
    let index = push(out, "interfaces", pod);
    for addr in &r.addresses {
        let (len, gw, dst, family) = match addr {
            IpAddr::V4(_) => (32, GATEWAY_V4.to_string(), "0.0.0.0/0", "4"),
            IpAddr::V6(_) => (128, GATEWAY_V6.to_string(), "::/0", "6"),
        };
        let mut ip = json!({"interface": index, "address": format!("{addr}/{len}"), "gateway": gw});
        if version < Version::V1_0_0 {
            ip["version"] = family.into();
        }
        push(out, "ips", ip);
        push(out, "routes", json!({"dst": dst, "gw": gw}));
    }
}
