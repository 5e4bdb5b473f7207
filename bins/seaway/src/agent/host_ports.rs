//! What this node knows of its ports, for the choice of random host ports: who listens, what leads into containers, what
//! was chosen before.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Context;
use cni::ports::{Owner, observe};
use intent::{HostPort, NodeIntent, PodSpec};
use ipam::Record;
use kernel_api::Nft;
use resolve::ClusterSnapshot;
use resolve::host_ports::PortsHere;
use types::{ObjectName, PortKey, Proto};

/// What was chosen for pods of this node, by UID. It outlives the agent in the files that tell the CNI plugin of pods.
#[derive(Debug, Default)]
pub struct HostPorts(BTreeMap<Box<str>, Vec<HostPort>>);

impl HostPorts {
    /// As an agent before this one left it.
    pub fn load(pods: &Path) -> Self {
        let mut out = BTreeMap::new();
        for e in std::fs::read_dir(pods).into_iter().flatten().flatten() {
            if e.path().extension().is_none_or(|x| x != "json") {
                continue;
            }
            // What cannot be read is written anew soon; the Pod may still tell what was chosen.
            let spec = std::fs::read(e.path()).ok().and_then(|b| serde_json::from_slice::<PodSpec>(&b).ok());
            if let Some(s) = spec.filter(|s| !s.host_ports.is_empty()) {
                out.insert(s.uid, s.host_ports);
            }
        }
        Self(out)
    }

    /// What an intent says, which is published next.
    pub fn remember(&mut self, intent: &NodeIntent) {
        let with = intent.pods.values().filter(|s| !s.host_ports.is_empty());
        self.0 = with.map(|s| (s.uid.clone(), s.host_ports.clone())).collect();
    }

    /// What is known beside `others`.
    pub fn here(&self, records: &[Record], uids: &Uids, others: BTreeSet<PortKey>) -> PortsHere {
        let mut out = PortsHere {
            held: others.into_iter().map(|p| (p, None)).collect(),
            chosen: self.0.clone(),
            attached: uids.all(),
        };
        for r in records {
            let uid = uids.0.get(&r.key);
            for m in &r.ports {
                out.held.insert(key(m), uid.cloned());
            }
            if let Some(uid) = uid {
                let chosen = r.ports.iter().map(|m| HostPort {
                    host: key(m),
                    host_ip: m.host_ip,
                    container_port: m.container_port,
                });
                out.chosen.insert(uid.clone(), chosen.collect());
            }
        }
        out
    }
}

/// The ports that the node's own sockets have, and those that lead into containers: asked for only where a choice may be
/// needed.
///
/// # Errors
/// When the kernel does not say: then nothing may be chosen.
pub fn others(nft: &mut impl Nft) -> anyhow::Result<BTreeSet<PortKey>> {
    let mut out: BTreeSet<PortKey> =
        listeners().context("look at who listens on the node")?.into_iter().map(|(_, p)| p).collect();
    let mappings = observe(nft).context("look at the host ports that are mapped")?.mappings(|_: &Owner| true);
    out.extend(mappings.into_iter().map(|(m, _)| key(&m)));
    Ok(out)
}

/// The UIDs of the pods that are attached, by record.
pub struct Uids(BTreeMap<ipam::Key, Box<str>>);

impl Uids {
    /// As the runtime said, or, where it did not, as the pod of that name has it.
    pub fn of(records: &[Record], snapshot: &ClusterSnapshot) -> Self {
        let one = |r: &Record| {
            let p = r.pod.as_ref()?;
            let by_name = || Some(snapshot.pods.get(&ObjectName::new(&p.namespace, &p.name))?.uid.clone());
            Some((r.key.clone(), p.uid.clone().or_else(by_name)?))
        };
        Self(records.iter().filter_map(one).collect())
    }

    /// All of them.
    pub fn all(&self) -> BTreeSet<Box<str>> {
        self.0.values().cloned().collect()
    }
}

