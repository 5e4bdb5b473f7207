//! Structural schemas (KEP-1002): what a definition says about the objects of its kind, read once and checked often.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::format::Format;
use super::pattern;
use crate::error::Causes;
use crate::util::{bool_at, int_at, list_at, str_at};

/// How deep a schema may nest, and how many places it may describe: a hostile one must not cost without bound.
const MAX_DEPTH: usize = 48;
const MAX_NODES: usize = 16_384;
/// The compiled form of one pattern may be no larger.
const MAX_PATTERN: usize = 1 << 20;

/// The types of JSON Schema that a structural schema may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Object,
    Array,
    Str,
    Int,
    Num,
    Bool,
}

impl Type {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::Str,
            "integer" => Self::Int,
            "number" => Self::Num,
            "boolean" => Self::Bool,
            _ => return None,
        })
    }

    /// The word for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::Str => "string",
            Self::Int => "integer",
            Self::Num => "number",
            Self::Bool => "boolean",
        }
    }
}

/// What may stand under a name that `properties` does not list.
#[derive(Debug, Clone, Default)]
pub(crate) enum Additional {
    /// Nothing: it is pruned.
    #[default]
    None,
    /// Anything.
    Any,
    /// Values of this schema.
    Schema(Box<Node>),
}

/// How a list is merged by server-side apply, and what in it must be unique.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    /// Replaced whole.
    #[default]
    Atomic,
    /// Distinct scalars.
    Set,
    /// Objects told apart by these fields.
    Map(Vec<String>),
}

/// What a value must fulfil beyond its type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checks {
    pub(crate) allowed: Vec<Value>,
    /// As the definition wrote it, and compiled.
    pub(crate) pattern: Option<(String, Regex)>,
    pub(crate) format: Option<Format>,
    pub(crate) minimum: Option<(f64, bool)>,
    pub(crate) maximum: Option<(f64, bool)>,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) length: (Option<u64>, Option<u64>),
    pub(crate) items: (Option<u64>, Option<u64>),
    pub(crate) properties: (Option<u64>, Option<u64>),
    pub(crate) required: Vec<String>,
    pub(crate) all_of: Vec<Node>,
    pub(crate) any_of: Vec<Node>,
    pub(crate) one_of: Vec<Node>,
    pub(crate) not: Option<Box<Node>>,
    /// `self == oldSelf`: may not change once set. The message, empty for the usual one.
    pub(crate) immutable: Option<String>,
}

/// One place of a schema.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    pub(crate) ty: Option<Type>,
    pub(crate) nullable: bool,
    pub(crate) preserve: bool,
    pub(crate) int_or_string: bool,
    /// The value is an object of the API itself.
    pub(crate) embedded: bool,
    pub(crate) properties: BTreeMap<String, Node>,
    pub(crate) additional: Additional,
    pub(crate) items: Option<Box<Node>>,
    pub(crate) default: Option<Value>,
    pub(crate) list: ListType,
    /// Replaced whole by server-side apply although it is an object.
    pub(crate) atomic: bool,
    pub(crate) checks: Checks,
}

/// Where in a schema one is: decides what must be said there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
    /// Inside of allOf, anyOf, oneOf or not: values may be checked there, but nothing may be specified.
    Junctor,
}

struct Reader<'a> {
    causes: &'a mut Causes,
    nodes: usize,
}

/// Reads a schema; what is wrong with it is told in `causes` by paths below `path`.
pub(crate) fn parse(v: &Value, path: &str, causes: &mut Causes) -> Node {
    Reader { causes, nodes: 0 }.node(v, path, Level::Root, 0)
}

fn count(v: &Value, key: &str) -> Option<u64> {
    int_at(v, &[key]).and_then(|n| u64::try_from(n).ok())
}

