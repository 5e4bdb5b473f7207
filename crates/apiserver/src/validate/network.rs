//! Services, endpoints, endpoint slices, network policies, ingresses.

use std::net::IpAddr;

use serde_json::Value;
use types::Cidr;

use super::{NameRule, immutable, ip, is_label, is_qualified_name, is_subdomain, label_selector, labels};
use crate::error::Causes;
use crate::util::{at, int_at, list_at, str_at};

pub(crate) const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
pub(crate) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

pub(crate) fn port_ok(n: i64) -> bool {
    (1..=65535).contains(&n)
}

/// A port's name: at most 15 of `a-z0-9-`, with a letter, without `--` (RFC 6335).
pub(crate) fn port_name(s: &str) -> bool {
    let b = s.as_bytes();
    (1..=15).contains(&b.len())
        && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
        && b.iter().any(u8::is_ascii_lowercase)
        && !s.contains("--")
        && !s.starts_with('-')
        && !s.ends_with('-')
}

pub(crate) const PORT_NAME: &str = "must contain at least one letter or number (a-z, 0-9), no more than 15 characters, only \
     alphanumeric characters and single '-' between them";

pub(crate) fn protocol(v: &Value, path: &str, c: &mut Causes) {
    if !PROTOCOLS.contains(&v.as_str().unwrap_or("")) {
        c.unsupported(path, v, &PROTOCOLS);
    }
}

/// A port that may be a number or a name.
pub(crate) fn int_or_name(v: &Value, path: &str, c: &mut Causes) {
    match (v.as_i64(), v.as_str()) {
        (Some(n), _) if !port_ok(n) => c.invalid(path, v, PORT_RANGE),
        (None, Some(s)) if !port_name(s) => c.invalid(path, v, PORT_NAME),
        (None, None) => c.required(path, ""),
        _ => {}
    }
}

