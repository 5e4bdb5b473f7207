//! Links: as they are, to make, to change (include/uapi/linux/if_link.h).

mod show;

use std::net::IpAddr;

use types::{IfName, Mac};

use super::NetnsFd;

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index in this namespace.
    pub index: u32,
    /// Name.
    pub name: IfName,
    /// Hardware address, if it has a 48-bit one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether something is at the other end (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Index of the bridge or VRF it is a port of.
    pub master: Option<u32>,
    /// For a veth: the peer's index, in its own namespace (`IFLA_LINK`).
    pub peer_index: Option<u32>,
    /// For a macvlan, ipvlan, VLAN or the like: the lower link's index, in its own namespace (`IFLA_LINK`).
    pub lower: Option<u32>,
    /// The id of the peer's or lower link's namespace as this one numbers them; absent when it is this one
    /// (`IFLA_LINK_NETNSID`).
    pub lower_netns: Option<i32>,
    /// Takes every frame (`IFF_PROMISC`).
    pub promisc: bool,
    /// Takes every multicast frame (`IFF_ALLMULTI`).
    pub allmulti: bool,
    /// Can do multicast (`IFF_MULTICAST`).
    pub multicast: bool,
    /// Length of the transmit queue in packets (`IFLA_TXQLEN`).
    pub txqlen: u32,
    /// A text for people, or for whoever marks links so (`IFLA_IFALIAS`).
    pub alias: Option<String>,
    /// Other names it answers to (`IFLA_ALT_IFNAME`); they may be longer than a name.
    pub altnames: Vec<String>,
    /// As a bridge's port.
    pub port: Option<Port>,
    /// What it is.
    pub kind: LinkKind,
}

impl Link {
    /// A link that is down, with an MTU of 1500 and nothing else said.
    #[must_use]
    pub fn new(index: u32, name: IfName, kind: LinkKind) -> Self {
        Self {
            index,
            name,
            mac: None,
            mtu: 1500,
            up: false,
            carrier: true,
            master: None,
            peer_index: None,
            lower: None,
            lower_netns: None,
            promisc: false,
            allmulti: false,
            multicast: true,
            txqlen: 1000,
            alias: None,
            altnames: Vec::new(),
            port: None,
            kind,
        }
    }
}

/// What a link is as the port of a bridge (`IFLA_BRPORT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Port {
    /// Frames may leave by the port they came by (`IFLA_BRPORT_MODE`).
    pub hairpin: bool,
    /// Does not talk to other isolated ports (`IFLA_BRPORT_ISOLATED`).
    pub isolated: bool,
}

/// What a link is (`IFLA_INFO_KIND`), with the parameters we set or compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A pair of virtual Ethernet interfaces.
    Veth,
    /// A bridge.
    Bridge(BridgeParams),
    /// A VXLAN device.
    Vxlan(VxlanParams),
    /// A MAC-address-based virtual interface over a lower one.
    Macvlan(MacvlanParams),
    /// An IP-based virtual interface over a lower one, with the same hardware address.
    Ipvlan(IpvlanParams),
    /// A VLAN of a lower link.
    Vlan(VlanParams),
    /// A link that leads nowhere.
    Dummy,
    /// Virtual routing and forwarding: a routing table for its ports.
    Vrf {
        /// The table.
        table: u32,
    },
    /// An intermediate functional block: a queue for what is redirected to it.
    Ifb,
    /// A link whose other end is a process.
    Tun(TunParams),
    /// Anything else, by its kind; empty for hardware and loopback.
    Other(String),
}

/// Bridge options (`IFLA_BR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeParams {
    /// Whether it looks at VLAN tags.
    pub vlan_filtering: bool,
    /// The VLAN of untagged frames on new ports; 0 for none. The kernel's default is 1.
    pub default_pvid: u16,
}

impl Default for BridgeParams {
    fn default() -> Self {
        Self { vlan_filtering: false, default_pvid: 1 }
    }
}

/// VXLAN parameters (include/uapi/linux/if_link.h, `IFLA_VXLAN_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanParams {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port, host order.
    pub port: u16,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Lower device's index (`IFLA_VXLAN_LINK`).
    pub lower: Option<u32>,
    /// Whether it learns forwarding entries from traffic.
    pub learning: bool,
}

