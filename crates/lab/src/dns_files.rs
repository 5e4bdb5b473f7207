//! A pod's /etc/hosts and /etc/resolv.conf, in the form a kubelet writes them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod, PodSpec};

/// The cluster's domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The longest host name Linux takes (`HOST_NAME_MAX`), and a DNS label.
const MAX_HOSTNAME: usize = 63;

/// The host name of a pod: `spec.hostname`, else its name cut to a label.
#[must_use]
pub fn hostname(pod: &Pod) -> String {
    let named = pod.spec.as_ref().and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty());
    let name = named.or(pod.metadata.name.as_deref()).unwrap_or_default();
    name[..name.len().min(MAX_HOSTNAME)].trim_end_matches(['-', '.']).to_owned()
}

/// `SUBDOMAIN.NAMESPACE.svc.DOMAIN` when the pod names a subdomain.
#[must_use]
pub fn host_domain(pod: &Pod) -> Option<String> {
    let sub = pod.spec.as_ref().and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty())?;
    let ns = pod.metadata.namespace.as_deref().unwrap_or("default");
    Some(format!("{sub}.{ns}.svc.{CLUSTER_DOMAIN}"))
}

fn aliases(list: Option<&Vec<HostAlias>>) -> String {
    let Some(list) = list.filter(|l| !l.is_empty()) else { return String::new() };
    let mut out = String::from("\n# Entries added by HostAliases.\n");
    for a in list {
        out.push_str(&format!("{}\t{}\n", a.ip, a.hostnames.as_deref().unwrap_or_default().join("\t")));
    }
    out
}

/// /etc/hosts of a pod with a network of its own.
#[must_use]
pub fn hosts(pod: &Pod, ips: &[IpAddr]) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let name = hostname(pod);
    for ip in ips {
        match host_domain(pod) {
            Some(d) => out.push_str(&format!("{ip}\t{name}.{d}\t{name}\n")),
            None => out.push_str(&format!("{ip}\t{name}\n")),
        }
    }
    out + &aliases(pod.spec.as_ref().and_then(|s| s.host_aliases.as_ref()))
}

/// /etc/hosts of a pod on its node's network: the node's own, with the aliases.
#[must_use]
pub fn hosts_of_host_network(node_hosts: &str, spec: &PodSpec) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}{}", aliases(spec.host_aliases.as_ref()))
}

/// What a resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolv {
    /// Servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Resolv {
    /// Reads resolv.conf(5). The last `search` or `domain` line wins, options add up.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut r = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => r.nameservers.extend(words.next()),
                Some("search" | "domain") => r.searches = words.filter(|s| s != ".").collect(),
                Some("options") => r.options.extend(words),
                _ => {}
            }
        }
        r
    }

    /// Writes it.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for n in &self.nameservers {
            out.push_str(&format!("nameserver {n}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }
}

/// What a pod's resolver is told, and whether the cluster's DNS was wanted and missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodResolv {
    /// The file.
    pub resolv: Resolv,
    /// The policy asks for the cluster's DNS and there is none: the node's own is used, as a kubelet does.
    pub missing_cluster_dns: bool,
}

