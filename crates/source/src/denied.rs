//! Rights that the server denies us: which rule is missing, until it is granted.
//!
//! A denial is a 403 whose message names user, verb, resource and group (apiserver/pkg/endpoints/handlers/responsewriters,
//! `forbiddenMessage`). One of an admission plugin says something else, and is no missing rule.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use resolve::Key;
use resolve::settings::NAMESPACE;
use tokio::sync::Notify;

use crate::events::{Note, Recorder};

/// Denials that are remembered at most: as many rules there are not.
const MOST: usize = 256;
/// How often those that last are looked at, and how long until one is told again: servers forget Events after an hour.
const LOOK: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1800);
/// The reason of these Events, as the server calls its answer.
const REASON: &str = "Forbidden";

/// A rule that is missing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Denied {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: Box<str>,
    /// The API group, empty for core.
    pub group: Box<str>,
    /// Plural, with its subresource: `nodes/status`.
    pub resource: Box<str>,
    /// Where it was asked; `None` for the whole cluster.
    pub namespace: Option<Box<str>>,
    /// Who asked.
    pub user: Box<str>,
}

impl Denied {
    /// Reads the message of a 403.
    #[must_use]
    pub fn read(message: &str) -> Option<Self> {
        let quoted = |from: &str, before: &str| {
            let (_, rest) = from.split_once(before)?;
            rest.split_once('"').map(|(word, rest)| (word.to_owned(), rest.to_owned()))
        };
        let (user, rest) = quoted(message, "User \"")?;
        let (verb, rest) = rest.split_once(" cannot ")?.1.split_once(' ')?;
        let (resource, rest) = quoted(rest, "resource \"")?;
        let (group, rest) = quoted(&rest, "API group \"")?;
        let namespace = quoted(&rest, "in the namespace \"").map(|(ns, _)| ns.into());
        Some(Self { verb: verb.into(), group: group.into(), resource: resource.into(), namespace, user: user.into() })
    }

    /// The role to add the rule to: those of `deploy/seaway.yaml` have their service account's name.
    fn role(&self) -> String {
        let Some((_, account)) = self.user.strip_prefix("system:serviceaccount:").and_then(|a| a.split_once(':'))
        else {
            return format!("a ClusterRole of User {}", self.user);
        };
        // What is asked for in the settings' namespace alone is granted there.
        let here = self.namespace.as_deref() == Some(NAMESPACE) && matches!(&*self.resource, "configmaps" | "leases");
        if here { format!("Role {NAMESPACE}/{account}") } else { format!("ClusterRole {account}") }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource, user, .. } = self;
        write!(
            f,
            "RBAC does not let {user} {verb} {resource}: add {{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{verb}]}} to the rules of {}",
            self.role()
        )
    }
}

/// A request as a rule names it: verb, group, resource.
type Asked = (Box<str>, Box<str>, Box<str>);

/// What is denied now. Each is said in the log once, and once more when it is over. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Denials(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    now: Mutex<BTreeMap<Asked, Denied>>,
    /// There is another.
    another: Notify,
}

impl Denials {
    /// Every rule that is missing, as far as was asked.
    #[must_use]
    pub fn now(&self) -> Vec<Denied> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes the message of a 403; the rule, when one is missing.
    pub(crate) fn note(&self, message: &str) -> Option<Denied> {
        let d = Denied::read(message)?;
        let mut all = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MOST
            && all.insert((d.verb.clone(), d.group.clone(), d.resource.clone()), d.clone()).as_ref() != Some(&d)
        {
            tracing::warn!("{d}");
            self.0.another.notify_one();
        }
        Some(d)
    }

    /// Tells each missing rule as an Event at an object, and again while it lasts, for ever. One waits for all: call it
    /// once for a connection.
    pub async fn tell(self, recorder: Recorder, about: Key) {
        let mut told: BTreeMap<Denied, Instant> = BTreeMap::new();
        loop {
            let now = self.now();
            told.retain(|d, _| now.contains(d));
            for d in now {
                if told.get(&d).is_none_or(|at| at.elapsed() >= AGAIN) {
                    let message = d.to_string();
                    recorder.note(Note { about: about.clone(), warning: true, reason: REASON.into(), message });
                    told.insert(d, Instant::now());
                }
            }
            // Whichever comes first.
            let _ = tokio::time::timeout(LOOK, self.0.another.notified()).await;
        }
    }

    /// A request was let through.
    pub(crate) fn granted(&self, verb: &str, group: &str, resource: &str) {
        let mut all = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        // Nearly always.
        if all.is_empty() {
            return;
        }
        if let Some(d) = all.remove(&(verb.into(), group.into(), resource.into())) {
            tracing::info!("RBAC lets {} {verb} {resource} again", d.user);
        }
    }