/// Macvlan parameters (`IFLA_MACVLAN_*`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MacvlanParams {
    /// How interfaces of one lower link see each other.
    pub mode: MacvlanMode,
    /// For mode source: the hardware addresses whose frames it takes, in ascending order when observed.
    pub sources: Vec<Mac>,
    /// Wanted length of the queue for broadcast and multicast frames (`IFLA_MACVLAN_BC_QUEUE_LEN`); the kernel's default
    /// when absent, and always told when observed.
    pub bc_queue_len: Option<u32>,
}

/// `enum macvlan_mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum MacvlanMode {
    /// They do not see each other.
    Private = 1,
    /// By way of a switch outside that sends frames back.
    Vepa = 2,
    /// Directly.
    #[default]
    Bridge = 4,
    /// One interface takes the lower link whole.
    Passthru = 8,
    /// Only frames of listed sources come in.
    Source = 16,
}

/// Ipvlan parameters (`IFLA_IPVLAN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IpvlanParams {
    /// At which layer frames are taken.
    pub mode: IpvlanMode,
    /// Whether interfaces of one lower link see each other.
    pub flag: IpvlanFlag,
}

/// `enum ipvlan_mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u16)]
pub enum IpvlanMode {
    /// At layer 2.
    #[default]
    L2 = 0,
    /// At layer 3, routed by the lower link's namespace.
    L3 = 1,
    /// At layer 3, by way of that namespace's netfilter.
    L3s = 2,
}

/// `IPVLAN_F_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u16)]
pub enum IpvlanFlag {
    /// They see each other.
    #[default]
    Bridge = 0,
    /// They do not.
    Private = 1,
    /// By way of a switch outside.
    Vepa = 2,
}

/// VLAN parameters (`IFLA_VLAN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanParams {
    /// VLAN id, 0 to 4094.
    pub id: u16,
    /// Tag of IEEE 802.1ad (0x88a8) instead of 802.1Q (0x8100).
    pub ad: bool,
}

/// Parameters of a tun or tap device (`IFLA_TUN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunParams {
    /// Carries frames (tap) instead of packets (tun).
    pub tap: bool,
    /// Stays when no process has it open.
    pub persist: bool,
    /// Several processes or threads may hold a queue each.
    pub multi_queue: bool,
    /// Frames come with a `struct virtio_net_hdr` before them.
    pub vnet_hdr: bool,
    /// The user who may open it, besides those with rights over the network.
    pub owner: Option<u32>,
    /// The group likewise.
    pub group: Option<u32>,
}

/// A persistent tap (or tun) device to make by way of /dev/net/tun, down
/// ([`Netns::add_tun`](crate::machine::Netns::add_tun)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTun {
    /// Name.
    pub name: IfName,
    /// Carries frames (tap) instead of packets (tun).
    pub tap: bool,
    /// Several queues.
    pub multi_queue: bool,
    /// The user who may open it.
    pub owner: Option<u32>,
    /// The group who may.
    pub group: Option<u32>,
}

impl NewTun {
    /// A tap device with one queue, for whoever has rights over the network.
    #[must_use]
    pub fn tap(name: IfName) -> Self {
        Self { name, tap: true, multi_queue: false, owner: None, group: None }
    }
}

/// A link to make. It is created down in the namespace of the implementation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLink {
    /// Name.
    pub name: IfName,
    /// Kind and parameters.
    pub kind: NewLinkKind,
    /// MTU in bytes; the kernel's default when absent.
    pub mtu: Option<u32>,
    /// Hardware address; random when absent.
    pub mac: Option<Mac>,
    /// Bridge or VRF to join, by index in the namespace where the link is made.
    pub master: Option<u32>,
    /// Whether to bring it up at once.
    pub up: bool,
    /// Make it in another namespace (`IFLA_NET_NS_FD`); a lower link's index stays this namespace's.
    pub netns: Option<NetnsFd>,
    /// Length of the transmit queue in packets.
    pub txqlen: Option<u32>,
    /// Device group (`IFLA_GROUP`).
    pub group: Option<u32>,
}

impl NewLink {
    /// A link with the kernel's defaults, down, here.
    #[must_use]
    pub fn new(name: IfName, kind: NewLinkKind) -> Self {
        Self { name, kind, mtu: None, mac: None, master: None, up: false, netns: None, txqlen: None, group: None }
    }
}

