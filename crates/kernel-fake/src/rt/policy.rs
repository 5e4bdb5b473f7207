//! Rules, and VLANs of bridge ports.

use kernel_api::errno;
use kernel_api::rt::{LinkKind, MAIN_TABLE, ObservedRule, PortVlan, Rule, RuleTo};
use types::Family;

use super::state::{KERNEL, Namespace};

/// `RT_TABLE_LOCAL`, `RT_TABLE_DEFAULT`
const LOCAL_TABLE: u32 = 255;
const DEFAULT_TABLE: u32 = 253;
/// The rule that the first VRF brings (`vrf_fib_rule`).
const VRF_PRIORITY: u32 = 1000;

impl Namespace {
    fn rule_put(&mut self, family: Family, priority: u32, to: RuleTo, protocol: u8) {
        let rule =
            Rule { family, priority: Some(priority), src: None, dst: None, iif: None, oif: None, mark: None, to };
        self.rules.push(ObservedRule { protocol, rule });
        self.rules.sort_by_key(|r| (r.rule.family, r.rule.priority));
    }

    /// The rules that every namespace begins with; IPv6 has no table default.
    pub(crate) fn add_rules(&mut self) {
        for family in [Family::V4, Family::V6] {
            self.rule_put(family, 0, RuleTo::Table(LOCAL_TABLE), KERNEL);
            self.rule_put(family, 32766, RuleTo::Table(MAIN_TABLE), KERNEL);
        }
        self.rule_put(Family::V4, 32767, RuleTo::Table(DEFAULT_TABLE), KERNEL);
    }

    pub(crate) fn add_vrf_rules(&mut self) {
        if self.rules.iter().any(|r| r.rule.to == RuleTo::L3mdev) {
            return;
        }
        for family in [Family::V4, Family::V6] {
            self.rule_put(family, VRF_PRIORITY, RuleTo::L3mdev, KERNEL);
        }
    }

    pub(crate) fn rule_add(&mut self, r: &Rule, protocol: u8) -> Result<(), i32> {
        if [r.src, r.dst].iter().flatten().any(|c| c.family() != r.family) {
            return Err(errno::EAFNOSUPPORT);
        }
        match r.to {
            RuleTo::Other(_) => return Err(errno::EOPNOTSUPP),
            // RT_TABLE_UNSPEC is no table to ask.
            RuleTo::Table(0) if r.family == Family::V6 => return Err(errno::EINVAL),
            _ => {}
        }
        // `fib_default_rule_pref`: one below the second.
        let second = self.rules.iter().filter(|o| o.rule.family == r.family).nth(1).and_then(|o| o.rule.priority);
        let priority = r.priority.unwrap_or(second.map_or(0, |p| p.saturating_sub(1)));
        let rule = Rule { priority: Some(priority), ..r.clone() };
        // `rule_exists` compares all, the protocol too.
        if self.rules.iter().any(|o| o.rule == rule && o.protocol == protocol && r.priority.is_some()) {
            return Err(errno::EEXIST);
        }
        self.rules.push(ObservedRule { protocol, rule });
        self.rules.sort_by_key(|r| (r.rule.family, r.rule.priority));
        Ok(())
    }

    /// What the request leaves out matches anything; the first that fits goes.
    pub(crate) fn rule_del(&mut self, r: &Rule, protocol: u8) -> Result<(), i32> {
        let fits = |o: &ObservedRule| {
            let h = &o.rule;
            o.protocol == protocol
                && h.family == r.family
                && r.priority.is_none_or(|_| h.priority == r.priority)
                && r.src.is_none_or(|_| h.src == r.src)
                && r.dst.is_none_or(|_| h.dst == r.dst)
                && r.iif.as_ref().is_none_or(|_| h.iif == r.iif)
                && r.oif.as_ref().is_none_or(|_| h.oif == r.oif)
                && r.mark.is_none_or(|_| h.mark == r.mark)
                && h.to == r.to
        };
        match self.rules.iter().position(fits) {
            Some(i) => {
                self.rules.remove(i);
                Ok(())
            }
            None => Err(errno::ENOENT),
        }
    }

    fn vlan_place(&self, v: &PortVlan) -> Result<(), i32> {
        let link = self.need(&v.link)?;
        let place = if v.on_bridge { matches!(link.kind, LinkKind::Bridge(_)) } else { link.port.is_some() };
        if !place {
            return Err(errno::EOPNOTSUPP);
        }
        let ids = 1..=4094;
        if !ids.contains(&v.vid) || !ids.contains(&v.last) || v.last < v.vid || v.last != v.vid && v.pvid {
            return Err(errno::EINVAL);
        }
        Ok(())
    }

    /// The VLANs of one place, one by one.
    fn vlans_of(&self, v: &PortVlan) -> Vec<PortVlan> {
        let mine = self.port_vlans.iter().filter(|o| (&o.link, o.on_bridge) == (&v.link, v.on_bridge));
        mine.flat_map(|o| (o.vid..=o.last).map(|vid| PortVlan { vid, last: vid, ..o.clone() })).collect()
    }

    fn vlans_put(&mut self, of: &PortVlan, mut one_by_one: Vec<PortVlan>) {
        one_by_one.sort();
        let mut runs: Vec<PortVlan> = Vec::new();
        for v in one_by_one {
            match runs.last_mut() {
                Some(r) if r.last + 1 == v.vid && !r.pvid && !v.pvid && r.untagged == v.untagged => r.last = v.vid,
                _ => runs.push(v),
            }
        }
        self.port_vlans.retain(|o| (&o.link, o.on_bridge) != (&of.link, of.on_bridge));
        self.port_vlans.extend(runs);
    }

    pub(crate) fn port_vlan_add(&mut self, v: &PortVlan) -> Result<(), i32> {
        self.vlan_place(v)?;
        let mut all = self.vlans_of(v);
        all.retain(|o| !(v.vid..=v.last).contains(&o.vid));
        if v.pvid {
            all.iter_mut().for_each(|o| o.pvid = false);
        }
        all.extend((v.vid..=v.last).map(|vid| PortVlan { vid, last: vid, ..v.clone() }));
        self.vlans_put(v, all);
        Ok(())
    }

    pub(crate) fn port_vlan_del(&mut self, v: &PortVlan) -> Result<(), i32> {
        self.vlan_place(v)?;
        let mut all = self.vlans_of(v);
        // One that is not there is none to delete, and no error.
        all.retain(|o| !(v.vid..=v.last).contains(&o.vid));
        self.vlans_put(v, all);
        Ok(())
    }
}