    /// A request by its method and path was let through.
    pub(crate) fn let_through(&self, method: &http::Method, path: &str) {
        if let Some((verb, group, resource)) = asked(method, path) {
            self.granted(verb, group, &resource);
        }
    }
}

/// The rule that a request needs.
fn asked<'a>(method: &http::Method, path: &'a str) -> Option<(&'static str, &'a str, String)> {
    let path = path.split('?').next().unwrap_or_default();
    let mut parts = path.trim_start_matches('/').split('/').peekable();
    let group = match parts.next()? {
        "api" => "",
        "apis" => parts.next()?,
        _ => return None,
    };
    let _version = parts.next()?;
    let mut resource = parts.next()?;
    // `namespaces/NAME` is a Namespace, `namespaces/NAME/pods` is something in it.
    if resource == "namespaces" {
        let mut ahead = parts.clone();
        ahead.next();
        if let Some(inner) = ahead.next().filter(|r| *r != "status" && *r != "finalize") {
            resource = inner;
            parts = ahead;
        }
    }
    let name = parts.next();
    let resource = parts.next().map_or_else(|| resource.to_owned(), |sub| format!("{resource}/{sub}"));
    let verb = match (method.as_str(), name) {
        ("GET", Some(_)) => "get",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => return None,
    };
    Some((verb, group, resource))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::Method;

    use super::*;

    const NODE: &str = "nodes \"n\" is forbidden: User \"system:serviceaccount:kube-system:seaway-agent\" cannot patch resource \"nodes/status\" in API group \"\" at the cluster scope";

    #[test]
    fn a_denial_names_the_missing_rule() {
        let d = Denied::read(NODE).unwrap();
        assert_eq!((&*d.verb, &*d.group, &*d.resource, &d.namespace), ("patch", "", "nodes/status", &None));
        let text = d.to_string();
        assert!(
            text.contains("{apiGroups: [\"\"], resources: [nodes/status], verbs: [patch]} to the rules of ClusterRole seaway-agent"),
            "{text}"
        );
        let lease = "leases.coordination.k8s.io is forbidden: User \"system:serviceaccount:kube-system:seaway-controller\" cannot create resource \"leases\" in API group \"coordination.k8s.io\" in the namespace \"kube-system\"";
        let text = Denied::read(lease).unwrap().to_string();
        assert!(
            text.contains("apiGroups: [\"coordination.k8s.io\"]")
                && text.ends_with("Role kube-system/seaway-controller"),
            "{text}"
        );
        let person =
            "x is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
        assert!(Denied::read(person).unwrap().to_string().ends_with("a ClusterRole of User jane"));
        for other in
            ["", "pods \"x\" is forbidden: exceeded quota", "User \"a\" cannot", "User \"a\" cannot get path \"/x\""]
        {
            assert_eq!(Denied::read(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_denial_lasts_until_the_right_is_granted() {
        let all = Denials::default();
        assert_eq!(all.note("quota"), None);
        all.note(NODE).unwrap();
        all.note(NODE).unwrap();
        assert_eq!(all.now().len(), 1);
        // Another right changes nothing.
        all.let_through(&Method::PATCH, "/api/v1/nodes/n");
        all.let_through(&Method::GET, "/api/v1/nodes/n/status");
        assert_eq!(all.now().len(), 1);
        all.let_through(&Method::PATCH, "/api/v1/nodes/n/status?fieldManager=x");
        assert!(all.now().is_empty());
    }

    #[test]
    fn requests_by_their_rules() {
        for (method, path, want) in [
            (Method::GET, "/api/v1/namespaces/a", Some(("get", "", "namespaces"))),
            (Method::GET, "/api/v1/namespaces", Some(("list", "", "namespaces"))),
            (Method::PUT, "/api/v1/namespaces/a/status", Some(("update", "", "namespaces/status"))),
            (Method::POST, "/api/v1/namespaces/a/events", Some(("create", "", "events"))),
            (Method::DELETE, "/apis/seaway.io/v1alpha1/ipblocks/b", Some(("delete", "seaway.io", "ipblocks"))),
            (
                Method::PATCH,
                "/apis/coordination.k8s.io/v1/namespaces/k/leases/l",
                Some(("patch", "coordination.k8s.io", "leases")),
            ),
            (Method::GET, "/readyz", None),
            (Method::GET, "/apis/seaway.io", None),
        ] {
            let got = asked(&method, path);
            assert_eq!(got.as_ref().map(|(v, g, r)| (*v, *g, r.as_str())), want, "{method} {path}");
        }
    }
}
