//! The Node's condition `NetworkUnavailable`: False once pods can be attached and every other node is routed to, True when
//! that has not been so for a while. While it is True, Kubernetes puts no pod on the node.

use std::time::Duration;

use resolve::Kind;
use serde_json::{Value, json};
use source::{Api, SourceError};
use types::{NodeName, ObjectName};

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

/// Writes it, beside the conditions of others. `at` is the time of day as the API writes it.
///
/// # Errors
/// When the server refuses or cannot be reached.
pub async fn write(api: &Api, node: &NodeName, c: &Condition, at: &str) -> Result<(), SourceError> {
    let patch: Value = json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": if c.unavailable { "True" } else { "False" },
        "reason": c.reason,
        "message": c.message,
        "lastTransitionTime": at,
        "lastHeartbeatTime": at,
    }]}});
    api.merge_conditions(&Kind::Node.into(), &ObjectName::new("", node.as_str()), &patch).await.map(|_| ())
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
}
