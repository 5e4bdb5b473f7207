//! What the table holds, followed Service by Service, so that a change costs what changed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use intent::{NodeIntent, Ports, ServiceKey, ServicePort};
use plan::{Caps, Compiled, Refused};
use types::{ObjectName, Proto};

use crate::compile::{self, Fragment, Order, Shared, Sheets};
use crate::elements::Elements;
use crate::image::{Chain, Image, Set};
use crate::layout::Pick;
use crate::slots::Orders;

/// The difference of two images as two parts of them: what is neither in `want` nor in `have` is the same in both. What
/// [`plan::Dataplane::plan`] makes of the parts brings the whole of one image to the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// What is to be there.
    pub want: Image,
    /// What is there.
    pub have: Image,
}

/// Compiles intents one after the other. It holds no image: what a Service has in the table follows from its ports and
/// the order of its slots, which is kept where it is not that of the addresses; only what Services may have in common is
/// counted. A few bytes an endpoint.
#[derive(Debug, Default)]
pub struct Tracker {
    base: Image,
    /// How many Services use each chain.
    picks: Counts<Pick>,
    /// How often Services have each shared element.
    shared: Counts<Shared>,
    refused: BTreeMap<ObjectName, Vec<Refused>>,
    node_ports: BTreeMap<(Proto, u16), ServiceKey>,
    orders: Orders,
}

/// How often each thing is used.
type Counts<T> = HashMap<T, u32>;

fn count<T: Eq + Hash>(counts: &mut Counts<T>, each: impl IntoIterator<Item = T>) {
    for t in each {
        *counts.entry(t).or_default() += 1;
    }
}

fn uncount<T: Eq + Hash>(counts: &mut Counts<T>, each: impl IntoIterator<Item = T>) {
    for t in each {
        if let Entry::Occupied(mut e) = counts.entry(t) {
            *e.get_mut() -= 1;
            if *e.get() == 0 {
                e.remove();
            }
        }
    }
}

/// The chain of a pick.
fn chain(pick: Pick) -> (String, Chain) {
    (pick.chain(), Chain { hook: None, rules: pick.rules() })
}

/// What every plan must see of a base that does not change: the sets and their kinds, and the node's own addresses, on
/// which node ports are served.
fn skeleton(base: &Image) -> Image {
    let set = |(name, s): (&String, &Set)| {
        let elements = if name.starts_with("node_port_addresses") { s.elements.clone() } else { Elements::default() };
        (name.clone(), Set { shape: s.shape.clone(), elements })
    };
    Image {
        present: base.present,
        flags: base.flags,
        chains: BTreeMap::new(),
        sets: base.sets.iter().map(set).collect(),
    }
}

impl Tracker {
    /// The whole image of an intent, which [`Self::follow`] then goes on from.
    pub fn full(&mut self, intent: &NodeIntent, caps: &Caps) -> Compiled<Image> {
        self.full_over(intent, caps, None)
    }

    /// The same, with endpoints in the slots that they have in what is there: else one that came or went while nobody
    /// followed would move all others.
    pub fn full_over(&mut self, intent: &NodeIntent, caps: &Caps, have: Option<&Image>) -> Compiled<Image> {
        *self = Self::default();
        let order = match have {
            Some(have) if have.elements() > 0 => Order::In(have),
            _ => Order::Sorted,
        };
        if let Some(refused) = compile::unable(intent, caps) {
            return Compiled { image: Image::default(), refused: vec![refused] };
        }
        self.base = compile::base(intent, caps);
        let mut image = self.base.clone();
        let mut sheets = Sheets::default();
        let mut ports = intent.services.iter().peekable();
        while let Some((key, _)) = ports.peek() {
            let name = &key.service;
            let of: Vec<_> = std::iter::from_fn(|| ports.next_if(|(k, _)| k.service == *name)).collect();
            let fragment = Fragment::of(of.iter().copied(), order);
            self.enter(name, of, &fragment);
            sheets.put(&fragment);
        }
        sheets.put(&Shared::fragment(self.shared.keys().copied()));
        sheets.into_image(&mut image);
        image.chains.extend(self.picks.keys().map(|p| chain(*p)));
        Compiled { image, refused: self.refused(intent, caps) }
    }

