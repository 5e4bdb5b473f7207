//! The file in which flannel tells its CNI plugin the node's subnet, written for a `type: flannel` configuration that
//! is there already.

use std::path::Path;

use types::{Cidr, Family};

use super::conflist::pod_mtu;
use super::datapath::Pass;

/// The file's text. `subnets` are the node's ranges, `networks` the cluster's; `masquerades`: what leaves the cluster is
/// masqueraded by the agent, so the plugin shall not. `mtu` in bytes.
fn text(networks: &[Cidr], subnets: &[Cidr], mtu: u32, masquerades: bool) -> String {
    let mut out = String::new();
    for (family, v6) in [(Family::V4, ""), (Family::V6, "IPV6_")] {
        // The plugin knows one range of a family.
        let Some(own) = subnets.iter().find(|s| s.family() == family) else { continue };
        let of_family = networks.iter().filter(|n| n.family() == family);
        let (mut holding, others): (Vec<&Cidr>, Vec<&Cidr>) = of_family.partition(|n| n.contains_cidr(own));
        holding.extend(others);
        let list: Vec<String> = holding.iter().map(ToString::to_string).collect();
        // The first address is the gateway's, as flannel has it.
        let first = own.nth(1).unwrap_or(own.addr());
        out += &format!("FLANNEL_{v6}NETWORK={}\nFLANNEL_{v6}SUBNET={first}/{}\n", list.join(","), own.len());
    }
    out + &format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={masquerades}\n")
}

/// Brings the file to what this pass says.
///
/// # Errors
/// Why there is none, for a person.
pub fn update(file: &Path, pass: &Pass, pools: bool) -> Result<(), String> {
    let says = |why: &str| Err(format!("--flannel-subnet-file {}: {why}", file.display()));
    if pools {
        return says("addresses come from address pools, and the plugin flannel knows ranges of nodes only");
    }
    let (own, intent) = (&pass.node_ranges, &pass.intent);
    let Some(mtu) = pod_mtu(pass).filter(|_| !own.is_empty()) else {
        return says("the node has no pod range or no uplink yet");
    };
    let networks: Vec<Cidr> = intent.cluster_cidrs.iter().copied().collect();
    let masquerades = own.iter().all(|c| intent.masqueraded.iter().any(|m| m.contains_cidr(c)));
    let wrote = cni::write_atomically(file, &text(&networks, own, mtu, masquerades));
    if wrote.map_err(|e| format!("--flannel-subnet-file {}: {e}", file.display()))? {
        tracing::info!("wrote {}", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(of: &[&str]) -> Vec<Cidr> {
        of.iter().map(|c| c.parse().unwrap()).collect()
    }

    #[test]
    fn the_lines_are_flannels() {
        let networks = cidrs(&["10.200.0.0/16", "10.244.0.0/16", "fd00:10:244::/48"]);
        let both = text(&networks, &cidrs(&["10.244.1.0/24", "fd00:10:244:1::/64"]), 1450, true);
        assert_eq!(
            both,
            "FLANNEL_NETWORK=10.244.0.0/16,10.200.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        let six = text(&cidrs(&["fd00::/32"]), &cidrs(&["fd00:0:1::/64"]), 1430, false);
        assert_eq!(
            six,
            "FLANNEL_IPV6_NETWORK=fd00::/32\nFLANNEL_IPV6_SUBNET=fd00:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
        );
    }
}
