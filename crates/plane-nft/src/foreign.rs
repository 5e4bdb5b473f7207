//! What of others' rules gets in the way of ours, with the fix. They are never touched: foreign objects survive.

mod way;

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel_api::foreign::{ForeignChain, Ruleset};
use kernel_api::nft::{ChainKind, HookPoint};
use plan::Refused;
use types::{Cidr, Family};

/// The priority of our chains that translate destinations (`NF_IP_PRI_NAT_DST`). The kernel asks those of one priority
/// newest first, so who comes later, we or kube-proxy, has the new connections.
const DNAT_PRIORITY: i32 = -100;

/// Chains without a hook that [`findings`] wants to know of.
pub const MARKERS: [&str; 4] = ["DOCKER-USER", "DOCKER-FORWARD", "KUBE-SERVICES", "KUBE-PROXY-CANARY"];

/// Whether kube-proxy's rules are there: of its nftables mode, or of its iptables mode through iptables-nft.
#[must_use]
pub fn has_kube_proxy(rules: &Ruleset) -> bool {
    rules.tables.iter().any(|t| t.name == "kube-proxy")
        || rules.chains.iter().any(|c| c.table.name == "nat" && c.name == "KUBE-SERVICES")
}

/// What breaks us, or would. `pods` are the pod ranges of the cluster; `beside` says that kube-proxy is running, so that
/// its rules are no leftover.
#[must_use]
pub fn findings(rules: &Ruleset, pods: &BTreeSet<Cidr>, beside: bool) -> Vec<Refused> {
    let mut out = Vec::new();
    let mut find = |object: String, field: &str, why: String| out.push(Refused { object, field: field.into(), why });
    for c in &rules.chains {
        let Some(hook) = c.hook else { continue };
        let object = format!("nft chain {} {} {}", c.table.family, c.table.name, c.name);
        if hook.kind == ChainKind::Filter && hook.point == HookPoint::Forward {
            let fates: Vec<way::Fate> = between_pods(c, pods).map(|(a, b)| way::fate(rules, c, a, b)).collect();
            let fix = || forward_fix(rules, c, pods);
            // What may be let through by a rule that cannot be read is no reason to cry; that a chain drops the rest is,
            // unless pods are certain to pass.
            if fates.iter().any(|f| f.ends && !f.passes && (hook.drop || !f.falls)) {
                find(object, "rules", format!("a rule of it drops or rejects what pods send to each other: {}", fix()));
            } else if hook.drop && (fates.is_empty() || fates.iter().any(|f| f.falls)) {
                find(
                    object,
                    "policy",
                    format!("it drops what no rule of it accepts, packets of pods and Services among it: {}", fix()),
                );
            }
        } else if hook.kind == ChainKind::Nat
            && matches!(hook.point, HookPoint::Prerouting | HookPoint::Output)
            && hook.priority < DNAT_PRIORITY
            && c.table.name != "kube-proxy"
        {
            let why = format!(
                "it is asked before Seaway ({} before {DNAT_PRIORITY}): what it translates never comes to a Service; \
                 give it a priority above {DNAT_PRIORITY}",
                hook.priority
            );
            find(object, "priority", why);
        }
    }
    if has_kube_proxy(rules) && !beside {
        let why = "rules that kube-proxy left behind: they may answer for addresses that Services no longer have; \
                   `seaway services takeover` removes them";
        find("kube-proxy".into(), "rules", why.into());
    }
    out.sort();
    out
}

/// Two addresses of pods in each family that a chain sees.
fn between_pods<'a>(c: &ForeignChain, pods: &'a BTreeSet<Cidr>) -> impl Iterator<Item = (IpAddr, IpAddr)> + 'a {
    let seen = match c.table.family {
        "ip" => vec![Family::V4],
        "ip6" => vec![Family::V6],
        "inet" => Family::BOTH.to_vec(),
        _ => Vec::new(),
    };
    let ranges = pods.iter().filter(move |p| seen.contains(&p.family()));
    ranges.filter_map(|p| Some((p.nth(2)?, p.nth(3)?)))
}

