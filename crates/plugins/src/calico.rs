//! `calico`: takes Calico's configuration of the CNI plugin, and attaches the container as Seaway's own plugin does, in
//! mode `routed` unless annotations say otherwise: Calico's way to wire a pod.

use std::path::PathBuf;

use cni::node::Node;
use cni::{CniResult, Code, Context, Error, Fields, Plugin, Seaway, bad};
use kernel_api::machine::Machine;
use serde_json::{Map, Value, json};
use types::{AddressRange, Cidr, Family};

/// See the module.
pub struct Calico;

/// Stands for the node's range in a subnet or a route.
const OWN: &str = "usePodCidr";
/// The same of IPv6.
const OWN_V6: &str = "usePodCidrIPv6";
/// What Seaway's own plugin reads as this one had it; the rest of the configuration is Calico's agent's.
const HANDED_ON: [&str; 7] =
    ["cniVersion", "name", "dns", "prevResult", "args", "cni.dev/valid-attachments", "cni.dev/attachments"];

/// The configuration of Seaway's own plugin that means the same. `node`: what the agent says; without it nothing that
/// only ADD and STATUS need is there.
///
/// # Errors
/// Code 7 with the field, code 11 when a pool of the node's is to come.
pub fn translated(
    f: &Fields<'_>,
    node: Option<&Node>,
    pools: &ipam::Pools,
    dir: &str,
) -> Result<Map<String, Value>, Error> {
    let mut out = Map::new();
    for field in HANDED_ON {
        if let Some(v) = f.value(field) {
            out.insert(field.into(), v.clone());
        }
    }
    if let Some(rc) = f.map("runtimeConfig")? {
        // Calico's own capability, which says what the Pod says.
        let known = |k: &&String| cni::CAPABILITIES.iter().any(|c| c.eq_ignore_ascii_case(k));
        let rc: Map<String, Value> = rc.iter().filter(|(k, _)| known(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
        out.insert("runtimeConfig".into(), Value::Object(rc));
    }
    out.extend([("type".to_owned(), json!(cni::TYPE)), ("dataDir".to_owned(), json!(dir))]);
    let forwards = f.object("container_settings")?.map(|c| c.flag("allow_ip_forwarding")).transpose()?;
    if forwards == Some(true) {
        let says = "a pod does not forward for others here; chain the plugin tuning with net.ipv4.ip_forward";
        return Err(bad(format!("container_settings.allow_ip_forwarding is true: {says}")));
    }
    let Some(node) = node else { return Ok(out) };
    let mtu = f.number("mtu", 0..=65535)?.filter(|m| *m > 0).unwrap_or(node.mtu);
    out.extend([("mtu".to_owned(), json!(mtu)), ("pods".to_owned(), json!(format!("{dir}/pods")))]);
    let ipam = f.object("ipam")?.ok_or_else(|| bad("ipam is missing: calico-ipam or host-local is needed"))?;
    match ipam.needed("type")? {
        "host-local" => host_local(&ipam, node, &mut out)?,
        "calico-ipam" => calico_ipam(&ipam, node, pools, dir, &mut out)?,
        other => {
            return Err(bad(format!("ipam.type is {other:?}: calico-ipam or host-local is needed")));
        }
    }
    Ok(out)
}

/// The node's own range that a word stands for, or the text itself.
fn own<'a>(node: &Node, field: &str, text: &'a str) -> Result<std::borrow::Cow<'a, str>, Error> {
    let of = |family| node.ranges.iter().find(|r| r.family() == family);
    let range = match text {
        // What Kubernetes calls the node's podCIDR is the first of podCIDRs.
        OWN => of(Family::V4).or_else(|| node.ranges.first()),
        OWN_V6 => of(Family::V6),
        _ => return Ok(text.into()),
    };
    let says =
        || format!("{field} is {text}: the node has no such range (Node spec.podCIDRs, or its addresses are of pools)");
    Ok(range.ok_or_else(|| bad(says()))?.to_string().into())
}

