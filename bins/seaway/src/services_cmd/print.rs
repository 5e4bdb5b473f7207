//! Tables and lines for people.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use comfy_table::{ContentArrangement, Table, presets};
use intent::TrafficPolicy;
use resolve::explain::{EndpointView, PortView, ServiceView, State};

use super::gather::Report;

fn table(head: &[&str], width: Option<u16>) -> Table {
    let mut t = Table::new();
    t.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
    if let Some(w) = width {
        t.set_width(w);
    }
    t
}

/// A table's lines without the spaces that end them.
fn lines(t: &Table) -> String {
    t.to_string().lines().fold(String::new(), |all, l| all + l.trim_end() + "\n")
}

fn list_of<T: ToString>(all: &[T]) -> String {
    if all.is_empty() { "-".into() } else { all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ") }
}

fn port(p: &PortView) -> String {
    match p.node_port {
        Some(n) => format!("{}:{n}/{}", p.port, p.proto),
        None => format!("{}/{}", p.port, p.proto),
    }
}

fn policy(p: TrafficPolicy) -> &'static str {
    match p {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

/// What a person should know of a Service at once.
fn note(s: &ServiceView) -> String {
    let (used, all) = s.counts();
    match (&s.not_proxied, s.problems.len()) {
        (_, 1) => s.problems.first().map(|p| format!("problem: {}", p.field)).unwrap_or_default(),
        (_, n @ 2..) => format!("{n} problems"),
        (Some(_), _) => String::new(),
        (None, _) if all == 0 => "no endpoints: refused".into(),
        (None, _) if used == 0 => "none is used".into(),
        _ => String::new(),
    }
}

/// A line for each Service.
pub fn list(r: &Report, wide: bool, width: Option<u16>) -> String {
    let mut out = assumed(r);
    let mut head = vec!["NAMESPACE", "NAME", "TYPE", "ADDRESS", "PORTS", "USED"];
    if wide {
        head.extend(["EXTERNAL", "POLICY", "AFFINITY"]);
    }
    head.push("");
    let mut t = table(&head, width);
    for s in &r.services {
        let (used, all) = s.counts();
        let mut row = vec![
            s.namespace.clone(),
            s.name.clone(),
            s.kind.clone(),
            list_of(&s.cluster_ips),
            list_of(&s.ports.iter().map(port).collect::<Vec<_>>()),
            if s.not_proxied.is_some() { "-".into() } else { format!("{used} of {all}") },
        ];
        if wide {
            row.push(list_of(&s.external_ips));
            let external = s.external_policy.map(|p| format!(", external {}", policy(p))).unwrap_or_default();
            row.push(format!("internal {}{external}", policy(s.internal_policy)));
            row.push(s.affinity_seconds.map_or_else(|| "-".into(), |n| format!("ClientIP {n} s")));
        }
        row.push(note(s));
        t.add_row(row);
    }
    if r.services.is_empty() {
        out += "no Services\n";
    } else {
        out += &lines(&t);
        let _ = writeln!(out, "\nUSED: endpoints that get traffic from {}, of all that slices list.", r.node);
        for f in &r.foreign {
            let _ = writeln!(out, "In the way on {}: {f}", r.node);
        }
        if r.services.iter().any(|s| !s.problems.is_empty()) {
            out += "What is wrong with a Service, and what to do: seaway services NAMESPACE/NAME\n";
        }
    }
    out
}

fn assumed(r: &Report) -> String {
    match r.assumed.as_slice() {
        [] => String::new(),
        [one] => format!("# {one}\n\n"),
        [first, rest @ ..] => format!("# {first}\n# and {} more things assumed: see -o yaml\n\n", rest.len()),
    }
}

/// Everything of one Service.
pub fn one(r: &Report, s: &ServiceView, width: Option<u16>) -> String {
    let mut out = assumed(r);
    let zone = r.zone.as_ref().map(|z| format!(" in zone {z}")).unwrap_or_default();
    let _ = writeln!(out, "{}/{}: {}, as {}{zone} sees it", s.namespace, s.name, s.kind, r.node);
    let mut line = |what: &str, text: String| {
        let _ = writeln!(out, "  {what:<10} {text}");
    };
    if let Some(why) = &s.not_proxied {
        line("no proxy", why.clone());
    }
    if !s.cluster_ips.is_empty() {
        line("address", list_of(&s.cluster_ips));
    }
    if !s.external_ips.is_empty() {
        line("external", list_of(&s.external_ips));
    }
    for (n, p) in s.ports.iter().enumerate() {
        let name = if p.name.is_empty() { String::new() } else { format!("{} ", p.name) };
        let lost = if p.node_port_lost { " (not served: see problems)" } else { "" };
        let node = p.node_port.map(|n| format!(", node port {n}{lost}")).unwrap_or_default();
        let what = if n == 0 { "ports" } else { "" };
        line(what, format!("{name}{}/{} to {}{node}", p.port, p.proto, p.target));
    }
    if s.not_proxied.is_none() {
        let external = s.external_policy.map(|p| format!(", from outside {}", policy(p))).unwrap_or_default();
        line("policy", format!("inside the cluster {}{external}", policy(s.internal_policy)));
    }
    if let (None, Some(p)) = (&s.not_proxied, s.external_policy) {
        line(
            "clients",
            match p {
                TrafficPolicy::Cluster => format!("who comes from outside is seen as {} (policy Cluster)", r.node),
                TrafficPolicy::Local => "who comes from outside is seen as it is (policy Local)".into(),
            },
        );
    }
    if let Some(n) = s.affinity_seconds {
        line("affinity", format!("a client keeps its endpoint until {n} s after its last new connection"));
    }
    if !s.source_ranges.is_empty() {
        line("sources", format!("only {} may use the load balancer's addresses", list_of(&s.source_ranges)));
    }
    if let Some(n) = s.health_check_port {
        line("health", format!("load balancers ask node port {n} whether a ready endpoint is here"));
    }
    for (n, note) in s.notes.iter().enumerate() {
        line(if n == 0 { "here" } else { "" }, note.clone());
    }
    for (n, p) in s.problems.iter().enumerate() {
        line(if n == 0 { "problems" } else { "" }, p.to_string());
    }
    out.push('\n');
    if s.endpoints.is_empty() {
        out += match s.not_proxied {
            Some(_) => "No endpoints.\n",
            None => "No endpoints: connections are refused at once.\n",
        };
        return out;
    }
    let mut t = table(&["PORT", "ENDPOINT", "POD", "NODE", "ZONE", "STATE", "USED"], width);
    let text = |o: &Option<String>| o.clone().unwrap_or_else(|| "-".into());
    for e in &s.endpoints {
        t.add_row([
            if e.port_name.is_empty() { e.proto.to_string() } else { e.port_name.clone() },
            address(e.address, e.port),
            text(&e.pod),
            text(&e.node),
            text(&e.zone),
            e.state.as_str().into(),
            used(s, e),
        ]);
    }
    out + &lines(&t)
}

fn address(a: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| a.to_string(), |p| SocketAddr::new(a, p).to_string())
}

/// Whether traffic of the node goes there, of which kind, and why not.
fn used(s: &ServiceView, e: &EndpointView) -> String {
    if s.not_proxied.is_some() {
        return "-".into();
    }
    match (&e.internal_unused, &e.external_unused, s.external_policy.is_some()) {
        (None, None, _) if e.state == State::TerminatingServing => "yes: no other is ready".into(),
        (None, None, _) => "yes".into(),
        (Some(why), _, false) => format!("no: {why}"),
        (Some(why), Some(other), _) if why == other => format!("no: {why}"),
        (Some(why), Some(other), _) => format!("no: inside the cluster {why}; from outside {other}"),
        (None, Some(why), _) => format!("only inside the cluster; from outside no: {why}"),
        (Some(why), None, true) => format!("only from outside; inside the cluster no: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::services_cmd::gather::{Which, from_folder};

    fn check(name: &str, text: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services").join(name);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(want == text, "{name} differs; read it and run with BLESS=1:\n{text}");
    }

    /// What a person sees in a terminal of 100 columns, and in a narrower one.
    #[test]
    fn goldens() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services");
        let node = "node1".parse().unwrap();
        let report = |name| from_folder(&dir, Some(&node), &Which::parse(name, None).unwrap()).unwrap();
        let mut all = report(None);
        all.assumed.clear();
        check("list.txt", &list(&all, false, Some(100)));
        check("list-wide.txt", &list(&all, true, Some(160)));
        for name in ["shop/web", "shop/near", "shop/late", "shop/search", "other/alias"] {
            let mut r = report(Some(name));
            r.assumed.clear();
            check(&format!("{}.txt", name.replace('/', "-")), &one(&r, &r.services[0], Some(100)));
        }
        let narrow = list(&all, false, Some(80));
        assert!(narrow.lines().all(|l| l.chars().count() <= 80), "{narrow}");
    }
}
