//! The configurations of `macvlan`, `ipvlan`, `vlan`, `dummy` and `tap`.

use cni::{Call, Error, Fields, bad};
use kernel_api::rt::{IpvlanMode, MacvlanMode};
use types::{IfName, Mac};

use super::Kind;
use crate::envargs;

/// What the kernel's table of a macvlan is made for (`MACVLAN_HASH_SIZE`, drivers/net/macvlan.c).
const MOST_SOURCES: usize = 256;

/// A configuration, checked; `ipam` and `dns` are read where they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// The interface below; found out when absent. Neither `dummy` nor `tap` has one.
    pub master: Option<IfName>,
    /// It is in the container, not on the node.
    pub master_inside: bool,
    /// Bytes.
    pub mtu: Option<u32>,
    /// The container's hardware address.
    pub mac: Option<Mac>,
    /// What is of this kind alone.
    pub device: Device,
}

/// See [`Conf::device`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// `macvlan`.
    Macvlan {
        /// `mode`.
        mode: MacvlanMode,
        /// `sourceMACs`: whom mode `source` listens to.
        sources: Vec<Mac>,
        /// `bcqueuelen`.
        bc_queue_len: Option<u32>,
    },
    /// `ipvlan`: `mode`.
    Ipvlan(IpvlanMode),
    /// `vlan`: `vlanId`.
    Vlan(u16),
    /// `dummy`.
    Dummy,
    /// `tap`.
    Tap {
        /// `multiQueue`.
        multi_queue: bool,
        /// `owner`: a user's number.
        owner: Option<u32>,
        /// `group`.
        group: Option<u32>,
        /// `bridge`: one inside the container to join.
        bridge: Option<IfName>,
    },
}

impl Conf {
    /// Reads it.
    ///
    /// # Errors
    /// Code 4 or 7, naming key or field.
    pub fn read(kind: Kind, f: &Fields<'_>, call: &Call) -> Result<Self, Error> {
        let lower = kind.has_lower();
        let device = match kind {
            Kind::Macvlan => Device::Macvlan {
                mode: macvlan(f)?,
                sources: sources(f)?,
                bc_queue_len: f.number("bcqueuelen", 0..=u32::MAX)?.filter(|n| *n > 0),
            },
            Kind::Ipvlan => Device::Ipvlan(ipvlan(f)?),
            Kind::Vlan => {
                let id = f.number("vlanId", 0..=4094)?.unwrap_or(0);
                Device::Vlan(u16::try_from(id).map_err(bad)?)
            }
            Kind::Dummy => Device::Dummy,
            Kind::Tap => {
                if f.text("selinuxContext")?.is_some_and(|c| !c.is_empty()) {
                    let says = "selinuxContext is not supported: the device gets no label; leave it out, or use owner and group";
                    return Err(bad(says));
                }
                let id = |field| f.number(field, 0..=u32::MAX);
                let multi_queue = f.flag("multiQueue")?;
                Device::Tap { multi_queue, owner: id("owner")?, group: id("group")?, bridge: f.parsed("bridge")? }
            }
        };
        let master = if lower { f.parsed("master")? } else { None };
        if kind == Kind::Vlan && master.is_none() {
            return Err(bad("master is missing: the interface that carries the VLAN's frames is needed"));
        }
        Ok(Self {
            master,
            master_inside: lower && f.flag("linkInContainer")?,
            mtu: if kind == Kind::Dummy { None } else { f.number("mtu", 0..=65_535)?.filter(|m| *m > 0) },
            mac: if matches!(kind, Kind::Macvlan | Kind::Tap) { mac(f, call)? } else { None },
            device,
        })
    }
}

fn macvlan(f: &Fields<'_>) -> Result<MacvlanMode, Error> {
    match f.text("mode")? {
        None | Some("" | "bridge") => Ok(MacvlanMode::Bridge),
        Some("private") => Ok(MacvlanMode::Private),
        Some("vepa") => Ok(MacvlanMode::Vepa),
        Some("passthru") => Ok(MacvlanMode::Passthru),
        Some("source") => Ok(MacvlanMode::Source),
        Some(m) => Err(bad(format!("mode is {m:?}: bridge, private, vepa, passthru or source is needed"))),
    }
}

/// Mode `source` hears nobody but those that are listed, so a list is needed; the other modes hear everybody.
fn sources(f: &Fields<'_>) -> Result<Vec<Mac>, Error> {
    let mut list: Vec<Mac> = f.parsed_list("sourceMACs")?;
    list.sort_unstable();
    list.dedup();
    match (macvlan(f)? == MacvlanMode::Source, list.len()) {
        (true, 0) => {
            Err(bad("sourceMACs is missing: mode source hears only the hardware addresses that are listed there"))
        }
        (true, n) if n > MOST_SOURCES => {
            Err(bad(format!("sourceMACs has {n} entries, at most {MOST_SOURCES} are taken")))
        }
        (true, _) => match list.iter().find(|m| !m.is_station()) {
            Some(m) => Err(bad(format!("sourceMACs has {m}, which is no station's hardware address"))),
            None => Ok(list),
        },
        (false, 0) => Ok(list),
        (false, _) => Err(bad("sourceMACs is for mode source: leave it out, or set the mode")),
    }
}

fn ipvlan(f: &Fields<'_>) -> Result<IpvlanMode, Error> {
    match f.text("mode")? {
        None | Some("" | "l2") => Ok(IpvlanMode::L2),
        Some("l3") => Ok(IpvlanMode::L3),
        Some("l3s") => Ok(IpvlanMode::L3s),
        Some(m) => Err(bad(format!("mode is {m:?}: l2, l3 or l3s is needed"))),
    }
}

/// `runtimeConfig.mac` before `CNI_ARGS`' `MAC` before `mac`.
fn mac(f: &Fields<'_>, call: &Call) -> Result<Option<Mac>, Error> {
    let [of_env] = envargs::known(call, ["MAC"])?;
    let own = f.parsed("mac")?;
    let told = f.object("runtimeConfig")?.map(|r| r.parsed("mac")).transpose()?.flatten();
    let of_env = of_env.map(|t| t.parse().map_err(|e| bad(format!("CNI_ARGS' MAC is {t:?}: {e}")))).transpose()?;
    Ok(told.or(of_env).or(own))
}