/// Addresses that cannot be another machine's: an endpoint there is a mistake or an attack.
fn endpoint_address(text: &str, path: &str, c: &mut Causes) -> Option<IpAddr> {
    let v = Value::from(text);
    let Some(a) = ip(text) else {
        c.invalid(path, &v, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        return None;
    };
    let link_local = match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    if a.is_unspecified() {
        c.invalid(path, &v, "may not be unspecified (0.0.0.0 or ::)");
    } else if a.is_loopback() {
        c.invalid(path, &v, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    } else if link_local {
        c.invalid(path, &v, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    } else if a.is_multicast() {
        c.invalid(path, &v, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
    Some(a)
}

fn service_ports(spec: &Value, c: &mut Causes) {
    let ports = list_at(spec, &["ports"]);
    let many = ports.len() > 1;
    let (mut names, mut seen) = (Vec::new(), Vec::new());
    let mut node_ports: Vec<(&str, i64)> = Vec::new();
    for (i, p) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let name = str_at(p, &["name"]);
        if name.is_empty() {
            if many {
                c.required(&format!("{at}.name"), "");
            }
        } else if !is_label(name) {
            c.invalid(&format!("{at}.name"), &name.into(), super::LABEL);
        } else if names.contains(&name) {
            c.duplicate(&format!("{at}.name"), &name.into());
        }
        names.push(name);
        match int_at(p, &["port"]) {
            None => c.required(&format!("{at}.port"), ""),
            Some(n) if !port_ok(n) => c.invalid(&format!("{at}.port"), &n.into(), PORT_RANGE),
            Some(n) => {
                let key = (str_at(p, &["protocol"]), n);
                if seen.contains(&key) {
                    c.duplicate(&at, &serde_json::json!({"protocol": key.0, "port": key.1}));
                }
                seen.push(key);
            }
        }
        protocol(&p["protocol"], &format!("{at}.protocol"), c);
        if let Some(t) = p.get("targetPort") {
            int_or_name(t, &format!("{at}.targetPort"), c);
        }
        let app = str_at(p, &["appProtocol"]);
        if !app.is_empty() && !is_qualified_name(app) {
            c.invalid(&format!("{at}.appProtocol"), &app.into(), super::QUALIFIED);
        }
        if let Some(n) = int_at(p, &["nodePort"]).filter(|n| *n != 0) {
            let at = format!("{at}.nodePort");
            if str_at(spec, &["type"]) == "ClusterIP" || str_at(spec, &["type"]) == "ExternalName" {
                c.forbidden(&at, "may not be used when `type` is 'ClusterIP'");
            }
            let key = (str_at(p, &["protocol"]), n);
            if node_ports.contains(&key) {
                c.duplicate(&at, &n.into());
            }
            node_ports.push(key);
        }
    }
}

pub(crate) const SERVICE_TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

pub(crate) fn service(v: &Value, old: Option<&Value>, c: &mut Causes) {
    let spec = &v["spec"];
    let ty = str_at(spec, &["type"]);
    if !SERVICE_TYPES.contains(&ty) {
        c.unsupported("spec.type", &spec["type"], &SERVICE_TYPES);
    }
    let headless = str_at(spec, &["clusterIP"]) == "None";
    if list_at(spec, &["ports"]).is_empty() && !headless && ty != "ExternalName" {
        c.required("spec.ports", "");
    }
    if ty == "ExternalName" {
        let name = str_at(spec, &["externalName"]);
        let bare = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            c.required("spec.externalName", "");
        } else if !is_subdomain(bare) {
            c.invalid("spec.externalName", &name.into(), super::SUBDOMAIN);
        }
        if !str_at(spec, &["clusterIP"]).is_empty() || !list_at(spec, &["clusterIPs"]).is_empty() {
            c.forbidden("spec.clusterIPs", "may not be set when `type` is 'ExternalName'");
        }
    }
    if headless && matches!(ty, "LoadBalancer" | "NodePort") {
        c.invalid("spec.clusterIPs[0]", &"None".into(), &format!("may not be set to 'None' for {ty} services"));
    }
    service_ports(spec, c);
    labels(spec["selector"].as_object(), "spec.selector", c);

    let affinity = ["ClientIP", "None"];
    if !affinity.contains(&str_at(spec, &["sessionAffinity"])) {
        c.unsupported("spec.sessionAffinity", &spec["sessionAffinity"], &affinity);
    }
    if let Some(t) = int_at(spec, &["sessionAffinityConfig", "clientIP", "timeoutSeconds"])
        && !(1..=86_400).contains(&t)
    {
        c.invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            &t.into(),
            "must be greater than 0 and less than 86400",
        );
    }
    let policies = ["Cluster", "Local"];
    for key in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        if let Some(p) = spec.get(key)
            && !policies.contains(&p.as_str().unwrap_or(""))
        {
            c.unsupported(&format!("spec.{key}"), p, &policies);
        }
    }
    let outside = matches!(ty, "NodePort" | "LoadBalancer") || !list_at(spec, &["externalIPs"]).is_empty();
    if spec.get("externalTrafficPolicy").is_some() && !outside {
        c.invalid(
            "spec.externalTrafficPolicy",
            &spec["externalTrafficPolicy"],
            "may only be set for externally-accessible services",
        );
    }
    if let Some(d) = spec.get("trafficDistribution") {
        let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        if !known.contains(&d.as_str().unwrap_or("")) {
            c.unsupported("spec.trafficDistribution", d, &known);
        }
    }
    for (i, a) in list_at(spec, &["externalIPs"]).iter().enumerate() {
        endpoint_address(a.as_str().unwrap_or(""), &format!("spec.externalIPs[{i}]"), c);
    }
    let ranges = list_at(spec, &["loadBalancerSourceRanges"]);
    if !ranges.is_empty() && ty != "LoadBalancer" {
        c.forbidden("spec.loadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'");
    }
    for (i, r) in ranges.iter().enumerate() {
        if let Err(e) = r.as_str().unwrap_or("").trim().parse::<Cidr>() {
            c.invalid(&format!("spec.loadBalancerSourceRanges[{i}]"), r, &format!("must be a valid CIDR value: {e}"));
        }
    }
    if let Some(n) = spec.get("allocateLoadBalancerNodePorts").filter(|_| ty != "LoadBalancer") {
        let _ = n;
        c.forbidden("spec.allocateLoadBalancerNodePorts", "may only be used when `type` is 'LoadBalancer'");
    }
    let class = str_at(spec, &["loadBalancerClass"]);
    if !class.is_empty() && ty != "LoadBalancer" {
        c.forbidden("spec.loadBalancerClass", "may only be used when `type` is 'LoadBalancer'");
    }
    for (i, s) in list_at(v, &["status", "loadBalancer", "ingress"]).iter().enumerate() {
        let a = str_at(s, &["ip"]);
        if !a.is_empty() && ip(a).is_none() {
            c.invalid(&format!("status.loadBalancer.ingress[{i}].ip"), &a.into(), "must be a valid IP address");
        }
    }
    if let Some(old) = old
        && ty == "LoadBalancer"
        && str_at(old, &["spec", "type"]) == "LoadBalancer"
    {
        immutable(v, Some(old), &["spec", "loadBalancerClass"], c);
    }
}

pub(crate) fn endpoints(v: &Value, _: Option<&Value>, c: &mut Causes) {
    for (i, s) in list_at(v, &["subsets"]).iter().enumerate() {
        for key in ["addresses", "notReadyAddresses"] {
            for (j, a) in list_at(s, &[key]).iter().enumerate() {
                endpoint_address(str_at(a, &["ip"]), &format!("subsets[{i}].{key}[{j}].ip"), c);
            }
        }
        for (j, p) in list_at(s, &["ports"]).iter().enumerate() {
            let at = format!("subsets[{i}].ports[{j}]");
            if !int_at(p, &["port"]).is_some_and(port_ok) {
                c.invalid(&format!("{at}.port"), &p["port"], PORT_RANGE);
            }
            protocol(&p["protocol"], &format!("{at}.protocol"), c);
        }
        if list_at(s, &["addresses"]).is_empty() && list_at(s, &["notReadyAddresses"]).is_empty() {
            c.required(&format!("subsets[{i}]"), "must specify `addresses` or `notReadyAddresses`");
        }
    }
}

/// The API's own limits (`pkg/apis/discovery/validation`).
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

pub(crate) fn endpoint_slice(v: &Value, old: Option<&Value>, c: &mut Causes) {
    let ty = str_at(v, &["addressType"]);
    let types = ["FQDN", "IPv4", "IPv6"];
    if ty.is_empty() {
        c.required("addressType", "");
    } else if !types.contains(&ty) {
        c.unsupported("addressType", &ty.into(), &types);
    }
    immutable(v, old, &["addressType"], c);
    let all = list_at(v, &["endpoints"]);
    if all.len() > MAX_ENDPOINTS {
        c.too_many("endpoints", all.len(), MAX_ENDPOINTS);
    }
    for (i, e) in all.iter().take(MAX_ENDPOINTS).enumerate() {
        let path = format!("endpoints[{i}]");
        let addresses = list_at(e, &["addresses"]);
        if addresses.is_empty() {
            c.required(&format!("{path}.addresses"), "must contain at least 1 address");
        } else if addresses.len() > MAX_ADDRESSES {
            c.too_many(&format!("{path}.addresses"), addresses.len(), MAX_ADDRESSES);
        }
        for (j, a) in addresses.iter().take(MAX_ADDRESSES).enumerate() {
            let (text, at) = (a.as_str().unwrap_or(""), format!("{path}.addresses[{j}]"));
            if ty == "FQDN" {
                if !is_subdomain(text) {
                    c.invalid(&at, a, super::SUBDOMAIN);
                }
            } else if types.contains(&ty)
                && let Some(parsed) = endpoint_address(text, &at, c)
                && parsed.is_ipv4() != (ty == "IPv4")
            {
                c.invalid(&at, a, &format!("must be an {ty} address"));
            }
        }
        let node = str_at(e, &["nodeName"]);
        if !node.is_empty()
            && let Some(why) = NameRule::Subdomain.check(node)
        {
            c.invalid(&format!("{path}.nodeName"), &node.into(), &why);
        }
        let host = str_at(e, &["hostname"]);
        if !host.is_empty() && !is_label(host) {
            c.invalid(&format!("{path}.hostname"), &host.into(), super::LABEL);
        }
    }
    let ports = list_at(v, &["ports"]);
    if ports.len() > MAX_PORTS {
        c.too_many("ports", ports.len(), MAX_PORTS);
    }
    let mut names = std::collections::BTreeSet::new();
    for (i, p) in ports.iter().take(MAX_PORTS).enumerate() {
        let name = str_at(p, &["name"]);
        if !names.insert(name) {
            c.duplicate(&format!("ports[{i}].name"), &name.into());
        }
        if !name.is_empty() && !is_label(name) {
            c.invalid(&format!("ports[{i}].name"), &name.into(), super::LABEL);
        }
        protocol(&p["protocol"], &format!("ports[{i}].protocol"), c);
        if let Some(n) = int_at(p, &["port"])
            && !port_ok(n)
        {
            c.invalid(&format!("ports[{i}].port"), &n.into(), PORT_RANGE);
        }
    }
}

pub(crate) fn network_policy(v: &Value, _: Option<&Value>, c: &mut Causes) {
    let spec = &v["spec"];
    label_selector(&spec["podSelector"], "spec.podSelector", c);
    for (dir, who) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list_at(spec, &[dir]).iter().enumerate() {
            for (j, p) in list_at(rule, &["ports"]).iter().enumerate() {
                let path = format!("spec.{dir}[{i}].ports[{j}]");
                protocol(&p["protocol"], &format!("{path}.protocol"), c);
                if let Some(port) = p.get("port") {
                    int_or_name(port, &format!("{path}.port"), c);
                }
                if let Some(end) = int_at(p, &["endPort"]) {
                    match int_at(p, &["port"]) {
                        Some(start) if end < start => {
                            c.invalid(
                                &format!("{path}.endPort"),
                                &end.into(),
                                "must be greater than or equal to `port`",
                            );
                        }
                        Some(_) if !port_ok(end) => c.invalid(&format!("{path}.endPort"), &end.into(), PORT_RANGE),
                        Some(_) => {}
                        None => c.invalid(
                            &format!("{path}.endPort"),
                            &end.into(),
                            "may not be specified when `port` is not specified or non-numeric",
                        ),
                    }
                }
            }
            for (j, peer) in list_at(rule, &[who]).iter().enumerate() {
                peer_rule(peer, &format!("spec.{dir}[{i}].{who}[{j}]"), c);
            }
        }
    }
    let types = ["Egress", "Ingress"];
    for (i, t) in list_at(spec, &["policyTypes"]).iter().enumerate() {
        if !types.contains(&t.as_str().unwrap_or("")) {
            c.unsupported(&format!("spec.policyTypes[{i}]"), t, &types);
        }
    }
}