fn texts(v: &Value, key: &str) -> Vec<String> {
    list_at(v, &[key]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Reader<'_> {
    fn node(&mut self, v: &Value, path: &str, level: Level, depth: usize) -> Node {
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            if depth > MAX_DEPTH || self.nodes == MAX_NODES + 1 {
                let why = format!("at most {MAX_DEPTH} levels and {MAX_NODES} fields are taken: describe less");
                self.causes.forbidden(path, &why);
            }
            return Node::default();
        }
        let mut node = Node {
            ty: Type::parse(str_at(v, &["type"])),
            nullable: bool_at(v, &["nullable"]),
            preserve: bool_at(v, &["x-kubernetes-preserve-unknown-fields"]),
            int_or_string: bool_at(v, &["x-kubernetes-int-or-string"]),
            embedded: bool_at(v, &["x-kubernetes-embedded-resource"]),
            atomic: str_at(v, &["x-kubernetes-map-type"]) == "atomic",
            default: v.get("default").cloned(),
            ..Node::default()
        };
        self.forbidden(v, path, level);
        self.typed(v, &node, path, level);
        for (name, sub) in v["properties"].as_object().into_iter().flatten() {
            let at = format!("{path}.properties[{name}]");
            let level = if level == Level::Junctor { level } else { Level::Field };
            node.properties.insert(name.clone(), self.node(sub, &at, level, depth + 1));
        }
        if let Some(sub) = v.get("items") {
            let level = if level == Level::Junctor { level } else { Level::Item };
            node.items = Some(Box::new(self.node(sub, &format!("{path}.items"), level, depth + 1)));
        }
        node.additional = match v.get("additionalProperties") {
            None | Some(Value::Bool(false)) => Additional::None,
            Some(Value::Bool(true)) => Additional::Any,
            Some(sub) => {
                let at = format!("{path}.additionalProperties");
                Additional::Schema(Box::new(self.node(sub, &at, Level::Field, depth + 1)))
            }
        };
        self.metadata(&node, path, level);
        node.list = self.list(v, &node, path);
        node.checks = self.checks(v, path, depth);
        self.rules(v, &mut node, path, level);
        node
    }

    /// What no schema here may use.
    fn forbidden(&mut self, v: &Value, path: &str, level: Level) {
        for key in ["$ref", "patternProperties", "dependencies", "additionalItems", "definitions"] {
            if v.get(key).is_some() {
                let why = match key {
                    "$ref" => "$ref is not supported",
                    "patternProperties" => "patternProperties is not supported",
                    "dependencies" => "dependencies is not supported",
                    "definitions" => "definitions is not supported",
                    _ => "additionalItems is not supported",
                };
                self.causes.forbidden(&format!("{path}.{key}"), why);
            }
        }
        for key in ["id", "$schema"] {
            if v.get(key).is_some() {
                self.causes.forbidden(&format!("{path}.{key}"), "is not supported: remove it");
            }
        }
        if bool_at(v, &["uniqueItems"]) {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.causes.forbidden(&format!("{path}.uniqueItems"), why);
        }
        if v["properties"].as_object().is_some_and(|p| !p.is_empty()) && v.get("additionalProperties").is_some() {
            let why = "additionalProperties and properties are mutual exclusive";
            self.causes.forbidden(&format!("{path}.additionalProperties"), why);
        }
        if level != Level::Junctor {
            return;
        }
        for key in ["type", "additionalProperties", "default", "nullable", "title", "description"] {
            // The two forms that an int-or-string may list its types in.
            let allowed = key == "type" && matches!(str_at(v, &["type"]), "integer" | "string");
            if v.get(key).is_some() && !allowed {
                let what = if key == "default" { "undefined" } else { "empty" };
                self.causes.forbidden(&format!("{path}.{key}"), &format!("must be {what} to be structural"));
            }
        }
        for key in
            ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource", "x-kubernetes-int-or-string"]
        {
            if bool_at(v, &[key]) {
                self.causes.forbidden(&format!("{path}.{key}"), "must be false to be structural");
            }
        }
    }

    fn typed(&mut self, v: &Value, node: &Node, path: &str, level: Level) {
        let (text, at) = (str_at(v, &["type"]), format!("{path}.type"));
        if !text.is_empty() && node.ty.is_none() {
            let all = ["array", "boolean", "integer", "number", "object", "string"];
            self.causes.unsupported(&at, &text.into(), &all);
            return;
        }
        if level == Level::Junctor {
            return;
        }
        if node.embedded && node.ty != Some(Type::Object) {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            if text.is_empty() {
                self.causes.required(&at, why);
            } else {
                self.causes.invalid(&at, &text.into(), why);
            }
        } else if text.is_empty() && !node.int_or_string && !node.preserve {
            self.causes.required(
                &at,
                match level {
                    Level::Root => "must not be empty at the root",
                    Level::Item => "must not be empty for specified array items",
                    _ => "must not be empty for specified object fields",
                },
            );
        }
        if level == Level::Root && !text.is_empty() && node.ty != Some(Type::Object) {
            self.causes.invalid(&at, &text.into(), "must be object at the root");
        }
        if node.ty == Some(Type::Array) && v.get("items").is_none() {
            self.causes.required(&format!("{path}.items"), "must be specified");
        }
        if node.embedded && v.get("additionalProperties").is_some() {
            let why = "must not be used if x-kubernetes-embedded-resource is set";
            self.causes.forbidden(&format!("{path}.additionalProperties"), why);
        }
        if node.embedded && !node.preserve && v["properties"].as_object().is_none_or(serde_json::Map::is_empty) {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            self.causes.required(&format!("{path}.properties"), why);
        }
    }

    fn metadata(&mut self, node: &Node, path: &str, level: Level) {
        if level != Level::Root && !node.embedded {
            return;
        }
        for (name, want) in [("apiVersion", Type::Str), ("kind", Type::Str), ("metadata", Type::Object)] {
            if let Some(ty) = node.properties.get(name).and_then(|n| n.ty).filter(|t| *t != want) {
                let at = format!("{path}.properties[{name}].type");
                self.causes.invalid(&at, &ty.name().into(), &format!("must be {}", want.name()));
            }
        }
        let Some(meta) = node.properties.get("metadata") else { return };
        let more = meta.properties.keys().any(|k| k != "name" && k != "generateName");
        if more || meta.preserve || !matches!(meta.additional, Additional::None) || !meta.checks.required.is_empty() {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.causes.forbidden(&format!("{path}.properties[metadata]"), why);
        }
    }

    fn list(&mut self, v: &Value, node: &Node, path: &str) -> ListType {
        let at = format!("{path}.x-kubernetes-list-type");
        let keys = texts(v, "x-kubernetes-list-map-keys");
        let ty = str_at(v, &["x-kubernetes-list-type"]);
        if !ty.is_empty() && node.ty != Some(Type::Array) {
            self.causes.invalid(
                &format!("{path}.type"),
                &str_at(v, &["type"]).into(),
                "must be array if x-kubernetes-list-type is specified",
            );
        }
        match ty {
            "" | "atomic" => ListType::Atomic,
            "set" => ListType::Set,
            "map" => {
                if keys.is_empty() {
                    let at = format!("{path}.x-kubernetes-list-map-keys");
                    self.causes.required(&at, "must not be empty if x-kubernetes-list-type is map");
                }
                let items = node.items.as_deref();
                if items.is_some_and(|i| i.ty != Some(Type::Object)) {
                    let at = format!("{path}.items.type");
                    self.causes.invalid(
                        &at,
                        &v["items"]["type"],
                        "must be object if parent array's x-kubernetes-list-type is map",
                    );
                }
                for (i, k) in keys.iter().enumerate() {
                    let known = items.and_then(|n| n.properties.get(k));
                    if known.is_none_or(|n| matches!(n.ty, None | Some(Type::Object | Type::Array)) && !n.int_or_string)
                    {
                        let at = format!("{path}.x-kubernetes-list-map-keys[{i}]");
                        self.causes.invalid(&at, &k.as_str().into(), "entries must all be names of item properties");
                    } else if items.is_some_and(|n| !n.checks.required.contains(k))
                        && known.is_some_and(|n| n.default.is_none())
                    {
                        let at = format!("{path}.items.properties[{k}].default");
                        let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                        self.causes.required(&at, why);
                    }
                }
                ListType::Map(keys)
            }
            other => {
                self.causes.unsupported(&at, &other.into(), &["atomic", "map", "set"]);
                ListType::Atomic
            }
        }
    }

    fn checks(&mut self, v: &Value, path: &str, depth: usize) -> Checks {
        let number = |key: &str| v.get(key).and_then(Value::as_f64);
        let mut c = Checks {
            allowed: list_at(v, &["enum"]).to_vec(),
            format: Format::parse(str_at(v, &["format"])),
            minimum: number("minimum").map(|n| (n, bool_at(v, &["exclusiveMinimum"]))),
            maximum: number("maximum").map(|n| (n, bool_at(v, &["exclusiveMaximum"]))),
            multiple_of: number("multipleOf").filter(|n| *n > 0.0),
            length: (count(v, "minLength"), count(v, "maxLength")),
            items: (count(v, "minItems"), count(v, "maxItems")),
            properties: (count(v, "minProperties"), count(v, "maxProperties")),
            required: texts(v, "required"),
            ..Checks::default()
        };
        if number("multipleOf").is_some_and(|n| n <= 0.0) {
            self.causes.invalid(&format!("{path}.multipleOf"), &v["multipleOf"], "must be greater than 0");
        }
        for key in ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"] {
            if int_at(v, &[key]).is_some_and(|n| n < 0) {
                self.causes.invalid(&format!("{path}.{key}"), &v[key], "must be greater than or equal to 0");
            }
        }
        let text = str_at(v, &["pattern"]);
        if !text.is_empty() {
            match RegexBuilder::new(&pattern::from_go(text)).size_limit(MAX_PATTERN).build() {
                Ok(r) => c.pattern = Some((text.to_owned(), r)),
                Err(e) => {
                    let e = e.to_string();
                    let last = e.lines().last().unwrap_or("");
                    let why = format!("must be a valid regular expression, but isn't: {last}");
                    self.causes.invalid(&format!("{path}.pattern"), &text.into(), &why);
                }
            }
        }
        for (key, list) in [("allOf", &mut c.all_of), ("anyOf", &mut c.any_of), ("oneOf", &mut c.one_of)] {
            for (i, sub) in list_at(v, &[key]).iter().enumerate() {
                list.push(self.node(sub, &format!("{path}.{key}[{i}]"), Level::Junctor, depth + 1));
            }
        }
        if let Some(sub) = v.get("not") {
            c.not = Some(Box::new(self.node(sub, &format!("{path}.not"), Level::Junctor, depth + 1)));
        }
        c
    }

    /// Rules in CEL. One form is understood, the one that makes a field immutable; of the others [`unevaluated`] tells.
    fn rules(&mut self, v: &Value, node: &mut Node, path: &str, level: Level) {
        for (i, rule) in list_at(v, &["x-kubernetes-validations"]).iter().enumerate() {
            if str_at(rule, &["rule"]).trim().is_empty() {
                self.causes.required(&format!("{path}.x-kubernetes-validations[{i}].rule"), "rule is not specified");
            } else if is_immutable(rule) && level != Level::Junctor {
                node.checks.immutable = Some(str_at(rule, &["message"]).to_owned());
            }
        }
    }
}

