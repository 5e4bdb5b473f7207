//! Queueing disciplines and filters.

use kernel_api::errno;
use kernel_api::tc::{DESTINATIONS, Filter, FilterKind, Hook, Qdisc, QdiscKind, QdiscSlot};
use types::IfName;

use super::state::Namespace;

impl Namespace {
    pub(crate) fn qdisc_replace(&mut self, q: &Qdisc) -> Result<(), i32> {
        match &q.kind {
            QdiscKind::Ingress | QdiscKind::Other(_) => return Err(errno::EOPNOTSUPP),
            QdiscKind::Tbf(t) if t.burst == 0 => {
                self.need(&q.link)?;
                return Err(errno::EINVAL);
            }
            QdiscKind::Htb(h) if h.destinations.is_empty() || h.destinations.len() > DESTINATIONS || h.rate == 0 => {
                return Err(errno::EINVAL);
            }
            QdiscKind::Htb(_) | QdiscKind::Tbf(_) | QdiscKind::Clsact => {}
        }
        self.need(&q.link)?;
        let here = |o: &Qdisc| o.link == q.link && o.kind.slot() == q.kind.slot();
        match self.qdiscs.iter_mut().find(|o| here(o)) {
            Some(Qdisc { kind: QdiscKind::Ingress, .. }) => return Err(errno::EINVAL),
            Some(Qdisc { kind: QdiscKind::Htb(_), .. }) => return Err(errno::EINVAL),
            Some(Qdisc { kind: QdiscKind::Tbf(_), .. }) if matches!(q.kind, QdiscKind::Htb(_)) => {
                return Err(errno::EINVAL);
            }
            Some(o) => *o = q.clone(),
            None => self.qdiscs.push(q.clone()),
        }
        Ok(())
    }

    pub(crate) fn qdisc_del(&mut self, link: &IfName, slot: QdiscSlot) -> Result<(), i32> {
        self.need(link)?;
        let held = self.qdiscs.len();
        self.qdiscs.retain(|o| !(o.link == *link && o.kind.slot() == slot));
        if self.qdiscs.len() == held {
            return Err(errno::ENOENT);
        }
        if slot == QdiscSlot::Clsact {
            self.filters.retain(|f| f.link != *link);
        }
        Ok(())
    }

    fn need_clsact(&self, link: &IfName) -> Result<(), i32> {
        self.need(link)?;
        let there = self.qdiscs.iter().any(|q| q.link == *link && q.kind == QdiscKind::Clsact);
        if there { Ok(()) } else { Err(errno::EINVAL) }
    }

    pub(crate) fn filter_replace(&mut self, f: &Filter) -> Result<(), i32> {
        if let FilterKind::Other(_) = f.kind {
            return Err(errno::EOPNOTSUPP);
        }
        self.need_clsact(&f.link)?;
        if let FilterKind::Redirect { to } = f.kind
            && !self.links.iter().any(|l| l.index == to)
        {
            return Err(errno::ENODEV);
        }
        let same = |o: &Filter| (&o.link, o.hook, o.priority) == (&f.link, f.hook, f.priority);
        match self.filters.iter_mut().find(|o| same(o)) {
            // Another classifier cannot take a priority's place.
            Some(o) if std::mem::discriminant(&o.kind) != std::mem::discriminant(&f.kind) => return Err(errno::EINVAL),
            Some(o) => *o = f.clone(),
            None => self.filters.push(f.clone()),
        }
        Ok(())
    }

    pub(crate) fn filter_del(&mut self, link: &IfName, hook: Hook, priority: u16) -> Result<(), i32> {
        self.need_clsact(link)?;
        let held = self.filters.len();
        self.filters.retain(|o| (&o.link, o.hook, o.priority) != (link, hook, priority));
        if self.filters.len() == held { Err(errno::ENOENT) } else { Ok(()) }
    }
}