fn peer_rule(peer: &Value, path: &str, c: &mut Causes) {
    let selectors = ["podSelector", "namespaceSelector"];
    let present = selectors.iter().filter(|k| peer.get(**k).is_some()).count();
    for key in selectors {
        if let Some(s) = peer.get(key) {
            label_selector(s, &format!("{path}.{key}"), c);
        }
    }
    let Some(block) = peer.get("ipBlock") else {
        if present == 0 {
            c.required(path, "must specify a peer");
        }
        return;
    };
    if present > 0 {
        c.forbidden(path, "may not specify both ipBlock and another peer");
    }
    match str_at(block, &["cidr"]).parse::<Cidr>() {
        Err(e) => {
            c.invalid(&format!("{path}.ipBlock.cidr"), &block["cidr"], &format!("must be a valid CIDR value: {e}"))
        }
        Ok(whole) => {
            for (k, x) in list_at(block, &["except"]).iter().enumerate() {
                let at = format!("{path}.ipBlock.except[{k}]");
                match x.as_str().unwrap_or("").parse::<Cidr>() {
                    Err(e) => c.invalid(&at, x, &format!("must be a valid CIDR value: {e}")),
                    Ok(part) if !whole.contains_cidr(&part) || part == whole => {
                        c.invalid(&at, x, "must be a strict subset of `cidr`");
                    }
                    Ok(_) => {}
                }
            }
        }
    }
}

