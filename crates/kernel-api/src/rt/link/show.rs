//! Links as iproute2 would be told.

use std::fmt;

use super::{BridgeParams, IpvlanFlag, IpvlanMode, MacvlanMode, NewLink, NewLinkKind, PortVlan, SetLink};

impl fmt::Display for PortVlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev {} vid {}", self.link, self.vid)?;
        if self.last != self.vid {
            write!(f, "-{}", self.last)?;
        }
        for (on, word) in [(self.pvid, " pvid"), (self.untagged, " untagged"), (self.on_bridge, " self")] {
            f.write_str(if on { word } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for MacvlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Bridge => "bridge",
            Self::Passthru => "passthru",
            Self::Source => "source",
        })
    }
}

impl fmt::Display for NewLinkKind {
    /// As after `type` of `ip link add`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Veth { peer, .. } => write!(f, "veth peer name {peer}"),
            Self::Bridge(p) => {
                f.write_str("bridge")?;
                if p.vlan_filtering {
                    f.write_str(" vlan_filtering 1")?;
                }
                if p.default_pvid != BridgeParams::default().default_pvid {
                    write!(f, " vlan_default_pvid {}", p.default_pvid)?;
                }
                Ok(())
            }
            Self::Vxlan(v) => {
                write!(f, "vxlan id {} dstport {}", v.vni, v.port)?;
                if let Some(a) = v.local {
                    write!(f, " local {a}")?;
                }
                f.write_str(if v.learning { " learning" } else { " nolearning" })
            }
            Self::Macvlan { params: p, .. } => {
                write!(f, "macvlan mode {}", p.mode)?;
                if let Some(n) = p.bc_queue_len {
                    write!(f, " bcqueuelen {n}")?;
                }
                Ok(())
            }
            Self::Ipvlan { params: p, .. } => {
                f.write_str(match p.mode {
                    IpvlanMode::L2 => "ipvlan mode l2",
                    IpvlanMode::L3 => "ipvlan mode l3",
                    IpvlanMode::L3s => "ipvlan mode l3s",
                })?;
                f.write_str(match p.flag {
                    IpvlanFlag::Bridge => " bridge",
                    IpvlanFlag::Private => " private",
                    IpvlanFlag::Vepa => " vepa",
                })
            }
            Self::Vlan { params: p, .. } => {
                f.write_str(if p.ad { "vlan protocol 802.1ad" } else { "vlan" })?;
                write!(f, " id {}", p.id)
            }
            Self::Dummy => f.write_str("dummy"),
            Self::Vrf { table } => write!(f, "vrf table {table}"),
            Self::Ifb => f.write_str("ifb"),
        }
    }
}

impl fmt::Display for NewLink {
    /// As after `ip link add`. A lower link or master prints by index (`#3`), since its name is not here.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let NewLinkKind::Macvlan { lower, .. }
        | NewLinkKind::Ipvlan { lower, .. }
        | NewLinkKind::Vlan { lower, .. } = &self.kind
        {
            write!(f, "link #{lower} ")?;
        }
        write!(f, "{}", self.name)?;
        if let Some(m) = self.mac {
            write!(f, " address {m}")?;
        }
        if let Some(m) = self.mtu {
            write!(f, " mtu {m}")?;
        }
        if let Some(n) = self.txqlen {
            write!(f, " txqueuelen {n}")?;
        }
        if let Some(n) = self.netns {
            write!(f, " netns fd {}", n.0)?;
        }
        write!(f, " type {}", self.kind)
    }
}

impl fmt::Display for SetLink {
    /// As after `ip link set`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(m) = self.mac {
            write!(f, " address {m}")?;
        }
        if let Some(m) = self.mtu {
            write!(f, " mtu {m}")?;
        }
        if let Some(m) = self.master {
            write!(f, " master #{m}")?;
        }
        if let Some(n) = self.netns {
            write!(f, " netns fd {}", n.0)?;
        }
        if let Some(n) = &self.rename {
            write!(f, " name {n}")?;
        }
        if let Some(n) = self.txqlen {
            write!(f, " txqueuelen {n}")?;
        }
        if let Some(a) = &self.alias {
            write!(f, " alias {a:?}")?;
        }
        let switches = [
            ("hairpin", self.hairpin),
            ("isolated", self.isolated),
            ("promisc", self.promisc),
            ("allmulticast", self.allmulti),
            ("multicast", self.multicast),
            ("vlan_filtering", self.vlan_filtering),
        ];
        for (word, on) in switches {
            if let Some(on) = on {
                write!(f, " {word} {}", if on { "on" } else { "off" })?;
            }
        }
        if let Some(m) = self.macvlan_mode {
            write!(f, " type macvlan mode {m}")?;
        }
        match self.up {
            Some(true) => f.write_str(" up"),
            Some(false) => f.write_str(" down"),
            None => Ok(()),
        }
    }
}
