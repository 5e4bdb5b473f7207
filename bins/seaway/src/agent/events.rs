//! Refusals as Events: what `kubectl describe` shows at the object that is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use plan::Refused;
use resolve::{Key, Kind};
use source::{Note, Recorder};
use types::{NodeName, ObjectName};

/// A refusal that stands is told again after this time: servers forget Events after an hour.
const AGAIN: Duration = Duration::from_secs(1800);
/// The reason of each of these Events.
const REASON: &str = "NotHonoured";

/// Which refusals were told, and when.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<Refused, Duration>);

impl Told {
    /// The refusals that are new, or stand for long.
    pub fn due<'a>(&mut self, refused: &'a [Refused], now: Duration) -> Vec<&'a Refused> {
        self.0.retain(|r, _| refused.contains(r));
        let mut due = Vec::new();
        for r in refused {
            if self.0.get(r).is_none_or(|t| now.saturating_sub(*t) >= AGAIN) {
                self.0.insert(r.clone(), now);
                due.push(r);
            }
        }
        due
    }
}

/// The object of a refusal: `Service/default/web:http` is the Service, whatever of it is meant. What is no object of
/// the API is told at the node, where there is one.
fn about(r: &Refused, node: Option<&NodeName>) -> Option<Key> {
    let parts: Vec<&str> = r.object.split('/').collect();
    let bare = |s: &str| s.split(':').next().unwrap_or_default().to_owned();
    let kind = |s: &str| Kind::ALL.into_iter().find(|k| k.as_str() == s);
    Some(match *parts.as_slice() {
        [k, name] if kind(k).is_some_and(|k| !k.api().3) => {
            Key { kind: kind(k).unwrap_or(Kind::Node), name: ObjectName::new("", &bare(name)) }
        }
        [k, ns, name] if kind(k).is_some_and(|k| k.api().3) => {
            Key { kind: kind(k).unwrap_or(Kind::Node), name: ObjectName::new(ns, &bare(name)) }
        }
        _ => Key { kind: Kind::Node, name: ObjectName::new("", node?.as_str()) },
    })
}

/// Tells refusals.
pub fn tell(recorder: &Recorder, node: Option<&NodeName>, due: &[&Refused]) {
    for r in due {
        let Some(about) = about(r, node) else { continue };
        let message =
            if r.object.starts_with(&about.to_string()) { format!("{}: {}", r.field, r.why) } else { r.to_string() };
        recorder.note(Note { about, warning: true, reason: REASON.into(), message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(object: &str) -> Refused {
        Refused { object: object.into(), field: "spec.x".into(), why: "no".into() }
    }

    #[test]
    fn the_object_of_a_refusal() {
        let node: NodeName = "n1".parse().unwrap();
        for (object, want) in [
            ("Service/default/web:http", "Service/default/web"),
            ("Node/node2", "Node/node2"),
            ("Pod/a/b", "Pod/a/b"),
            ("ConfigMap/kube-system/seaway", "ConfigMap/kube-system/seaway"),
            ("kernel", "Node/n1"),
            ("Service/web", "Node/n1"),
            ("Gadget/a/b", "Node/n1"),
        ] {
            assert_eq!(about(&refused(object), Some(&node)).unwrap().to_string(), want);
        }
    }

    #[test]
    fn told_once_and_again_when_it_lasts() {
        let (mut told, secs) = (Told::default(), Duration::from_secs);
        let (a, b) = (refused("Pod/a/a"), refused("Pod/a/b"));
        let both = [a.clone(), b.clone()];
        assert_eq!(told.due(&both, secs(0)).len(), 2);
        assert_eq!(told.due(&both, secs(60)).len(), 0);
        assert_eq!(told.due(std::slice::from_ref(&b), secs(61)).len(), 0);
        assert_eq!(told.due(&both, secs(62)), [&a], "gone and come again");
        assert_eq!(told.due(&both, secs(1800)), [&b]);
    }
}
