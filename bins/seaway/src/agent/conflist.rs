//! The CNI configuration: there once the node can carry a pod's packets, and not before.

use std::path::PathBuf;

use types::Cidr;

use super::datapath::Pass;

/// Its file's name: runtimes take the first by name.
pub const FILE: &str = "10-seaway.conflist";
/// The network's name in it.
pub const NETWORK: &str = "seaway";
/// The folder beside the records with what each pod is to have.
pub const PODS: &str = "pods";

/// The MTU of pods' interfaces, in bytes: the uplink's less what the backend adds to a packet. Nothing without an uplink.
pub fn pod_mtu(pass: &Pass) -> Option<u32> {
    let overhead = pass.intent.tunnels().map(|v| if v.local.is_ipv4() { 50 } else { 70 }).max().unwrap_or(0);
    pass.facts.caps.uplink.as_ref().map(|u| u.mtu.saturating_sub(overhead))
}

/// Writes the configuration when what it says changes.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    ipam_dir: PathBuf,
}

impl Writer {
    /// Into `dir`, for a plugin that keeps its records in `ipam_dir`.
    pub fn new(dir: PathBuf, ipam_dir: PathBuf) -> Self {
        Self { dir, ipam_dir }
    }

    /// Brings the file to what this pass says; `pools`: addresses come from address pools.
    ///
    /// # Errors
    /// Why there is none, for a person.
    pub fn update(&mut self, pass: &Pass, pools: bool) -> Result<(), String> {
        let node = &pass.intent.node;
        let file = self.ipam_dir.join(ipam::POOLS);
        if pools && !file.exists() {
            return Err(format!("{} is not written yet: see the agent's log for address pools", file.display()));
        }
        // Blocks and borrowed addresses are no ranges of the node's own.
        let ranges: Vec<Cidr> = if pools { Vec::new() } else { pass.node_ranges.clone() };
        if !pools && ranges.is_empty() {
            return Err(format!(
                "Node/{node} spec.podCIDRs is empty: run `seaway controller` with a clusterCIDR, or the cluster's own allocator"
            ));
        }
        let Some(mtu) = pod_mtu(pass) else {
            return Err(format!(
                "no interface leads to other nodes: give Node/{node} an InternalIP of this machine, or use --iface"
            ));
        };
        // For configurations that are somebody else's: they name the node's range without knowing it.
        let says = cni::node::Node::new(ranges.clone(), pools, mtu).text();
        let path = self.ipam_dir.join(cni::node::FILE);
        says.and_then(|t| cni::write_atomically(&path, &t)).map_err(|e| format!("{}: {e}", path.display()))?;
        let text = cni::conflist(&cni::ConflistSpec {
            name: NETWORK.to_owned(),
            ranges,
            pools: pools.then(|| file.display().to_string()),
            mtu,
            data_dir: self.ipam_dir.display().to_string(),
            wiring: pass.intent.wiring.clone(),
            pods: Some(self.ipam_dir.join(PODS).display().to_string()),
            chained: Vec::new(),
        });
        let file = self.dir.join(FILE);
        let wrote = cni::write_atomically(&file, &text).map_err(|e| format!("{}: {e}", file.display()))?;
        if wrote {
            tracing::info!("wrote {}", file.display());
        }
        Ok(())
    }
}