/// resolv.conf of a pod, by its dnsPolicy and dnsConfig.
///
/// `cluster_dns` are the addresses of Service kube-system/kube-dns, `node` the node's own resolv.conf.
#[must_use]
pub fn resolv(pod: &Pod, cluster_dns: &[IpAddr], node: &Resolv) -> PodResolv {
    let spec = pod.spec.clone().unwrap_or_default();
    let ns = pod.metadata.namespace.as_deref().unwrap_or("default");
    let host_network = spec.host_network == Some(true);
    let wants_cluster = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    };
    let mut r = match spec.dns_policy.as_deref() {
        Some("None") => Resolv::default(),
        _ if wants_cluster && !cluster_dns.is_empty() => {
            let d = CLUSTER_DOMAIN;
            let mut searches = vec![format!("{ns}.svc.{d}"), format!("svc.{d}"), d.to_owned()];
            searches.extend(node.searches.iter().filter(|s| !s.ends_with(d)).cloned());
            Resolv {
                nameservers: cluster_dns.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => node.clone(),
    };
    if let Some(c) = &spec.dns_config {
        let add = |to: &mut Vec<String>, from: Option<&Vec<String>>| {
            for x in from.into_iter().flatten() {
                if !to.contains(x) {
                    to.push(x.clone());
                }
            }
        };
        add(&mut r.nameservers, c.nameservers.as_ref());
        add(&mut r.searches, c.searches.as_ref());
        for o in c.options.iter().flatten() {
            let Some(name) = &o.name else { continue };
            // The pod's own word on an option replaces the default's.
            r.options.retain(|x| x.split(':').next() != Some(name));
            r.options.push(o.value.as_ref().map_or_else(|| name.clone(), |v| format!("{name}:{v}")));
        }
    }
    PodResolv { resolv: r, missing_cluster_dns: wants_cluster && cluster_dns.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    const HEAD: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";

    #[test]
    fn hosts_golden() {
        let ips: Vec<IpAddr> = vec!["10.244.1.2".parse().unwrap(), "fd00:10:244::2".parse().unwrap()];
        let p = pod(json!({"containers": []}));
        assert_eq!(hosts(&p, &ips), format!("{HEAD}10.244.1.2\tweb-1\nfd00:10:244::2\tweb-1\n"));
        let p = pod(json!({"containers": [], "hostname": "h", "subdomain": "sub",
            "hostAliases": [{"ip": "127.0.0.1", "hostnames": ["foo.local", "bar.local"]}]}));
        assert_eq!(
            hosts(&p, &ips[..1]),
            format!(
                "{HEAD}10.244.1.2\th.sub.shop.svc.cluster.local\th\n\n# Entries added by HostAliases.\n127.0.0.1\tfoo.local\tbar.local\n"
            )
        );
        let s = pod(json!({"containers": [], "hostAliases": [{"ip": "::1", "hostnames": ["x"]}]})).spec.unwrap();
        assert_eq!(
            hosts_of_host_network("127.0.0.1 localhost\n", &s),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n# Entries added by HostAliases.\n::1\tx\n"
        );
    }

    #[test]
    fn hostname_is_a_label() {
        let long: Pod = serde_json::from_value(json!({"metadata": {"name": format!("{}-x", "a".repeat(62))}})).unwrap();
        assert_eq!(hostname(&long), "a".repeat(62));
    }

    #[test]
    fn resolv_by_policy() {
        let dns: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()];
        let node = Resolv::parse("# c\nnameserver 192.0.2.1\nsearch example.org\noptions timeout:1\n");
        let case = |spec, dns: &[IpAddr]| resolv(&pod(spec), dns, &node);
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local example.org\nnameserver 10.96.0.10\nnameserver fd00:10:96::a\noptions ndots:5\n";
        let default = "search example.org\nnameserver 192.0.2.1\noptions timeout:1\n";
        assert_eq!(case(json!({"containers": []}), &dns).resolv.render(), cluster);
        assert_eq!(case(json!({"containers": [], "hostNetwork": true}), &dns).resolv.render(), default);
        assert_eq!(
            case(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), &dns)
                .resolv
                .render(),
            cluster
        );
        assert_eq!(case(json!({"containers": [], "dnsPolicy": "Default"}), &dns).resolv.render(), default);
        let none = case(
            json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"],
                "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            &dns,
        );
        assert_eq!(none.resolv.render(), "search a.b\nnameserver 192.0.2.53\noptions ndots:2 edns0\n");
        let missing = case(json!({"containers": []}), &[]);
        assert!(missing.missing_cluster_dns);
        assert_eq!(missing.resolv.render(), default);
        let merged = case(
            json!({"containers": [], "dnsConfig": {"searches": ["cluster.local", "x"], "options": [{"name": "ndots", "value": "1"}]}}),
            &dns,
        );
        assert_eq!(merged.resolv.options, ["ndots:1"]);
        assert_eq!(merged.resolv.searches.iter().filter(|s| *s == "cluster.local").count(), 1);
        assert_eq!(merged.resolv.searches.last().map(String::as_str), Some("x"));
    }
}