fn backend(v: &Value, path: &str, c: &mut Causes) {
    match (v.get("service"), v.get("resource")) {
        (Some(_), Some(_)) => c.invalid(path, &"".into(), "cannot set both resource and service backends"),
        (None, None) => c.required(path, "must specify a service or resource backend"),
        (Some(s), None) => {
            let name = str_at(s, &["name"]);
            if let Some(why) = NameRule::Label1035.check(name) {
                c.invalid(&format!("{path}.service.name"), &name.into(), &why);
            }
            let (n, named) = (int_at(s, &["port", "number"]), str_at(s, &["port", "name"]));
            match n {
                Some(n) if !port_ok(n) => c.invalid(&format!("{path}.service.port.number"), &n.into(), PORT_RANGE),
                None if named.is_empty() => {
                    c.required(&format!("{path}.service.port"), "port name or number is required")
                }
                _ => {}
            }
        }
        _ => {}
    }
}

pub(crate) fn ingress(v: &Value, _: Option<&Value>, c: &mut Causes) {
    let spec = &v["spec"];
    let rules = list_at(spec, &["rules"]);
    if let Some(b) = spec.get("defaultBackend") {
        backend(b, "spec.defaultBackend", c);
    } else if rules.is_empty() {
        c.invalid("spec", &"".into(), "either `defaultBackend` or `rules` must be specified");
    }
    for (i, r) in rules.iter().enumerate() {
        let host = str_at(r, &["host"]);
        let bare = host.strip_prefix("*.").unwrap_or(host);
        if !host.is_empty() && (!is_subdomain(bare) || ip(host).is_some()) {
            c.invalid(&format!("spec.rules[{i}].host"), &host.into(), super::SUBDOMAIN);
        }
        for (j, p) in list_at(r, &["http", "paths"]).iter().enumerate() {
            let path = format!("spec.rules[{i}].http.paths[{j}]");
            let types = ["Exact", "ImplementationSpecific", "Prefix"];
            match str_at(p, &["pathType"]) {
                "" => c.required(&format!("{path}.pathType"), "pathType must be specified"),
                t if !types.contains(&t) => c.unsupported(&format!("{path}.pathType"), &t.into(), &types),
                t => {
                    let text = str_at(p, &["path"]);
                    if t != "ImplementationSpecific" && !text.starts_with('/') {
                        c.invalid(&format!("{path}.path"), &text.into(), "must be an absolute path");
                    }
                }
            }
            backend(&p["backend"], &format!("{path}.backend"), c);
        }
        if at(r, &["http"]).is_some() && list_at(r, &["http", "paths"]).is_empty() {
            c.required(&format!("spec.rules[{i}].http.paths"), "");
        }
    }
}

pub(crate) fn ingress_class(v: &Value, old: Option<&Value>, c: &mut Causes) {
    let name = str_at(v, &["spec", "controller"]);
    if name.is_empty() {
        c.required("spec.controller", "");
    } else if !name.contains('/') || name.len() > 250 {
        c.invalid("spec.controller", &name.into(), "must be a domain-prefixed path (such as \"acme.io/foo\")");
    }
    immutable(v, old, &["spec", "controller"], c);
}
