//! Flannel's world: a network's configuration and one lease per node, under one prefix of etcd v3. Read as the Nodes and
//! settings of a cluster, so that the agent cannot tell it from Kubernetes; and our own lease, taken and kept by
//! flannel's rules, so that flannel's daemons cannot tell us from their like.

mod config;
mod follow;
mod lease;
mod nodes;

pub use config::{Backend, Config, Network};
pub use follow::{Own, Store, start};
pub use lease::{Attrs, BackendData, Subnets, free};
pub use nodes::{Held, snapshot};
