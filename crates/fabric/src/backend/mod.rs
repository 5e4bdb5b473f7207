//! One module per backend: the rows that carry packets to one range of a peer.

pub mod host_gw;
pub mod vxlan;
