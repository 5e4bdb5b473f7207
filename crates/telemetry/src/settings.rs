//! The one table of settings: what can be set, where, with which default. `docs/settings.md` is written from it; tests
//! in `bins/seaway` hold the command line, the environment and the ConfigMap's parser to it, in both directions.

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Where it is read.
    pub place: Place,
    /// The word for its type: what a person writes as its value.
    pub kind: &'static str,
    /// The default as text; empty means not set.
    pub default: &'static str,
    /// What it does, one or more sentences.
    pub help: &'static str,
}

/// Where a setting is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// By these commands when they start: from the flag, else from the variable.
    Process {
        /// Subcommands of `seaway`.
        commands: &'static [&'static str],
        /// The flag without its dashes.
        flag: &'static str,
        /// The environment variable, where there is one.
        env: Option<&'static str>,
    },
    /// From the data of ConfigMap `kube-system/seaway`, by every agent and controller, again at each change.
    ConfigMap {
        /// The key.
        key: &'static str,
    },
}

impl Setting {
    /// The flag without dashes, or the ConfigMap key.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.place {
            Place::Process { flag, .. } => flag,
            Place::ConfigMap { key } => key,
        }
    }

    /// Whether a command reads it from its flags.
    #[must_use]
    pub fn is_flag_of(&self, command: &str) -> bool {
        matches!(self.place, Place::Process { commands, .. } if commands.contains(&command))
    }
}

/// The commands whose flags the table holds: those that run for long.
pub const COMMANDS: &[&str] = &["agent", "controller", "apiserver"];

const fn cluster(key: &'static str, kind: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { place: Place::ConfigMap { key }, kind, default, help }
}

const fn process(
    commands: &'static [&'static str],
    flag: &'static str,
    env: Option<&'static str>,
    kind: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { place: Place::Process { commands, flag, env }, kind, default, help }
}

