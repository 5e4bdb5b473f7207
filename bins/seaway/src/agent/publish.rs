//! The node's own annotations, what peers need to know of it; and its host ports, what schedulers do.

use std::collections::BTreeMap;
use std::time::Duration;

use resolve::{Kind, host_ports};
use serde_json::json;
use source::{Api, Reader};
use tokio::sync::watch;
use types::{NodeName, ObjectName};

use super::condition::{self, Condition};

/// What should stand on the Node, `None` for what should not; absent before the first pass.
pub type Wanted = Option<BTreeMap<&'static str, Option<String>>>;

/// Between two looks at what others did to it, and the first pause after a write that failed.
const LOOK: Duration = Duration::from_secs(2);
const FIRST: Duration = Duration::from_millis(50);

/// Writes annotations and condition whenever they should change or somebody else changed them, for ever.
pub async fn run(
    api: Api,
    node: NodeName,
    reader: Reader,
    mut wanted: watch::Receiver<Wanted>,
    mut conditions: watch::Receiver<Option<Condition>>,
) {
    let mut said: Option<Condition> = None;
    let (mut complained, mut complained_of_annotations) = (None, None);
    let mut written: Wanted = None;
    let mut pause = FIRST;
    let mut capacity = Capacity::default();
    loop {
        let want = wanted.borrow_and_update().clone();
        if let Some(map) = want.filter(|w| written.as_ref() != Some(w) || lost(&reader, &node, w)) {
            match api.annotate_node(&node, map.iter().map(|(k, v)| (*k, v.clone()))).await {
                Ok(()) => {
                    written = Some(map);
                    // It was not there, or is new: so is what else we said of it.
                    said = None;
                    (pause, complained_of_annotations) = (FIRST, None);
                }
                Err(e) => {
                    let why = e.to_string();
                    if complained_of_annotations.as_ref() != Some(&why) {
                        tracing::warn!("Node/{node} metadata.annotations could not be written, trying again: {why}");
                    }
                    complained_of_annotations = Some(why);
                    pause = (pause * 2).min(LOOK);
                }
            }
        }
        let now = conditions.borrow_and_update().clone();
        if let Some(c) = now.filter(|c| said.as_ref() != Some(c)) {
            match condition::write(&api, &node, &c, &source::now()).await {
                Ok(()) => (said, complained) = (Some(c), None),
                Err(e) => {
                    let why = e.to_string();
                    if complained.as_ref() != Some(&why) {
                        tracing::warn!("Node/{node} status.conditions[NetworkUnavailable] could not be written: {why}");
                    }
                    complained = Some(why);
                }
            }
        }
        capacity.update(&api, &node, &reader).await;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = conditions.changed() => if changed.is_err() { return },
            // Somebody may remove our annotations; the snapshot tells, and is looked at when time has passed.
            () = tokio::time::sleep(if complained_of_annotations.is_some() { pause } else { LOOK }) => {}
        }
    }
}

/// How many random host ports the node has, as an extended resource: what schedulers count by.
#[derive(Default)]
struct Capacity {
    /// Why it could not be written, said once.
    failed: Option<String>,
}

impl Capacity {
    async fn update(&mut self, api: &Api, node: &NodeName, reader: &Reader) {
        let want = reader.read(|s, _| {
            let want = host_ports::node_range(s, node).size();
            s.nodes.get(node).filter(|n| n.host_port_capacity != Some(want)).map(|_| want)
        });
        let Some(want) = want else { return };
        let resource = json!({host_ports::RESOURCE: want.to_string()});
        let patch = json!({"status": {"capacity": resource, "allocatable": resource}});
        let name = ObjectName::new("", node.as_str());
        let failed = api.merge_status(&Kind::Node.into(), &name, &patch).await.err().map(|e| e.to_string());
        if let Some(e) = failed.as_ref().filter(|_| self.failed != failed) {
            tracing::warn!("Node/{node} status.capacity[{}] could not be written: {e}", host_ports::RESOURCE);
        }
        self.failed = failed;
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
