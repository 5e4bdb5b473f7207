//! The table of Service cases: cluster objects, packets, and what must become of each.
//!
//! Names stand for addresses of the family that a case runs in: `p0 p1 p2` are pods of this node (zone a), `far` is a
//! pod of node1 (zone b), `node` and `node2` are this node's first and second address, `node1` is the other node's,
//! `world` is outside the cluster; `vip ext lb proxied` are addresses of Services, `free` would be one.

/// One Service, its slices, and packets.
pub struct Case {
    pub name: &'static str,
    /// Fields of `spec` over those of [`SERVICE`]; `status` and `labels` are of the object. `settings` are the cluster's,
    /// `serviceCIDRs` and `pools` further objects, of these ranges and load balancers' addresses.
    pub service: &'static str,
    /// Endpoints as `name=port,..[@version][ headless]: endpoint condition.., ..`. Conditions: `unready`, `going`
    /// (serving while it terminates), `gone` (no longer serving), `zones=a+b`, `nodes=node0`.
    pub slices: &'static [&'static str],
    /// From, to, and what becomes of it: `any` or `local` with endpoints and what becomes of the source, `plain`, `drop`,
    /// `reject`. `4` or `6` in front: only in that family.
    pub asks: &'static [(&'static str, &'static str, &'static str)],
}

/// What a case's Service is unless it says otherwise.
pub const SERVICE: &str = r#"{"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"],
    "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}"#;

const ALL_WORLD: &str = "any p0:8080 noPod";

