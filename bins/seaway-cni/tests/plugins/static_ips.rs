use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page, refused_by_both, result, with};

fn conf(ipam: &Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": "static", "ipam": ipam});
    c["ipam"]["type"] = "static".into();
    c
}

#[test]
fn results_are_the_references() {
    let two = json!({"addresses": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}, {"address": "fd00::3/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::/48", "gw": "fd00::1"}],
        "dns": {"nameservers": ["10.1.2.1"], "domain": "d", "search": ["s"], "options": ["o"]}});
    let table = [
        (two.clone(), json!({}), ""),
        (json!({}), json!({}), "IP=10.1.2.9/24,fd00::9/64;GATEWAY=10.1.2.1,fd00::1"),
        (two.clone(), json!({}), "IP=10.1.3.9/24;GATEWAY=10.1.3.1;IgnoreUnknown=true;X=y"),
        (two.clone(), json!({"args": {"cni": {"ips": ["10.1.4.9/24"]}}}), ""),
        (two.clone(), json!({"runtimeConfig": {"ips": ["10.1.5.9/24", "fd05::9/64"]}}), ""),
        (
            two.clone(),
            json!({"args": {"cni": {"ips": ["10.1.4.9/24"]}}, "runtimeConfig": {"ips": ["10.1.5.9/24"]}}),
            "IP=10.1.3.9/24",
        ),
        (two.clone(), json!({"args": {"cni": {"ips": ["10.1.4.9/24"]}}, "runtimeConfig": {"ips": []}}), ""),
        (json!({}), json!({}), ""),
    ];
    for (ipam, more, args) in table {
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let [ours, theirs] = BOTH.map(|whose| {
                let t = Twin::new(whose);
                t.node.pod("c1");
                let mut c = with(&conf(&ipam), "cniVersion", version.into());
                for (k, v) in more.as_object().unwrap() {
                    c[k] = v.clone();
                }
                let said = t.call_with("ADD", "c1", &c, &[("CNI_ARGS", args)]).unwrap();
                if version >= "0.4.0" && ipam != json!({}) {
                    let c = with(&c, "prevResult", said.clone());
                    t.call_with("CHECK", "c1", &c, &[("CNI_ARGS", args)]).unwrap();
                }
                t.del("c1", &c);
                result(&said)
            });
            assert_eq!(ours, theirs, "{version} {ipam} {more} {args}");
        }
    }
}

#[test]
fn check_sees_another_gateway() {
    for whose in BOTH {
        let t = Twin::new(whose);
        t.node.pod("c1");
        let c = conf(&json!({"addresses": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}]}));
        let mut said = t.add("c1", &c);
        said["ips"][0]["gateway"] = "10.1.2.2".into();
        t.call("CHECK", "c1", &with(&c, "prevResult", said)).unwrap_err();
        t.call("CHECK", "c1", &c).unwrap_err();
    }
}

#[test]
fn wrong_addresses_are_refused_by_both() {
    for (ipam, why) in [
        (json!({"addresses": [{"address": "10.1.2.3"}]}), "prefix length"),
        (json!({"addresses": [{"address": "nonsense/24"}]}), "ipam.addresses[0].address"),
        (json!({"addresses": [{}]}), "ipam.addresses[0].address is missing"),
        (json!({"addresses": [{"address": "10.1.2.3/24", "gateway": "x"}]}), "ipam.addresses[0].gateway"),
        (json!({"routes": [{"dst": "x"}]}), "ipam.routes[0].dst"),
    ] {
        refused_by_both(|_| conf(&ipam), why);
    }
    refused_by_both(|_| with(&conf(&json!({})), "runtimeConfig", json!({"ips": ["10.1.2.3"]})), "runtimeConfig.ips");
    refused_by_both(|_| with(&conf(&json!({})), "args", json!({"cni": {"ips": ["x/24"]}})), "args.cni.ips");
    for args in ["IP=10.1.2.3", "GATEWAY=x", "OTHER=1"] {
        for whose in BOTH {
            let t = Twin::new(whose);
            t.node.pod("c1");
            t.call_with("ADD", "c1", &conf(&json!({})), &[("CNI_ARGS", args)]).unwrap_err();
        }
    }
}

#[test]
fn the_pages_configuration_works() {
    let t = Twin::new(Whose::Ours);
    let c = with(&page("static"), "type", "static".into());
    t.node.pod("c1");
    assert_eq!(t.add("c1", &c)["ips"].as_array().unwrap().len(), 2);
    t.del("c1", &c);
}
