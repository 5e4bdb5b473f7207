//! The configuration of `bridge`.

use std::collections::BTreeSet;

use cni::{Call, Error, Fields, bad};
use types::{IfName, Mac};

use crate::envargs;

/// The configuration, checked; `ipam`, `dns` and `ipMasq` are read where they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// The bridge.
    pub bridge: IfName,
    /// The bridge has the gateway's address.
    pub gateway: bool,
    /// And is the default route.
    pub default_gateway: bool,
    /// Another address of the bridge makes way.
    pub force_address: bool,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Frames may leave by the port they came by.
    pub hairpin: bool,
    /// The bridge takes every frame.
    pub promisc: bool,
    /// The port's VLAN, untagged.
    pub vlan: Option<u16>,
    /// The port's VLANs, tagged; `None` when none are named.
    pub trunk: Option<BTreeSet<u16>>,
    /// The port keeps the bridge's default VLAN.
    pub preserve_default_vlan: bool,
    /// The container can send from its own hardware address only.
    pub spoof_check: bool,
    /// Look for others that have the same IPv6 address.
    pub detect_duplicates: bool,
    /// The container's end stays down.
    pub leave_down: bool,
    /// The port does not talk to other isolated ones.
    pub isolated: bool,
    /// The container's hardware address.
    pub mac: Option<Mac>,
}

impl Conf {
    /// Reads it.
    ///
    /// # Errors
    /// Code 4 or 7, naming key or field.
    pub fn read(f: &Fields<'_>, call: &Call) -> Result<Self, Error> {
        let bridge = f.text("bridge")?.unwrap_or("cni0");
        let bridge = bridge.parse().map_err(|e| bad(format!("bridge is {bridge:?}: {e}")))?;
        let default_gateway = f.flag("isDefaultGateway")?;
        let vlan = f.number("vlan", 0..=4094)?.and_then(|v| u16::try_from(v).ok()).filter(|v| *v > 0);
        let trunk = trunk(f)?;
        if vlan.is_some() && trunk.as_ref().is_some_and(|t| !t.is_empty()) {
            return Err(bad("vlan and vlanTrunk cannot both be given: a port is untagged or tagged"));
        }
        let (hairpin, promisc) = (f.flag("hairpinMode")?, f.flag("promiscMode")?);
        if hairpin && promisc {
            return Err(bad("hairpinMode and promiscMode cannot both be true: either alone leads a frame back"));
        }
        let leave_down = f.flag("disableContainerInterface")? || f.choice("activateInterface")? == Some(false);
        let layer3 = f.object("ipam")?.map(|i| i.text("type")).transpose()?.flatten().is_some_and(|t| !t.is_empty());
        if leave_down && layer3 {
            let says =
                "disableContainerInterface is true: an interface that is down takes no addresses; leave ipam empty";
            return Err(bad(says));
        }
        Ok(Self {
            bridge,
            gateway: f.flag("isGateway")? || default_gateway,
            default_gateway,
            force_address: f.flag("forceAddress")?,
            mtu: f.number("mtu", 0..=65_535)?.filter(|m| *m > 0),
            hairpin,
            promisc,
            vlan,
            trunk,
            preserve_default_vlan: f.choice("preserveDefaultVlan")?.unwrap_or(true),
            spoof_check: f.flag("macspoofchk")?,
            detect_duplicates: f.flag("enabledad")?,
            leave_down,
            isolated: f.flag("portIsolation")?,
            mac: mac(f, call)?,
        })
    }

    /// Whether ports have VLANs.
    pub fn filters_vlans(&self) -> bool {
        self.vlan.is_some() || self.trunk.is_some()
    }
}

/// `vlanTrunk`: a list of `{minID, maxID}` and `{id}`.
fn trunk(f: &Fields<'_>) -> Result<Option<BTreeSet<u16>>, Error> {
    if f.value("vlanTrunk").is_none() {
        return Ok(None);
    }
    let mut out = BTreeSet::new();
    for t in f.objects("vlanTrunk")? {
        let id = |field: &str| Ok::<_, Error>(t.number(field, 1..=4094)?.and_then(|n| u16::try_from(n).ok()));
        match (id("minID")?, id("maxID")?) {
            (Some(min), Some(max)) if min <= max => out.extend(min..=max),
            (Some(min), Some(max)) => {
                return Err(bad(format!("{} is {min}, greater than maxID {max}", t.name("minID"))));
            }
            (None, None) => {}
            (None, Some(_)) => return Err(bad(format!("{} is missing: maxID is given", t.name("minID")))),
            (Some(_), None) => return Err(bad(format!("{} is missing: minID is given", t.name("maxID")))),
        }
        out.extend(id("id")?);
    }
    Ok(Some(out))
}

/// `runtimeConfig.mac` before `args.cni.mac` before `CNI_ARGS`' `MAC`.
fn mac(f: &Fields<'_>, call: &Call) -> Result<Option<Mac>, Error> {
    let [of_env] = envargs::known(call, ["MAC"])?;
    let args = f.object("args")?.map(|a| a.object("cni")).transpose()?.flatten();
    for of in [f.object("runtimeConfig")?, args].into_iter().flatten() {
        if let Some(m) = of.parsed("mac")? {
            return Ok(Some(m));
        }
    }
    of_env.map(|t| t.parse().map_err(|e| bad(format!("CNI_ARGS' MAC is {t:?}: {e}")))).transpose()
}
