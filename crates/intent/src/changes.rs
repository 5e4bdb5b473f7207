//! Which Services of an intent are other than they were: what lets a plane work for these alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use types::{ObjectName, Proto};

use crate::model::{NodeIntent, ServiceKey, ServicePort};

/// The ports of one Service.
pub type Ports = Vec<(ServiceKey, Arc<ServicePort>)>;

/// Services that differ between an earlier intent and a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceChanges {
    /// Any may: there is no earlier intent.
    All,
    /// These, with the ports each had; the later intent has what is now. Empty: none it had, or none it has.
    Some(BTreeMap<ObjectName, Ports>),
}

impl ServiceChanges {
    /// No change.
    #[must_use]
    pub fn none() -> Self {
        Self::Some(BTreeMap::new())
    }

    /// These, followed by `later`.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        match (self, later) {
            (Self::Some(first), Self::Some(mut second)) => {
                // What was before the first is what was before both.
                second.extend(first);
                Self::Some(second)
            }
            _ => Self::All,
        }
    }
}

impl NodeIntent {
    /// The ports of one Service, in order.
    pub fn ports_of<'a>(
        &'a self,
        service: &'a ObjectName,
    ) -> impl Iterator<Item = (&'a ServiceKey, &'a Arc<ServicePort>)> + 'a {
        let first = ServiceKey { service: service.clone(), port: "".into(), proto: Proto::ALL[0] };
        self.services.range(first..).take_while(move |(k, _)| k.service == *service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_listed_in_order() {
        assert!(Proto::ALL.is_sorted(), "ports_of begins its range with the first");
    }
}
