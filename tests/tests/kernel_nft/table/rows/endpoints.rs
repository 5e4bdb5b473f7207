//! Which endpoints: policies, readiness, slices, hints.

use super::Case;

pub const ENDPOINTS: &[Case] = &[
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
        service: r#"{"type": "LoadBalancer", "externalTrafficPolicy": "Local", "status": [{"ip": "$lb4"}, {"ip": "$lb6"}]}"#,
        slices: &["http=8080: far"],
        asks: &[
            ("world", "lb:80", "drop noLocalEndpoints"),
            ("p1", "lb:80", "any far:8080 keep"),
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
        name: "publishNotReadyAddresses: the slice says they are ready, whatever else it says",
        service: r#"{"publishNotReadyAddresses": true}"#,
        slices: &["http=8080: p0, p1 leaving, p2 going"],
        asks: &[("world", "vip:80", "any p0:8080 noPod, p1:8080 noPod")],
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
        name: "slices for names alone",
        service: "{}",
        slices: &["http=8080 headless: p0", "http=8080: p1"],
        asks: &[("p2", "vip:80", "any p1:8080 keep")],
    },
    Case {
        name: "both Local, an endpoint here",
        service: r#"{"type": "NodePort", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: p0, far"],
        asks: &[
            ("p2", "vip:80", "local p0:8080 keep"),
            ("p0", "vip:80", "local p0:8080 hairpin"),
            ("far", "vip:80", "local p0:8080 keep"),
            ("node", "vip:80", "local p0:8080 noPod"),
            ("world", "vip:80", "local p0:8080 noPod"),
            ("world", "node:30080", "local p0:8080 keep"),
            ("far", "node:30080", "local p0:8080 insideToOutside"),
            ("p2", "node:30080", "any p0:8080 keep, far:8080 keep"),
            ("node", "node:30080", "any p0:8080 insideToOutside, far:8080 insideToOutside"),
        ],
    },
    Case {
        name: "both Local, all endpoints here",
        service: r#"{"type": "NodePort", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: p0, p1"],
        asks: &[
            ("p2", "vip:80", "any p0:8080 keep, p1:8080 keep"),
            ("world", "node:30080", "any p0:8080 keep, p1:8080 keep"),
        ],
    },
    Case {
        name: "internalTrafficPolicy Local without an endpoint here: from outside it does not hold",
        service: r#"{"type": "NodePort", "internalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: far"],
        asks: &[
            ("p0", "vip:80", "drop noLocalEndpoints"),
            ("world", "vip:80", "drop noLocalEndpoints"),
            ("world", "node:30080", "any far:8080 policyCluster"),
            ("p0", "node:30080", "any far:8080 policyCluster"),
        ],
    },
    Case {
        name: "internalTrafficPolicy Local: the fallback is its own",
        service: r#"{"internalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: p0 going, p1 gone, far"],
        asks: &[("p2", "vip:80", "local p0:8080 keep"), ("far", "vip:80", "local p0:8080 keep")],
    },
    Case {
        name: "internalTrafficPolicy Local knows no zones, traffic from outside does",
        service: r#"{"type": "NodePort", "trafficDistribution": "PreferSameZone", "internalTrafficPolicy": "Local"}"#,
        slices: &["http=8080: p0 zones=b, p1 zones=a, far zones=b"],
        asks: &[
            ("p2", "vip:80", "local p0:8080 keep, p1:8080 keep"),
            ("world", "node:30080", "any p1:8080 policyCluster"),
        ],
    },
    Case {
        name: "none ready, asked from outside",
        service: r#"{"type": "NodePort"}"#,
        slices: &["http=8080: p0 going, far going, p1 unready"],
        asks: &[("world", "node:30080", "any p0:8080 policyCluster, far:8080 policyCluster")],
    },
    Case {
        name: "each family falls back, and has hints, by itself",
        service: "{}",
        slices: &["4 http=8080: p0 going zones=b, p1 zones=a, far zones=b", "6 http=8080: p0 going, p1 unready"],
        asks: &[("4:p2", "vip:80", "any p1:8080 keep"), ("6:p2", "vip:80", "any p0:8080 keep")],
    },
    Case {
        name: "no endpoints, UDP and SCTP",
        service: r#"{"type": "NodePort", "ports": [{"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30053},
            {"name": "s", "port": 53, "protocol": "SCTP", "nodePort": 30053}]}"#,
        slices: &["u/udp=8080,s/sctp=8080: p0 unready"],
        asks: &[
            ("p1", "vip:53/udp", "reject noEndpoints"),
            ("node", "vip:53/udp", "reject noEndpoints"),
            ("world", "node:30053/udp", "reject noEndpoints"),
            ("p1", "vip:53/sctp", "reject noEndpoints"),
            ("node", "vip:53/sctp", "reject noEndpoints"),
            ("world", "node:30053/sctp", "reject noEndpoints"),
        ],
    },
    Case {
        name: "no slice at all, with session affinity",
        service: r#"{"type": "NodePort", "sessionAffinity": "ClientIP"}"#,
        slices: &[],
        asks: &[("p1", "vip:80", "reject noEndpoints"), ("world", "node:30080", "reject noEndpoints")],
    },
    Case {
        name: "slices that know no port of that name",
        service: "{}",
        slices: &["other=8080: p0", "http/udp=8080: p1"],
        asks: &[("p2", "vip:80", "reject noEndpoints")],
    },
    Case {
        name: "zone hints, wherever the client is",
        service: r#"{"type": "NodePort", "trafficDistribution": "PreferClose"}"#,
        slices: &["http=8080: p0 zones=a, p1 zones=a+b, far zones=b"],
        asks: &[
            ("p2", "vip:80", "any p0:8080 keep, p1:8080 keep"),
            ("far", "vip:80", "any p0:8080 keep, p1:8080 keep"),
            ("node", "vip:80", "any p0:8080 noPod, p1:8080 noPod"),
            ("world", "node:30080", "any p0:8080 policyCluster, p1:8080 policyCluster"),
        ],
    },
    Case {
        name: "of hints, those of endpoints that are not ready have no say",
        service: r#"{"trafficDistribution": "PreferClose"}"#,
        slices: &["http=8080: p0 zones=a, p1 unready, p2 going, far zones=b"],
        asks: &[("p2", "vip:80", "any p0:8080 keep")],
    },
    Case {
        name: "a node without a zone takes no hints of zones",
        service: r#"{"trafficDistribution": "PreferSameZone", "zone": ""}"#,
        slices: &["http=8080: p0 zones=a, far zones=b"],
        asks: &[("p2", "vip:80", "any p0:8080 keep, far:8080 keep")],
    },
];