fn key(m: &ipam::PortMapping) -> PortKey {
    PortKey { proto: m.proto, port: m.host_port }
}

/// The addresses and ports of the node's own sockets: of TCP those that listen, of UDP and SCTP all. Of SCTP the address is
/// not looked at.
///
/// # Errors
/// When the kernel does not say.
pub fn listeners() -> io::Result<BTreeSet<(IpAddr, PortKey)>> {
    let mut out = BTreeSet::new();
    for (file, proto) in [
        ("tcp", Proto::Tcp),
        ("tcp6", Proto::Tcp),
        ("udp", Proto::Udp),
        ("udp6", Proto::Udp),
        ("sctp/eps", Proto::Sctp),
    ] {
        // Of this thread's namespace.
        let path = format!("/proc/thread-self/net/{file}");
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{path}: {e}"));
        let file = match std::fs::File::open(&path) {
            // A kernel without that family.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            r => BufReader::new(r.map_err(named)?),
        };
        let one = if proto == Proto::Sctp { endpoint } else { socket };
        for line in file.lines().skip(1) {
            match one(&line.map_err(named)?) {
                // The kernel tells of those that listen before all connections, which may be very many.
                Some((_, _, listens)) if proto == Proto::Tcp && !listens => break,
                Some((addr, port, _)) => drop(out.insert((addr, PortKey { proto, port }))),
                None => {}
            }
        }
    }
    Ok(out)
}

/// A line of /proc/net/tcp or udp: number, local address, remote address, state; and whether that is `TCP_LISTEN`, which is 10
/// (include/net/tcp_states.h).
fn socket(line: &str) -> Option<(IpAddr, u16, bool)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    let (addr, port) = local.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok().filter(|p| *p > 0)?;
    // Words of 32 bits in the machine's order, of bytes in the network's.
    let word = |at: usize| Some(u32::from_str_radix(addr.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let addr = match addr.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut all = [0; 16];
            for (n, to) in all.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&word(n)?);
            }
            IpAddr::from(all)
        }
        _ => return None,
    };
    Some((addr, port, state == "0A"))
}

/// A line of /proc/net/sctp/eps: the local port is the sixth word, in decimal (net/sctp/proc.c).
fn endpoint(line: &str) -> Option<(IpAddr, u16, bool)> {
    let port = line.split_ascii_whitespace().nth(5)?.parse().ok().filter(|p| *p > 0)?;
    Some((Ipv4Addr::UNSPECIFIED.into(), port, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens() {
        let tcp = "   0: 0100007F:2580 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0";
        let client = "   1: 0100007F:A1B2 0100007F:2580 01 00000000:00000000 02:00000000 00000000     0        0 2 1 0 20 4 0 10 -1";
        let udp6 = "  12: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 0 0 0 0 0";
        let sctp = "ffff8800 ffff8801 2   10  31   9000    0     4711 0.0.0.0";
        let at = |a: &str, port, listens| Some((a.parse::<IpAddr>().unwrap(), port, listens));
        assert_eq!(socket(tcp), at("127.0.0.1", 9600, true));
        assert_eq!(socket(client), at("127.0.0.1", 0xa1b2, false));
        assert_eq!(socket(udp6), at("::", 53, false));
        assert_eq!(
            socket(&udp6.replacen("00000000000000000000000000000000", "B80D0120000000000000000001000000", 1)),
            at("2001:db8::1", 53, false)
        );
        assert_eq!(endpoint(sctp), at("0.0.0.0", 9000, true));
        for cut in ["", "0:", "0: 1", "0: 0:zz 0 0A", " ENDPT     SOCK   STY SST HBKT"] {
            assert_eq!((socket(cut), endpoint(cut)), (None, None), "{cut}");
        }
        // This process's own.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = ("127.0.0.1".parse().unwrap(), PortKey { proto: Proto::Tcp, port });
        assert!(listeners().unwrap().contains(&own));
    }
}