/// Whether a rule says that a value may not change, and nothing else.
fn is_immutable(rule: &Value) -> bool {
    let text: String = str_at(rule, &["rule"]).split_whitespace().collect();
    let plain = rule.get("messageExpression").is_none() && !bool_at(rule, &["optionalOldSelf"]);
    plain && matches!(text.as_str(), "self==oldSelf" | "oldSelf==self")
}

/// Where a schema has rules in CEL that nobody here evaluates: at most `most` paths.
pub(crate) fn unevaluated(v: &Value, path: &str, most: usize) -> Vec<String> {
    fn walk(v: &Value, path: &str, (junctor, depth): (bool, usize), most: usize, out: &mut Vec<String>) {
        if depth > MAX_DEPTH || out.len() >= most {
            return;
        }
        for (i, rule) in list_at(v, &["x-kubernetes-validations"]).iter().enumerate() {
            if (junctor || !is_immutable(rule)) && out.len() < most {
                out.push(format!("{path}.x-kubernetes-validations[{i}].rule"));
            }
        }
        let below = (junctor, depth + 1);
        for (k, sub) in v["properties"].as_object().into_iter().flatten() {
            walk(sub, &format!("{path}.properties[{k}]"), below, most, out);
        }
        for k in ["items", "additionalProperties"] {
            if let Some(sub) = v.get(k) {
                walk(sub, &format!("{path}.{k}"), below, most, out);
            }
        }
        for k in ["allOf", "anyOf", "oneOf"] {
            for (i, sub) in list_at(v, &[k]).iter().enumerate() {
                walk(sub, &format!("{path}.{k}[{i}]"), (true, depth + 1), most, out);
            }
        }
        if let Some(sub) = v.get("not") {
            walk(sub, &format!("{path}.not"), (true, depth + 1), most, out);
        }
    }
    let mut out = Vec::new();
    walk(v, path, (false, 0), most, &mut out);
    out
}
