//! The API's own kind of error: a `Status` object with an HTTP code, a reason and details.

use serde_json::{Value, json};

use crate::resource::Resource;

/// A refusal, as the client will see it.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) details: Value,
}

pub(crate) type Result<T> = std::result::Result<T, Status>;

/// One entry of a 422: reason, path and message of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) reason: &'static str,
    pub(crate) field: String,
    pub(crate) message: String,
}

/// The causes found so far while an object is validated.
#[derive(Debug, Default)]
pub(crate) struct Causes(pub(crate) Vec<Cause>);

/// How a value looks in a message: strings quoted, the rest as JSON, cut when long.
fn shown(v: &Value) -> String {
    let mut s = match v {
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    };
    if s.len() > 256 {
        let cut = (0..=256).rev().find(|i| s.is_char_boundary(*i)).unwrap_or(0);
        s.truncate(cut);
        s.push_str("...");
    }
    s
}

impl Causes {
    fn push(&mut self, reason: &'static str, field: &str, message: String) {
        // A hostile object must not make an answer without bound.
        if self.0.len() < 64 {
            self.0.push(Cause { reason, field: field.to_owned(), message });
        }
    }
    /// Takes what was found elsewhere.
    pub(crate) fn extend(&mut self, other: Self) {
        other.0.into_iter().for_each(|c| self.push(c.reason, &c.field, c.message));
    }
    pub(crate) fn required(&mut self, field: &str, why: &str) {
        let m = if why.is_empty() { "Required value".into() } else { format!("Required value: {why}") };
        self.push("FieldValueRequired", field, m);
    }
    pub(crate) fn invalid(&mut self, field: &str, v: &Value, why: &str) {
        self.push("FieldValueInvalid", field, format!("Invalid value: {}: {why}", shown(v)));
    }
    /// A value of the wrong type or format.
    pub(crate) fn type_invalid(&mut self, field: &str, v: &Value, why: &str) {
        self.push("FieldValueTypeInvalid", field, format!("Invalid value: {}: {why}", shown(v)));
    }
    pub(crate) fn unsupported(&mut self, field: &str, v: &Value, supported: &[&str]) {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        self.push(
            "FieldValueNotSupported",
            field,
            format!("Unsupported value: {}: supported values: {list}", shown(v)),
        );
    }
    pub(crate) fn duplicate(&mut self, field: &str, v: &Value) {
        self.push("FieldValueDuplicate", field, format!("Duplicate value: {}", shown(v)));
    }
    pub(crate) fn push_not_found(&mut self, field: &str, v: &Value) {
        self.push("FieldValueNotFound", field, format!("Not found: {}", shown(v)));
    }
    pub(crate) fn forbidden(&mut self, field: &str, why: &str) {
        self.push("FieldValueForbidden", field, format!("Forbidden: {why}"));
    }
    pub(crate) fn too_many(&mut self, field: &str, n: usize, max: usize) {
        self.push("FieldValueTooMany", field, format!("Too many: {n}: must have at most {max} items"));
    }
    pub(crate) fn too_long(&mut self, field: &str, max: usize) {
        self.push("FieldValueTooLong", field, format!("Too long: may not be more than {max} bytes"));
    }

    /// 422 when anything was found.
    pub(crate) fn finish(self, res: &Resource, name: &str) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let each: Vec<String> = self.0.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let list = if each.len() == 1 { each[0].clone() } else { format!("[{}]", each.join(", ")) };
        let causes: Vec<Value> =
            self.0.iter().map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field})).collect();
        let kind = if res.group.is_empty() { res.kind.to_string() } else { format!("{}.{}", res.kind, res.group) };
        Err(Status {
            code: 422,
            reason: "Invalid",
            message: format!("{kind} {name:?} is invalid: {list}"),
            details: json!({"name": name, "group": res.group, "kind": res.kind, "causes": causes}),
        })
    }
}

fn details(res: &Resource, name: &str) -> Value {
    json!({"name": name, "group": res.group, "kind": res.plural})
}

impl Status {
    fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::plain(400, "BadRequest", message)
    }
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::plain(503, "ServiceUnavailable", message)
    }
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::plain(410, "Expired", message)
    }
    pub(crate) fn not_acceptable() -> Self {
        Self::plain(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/json;as=Table, \
             application/json;as=PartialObjectMetadata",
        )
    }
    pub(crate) fn unsupported_media(got: &str, want: &str) -> Self {
        Self::plain(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format ({got:?}) - accepted media types include: {want}"
            ),
        )
    }
    pub(crate) fn too_large(max: usize) -> Self {
        Self::plain(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {max}"))
    }
    pub(crate) fn method_not_allowed(method: &str) -> Self {
        Self::plain(405, "MethodNotAllowed", format!("the server does not allow {method} on the requested resource"))
    }
    pub(crate) fn no_such_path() -> Self {
        Self::plain(404, "NotFound", "the server could not find the requested resource")
    }
    pub(crate) fn not_found(res: &Resource, name: &str) -> Self {
        Self {
            code: 404,
            reason: "NotFound",
            message: format!("{} {name:?} not found", res.qualified()),
            details: details(res, name),
        }
    }
    pub(crate) fn already_exists(res: &Resource, name: &str) -> Self {
        Self {
            code: 409,
            reason: "AlreadyExists",
            message: format!("{} {name:?} already exists", res.qualified()),
            details: details(res, name),
        }
    }
    pub(crate) fn conflict(res: &Resource, name: &str, why: &str) -> Self {
        Self {
            code: 409,
            reason: "Conflict",
            message: format!("Operation cannot be fulfilled on {} {name:?}: {why}", res.qualified()),
            details: details(res, name),
        }
    }
    pub(crate) fn stale(res: &Resource, name: &str) -> Self {
        Self::conflict(
            res,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }
    pub(crate) fn forbidden(res: &Resource, name: &str, why: &str) -> Self {
        Self {
            code: 403,
            reason: "Forbidden",
            message: format!("{} {name:?} is forbidden: {why}", res.qualified()),
            details: details(res, name),
        }
    }

    /// Of a custom kind whose definition is on its way out.
    pub(crate) fn being_deleted(res: &Resource, name: &str) -> Self {
        let why = "create not allowed while custom resource definition is terminating";
        Self { code: 405, reason: "MethodNotAllowed", message: why.into(), details: details(res, name) }
    }

    /// The object as it goes over the wire.
    pub(crate) fn to_value(&self) -> Value {
        let mut v = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            v["details"] = self.details.clone();
        }
        v
    }
}
