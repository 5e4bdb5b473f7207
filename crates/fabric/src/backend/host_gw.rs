//! host-gw: one route per range, with the peer itself as next hop. Needs peers to be neighbours.

use std::net::IpAddr;

use kernel_api::rt::{Route, RouteTo};
use plan::Caps;
use types::{Cidr, IfName};

/// The route, and the link it uses.
///
/// # Errors
/// Why the next hop cannot be used and what to do.
pub fn route(cidr: Cidr, next_hop: IpAddr, caps: &Caps) -> Result<(Route, &IfName), String> {
    let link = caps.on_link(next_hop).ok_or_else(|| {
        let links: Vec<&str> = caps.links.keys().map(IfName::as_str).collect();
        format!(
            "next hop {next_hop} is not on-link ({}): a router is between the nodes and would not know {cidr}; \
             use backend vxlan, or put the nodes on one L2",
            if links.is_empty() {
                "no interface with an address is known".into()
            } else {
                format!("no prefix of {} holds it", links.join(", "))
            }
        )
    })?;
    let to = RouteTo::Via { gateway: next_hop, link: link.clone(), onlink: false };
    Ok((Route::new(cidr, to), link))
}
