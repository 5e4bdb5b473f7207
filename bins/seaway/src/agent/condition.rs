//! The Node's condition `NetworkUnavailable`: False once pods can be attached and every other node is routed to, True when
//! that has not been so for a while. While it is True, Kubernetes puts no pod on the node.

use std::time::Duration;

use resolve::Kind;
use serde_json::{Value, json};
use source::{Api, SourceError};
use types::{NodeName, ObjectName};

/// `type` of the condition.
const KIND: &str = "NetworkUnavailable";

/// How long something may be wrong before a node is called without network: a failed pass is tried again within two
/// seconds, and what is programmed goes on working meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `status` is True: there is no network.
    pub unavailable: bool,
    /// One word.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
}

/// Follows the passes of an agent.
#[derive(Debug, Default)]
pub struct Network {
    /// Since when something is wrong.
    wrong: Option<Duration>,
    said: Option<Condition>,
}

impl Network {
    /// Takes the outcome of a pass: nothing, or the reason and what is wrong. `now` is since the agent's start.
    pub fn follow(&mut self, outcome: Result<(), (&'static str, String)>, now: Duration) -> Option<Condition> {
        match outcome {
            Ok(()) => {
                self.wrong = None;
                self.said = Some(Condition {
                    unavailable: false,
                    reason: "SeawayIsUp",
                    message: "Seaway has programmed this node's routes".into(),
                });
            }
            Err((reason, message)) => {
                let since = *self.wrong.get_or_insert(now);
                if now.saturating_sub(since) >= PATIENCE {
                    self.said = Some(Condition { unavailable: true, reason, message });
                }
            }
        }
        self.said.clone()
    }
}

impl Condition {
    /// What to write over what a Node says at `at`, the time of day as the API writes it; nothing when it says so. The time
    /// of the last transition is that of the status, not of the words.
    fn over(&self, node: &Value, at: &str) -> Option<Value> {
        let status = if self.unavailable { "True" } else { "False" };
        let have = node.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        let have = have.into_iter().find(|c| c["type"] == KIND).filter(|c| c["status"] == status);
        if have.is_some_and(|c| c["reason"] == self.reason && c["message"] == *self.message) {
            return None;
        }
        let since = have.and_then(|c| c["lastTransitionTime"].as_str()).unwrap_or(at);
        Some(json!({"status": {"conditions": [{
            "type": KIND, "status": status, "reason": self.reason, "message": self.message,
            "lastTransitionTime": since, "lastHeartbeatTime": at,
        }]}}))
    }
}

/// Writes it, beside the conditions of others. `at` is the time of day as the API writes it.
///
/// # Errors
/// When the server refuses or cannot be reached.
pub async fn write(api: &Api, node: &NodeName, c: &Condition, at: &str) -> Result<(), SourceError> {
    let (nodes, name) = (Kind::Node.into(), ObjectName::new("", node.as_str()));
    let have = api.get(&nodes, &name).await?.unwrap_or_default();
    match c.over(&have, at) {
        Some(patch) => api.merge_conditions(&nodes, &name, &patch).await.map(|_| ()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_without_is_no_outage() {
        let (mut n, secs) = (Network::default(), Duration::from_secs);
        let bad = || Err(("RoutesNotProgrammed", "no".to_owned()));
        assert_eq!(n.follow(bad(), secs(0)), None, "nothing is said before it is known");
        assert!(!n.follow(Ok(()), secs(1)).unwrap().unavailable);
        assert!(!n.follow(bad(), secs(40)).unwrap().unavailable);
        assert!(!n.follow(bad(), secs(69)).unwrap().unavailable);
        let c = n.follow(bad(), secs(70)).unwrap();
        assert_eq!((c.unavailable, c.reason, &*c.message), (true, "RoutesNotProgrammed", "no"));
        assert!(!n.follow(Ok(()), secs(71)).unwrap().unavailable);
    }

    #[test]
    fn the_time_of_the_transition_is_that_of_the_status() {
        let said = |unavailable, reason, message: &str| Condition { unavailable, reason, message: message.into() };
        let (up, down) = (said(false, "SeawayIsUp", "up"), said(true, "NoPodNetwork", "no"));
        let written = |c: &Condition, node: &Value, at| {
            let patch = c.over(node, at)?;
            let c = &patch["status"]["conditions"][0];
            let text = |k: &str| c[k].as_str().unwrap().to_owned();
            Some((text("status"), text("lastTransitionTime"), text("lastHeartbeatTime")))
        };
        let is = |a: &str, b: &str, c: &str| Some((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(written(&up, &json!({}), "1"), is("False", "1", "1"));
        // A cloud's, or a kubelet's beginning.
        let by = |c: &Condition, at: &str| {
            let mut all = c.over(&json!({}), at).unwrap();
            all["status"]["conditions"].as_array_mut().unwrap().insert(0, json!({"type": "Ready", "status": "True"}));
            all
        };
        assert_eq!(written(&up, &by(&up, "1"), "2"), None, "an agent that was started anew says the same");
        assert_eq!(written(&down, &by(&up, "1"), "2"), is("True", "2", "2"));
        assert_eq!(written(&said(true, "RoutesNotProgrammed", "why"), &by(&down, "2"), "3"), is("True", "2", "3"));
        assert_eq!(written(&up, &by(&down, "2"), "4"), is("False", "4", "4"));
    }
}
