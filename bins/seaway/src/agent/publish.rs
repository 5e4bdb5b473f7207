//! The node's own annotations: what peers need to know of it.

use std::collections::BTreeMap;
use std::time::Duration;

use source::{Api, Reader};
use tokio::sync::watch;
use types::NodeName;

/// What should stand on the Node, `None` for what should not; absent before the first pass.
pub type Wanted = Option<BTreeMap<&'static str, Option<String>>>;

/// Writes the annotations whenever they should change or somebody else changed them, for ever.
pub async fn run(api: Api, node: NodeName, reader: Reader, mut wanted: watch::Receiver<Wanted>) {
    let mut written: Wanted = None;
    let mut pause = Duration::from_millis(50);
    loop {
        let want = wanted.borrow_and_update().clone();
        if let Some(map) = want.filter(|w| written.as_ref() != Some(w) || lost(&reader, &node, w)) {
            match api.annotate_node(&node, map.iter().map(|(k, v)| (*k, v.clone()))).await {
                Ok(()) => {
                    written = Some(map);
                    pause = Duration::from_millis(50);
                }
                Err(e) => {
                    tracing::warn!("Node/{node} metadata.annotations could not be written, trying again: {e}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                    continue;
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            // Somebody may remove our annotations; the snapshot tells, and is looked at when time has passed.
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}

/// Whether the snapshot's Node lacks what should be there.
fn lost(reader: &Reader, node: &NodeName, want: &BTreeMap<&'static str, Option<String>>) -> bool {
    use resolve::annotations::{BACKEND, VXLAN};
    reader.read(|s, _| {
        s.nodes.get(node).is_some_and(|n| {
            let backend = n.backend.map(|b| b.to_string());
            let wants_vxlan = want.get(VXLAN).is_some_and(Option::is_some);
            want.get(BACKEND).is_some_and(|w| *w != backend) || wants_vxlan != n.vxlan.is_some()
        })
    })
}