/// Kind and parameters of a link to make. `lower` is an index in the namespace of the implementation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewLinkKind {
    /// A pair; the peer is made in `peer_netns`, or here when absent.
    Veth {
        /// Name of the other end.
        peer: IfName,
        /// Where it is made.
        peer_netns: Option<NetnsFd>,
        /// Its hardware address; random when absent.
        peer_mac: Option<Mac>,
    },
    /// A bridge.
    Bridge(BridgeParams),
    /// A VXLAN device.
    Vxlan(VxlanParams),
    /// A macvlan.
    Macvlan {
        /// The link it shares.
        lower: u32,
        /// Parameters.
        params: MacvlanParams,
    },
    /// An ipvlan.
    Ipvlan {
        /// The link it shares.
        lower: u32,
        /// Parameters.
        params: IpvlanParams,
    },
    /// A VLAN.
    Vlan {
        /// The link that carries the tagged frames.
        lower: u32,
        /// Parameters.
        params: VlanParams,
    },
    /// A dummy.
    Dummy,
    /// A VRF.
    Vrf {
        /// Its routing table.
        table: u32,
    },
    /// An intermediate functional block.
    Ifb,
}

/// Changes to a link, by name. Absent fields stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLink {
    /// The link.
    pub name: IfName,
    /// Bring up or down.
    pub up: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Join a bridge or VRF by index; zero leaves it.
    pub master: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Move to another namespace. It arrives down and without addresses; with `rename` under that name, in one step.
    pub netns: Option<NetnsFd>,
    /// Hairpin mode of a bridge port.
    pub hairpin: Option<bool>,
    /// Isolation of a bridge port from other isolated ones.
    pub isolated: Option<bool>,
    /// A new name. Later requests of the same run may use it. Kernels before 6.2 refuse with EBUSY while the link is up,
    /// unless it moves to another namespace at once.
    pub rename: Option<IfName>,
    /// Take every frame.
    pub promisc: Option<bool>,
    /// Take every multicast frame.
    pub allmulti: Option<bool>,
    /// Say that it can do multicast.
    pub multicast: Option<bool>,
    /// Length of the transmit queue in packets.
    pub txqlen: Option<u32>,
    /// A text for people, at most 255 bytes; empty removes it.
    pub alias: Option<String>,
    /// Mode of a macvlan. To and from passthru is refused.
    pub macvlan_mode: Option<MacvlanMode>,
    /// VLAN filtering of a bridge.
    pub vlan_filtering: Option<bool>,
}

impl SetLink {
    /// No change yet.
    #[must_use]
    pub fn new(name: IfName) -> Self {
        Self {
            name,
            up: None,
            mtu: None,
            master: None,
            mac: None,
            netns: None,
            hairpin: None,
            isolated: None,
            rename: None,
            promisc: None,
            allmulti: None,
            multicast: None,
            txqlen: None,
            alias: None,
            macvlan_mode: None,
            vlan_filtering: None,
        }
    }

    /// Bring it up.
    #[must_use]
    pub fn up(name: IfName) -> Self {
        Self { up: Some(true), ..Self::new(name) }
    }
}

/// VLANs of a bridge's port, or of the bridge itself (`struct bridge_vlan_info`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortVlan {
    /// The port; with `on_bridge`, the bridge.
    pub link: IfName,
    /// First VLAN id, 1 to 4094.
    pub vid: u16,
    /// Last; the same for one. A range cannot be the PVID.
    pub last: u16,
    /// Untagged frames that come in belong to it.
    pub pvid: bool,
    /// Its frames leave without their tag.
    pub untagged: bool,
    /// The link is the bridge itself (`BRIDGE_FLAGS_SELF`), as its own host sees it.
    pub on_bridge: bool,
}

impl PortVlan {
    /// A tagged VLAN of a port.
    #[must_use]
    pub fn tagged(link: IfName, vid: u16) -> Self {
        Self { link, vid, last: vid, pvid: false, untagged: false, on_bridge: false }
    }

    /// The VLAN of a port whose station knows nothing of VLANs.
    #[must_use]
    pub fn access(link: IfName, vid: u16) -> Self {
        Self { pvid: true, untagged: true, ..Self::tagged(link, vid) }
    }
}