/// How to let pods' packets through a chain that drops.
fn forward_fix(rules: &Ruleset, c: &ForeignChain, pods: &BTreeSet<Cidr>) -> String {
    if c.table.name == "firewalld" {
        let sources: Vec<String> = pods.iter().map(|c| format!("--add-source={c}")).collect();
        return format!(
            "this is firewalld's; firewall-cmd --permanent --zone=trusted {} && firewall-cmd --reload",
            sources.join(" ")
        );
    }
    let docker = rules.chains.iter().any(|d| d.table == c.table && d.name.starts_with("DOCKER-"));
    let of = |c: &ForeignChain| match c.table.family {
        "ip" => vec![Family::V4],
        "ip6" => vec![Family::V6],
        _ => Family::BOTH.to_vec(),
    };
    let ranges: Vec<&Cidr> = pods.iter().filter(|p| of(c).contains(&p.family())).collect();
    let tool = if c.table.family == "ip6" { "ip6tables" } else { "iptables" };
    if docker {
        let each = ranges
            .iter()
            .map(|r| format!("{tool} -I DOCKER-USER -s {r} -j ACCEPT; {tool} -I DOCKER-USER -d {r} -j ACCEPT"));
        let each: Vec<String> = each.collect();
        return format!("this is Docker's; {} (or \"ip-forward-no-drop\": true in its daemon.json)", each.join("; "));
    }
    let list = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let word =
        if c.table.family == "ip6" || ranges.first().is_some_and(|r| r.family() == Family::V6) { "ip6" } else { "ip" };
    format!(
        "nft insert rule {} {} {} {word} saddr '{{ {list} }}' accept, and the same with daddr",
        c.table.family, c.table.name, c.name
    )
}

#[cfg(test)]
mod tests {
    use kernel_api::foreign::{ForeignRule, ForeignTable};
    use kernel_api::nft::{Expr, Hook};

    use super::*;

    fn chain(
        family: &'static str,
        table: &str,
        name: &str,
        hook: Option<(ChainKind, HookPoint, i32, bool)>,
    ) -> ForeignChain {
        ForeignChain {
            table: ForeignTable { family, name: table.into() },
            name: name.into(),
            hook: hook.map(|(kind, point, priority, drop)| Hook { kind, point, priority, drop }),
        }
    }

    fn rules(chains: Vec<ForeignChain>) -> Ruleset {
        let mut tables: Vec<ForeignTable> = chains.iter().map(|c| c.table.clone()).collect();
        tables.dedup();
        Ruleset { tables, chains, ..Ruleset::default() }
    }

    #[test]
    fn our_own_priority_is_what_is_compared_with() {
        let image =
            crate::compile::compile(&intent::NodeIntent::empty("n".parse().unwrap()), &plan::Caps::default()).image;
        for chain in ["prerouting", "output"] {
            assert_eq!(image.chains[chain].hook.unwrap().priority, DNAT_PRIORITY);
        }
    }

    #[test]
    fn what_breaks_us_and_what_to_do() {
        let pods: BTreeSet<Cidr> = ["10.244.0.0/16", "fd00:10:244::/48"].map(|c| c.parse().unwrap()).into();
        let forward = |drop| Some((ChainKind::Filter, HookPoint::Forward, 0, drop));
        let nat = |priority| Some((ChainKind::Nat, HookPoint::Prerouting, priority, false));
        let say =
            |r: &Ruleset| findings(r, &pods, false).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let docker =
            rules(vec![chain("ip", "filter", "FORWARD", forward(true)), chain("ip", "filter", "DOCKER-USER", None)]);
        let text = say(&docker);
        assert!(
            text.contains("iptables -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT") && !text.contains("fd00"),
            "{text}"
        );
        let own = rules(vec![chain("inet", "mine", "fwd", forward(true))]);
        assert!(say(&own).contains("nft insert rule inet mine fwd ip saddr"), "{}", say(&own));
        for quiet in [
            rules(vec![chain("ip", "filter", "FORWARD", forward(false))]),
            rules(vec![chain("ip", "nat", "PREROUTING", nat(-100))]),
            rules(vec![chain("ip", "nat", "late", nat(0))]),
            Ruleset::default(),
        ] {
            assert_eq!(say(&quiet), "");
        }
        let early = rules(vec![chain("inet", "mine", "pre", nat(-150))]);
        assert!(say(&early).contains("asked before Seaway"), "{}", say(&early));
        let mut wall = rules(vec![chain("inet", "firewalld", "filter_FORWARD", forward(false))]);
        assert_eq!(say(&wall), "", "nothing is rejected");
        wall.rules.push(ForeignRule {
            table: wall.tables[0].clone(),
            chain: "filter_FORWARD".into(),
            exprs: vec![Expr::Counter, Expr::Other("reject".into())],
        });
        assert!(say(&wall).contains("--zone=trusted --add-source=10.244.0.0/16 --add-source=fd00:10:244::/48"));
        for left in [
            rules(vec![chain("ip", "kube-proxy", "nat-prerouting", nat(-100))]),
            rules(vec![chain("ip6", "nat", "KUBE-SERVICES", None)]),
        ] {
            assert!(has_kube_proxy(&left) && say(&left).contains("seaway services takeover"));
            assert_eq!(findings(&left, &pods, true), [], "it runs: no leftover");
        }
    }
}