/// `host-local` as Calico has it: the node's range by a word.
fn host_local(f: &Fields<'_>, node: &Node, out: &mut Map<String, Value>) -> Result<(), Error> {
    let mut sets: Vec<Map<String, Value>> = Vec::new();
    let mut take = |r: &Fields<'_>| -> Result<(), Error> {
        let (at, mut one) = (r.name("subnet"), Map::new());
        one.insert("subnet".into(), own(node, &at, r.needed("subnet")?)?.into());
        for bound in ["rangeStart", "rangeEnd"] {
            if let Some(t) = r.text(bound)? {
                one.insert(bound.into(), t.into());
            }
        }
        sets.push(one);
        Ok(())
    };
    if f.value("subnet").is_some() {
        take(f)?;
    }
    for (i, set) in f.list("ranges")?.iter().enumerate() {
        let at = f.name(&format!("ranges[{i}]"));
        let one = match set {
            Value::Array(list) if list.len() == 1 => list.first().and_then(Value::as_object),
            _ => None,
        };
        let one = one
            .ok_or_else(|| bad(format!("{at}: a list of one range is needed: a pod has one address of each family")))?;
        take(&Fields::new(one, format!("{at}[0]")))?;
    }
    if sets.is_empty() {
        return Err(bad(format!("{} is missing: {OWN}, or a range", f.name("subnet"))));
    }
    let (mut ranges, mut within): (Vec<Cidr>, Vec<AddressRange>) = (Vec::new(), Vec::new());
    for s in &sets {
        cni::range(&Fields::new(s, f.name("ranges")), &mut ranges, &mut within)?;
    }
    let mut routes = Vec::new();
    for r in f.objects("routes")? {
        let at = r.name("dst");
        routes.push(json!({"dst": own(node, &at, r.needed("dst")?)?}));
    }
    out.insert("ranges".into(), json!(ranges));
    if !within.is_empty() {
        // The runtime's own wish comes first.
        let rc = out.entry("runtimeConfig").or_insert_with(|| json!({}));
        if let Some(rc) = rc.as_object_mut() {
            rc.entry("ipRanges").or_insert_with(|| sets.into_iter().map(|s| json!([s])).collect());
        }
    }
    if !routes.is_empty() {
        out.insert("routes".into(), routes.into());
    }
    Ok(())
}

/// `calico-ipam`: addresses of pools where the cluster has them, else of the node's own range.
fn calico_ipam(
    f: &Fields<'_>,
    node: &Node,
    pools: &ipam::Pools,
    dir: &str,
    out: &mut Map<String, Value>,
) -> Result<(), Error> {
    let [v4, v6] = [assign(f, "assign_ipv4", true)?, assign(f, "assign_ipv6", false)?];
    let wanted = |family| if family == Family::V4 { v4 } else { v6 };
    if !v4 && !v6 {
        return Err(bad(format!(
            "{} and {} are false: a pod needs an address",
            f.name("assign_ipv4"),
            f.name("assign_ipv6")
        )));
    }
    for (field, family) in [("ipv4_pools", Family::V4), ("ipv6_pools", Family::V6)] {
        for asked in f.texts(field)? {
            let named = |name: &str| {
                let pool = pools.pools.get(name);
                (name == asked || pool.is_some_and(|p| p.cidr.to_string() == asked))
                    && pool.is_none_or(|p| p.cidr.family() == family)
            };
            if !node.pools || !pools.default.iter().any(|n| named(n)) {
                let says = "pods that ask for none have no addresses of it: name it in ipPools of ConfigMap kube-system/seaway, \
                            which nodes claim blocks by, or in an annotation of the pod";
                return Err(bad(format!("{} has {asked:?}: {says}", f.name(field))));
            }
        }
    }
    if node.pools {
        let mut own = json!({"type": "seaway", "pools": PathBuf::from(dir).join(ipam::POOLS)});
        if v4 != v6 {
            own["family"] = if v4 { "IPv4" } else { "IPv6" }.into();
        }
        out.insert("ipam".into(), own);
        return Ok(());
    }
    let ranges: Vec<&Cidr> = node.ranges.iter().filter(|r| wanted(r.family())).collect();
    if ranges.is_empty() {
        let says = "the node has no pod range of that family";
        let field = if v4 { "assign_ipv4" } else { "assign_ipv6" };
        return Err(bad(format!("{} is true: {says}", f.name(field))));
    }
    out.insert("ranges".into(), json!(ranges));
    Ok(())
}

/// Calico writes `"true"`.
fn assign(f: &Fields<'_>, field: &str, usual: bool) -> Result<bool, Error> {
    match f.value(field) {
        None => Ok(usual),
        Some(Value::Bool(b)) => Ok(*b),
        Some(Value::String(t)) if t == "true" => Ok(true),
        Some(Value::String(t)) if t == "false" => Ok(false),
        Some(v) => Err(bad(format!("{} is {v}: \"true\" or \"false\" is needed", f.name(field)))),
    }
}