pub const CASES: &[Case] = &[
    Case {
        name: "ClusterIP",
        service: "{}",
        slices: &["http=8080: p0, far"],
        asks: &[
            ("p1", "vip:80", "any p0:8080 keep, far:8080 keep"),
            ("far", "vip:80", "any p0:8080 keep, far:8080 hairpin"),
            ("p0", "vip:80", "any p0:8080 hairpin, far:8080 keep"),
            ("node", "vip:80", "any p0:8080 noPod, far:8080 noPod"),
            ("world", "vip:80", "any p0:8080 noPod, far:8080 noPod"),
            ("p1", "vip:81", "reject unusedPort"),
            ("world", "vip:81", "reject unusedPort"),
            ("p1", "vip:80/udp", "reject unusedPort"),
            ("p1", "vip ping", "reject unusedPort"),
            ("node", "vip ping", "reject unusedPort"),
            // A ClusterIP has no node port, whatever its ports say.
            ("world", "node:30080", "plain keep"),
            ("p1", "p0:8080", "plain keep"),
            ("p1", "world:8080", "plain leavesCluster"),
        ],
    },
    Case {
        name: "NodePort",
        service: r#"{"type": "NodePort"}"#,
        slices: &["http=8080: p0, far"],
        asks: &[
            ("world", "node:30080", "any p0:8080 policyCluster, far:8080 policyCluster"),
            ("p1", "node:30080", "any p0:8080 policyCluster, far:8080 policyCluster"),
            ("node", "node:30080", "any p0:8080 policyCluster, far:8080 policyCluster"),
            ("far", "node:30080", "any p0:8080 policyCluster, far:8080 policyCluster"),
            ("world", "node:30080/udp", "plain keep"),
            ("world", "node:80", "plain keep"),
            // By default at the node's first address alone.
            ("world", "node2:30080", "plain keep"),
            ("p1", "vip:30080", "reject unusedPort"),
        ],
    },
    Case {
        name: "NodePort at the addresses of --nodeport-addresses",
        service: r#"{"type": "NodePort", "settings": {"nodePortAddresses": "192.168.7.128/25,fd00:7::80/121"}}"#,
        slices: &["http=8080: p0"],
        asks: &[("world", "node2:30080", "any p0:8080 policyCluster"), ("world", "node:30080", "plain keep")],
    },
    Case {
        name: "LoadBalancer with source ranges, and an external address that they do not guard",
        service: r#"{"type": "LoadBalancer", "externalIPs": ["$ext4", "$ext6"],
            "loadBalancerSourceRanges": [" 203.0.113.0/24 ", "2001:db8:ffff::/64", "10.244.0.0/30", "fd00:10:244::/126"],
            "status": [{"ip": "$lb4"}, {"ip": "$lb6", "ipMode": "VIP"}, {"ip": "$proxied4", "ipMode": "Proxy"}, {"ip": "$proxied6", "ipMode": "Proxy"}]}"#,
        slices: &["http=8080: p0"],
        asks: &[
            ("world", "lb:80", "any p0:8080 policyCluster"),
            ("p0", "lb:80", "any p0:8080 policyCluster"),
            ("p2", "lb:80", "drop sourceRange"),
            ("node1", "lb:80", "drop sourceRange"),
            ("far", "lb:80", "drop sourceRange"),
            ("node", "lb:80", "drop sourceRange"),
            ("node1", "ext:80", "any p0:8080 policyCluster"),
            ("node1", "node:30080", "any p0:8080 policyCluster"),
            ("far", "vip:80", "any p0:8080 keep"),
            // ipMode Proxy: the load balancer itself must see it.
            ("p0", "proxied:80", "plain leavesCluster"),
            // It was led here, so nobody else serves it; from inside it may be on its way to another balancer's port.
            ("world", "lb:81", "reject unusedPort"),
            ("node1", "lb:80/udp", "reject unusedPort"),
            ("world", "ext:81", "reject unusedPort"),
            ("world", "lb ping", "reject unusedPort"),
            ("p1", "lb:81", "plain leavesCluster"),
            ("far", "lb:81", "plain keep"),
            ("node", "lb:81", "plain keep"),
            // Of that address Services know nothing.
            ("world", "proxied:81", "plain keep"),
        ],
    },
    Case {
        name: "a load balancer's address of our own pool: unused ports are nobody's",
        service: r#"{"type": "LoadBalancer", "pools": ["$lb4", "$lb6"], "externalIPs": ["$ext4", "$ext6"],
            "status": [{"ip": "$lb4"}, {"ip": "$lb6"}]}"#,
        slices: &["http=8080: p0"],
        asks: &[
            ("p1", "lb:80", "any p0:8080 policyCluster"),
            ("p1", "lb:81", "reject unusedPort"),
            ("far", "lb:81", "reject unusedPort"),
            ("node", "lb:80/udp", "reject unusedPort"),
            ("node", "lb ping", "reject unusedPort"),
            ("world", "lb:81", "reject unusedPort"),
            ("p1", "ext:81", "plain leavesCluster"),
        ],
    },
    Case {
        name: "a load balancer's address that is a node's: the rest of its ports are the machine's",
        service: r#"{"type": "LoadBalancer", "externalIPs": ["$node14", "$node16"], "pools": ["$node4", "$node6"],
            "status": [{"ip": "$node4"}, {"ip": "$node6"}]}"#,
        slices: &["http=8080: p0"],
        asks: &[
            ("world", "node:80", "any p0:8080 policyCluster"),
            ("world", "node:8081", "plain keep"),
            ("p1", "node:8081", "plain keep"),
            ("p1", "node1:80", "any p0:8080 policyCluster"),
            ("p1", "node1:8081", "plain keep"),
            ("world", "node1:8081", "plain keep"),
        ],
    },
    Case {
        name: "addresses of ServiceCIDRs that no Service has",
        service: r#"{"serviceCIDRs": ["10.96.0.0/16", "fd00:10:96::/112"],
            "settings": {"serviceCIDR": "203.0.113.0/24,2001:db8:ffff::/64"}}"#,
        slices: &["http=8080: p0"],
        asks: &[
            ("p1", "vip:80", "any p0:8080 keep"),
            ("p1", "vip:81", "reject unusedPort"),
            ("p1", "free:80", "drop noService"),
            ("p1", "free:80/udp", "drop noService"),
            ("node", "free:80", "drop noService"),
            ("world", "free:443", "drop noService"),
            ("p1", "free ping", "drop noService"),
            // The objects say which ranges there are, not the setting.
            ("p1", "world:8080", "plain leavesCluster"),
        ],
    },
    Case {
        name: "the range of cluster addresses by setting, where the API has no ServiceCIDR",
        service: r#"{"settings": {"serviceCIDR": "10.96.0.0/16, fd00:10:96::/112"}}"#,
        slices: &["http=8080: p0"],
        asks: &[("p1", "free:80", "drop noService"), ("p1", "vip:81", "reject unusedPort")],
    },
    Case {
        name: "a range of cluster addresses that is too large: pods and nodes in it are served",
        service: r#"{"serviceCIDRs": ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]}"#,
        slices: &["http=8080: p0"],
        asks: &[
            ("p1", "p0:8080", "plain keep"),
            ("p1", "node:8080", "plain keep"),
            ("world", "p0:8080", "plain keep"),
            ("p1", "node1:8080", "plain keep"),
            ("p1", "free:80", "drop noService"),
        ],
    },
    Case {
        name: "source ranges of one family say nothing of the other",
        service: r#"{"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"], "status": [{"ip": "$lb4"}, {"ip": "$lb6"}]}"#,
        slices: &["http=8080: p0"],
        asks: &[("4:world", "lb:80", "drop sourceRange"), ("6:world", "lb:80", "any p0:8080 policyCluster")],
    },
    Case {
        name: "LoadBalancer without node ports",
        service: r#"{"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"name": "http", "port": 80}],
            "status": [{"ip": "$lb4"}, {"ip": "$lb6"}]}"#,
        slices: &["http=8080: p0"],
        asks: &[("world", "lb:80", "any p0:8080 policyCluster"), ("world", "node:30080", "plain keep")],
    },
    Case {
        name: "externalTrafficPolicy Local",
        service: r#"{"type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": ["$ext4", "$ext6"],
            "status": [{"ip": "$lb4"}, {"ip": "$lb6"}]}"#,
        slices: &["http=8080: p0, far"],
        asks: &[
            ("world", "node:30080", "local p0:8080 keep"),
            ("world", "lb:80", "local p0:8080 keep"),
            ("node1", "ext:80", "local p0:8080 keep"),
            // Inside the cluster it does not hold. This node's pods are answered through it in any case.
            ("p1", "lb:80", "any p0:8080 keep, far:8080 keep"),
            ("p1", "node:30080", "any p0:8080 keep, far:8080 keep"),
            ("p0", "ext:80", "any p0:8080 hairpin, far:8080 keep"),
            // Another node's pod that asks for this node gets what is here.
            ("far", "node:30080", "local p0:8080 insideToOutside"),
            ("node", "lb:80", "any p0:8080 insideToOutside, far:8080 insideToOutside"),
            // The cluster address has its own policy.
            ("p1", "vip:80", "any p0:8080 keep, far:8080 keep"),
            ("world", "vip:80", "any p0:8080 noPod, far:8080 noPod"),
        ],
    },
    Case {
        name: "externalTrafficPolicy Local without an endpoint here",
        service: r#"{"type": "NodePort", "externalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: far"],
        asks: &[
            ("world", "node:30080", "drop noLocalEndpoints"),
            ("far", "node:30080", "drop noLocalEndpoints"),
            ("p1", "node:30080", "any far:8080 keep"),
            ("node", "node:30080", "any far:8080 insideToOutside"),
            ("p1", "vip:80", "any far:8080 keep"),
        ],
    },
    Case {
        name: "internalTrafficPolicy Local",
        service: r#"{"type": "NodePort", "internalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: p0, p1, far"],
        asks: &[
            ("p2", "vip:80", "local p0:8080 keep, p1:8080 keep"),
            ("node", "vip:80", "local p0:8080 noPod, p1:8080 noPod"),
            ("p2", "node:30080", "any p0:8080 policyCluster, p1:8080 policyCluster, far:8080 policyCluster"),
        ],
    },
    Case {
        name: "both Local, no endpoint here",
        service: r#"{"type": "NodePort", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: far"],
        asks: &[
            ("p0", "vip:80", "drop noLocalEndpoints"),
            ("node", "vip:80", "drop noLocalEndpoints"),
            ("world", "node:30080", "drop noLocalEndpoints"),
            ("p0", "node:30080", "any far:8080 keep"),
        ],
    },
    Case {
        name: "no endpoints at all",
        service: r#"{"type": "LoadBalancer", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
            "status": [{"ip": "$lb4"}, {"ip": "$lb6"}]}"#,
        slices: &["http=8080: p0 unready, far gone"],
        asks: &[
            ("p1", "vip:80", "reject noEndpoints"),
            ("world", "vip:80", "reject noEndpoints"),
            ("world", "node:30080", "reject noEndpoints"),
            ("node", "lb:80", "reject noEndpoints"),
        ],
    },
    Case {
        name: "serving while terminating is a fallback, for Local by itself",
        service: r#"{"type": "NodePort", "externalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: p0 going, p1 gone, far"],
        asks: &[("p2", "vip:80", "any far:8080 keep"), ("world", "node:30080", "local p0:8080 keep")],
    },
    Case {
        name: "none ready: those that serve while they terminate",
        service: "{}",
        slices: &["http=8080: p0 going, p1 gone, p2 unready"],
        asks: &[("p2", "vip:80", "any p0:8080 keep")],
    },
    Case {
        name: "endpoints in two slices while they are moved, and of mixed readiness",
        service: "{}",
        slices: &["http=8080@9: p0, p1 unready", "http=8080@10: p0 unready, p1", "http=8080@11: far, p2 gone"],
        asks: &[("p2", "vip:80", "any p1:8080 keep, far:8080 keep")],
    },
    Case {
        name: "a new pod at the address of one that is not quite gone",
        service: "{}",
        slices: &["http=8080@5: p0", "http=8080@6: p0 going"],
        asks: &[("p2", "vip:80", "any p0:8080 keep")],
    },
    Case {
        name: "a named target port that differs from pod to pod",
        service: r#"{"ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "other", "port": 81}]}"#,
        slices: &["http=8080,other=8081: p0", "http=8081,other=8080: p1", "http=8080,http=8081: p2"],
        asks: &[
            ("far", "vip:80", "any p0:8080 keep, p1:8081 keep, p2:8080 keep, p2:8081 keep"),
            ("far", "vip:81", "any p0:8081 keep, p1:8080 keep"),
        ],
    },
    Case {
        name: "several ports and protocols at one address",
        service: r#"{"type": "NodePort", "ports": [{"name": "a", "port": 53, "nodePort": 30053},
            {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30053}, {"name": "c", "port": 53, "protocol": "SCTP"}]}"#,
        slices: &["a=8080,b/udp=8081,c/sctp=8080: p0"],
        asks: &[
            ("p1", "vip:53", "any p0:8080 keep"),
            ("p1", "vip:53/udp", "any p0:8081 keep"),
            ("p1", "vip:53/sctp", "any p0:8080 keep"),
            ("world", "node:30053", "any p0:8080 policyCluster"),
            ("world", "node:30053/udp", "any p0:8081 policyCluster"),
            ("p1", "vip:54/sctp", "reject unusedPort"),
        ],
    },
    Case {
        name: "zone hints: this zone only",
        service: r#"{"type": "NodePort", "trafficDistribution": "PreferSameZone", "externalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: p0 zones=b, p1 zones=a, far zones=b"],
        asks: &[
            ("p2", "vip:80", "any p1:8080 keep"),
            // Policy Local knows no zones.
            ("world", "node:30080", "local p0:8080 keep, p1:8080 keep"),
            ("p2", "node:30080", "any p1:8080 keep"),
        ],
    },
    Case {
        name: "zone hints that one endpoint lacks, or that none has for this zone",
        service: r#"{"trafficDistribution": "PreferClose"}"#,
        slices: &["http=8080: p0 zones=a, far"],
        asks: &[("p2", "vip:80", "any p0:8080 keep, far:8080 keep")],
    },
    Case {
        name: "zone hints for other zones alone are no hints",
        service: r#"{"trafficDistribution": "PreferClose"}"#,
        slices: &["http=8080: p0 zones=c, far zones=b"],
        asks: &[("p2", "vip:80", "any p0:8080 keep, far:8080 keep")],
    },
    Case {
        name: "node hints before zone hints",
        service: r#"{"trafficDistribution": "PreferSameNode"}"#,
        slices: &["http=8080: p0 zones=a nodes=node0, p1 zones=a nodes=node1, far zones=a nodes=node1"],
        asks: &[("p2", "vip:80", "any p0:8080 keep")],
    },
    Case {
        name: "node hints for other nodes alone: the zone's",
        service: r#"{"trafficDistribution": "PreferSameNode"}"#,
        slices: &["http=8080: p0 zones=b nodes=node1, p1 zones=a nodes=node1"],
        asks: &[("p2", "vip:80", "any p1:8080 keep")],
    },
    Case {
        name: "publishNotReadyAddresses: the slice says they are ready",
        service: r#"{"publishNotReadyAddresses": true}"#,
        slices: &["http=8080: p0"],
        asks: &[("world", "vip:80", ALL_WORLD)],
    },
    Case {
        name: "endpoints on the node itself, on another node and outside the cluster",
        service: r#"{"type": "NodePort", "externalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: node, node1, world"],
        asks: &[
            // What ends at the node itself is never masqueraded.
            ("p0", "vip:80", "any node:8080 keep, node1:8080 keep, world:8080 leavesCluster"),
            ("world", "node:30080", "local node:8080 keep"),
            ("node", "vip:80", "any node:8080 noPod, node1:8080 noPod, world:8080 noPod"),
            ("p0", "node:30080", "any node:8080 keep, node1:8080 keep, world:8080 leavesCluster"),
        ],
    },
    Case {
        name: "endpoints in forbidden ranges are left out",
        service: "{}",
        slices: &["http=8080: p0, loopback, linklocal, multicast"],
        asks: &[("p1", "vip:80", "any p0:8080 keep")],
    },
    Case {
        name: "headless, by the Service",
        service: r#"{"clusterIP": "None", "clusterIPs": ["None"]}"#,
        slices: &["http=8080: p0"],
        asks: &[("p1", "vip:80", "plain leavesCluster")],
    },
    Case {
        name: "ExternalName",
        service: r#"{"type": "ExternalName", "externalName": "example.org"}"#,
        slices: &[],
        asks: &[("p1", "vip:80", "plain leavesCluster")],
    },
    Case {
        name: "another proxy's",
        service: r#"{"type": "NodePort", "labels": {"service.kubernetes.io/service-proxy-name": "other"}}"#,
        slices: &["http=8080: p0"],
        asks: &[("p1", "vip:80", "plain leavesCluster"), ("world", "node:30080", "plain keep")],
    },
    Case {
        name: "slices for names alone",
        service: "{}",
        slices: &["http=8080 headless: p0", "http=8080: p1"],
        asks: &[("p2", "vip:80", "any p1:8080 keep")],
    },
    Case {
        name: "SingleStack IPv4",
        service: r#"{"type": "NodePort", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIPs": ["$vip4"],
            "externalIPs": ["$ext4", "$ext6"]}"#,
        slices: &["http=8080: p0"],
        asks: &[
            ("4:p1", "vip:80", "any p0:8080 keep"),
            ("4:world", "ext:80", "any p0:8080 policyCluster"),
            ("6:p1", "vip:80", "plain leavesCluster"),
            ("6:p1", "ext:80", "plain leavesCluster"),
            ("6:world", "node:30080", "plain keep"),
        ],
    },
    Case {
        name: "PreferDualStack on IPv6 first",
        service: r#"{"type": "NodePort", "ipFamilies": ["IPv6", "IPv4"], "clusterIPs": ["$vip6", "$vip4"]}"#,
        slices: &["http=8080: p0"],
        asks: &[("p1", "vip:80", "any p0:8080 keep"), ("world", "node:30080", "any p0:8080 policyCluster")],
    },
    Case {
        name: "RequireDualStack, endpoints of one family",
        service: r#"{"ipFamilyPolicy": "RequireDualStack"}"#,
        slices: &["4 http=8080: p0"],
        asks: &[("4:p1", "vip:80", "any p0:8080 keep"), ("6:p1", "vip:80", "reject noEndpoints")],
    },
    Case {
        name: "session affinity, before anything is remembered",
        service: r#"{"type": "NodePort", "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}"#,
        slices: &["http=8080: p0, p1, far"],
        asks: &[
            ("p2", "vip:80", "any p0:8080 keep, p1:8080 keep, far:8080 keep"),
            ("world", "node:30080", "local p0:8080 keep, p1:8080 keep"),
        ],
    },
];
