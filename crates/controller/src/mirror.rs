//! EndpointSlices of Endpoints, for Services without a selector: who knows only the older object is served as well (KEP-752,
//! "EndpointSliceMirroring").

use resolve::{ClusterSnapshot, Endpoints};
use types::Family;

use crate::Outcome;
use crate::slices::{Of, Want, bring, managed, sorted, without};

/// Value of label `endpointslice.kubernetes.io/managed-by`: slices with another value are not touched.
const MANAGED_BY: &str = "endpointslice-mirroring-controller.seaway.io";

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, out: &mut Outcome) {
    let mut have = managed(snapshot, MANAGED_BY);
    for (name, endpoints) in &snapshot.endpoints {
        let mine = have.remove(name).unwrap_or_default();
        // Of a Service with a selector there are slices already; of none nobody looks at them.
        let service = snapshot.services.get(name).filter(|s| s.selector.is_empty() && !endpoints.apart);
        let want = service.map(|_| wanted(endpoints)).unwrap_or_default();
        let headless = service.is_some_and(|s| s.headless);
        let of = Of { name, kind: "Endpoints", uid: &endpoints.uid, headless, managed_by: MANAGED_BY };
        bring(snapshot, &of, want, mine, out);
    }
    without("Endpoints", have, out);
}

fn wanted(endpoints: &Endpoints) -> Want {
    let mut out = Want::new();
    for subset in &endpoints.subsets {
        let ports = sorted(&subset.ports);
        for e in &subset.endpoints {
            out.entry((Family::of(e.addr), ports.clone())).or_default().insert(e.clone());
        }
    }
    out
}
