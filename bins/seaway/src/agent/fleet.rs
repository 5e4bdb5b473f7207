//! `seaway agent --source etcd`: a node of a flannel network, without Kubernetes. The leases in etcd are the Nodes, and
//! the datapath is the same; Services, policies and address pools are Kubernetes', so there are none.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kernel_api::Rtnetlink;
use source::etcd::{Etcd, EtcdConfig};
use source::flannel::{self, Own, Store, Subnets};
use telemetry::Kind;
use types::NodeName;

use super::{AgentArgs, IfaceChoice, ServiceProxy, facts, http, turn};

/// Where flannel writes the node's subnet, and its plugin reads it.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Flannel's, so that its daemons and we agree on who is gone.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// How often the machine's own address is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Where the node list comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum From {
    /// The Kubernetes API
    Kubernetes,
    /// Flannel's layout in etcd v3
    Etcd,
}

/// How etcd is reached.
#[derive(clap::Args, Debug, Clone)]
pub struct EtcdArgs {
    /// With --source etcd: its servers, separated by commas
    #[arg(long, value_name = "URLS", env = "SEAWAY_ETCD_ENDPOINTS", value_delimiter = ',')]
    etcd_endpoints: Vec<String>,
    /// The authority that signed etcd's certificate, as PEM
    #[arg(long, value_name = "FILE", env = "SEAWAY_ETCD_CAFILE")]
    etcd_cafile: Option<PathBuf>,
    /// Our certificate for etcd, as PEM
    #[arg(long, value_name = "FILE", env = "SEAWAY_ETCD_CERTFILE")]
    etcd_certfile: Option<PathBuf>,
    /// The key of that certificate, as PEM
    #[arg(long, value_name = "FILE", env = "SEAWAY_ETCD_KEYFILE")]
    etcd_keyfile: Option<PathBuf>,
    /// Where the network is in etcd
    #[arg(long, value_name = "KEY", env = "SEAWAY_ETCD_PREFIX", default_value = "/coreos.com/network")]
    etcd_prefix: String,
    /// With --source etcd: where other nodes reach this one, if not at its interface's address
    #[arg(long, value_name = "ADDRESS", env = "SEAWAY_PUBLIC_IP")]
    public_ip: Option<Ipv4Addr>,
    /// Likewise, of IPv6
    #[arg(long, value_name = "ADDRESS", env = "SEAWAY_PUBLIC_IPV6")]
    public_ipv6: Option<Ipv6Addr>,
    /// A user of etcd's own
    #[arg(long, value_name = "NAME", env = "SEAWAY_ETCD_USERNAME", requires = "etcd_password")]
    etcd_username: Option<String>,
    /// That user's password; better as the variable, which no process list shows
    #[arg(long, value_name = "TEXT", env = "SEAWAY_ETCD_PASSWORD", hide_env_values = true)]
    etcd_password: Option<String>,
}

impl EtcdArgs {
    fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: self.etcd_endpoints.clone(),
            ca: self.etcd_cafile.clone(),
            cert: self.etcd_certfile.clone(),
            key: self.etcd_keyfile.clone(),
            user: self.etcd_username.clone().zip(self.etcd_password.clone()),
        }
    }
}

/// This machine's name, as a node's.
pub fn hostname() -> anyhow::Result<NodeName> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    name.parse().with_context(|| format!("--node: this machine's name {name:?} is no node name; give one"))
}