/// Every setting, in the order of the page.
pub const SETTINGS: &[Setting] = &[
    cluster(
        "apiServer",
        "URL",
        "",
        "Where the API server is, `https://HOST:PORT`: an address that a node reaches without Services. Pods of \
         `deploy/seaway.yaml` take it when they start. Not set: the address of Service `default/kubernetes`, which \
         needs somebody else to serve it until the agent does.",
    ),
    cluster(
        "backend",
        "`vxlan` or `host-gw`",
        "vxlan",
        "How packets travel to other nodes. `vxlan` needs only IP between them, and 50 bytes of each packet (70 over \
         IPv6). `host-gw` needs every node to be a neighbour on one link, and costs nothing. May be changed while \
         traffic runs.",
    ),
    cluster(
        "clusterCIDR",
        "CIDR, or one of each family with a comma",
        "",
        "The pod ranges of the whole cluster. Traffic to them keeps the pod's address, and `seaway controller` cuts \
         each node's range from them. Not set: the ranges of the Nodes are all there is, and the controller allocates \
         none.",
    ),
    cluster(
        "directRouting",
        "`true` or `false`",
        "false",
        "With backend `vxlan`, whether nodes on one link send to each other without a tunnel, and only to the rest through \
         it.",
    ),
    cluster(
        "ipam",
        "`node-cidr` or `pools`",
        "node-cidr",
        "Where pods' addresses come from: the Node's `spec.podCIDRs`, or blocks of `IPPool` objects \
         ([address pools](ipam.md)). May be changed while pods run: those that are there keep what they have.",
    ),
    cluster(
        "ipPools",
        "names or ranges with commas",
        "",
        "The pools of pods that ask for none, in order. Not set: all that fit the node and the namespace.",
    ),
    cluster(
        "addressesOutsideIPAM",
        "`true` or `false`",
        "false",
        "Whether a pod may name an address of no pool, by the annotation `seaway.io/ip-addrs-no-ipam`.",
    ),
    cluster(
        "hostPortRange",
        "two ports with a hyphen",
        "20000-29999",
        "Where the ports of pods come from that ask for any port of their node ([random host ports](pods.md)). A Node may \
         have a range of its own, annotation `seaway.io/host-port-range`.",
    ),
    cluster(
        "masquerade",
        "`true` or `false`",
        "true",
        "Whether traffic from pods to outside the cluster takes the node's address, with fully random source ports.",
    ),
    cluster(
        "mode",
        "`routed`, `bridge`, `ptp`, `macvlan` or `ipvlan`",
        "routed",
        "How pods are wired to their node, unless their own or their namespace's annotation `seaway.io/mode` says \
         otherwise. It counts for pods that are made from then on.",
    ),
    cluster(
        "modeOptions",
        "JSON object",
        "{}",
        "More fields for that mode's plugin, e.g. `{\"master\": \"eth1\"}` for `macvlan`.",
    ),
    cluster(
        "serviceCIDR",
        "ranges with commas",
        "",
        "The ranges that the API server takes cluster addresses from (`--service-cluster-ip-range`); only where it has no \
         ServiceCIDR objects, as before Kubernetes 1.33. Packets to an address there that no Service has are dropped.",
    ),
    cluster(
        "loadBalancerClass",
        "prefix/name",
        "seaway.io/load-balancer",
        "The `spec.loadBalancerClass` of Services that get addresses of [LoadBalancerPools](load-balancers.md).",
    ),
    cluster(
        "loadBalancerDefault",
        "`true` or `false`",
        "true",
        "Whether Services of type LoadBalancer without a class get addresses of LoadBalancerPools as well. While there \
         is no pool, nothing is done about any Service.",
    ),
    cluster(
        "nodePortAddresses",
        "primary, or ranges separated by commas",
        "primary",
        "At which addresses of a node its node ports are served. primary: the first of each family that the Node object \
         has. Ranges: every address of the node's interfaces that is in one; all of a family that no range is of.",
    ),
    cluster(
        "l2RestartSeconds",
        "number from 0 to 60",
        "8",
        "How long a node whose agent was asked to end (SIGTERM) keeps the load balancer addresses that it announces, so \
         that a restart moves none. 0: they are handed over at once, which breaks connections to them.",
    ),
    cluster("vni", "number from 1 to 16777215", "1", "The VXLAN network identifier."),
    cluster(
        "vxlanPort",
        "UDP port",
        "8472",
        "The UDP destination port of VXLAN. 8472 is Linux's and flannel's, 4789 is IANA's.",
    ),
    process(
        &["agent"],
        "node",
        Some("SEAWAY_NODE"),
        "node name",
        "",
        "The Node object this agent works for. Required, but with `--source etcd`: there it is this machine's name when \
         not given.",
    ),
    process(
        &["agent"],
        "source",
        Some("SEAWAY_SOURCE"),
        "`kubernetes` or `etcd`",
        "kubernetes",
        "Where the list of nodes comes from: the Kubernetes API, or etcd v3 in flannel's layout ([flannel](flannel.md)). \
         With `etcd` there are pods and nodes, and no Services.",
    ),
    process(
        &["agent"],
        "etcd-endpoints",
        Some("SEAWAY_ETCD_ENDPOINTS"),
        "URLs with commas",
        "",
        "With `--source etcd`: its servers, `http://HOST:PORT` or `https://HOST:PORT`.",
    ),
    process(
        &["agent"],
        "etcd-cafile",
        Some("SEAWAY_ETCD_CAFILE"),
        "file",
        "",
        "The authority that signed etcd's certificate, as PEM.",
    ),
    process(&["agent"], "etcd-certfile", Some("SEAWAY_ETCD_CERTFILE"), "file", "", "Our certificate for etcd, as PEM."),
    process(
        &["agent"],
        "etcd-keyfile",
        Some("SEAWAY_ETCD_KEYFILE"),
        "file",
        "",
        "The key of that certificate, as PEM.",
    ),
    process(
        &["agent"],
        "etcd-prefix",
        Some("SEAWAY_ETCD_PREFIX"),
        "key",
        "/coreos.com/network",
        "Where the network is in etcd.",
    ),
    process(
        &["agent"],
        "public-ip",
        Some("SEAWAY_PUBLIC_IP"),
        "IPv4 address",
        "",
        "With `--source etcd`: where other nodes reach this one, if not at the address of its interface: packets are \
         translated on their way.",
    ),
    process(&["agent"], "public-ipv6", Some("SEAWAY_PUBLIC_IPV6"), "IPv6 address", "", "Likewise, of IPv6."),
    process(&["agent"], "etcd-username", Some("SEAWAY_ETCD_USERNAME"), "name", "", "A user of etcd's own."),
    process(
        &["agent"],
        "etcd-password",
        Some("SEAWAY_ETCD_PASSWORD"),
        "text",
        "",
        "That user's password; better given as the variable, which no list of processes shows.",
    ),
    process(
        &["agent", "controller"],
        "api",
        Some("SEAWAY_API"),
        "`unix:PATH`, a kubeconfig's path, or `in-cluster`",
        "in-cluster",
        "The Kubernetes API: the embedded server's socket, a kubeconfig, or the service account of the pod it runs in.",
    ),
    process(
        &["agent", "controller"],
        "api-server",
        Some("SEAWAY_API_SERVER"),
        "URL",
        "",
        "Where the API server is, with `in-cluster`, in place of what the pod's environment says: a Service's address, \
         which nobody serves before the agent does. `deploy/seaway.yaml` gives it ConfigMap `apiServer`.",
    ),
    process(
        &["controller"],
        "lease",
        Some("SEAWAY_LEASE"),
        "namespace/name",
        "",
        "Work only while holding this Lease, so that several controllers may run and one works. Not set: work at once.",
    ),
    process(
        &["controller"],
        "status-listen",
        Some("SEAWAY_STATUS_LISTEN"),
        "address:port",
        "",
        "Where `/healthz`, `/readyz`, `/status` and `/metrics` are served over HTTP. Not set: nowhere.",
    ),
    process(
        &["agent"],
        "iface",
        Some("SEAWAY_IFACE"),
        "interface name, address or CIDR",
        "",
        "The interface that other nodes are reached by, its address, or a range that its address is in. Not set: the one with the \
         Node's InternalIP, else the default route's.",
    ),
    process(
        &["agent"],
        "iface-regex",
        Some("SEAWAY_IFACE_REGEX"),
        "regular expression",
        "",
        "In place of `--iface`: the first interface with an address in which the expression is found, else the first with \
         such a name; anchor it with `^` and `$`.",
    ),
    process(
        &["agent"],
        "iface-can-reach",
        Some("SEAWAY_IFACE_CAN_REACH"),
        "IP address",
        "",
        "In place of `--iface`: the interface by which this machine's routes lead to that address.",
    ),
    process(
        &["agent"],
        "ipam-dir",
        Some("SEAWAY_IPAM_DIR"),
        "folder",
        "/run/seaway/ipam",
        "Where the CNI plugin keeps its records: the journal of pod addresses.",
    ),
    process(
        &["agent"],
        "cni-conf-dir",
        Some("SEAWAY_CNI_CONF_DIR"),
        "folder",
        "/etc/cni/net.d",
        "Where container runtimes look for CNI configuration. `10-seaway.conflist` is written there once the node is \
         ready.",
    ),
    process(
        &["agent"],
        "flannel-subnet-file",
        Some("SEAWAY_FLANNEL_SUBNET_FILE"),
        "file",
        "",
        "Where the node's subnet is written as well, in flannel's own form (`/run/flannel/subnet.env`), so that a \
         `type: flannel` configuration that is there already goes on working. Not with address pools.",
    ),
    process(
        &["agent"],
        "listen",
        Some("SEAWAY_LISTEN"),
        "address:port",
        "127.0.0.1:9642",
        "Where `/healthz`, `/readyz`, `/status` and `/metrics` are served over HTTP.",
    ),
    process(
        &["agent"],
        "service-proxy",
        Some("SEAWAY_SERVICE_PROXY"),
        "`on`, `beside` or `off`",
        "on",
        "Whether this agent serves Services. `on` refuses to start beside a kube-proxy that is running; `beside` is for \
         the time of [taking over](takeover.md) from it; `off` leaves Services to it.",
    ),
    process(
        &["agent"],
        "proxy-health-listen",
        Some("SEAWAY_PROXY_HEALTH_LISTEN"),
        "address:port, or `none`",
        "[::]:10256",
        "Where `/healthz` and `/livez` are served as kube-proxy serves them, for load balancers: `/healthz` also fails \
         while the node is being deleted. `[::]` is IPv4 as well.",
    ),
    process(
        &["agent"],
        "proxy-mode-listen",
        Some("SEAWAY_PROXY_MODE_LISTEN"),
        "address:port, or `none`",
        "127.0.0.1:10249",
        "Where `/proxyMode` is answered with `nftables`, as kube-proxy in that mode does.",
    ),
    process(
        &["agent"],
        "resync",
        Some("SEAWAY_RESYNC"),
        "seconds from 1 to 3600",
        "30",
        "Kernel and intent are compared at least so often, even when nothing seems to have changed. A change made by \
         somebody else is normally seen at once, by the kernel's own notifications.",
    ),
    process(
        &["agent"],
        "proc-sys",
        Some("SEAWAY_PROC_SYS"),
        "folder",
        "/proc/sys",
        "Where sysctls can be written. In a container that is not privileged /proc/sys is read-only; \
         `deploy/seaway.yaml` mounts the node's once more, at the path that it says here.",
    ),
    process(
        COMMANDS,
        "log-level",
        Some("SEAWAY_LOG"),
        "level or directives",
        "info",
        "`error`, `warn`, `info`, `debug` or `trace`; or directives such as `info,source=debug`.",
    ),
    process(
        COMMANDS,
        "log-format",
        Some("SEAWAY_LOG_FORMAT"),
        "`human` or `json`",
        "human",
        "`human` has colours on a terminal and none elsewhere; `json` is one object a line.",
    ),
    process(
        &["controller"],
        "only",
        None,
        "names with commas",
        "",
        "Which controllers to run; all when not given. On a cluster that has a control plane of its own, name only \
         what it lacks.",
    ),
    process(
        &["apiserver"],
        "store",
        None,
        "file",
        "/var/lib/seaway/api.redb",
        "The file that keeps the objects; made when missing, held by one server at a time.",
    ),
    process(&["apiserver"], "unix", None, "path", "", "Listen on a unix socket of mode 0600."),
    process(
        &["apiserver"],
        "tls",
        None,
        "address:port",
        "",
        "Listen with TLS and client certificates; port 0 takes a free one; may be repeated.",
    ),
    process(
        &["apiserver"],
        "kubeconfig",
        None,
        "file",
        "",
        "Write an admin's kubeconfig for the first TLS address to this file (mode 0600).",
    ),
    process(&["apiserver"], "cluster-name", None, "name", "seaway", "The name of the cluster in that kubeconfig."),
    process(
        &["apiserver"],
        "service-cidr",
        None,
        "CIDR, or one of each family with a comma",
        "10.96.0.0/16,fd00:10:96::/112",
        "The ranges of Service addresses. The first is the family of Services that ask for none.",
    ),
    process(
        &["apiserver"],
        "advertise",
        None,
        "address:port, more with commas",
        "",
        "Where pods reach this API: the endpoints of Service `default/kubernetes`. Not set: it has none.",
    ),
    process(
        &["apiserver"],
        "kubelet-socket",
        None,
        "path",
        "",
        "Where the nodes' kubelets serve logs, commands and ports of pods: a unix socket, with `{node}` for the node's name. \
         Not set: there are none.",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_whole_and_differ() {
        let mut names = BTreeSet::new();
        for s in SETTINGS {
            assert!(names.insert(s.name()), "{} twice", s.name());
            assert!(s.help.ends_with('.') && !s.help.contains("  ") && !s.help.contains('\n'), "{}", s.name());
            assert!(!s.kind.is_empty() && !s.kind.contains('|') && !s.default.contains('|'), "{}", s.name());
            if let Place::Process { commands, env, .. } = s.place {
                assert!(!commands.is_empty() && commands.iter().all(|c| COMMANDS.contains(c)), "{}", s.name());
                assert!(env.is_none_or(|e| e.starts_with("SEAWAY_")), "{}", s.name());
            }
        }
        for c in COMMANDS {
            assert!(SETTINGS.iter().any(|s| s.is_flag_of(c)), "{c}");
        }
    }
}
