//! Doors for fuzzing: what a client's bytes reach before anything is stored, on any bytes. They must not panic, hang or
//! hold much memory.

use std::sync::Arc;

use serde_json::Value;

use crate::crd::Registry;
use crate::error::Causes;
use crate::objects::{self, Unknown};
use crate::resource::{RESOURCES, Resource, definitions};
use crate::selector::Selector;
use crate::{patch, schema, validate};

/// The first byte chooses the resource.
fn pick(data: &[u8]) -> Option<(&'static Arc<Resource>, &[u8])> {
    let (n, rest) = data.split_first()?;
    Some((RESOURCES.get(usize::from(*n) % RESOURCES.len())?, rest))
}

/// A request's object: shape, defaults, validation.
pub fn object(data: &[u8]) {
    let Some((res, json)) = pick(data) else { return };
    let Ok(mut v) = serde_json::from_slice::<Value>(json) else { return };
    accept(res, &mut v);
}

fn accept(res: &Resource, v: &mut Value) {
    if let Some(m) = v.as_object_mut() {
        m.insert("apiVersion".into(), res.api_version().into());
        m.insert("kind".into(), res.kind.as_ref().into());
    }
    if objects::shape(res, v, Unknown::Warn).is_err() {
        return;
    }
    // What is left is known and typed: a second look finds nothing.
    let again = schema::check(&mut v.clone(), res.schema);
    assert!(again.unknown.is_empty() && again.wrong.is_empty(), "{again:?} in {v}");
    (res.default)(v);
    let mut causes = Causes::default();
    validate::meta(res, v, None, &mut causes);
    (res.validate)(v, Some(&v.clone()), &mut causes);
    let _ = causes.finish(res, "x");
}

/// Resource, kind of patch, then two lines: the object and the patch.
pub fn patch(data: &[u8]) {
    let Some((res, rest)) = pick(data) else { return };
    let Some((kind, rest)) = rest.split_first() else { return };
    let Some(cut) = rest.iter().position(|b| *b == b'\n') else { return };
    let (Ok(mut v), Ok(p)) =
        (serde_json::from_slice::<Value>(&rest[..cut]), serde_json::from_slice::<Value>(&rest[cut + 1..]))
    else {
        return;
    };
    if !v.is_object() || objects::shape(res, &mut v, Unknown::Warn).is_err() {
        return;
    }
    match kind % 4 {
        0 => drop(patch::json_patch(&mut v, &p)),
        1 => {
            patch::merge(&mut v, &p);
            let once = v.clone();
            patch::merge(&mut v, &p);
            assert_eq!(v, once, "a merge patch applied twice");
        }
        2 => drop(patch::strategic_merge(&mut v, &p, res.schema)),
        _ if p.is_object() => drop(patch::apply::apply(res, &v, &p, "fuzz", true)),
        _ => {}
    }
    accept(res, &mut v);
}

/// Three lines: the schema of a definition, an object of its kind, a configuration to apply to it.
pub fn custom(data: &[u8]) {
    let mut lines = data.splitn(3, |b| *b == b'\n').map(serde_json::from_slice::<Value>);
    let (Some(Ok(schema)), Some(Ok(mut object))) = (lines.next(), lines.next()) else { return };
    let mut definition = serde_json::json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "gadgets", "kind": "Gadget"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema}}]}});
    let res = definitions();
    if objects::shape(res, &mut definition, Unknown::Warn).is_err() {
        return;
    }
    (res.default)(&mut definition);
    let mut causes = Causes::default();
    (res.validate)(&definition, None, &mut causes);
    if !causes.0.is_empty() || !object.is_object() {
        return;
    }
    definition["status"] = serde_json::json!({"acceptedNames": definition["spec"]["names"],
        "conditions": [{"type": "Established", "status": "True"}]});
    let mut registry = Registry::default();
    registry.set("gadgets.example.com", Some(&definition), 1);
    let Some(kind) = registry.resources().next().cloned() else { return };
    let accept = |v: &mut Value| {
        if let Some(m) = v.as_object_mut() {
            m.insert("apiVersion".into(), kind.api_version().into());
            m.insert("kind".into(), kind.kind.as_ref().into());
        }
        if objects::shape(&kind, v, Unknown::Warn).is_err() {
            return;
        }
        let once = v.clone();
        let again = objects::shape(&kind, v, Unknown::Warn);
        assert!(again.is_ok_and(|w| w.is_empty()) && *v == once, "pruned and filled in, it stays as it is: {once} {v}");
        let mut causes = Causes::default();
        if let Some(c) = &kind.custom {
            c.check(v, Some(&once), &mut causes);
            let _ = (c.cells(v), c.openapi());
        }
        let _ = causes.finish(&kind, "x");
    };
    accept(&mut object);
    if let Some(Ok(config)) = lines.next()
        && config.is_object()
        && let Ok(mut applied) = patch::apply::apply(&kind, &object, &config, "fuzz", true)
    {
        accept(&mut applied);
    }
}

/// Resource, then two lines: a label selector and a field selector.
pub fn selector(data: &[u8]) {
    let Some((res, rest)) = pick(data) else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (labels, fields) = text.split_once('\n').unwrap_or((text, ""));
    let _ = Selector::parse(res, labels, fields);
}

/// A body in the API's protobuf form; what it holds goes on as JSON would.
pub fn protobuf(data: &[u8]) {
    let Ok(mut v) = crate::protobuf::decode(&[b"k8s\0", data].concat()) else { return };
    let find = |v: &Value| RESOURCES.iter().find(|r| v["kind"] == *r.kind && v["apiVersion"] == r.api_version());
    if let Some(res) = find(&v) {
        accept(res, &mut v);
    }
}
