//! Questions that the API answers at once and does not keep: who am I, and what may I do.
//!
//! The server has no users and no roles: whoever reached it may do everything, and is told so.

use serde_json::{Value, json};

use crate::error::{Causes, Result};
use crate::resource::Resource;
use crate::util::{at, list_at, str_at};

/// The user that every client is (the common name and the organisation of the admin's certificate).
const USER: &str = "admin";
const GROUPS: [&str; 2] = ["system:masters", "system:authenticated"];

/// What a review of `verb` by `user` says.
fn allowed() -> Value {
    json!({"allowed": true, "reason": "this API server has no roles: whoever reaches it may do everything"})
}

/// Whether a kind is asked and not stored.
pub(crate) fn is(res: &Resource) -> bool {
    res.verbs == ["create"]
}

/// Answers a review: the object as it came, with its status.
pub(crate) fn answer(res: &Resource, mut v: Value) -> Result<Value> {
    let mut causes = Causes::default();
    let status = match res.schema {
        "SelfSubjectReview" => json!({"userInfo": {"username": USER, "groups": GROUPS}}),
        "SelfSubjectRulesReview" => {
            if str_at(&v, &["spec", "namespace"]).is_empty() {
                causes.required("spec.namespace", "");
            }
            json!({"incomplete": false,
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})
        }
        kind => {
            let which = |k: &str| at(&v, &["spec", k]).is_some_and(Value::is_object);
            if which("resourceAttributes") == which("nonResourceAttributes") {
                let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
                causes.invalid("spec.resourceAttributes", &v["spec"]["resourceAttributes"], why);
            }
            let nobody = str_at(&v, &["spec", "user"]).is_empty() && list_at(&v, &["spec", "groups"]).is_empty();
            if kind != "SelfSubjectAccessReview" && nobody {
                causes.required("spec.user", "at least one of user or group must be specified");
            }
            allowed()
        }
    };
    causes.finish(res, str_at(&v, &["metadata", "name"]))?;
    v["apiVersion"] = res.api_version().into();
    v["kind"] = res.kind.as_ref().into();
    v["status"] = status;
    Ok(v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::RESOURCES;

    fn row(kind: &str) -> &'static Resource {
        RESOURCES.iter().find(|r| r.kind == kind).unwrap()
    }

    #[test]
    fn everything_is_allowed_and_a_question_must_be_whole() {
        let ask = |kind: &str, spec: Value| answer(row(kind), json!({"spec": spec}));
        let one = ask("SelfSubjectAccessReview", json!({"resourceAttributes": {"verb": "get", "resource": "pods"}}));
        assert_eq!(one.unwrap()["status"]["allowed"], true);
        assert_eq!(ask("SelfSubjectAccessReview", json!({})).unwrap_err().code, 422);
        assert_eq!(ask("SubjectAccessReview", json!({"nonResourceAttributes": {}})).unwrap_err().code, 422);
        assert_eq!(ask("SelfSubjectRulesReview", json!({})).unwrap_err().code, 422);
        let rules = ask("SelfSubjectRulesReview", json!({"namespace": "x"})).unwrap();
        assert_eq!(rules["status"]["resourceRules"][0]["verbs"], json!(["*"]));
        assert_eq!(ask("SelfSubjectReview", json!({})).unwrap()["status"]["userInfo"]["username"], USER);
    }
}