    /// The change from the last intent to this one, in which these Services are other than they were, with the ports that
    /// each had. `None` when it cannot be said as one, and [`Self::full`] is to be asked.
    pub fn follow(
        &mut self,
        intent: &NodeIntent,
        caps: &Caps,
        changes: &BTreeMap<ObjectName, Ports>,
    ) -> Option<Compiled<Delta>> {
        if compile::unable(intent, caps).is_some() || !self.base.present {
            return None;
        }
        let base = compile::base(intent, caps);
        let (mut want, mut have) = if base == self.base {
            (skeleton(&base), skeleton(&base))
        } else {
            (base.clone(), std::mem::replace(&mut self.base, base))
        };
        // Of what is counted, whether it was there before anything is counted anew.
        let (mut picks, mut shared) = (HashMap::new(), HashMap::new());
        let mut old = Vec::new();
        let mut new = Vec::new();
        for (name, was) in changes {
            let then = Fragment::of(was.iter().map(|(k, p)| (k, p)), Order::Of(&self.orders));
            let now = Fragment::of(intent.ports_of(name), Order::After(&then.slots));
            for p in then.picks.iter().chain(&now.picks) {
                picks.entry(*p).or_insert_with(|| self.picks.contains_key(p));
            }
            for s in then.shared.iter().chain(&now.shared) {
                shared.entry(*s).or_insert_with(|| self.shared.contains_key(s));
            }
            old.push((name, was, then));
            new.push((name, now));
        }
        // All leave before any enters: one Service may have the node port that another had.
        let (mut now, mut then) = (Sheets::default(), Sheets::default());
        for (name, was, fragment) in old {
            self.leave(name, was, &fragment);
            then.put(&fragment);
        }
        for (name, fragment) in new {
            self.enter(name, intent.ports_of(name), &fragment);
            now.put(&fragment);
        }
        for (pick, was) in picks {
            have.chains.extend(was.then(|| chain(pick)));
            want.chains.extend(self.picks.contains_key(&pick).then(|| chain(pick)));
        }
        then.put(&Shared::fragment(shared.iter().filter(|(_, was)| **was).map(|(s, _)| *s)));
        now.put(&Shared::fragment(shared.into_keys().filter(|s| self.shared.contains_key(s))));
        then.into_image(&mut have);
        now.into_image(&mut want);
        Some(Compiled { image: Delta { want, have }, refused: self.refused(intent, caps) })
    }

    fn enter<'a>(
        &mut self,
        name: &ObjectName,
        ports: impl IntoIterator<Item = (&'a ServiceKey, &'a Arc<ServicePort>)>,
        fragment: &Fragment,
    ) {
        count(&mut self.picks, fragment.picks.iter().copied());
        count(&mut self.shared, fragment.shared.iter().copied());
        self.orders.enter(&fragment.slots);
        if !fragment.refused.is_empty() {
            self.refused.insert(name.clone(), fragment.refused.clone());
        }
        for (key, p) in ports {
            self.node_ports.extend(p.node_port.map(|port| ((key.proto, port), key.clone())));
        }
    }

    fn leave(&mut self, name: &ObjectName, ports: &Ports, fragment: &Fragment) {
        uncount(&mut self.picks, fragment.picks.iter().copied());
        uncount(&mut self.shared, fragment.shared.iter().copied());
        self.orders.leave(&fragment.slots);
        self.refused.remove(name);
        for (key, p) in ports {
            if let Some(port) = p.node_port {
                self.node_ports.remove(&(key.proto, port));
            }
        }
    }

    fn refused(&self, intent: &NodeIntent, caps: &Caps) -> Vec<Refused> {
        let mut out: Vec<Refused> = self.refused.values().flatten().cloned().collect();
        compile::refuse_unsupported(intent, caps, &self.node_ports, &mut out);
        out.sort();
        out
    }
}