/// Runs a verb of Seaway's own plugin on what the configuration means.
fn run<M: Machine, T>(
    cx: &mut Context<'_, M>,
    attaches: bool,
    verb: impl FnOnce(&Seaway, &mut Context<'_, M>) -> Result<T, Error>,
) -> Result<T, Error> {
    let f = cx.fields();
    let dir = f.text("dataDir")?.filter(|d| !d.is_empty()).unwrap_or(ipam::DEFAULT_DIR);
    if !dir.starts_with('/') {
        return Err(bad(format!("dataDir is {dir:?}: an absolute path is needed")));
    }
    let path = PathBuf::from(dir);
    let node = if attaches { Some(Node::read(&path)?) } else { None };
    let pools = match node.as_ref().is_some_and(|n| n.pools) {
        true => ipam::Pools::read(&path.join(ipam::POOLS))?.unwrap_or_default(),
        false => ipam::Pools::default(),
    };
    let conf = translated(&f, node.as_ref(), &pools, dir)?;
    let prev = cx.prev.clone();
    let (env, call, version, now, registry) = (cx.env, cx.call, cx.version, cx.now, cx.registry);
    verb(&Seaway, &mut Context { machine: &mut *cx.machine, env, call, conf: &conf, version, prev, now, registry })
}

impl<M: Machine> Plugin<M> for Calico {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        run(cx, true, |p, cx| p.add(cx))
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        run(cx, false, |p, cx| p.del(cx))
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        run(cx, false, |p, cx| p.check(cx))
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        run(cx, false, |p, cx| p.gc(cx))
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        run(cx, true, |p, cx| p.status(cx)).map_err(|e| match e.code {
            Code::LimitedConnectivity => e,
            _ => Error { code: Code::NotAvailable, ..e },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(ipam: Value, node: &Node, pools: &ipam::Pools) -> Result<Map<String, Value>, Error> {
        let all = json!({"name": "net", "cniVersion": "1.0.0", "type": "calico", "log_level": "info", "mtu": 0, "ipam": ipam});
        translated(&Fields::new(all.as_object().unwrap(), ""), Some(node), pools, "/d")
    }

    fn node(pools: bool) -> Node {
        let ranges = ["fd00:1::/64", "10.1.0.0/24"].map(|r| r.parse().unwrap()).to_vec();
        Node::new(if pools { Vec::new() } else { ranges }, pools, 1450)
    }

    #[test]
    fn words_stand_for_the_nodes_ranges() {
        let none = ipam::Pools::default();
        let of = |v: Value| conf(v, &node(false), &none).unwrap();
        let one = of(json!({"type": "host-local", "subnet": "usePodCidr"}));
        assert_eq!((&one["ranges"], &one["mtu"], one.get("routes")), (&json!(["10.1.0.0/24"]), &json!(1450), None));
        let both =
            of(json!({"type": "host-local", "ranges": [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "usePodCidrIPv6"}]}));
        assert_eq!(both["ranges"], json!(["10.1.0.0/24", "fd00:1::/64"]));
        assert_eq!(both["routes"], json!([{"dst": "0.0.0.0/0"}, {"dst": "fd00:1::/64"}]));
        let part = of(json!({"type": "host-local", "subnet": "usePodCidr", "rangeStart": "10.1.0.100"}));
        assert_eq!(part["runtimeConfig"]["ipRanges"], json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100"}]]));
        let four = of(json!({"type": "calico-ipam"}));
        assert_eq!(four["ranges"], json!(["10.1.0.0/24"]));
        let six = of(json!({"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"}));
        assert_eq!(six["ranges"], json!(["fd00:1::/64"]));
    }

    #[test]
    fn pools_are_those_of_the_family_and_only_such_as_the_node_has() {
        let text = json!({"version": 1, "except": [], "default": ["a", "b"], "pools": {
            "a": {"cidr": "10.9.0.0/16", "ranges": []}, "b": {"cidr": "fd09::/64", "ranges": []}}});
        let pools = ipam::Pools::parse(text.to_string().as_bytes()).unwrap();
        let of = |v: Value| conf(v, &node(true), &pools);
        let both = of(
            json!({"type": "calico-ipam", "assign_ipv6": "true", "ipv4_pools": ["10.9.0.0/16"], "ipv6_pools": ["b"]}),
        );
        assert_eq!(both.unwrap()["ipam"], json!({"type": "seaway", "pools": "/d/pools.json"}));
        let four = of(json!({"type": "calico-ipam"})).unwrap();
        assert_eq!(four["ipam"]["family"], "IPv4");
        for (ipam, says) in [
            (json!({"type": "calico-ipam", "ipv4_pools": ["c"]}), "ipam.ipv4_pools has \"c\""),
            (json!({"type": "calico-ipam", "ipv4_pools": ["b"]}), "ipam.ipv4_pools has \"b\""),
            (json!({"type": "calico-ipam", "assign_ipv4": "false"}), "a pod needs an address"),
            (json!({"type": "calico-ipam", "assign_ipv4": "no"}), "ipam.assign_ipv4 is \"no\""),
            (
                json!({"type": "host-local", "subnet": "usePodCidr"}),
                "ipam.subnet is usePodCidr: the node has no such range",
            ),
            (json!({"type": "host-local"}), "ipam.subnet is missing"),
            (json!({"type": "dhcp"}), "ipam.type is \"dhcp\""),
            (Value::Null, "ipam is missing"),
        ] {
            let e = of(ipam.clone()).unwrap_err();
            assert!(e.code == Code::InvalidConfig && e.msg.contains(says), "{ipam}: {e}");
        }
    }
}