/// Runs until asked to end.
pub async fn main(args: AgentArgs, node: NodeName) -> anyhow::Result<()> {
    let stop = Box::pin(crate::signals::terminated()?);
    let listener = http::bind(args.listen).await?;
    let shared = super::shared(&node, ServiceProxy::Off);
    let http = tokio::spawn(http::serve(listener, Arc::clone(&shared)));
    let missing = super::missing();
    for kind in Kind::ALL.iter().filter(|k| !matches!(k, Kind::Node | Kind::ConfigMap)) {
        shared.health(|h| h.source(*kind, Ok(())));
    }
    let subnet_file = args.flannel_subnet_file.clone().unwrap_or_else(|| SUBNET_FILE.into());
    let first = Own {
        previous: previous(&subnet_file),
        public_v4: args.etcd.public_ip,
        public_v6: args.etcd.public_ipv6,
        ..Own::default()
    };
    let (own, owned) = tokio::sync::watch::channel(own(args.iface.choice().as_ref(), &first)?);
    let etcd = Etcd::new(&args.etcd.config())?;
    let store = Store { etcd, prefix: args.etcd.etcd_prefix.clone(), ttl: TTL };
    let source = flannel::start(store, node.clone(), owned);
    let _ = shared.reader.set(source.reader());
    let (woken, wake) = std::io::pipe().context("make a pipe")?;
    let turn = turn::Turn {
        flannel_subnet_file: Some(subnet_file),
        ..super::turn(&args, &node, &shared, source.reader(), missing, source::Recorder::silent())
    };
    let datapath = super::start(turn, woken)?;
    tracing::info!(node = %node, etcd = %args.etcd.etcd_endpoints.join(","), listen = %args.listen, "agent started");
    let iface = args.iface.choice();
    let looking = tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = tokio::task::block_in_place(|| self::own(iface.as_ref(), &first));
            match now {
                // An interface that lost its address for a moment keeps what it had: the lease still holds.
                Ok(now) if now.v4.is_some() || now.v6.is_some() => {
                    own.send_if_modified(|o| {
                        *o != now && {
                            *o = now;
                            true
                        }
                    });
                }
                Ok(_) => {}
                Err(e) => tracing::warn!("the interface to other nodes cannot be looked at: {e:#}"),
            }
        }
    });
    let result = super::follow(source, &shared, wake, datapath, stop, || {}).await;
    looking.abort();
    http.abort();
    result
}

/// What this machine says of itself: the addresses of the interface to other nodes, of each family the first that is no
/// link's own. The rest is that of `first`.
fn own(iface: Option<&IfaceChoice>, first: &Own) -> anyhow::Result<Own> {
    let mut rt = kernel::Rt::open().context("open rtnetlink")?;
    let none = (BTreeSet::new(), BTreeSet::new());
    let facts = facts::observe(&mut rt, facts::Given { choice: iface, node_addresses: &none.0, missing: &none.1 })?;
    let mut own = Own { v4: None, v6: None, ..first.clone() };
    let Some(uplink) = facts.caps.uplink else { return Ok(own) };
    let all = rt.addresses().context("look at the machine's addresses")?;
    let all: Vec<IpAddr> = all.into_iter().filter(|a| a.link == uplink.name).map(|a| a.addr).collect();
    for a in iface.map_or_else(|| all.clone(), |i| i.chosen(&all)) {
        match a {
            IpAddr::V4(v4) if !v4.is_link_local() => {
                own.v4.get_or_insert(v4);
            }
            IpAddr::V6(v6) if !v6.is_unicast_link_local() => {
                own.v6.get_or_insert(v6);
            }
            _ => {}
        }
    }
    Ok(own)
}

/// The ranges that a subnet file speaks of.
fn previous(file: &Path) -> Option<Subnets> {
    let text = std::fs::read_to_string(file).ok()?;
    let [v4, v6] = plugins::flannel::Lines::read(&text).ok()?.subnets;
    let s = Subnets { v4, v6 };
    s.each().next().map(|_| s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subnet.env");
        assert_eq!(previous(&file), None);
        let lines = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_IPV6_SUBNET=fd00:5:0:34::1/64\n";
        std::fs::write(&file, lines).unwrap();
        assert_eq!(previous(&file).unwrap().key(), "10.5.34.0-24&fd00:5:0:34::-64");
        std::fs::write(&file, "FLANNEL_SUBNET=x\n").unwrap();
        assert_eq!(previous(&file), None);
    }
}
