//! The scale subresource: one shape for every kind that has a number of replicas.

use http::Response;
use serde_json::{Value, json};

use super::Call;
use crate::error::{Causes, Result, Status};
use crate::http::{Out, decode, json as respond};
use crate::objects::{self, Part, to_client};
use crate::resource::Resource;
use crate::util::{at, int_at, obj, str_at};
use crate::{patch, schema};

/// Where a kind keeps replicas wanted, replicas there, and its selector.
fn places(res: &Resource) -> [Vec<&str>; 3] {
    match res.custom.as_ref().and_then(|c| c.scale.as_ref()) {
        Some(s) => [&s.spec, &s.status, &s.selector].map(|p| p.iter().map(String::as_str).collect()),
        None => [vec!["spec", "replicas"], vec!["status", "replicas"], vec!["spec", "selector"]],
    }
}

/// A Scale (autoscaling/v1) of an object.
fn scale_of(res: &Resource, v: &Value) -> Value {
    let m = &v["metadata"];
    let [wanted, there, selector] = places(res);
    let found = at(v, &selector).filter(|_| !selector.is_empty());
    let labels = found.and_then(|s| s["matchLabels"].as_object()).into_iter().flatten();
    let selector = match found.and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect::<Vec<_>>().join(","),
    };
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": m["name"], "namespace": m["namespace"], "uid": m["uid"], "resourceVersion": m["resourceVersion"], "creationTimestamp": m["creationTimestamp"]},
        "spec": {"replicas": int_at(v, &wanted).unwrap_or(0)},
        "status": {"replicas": int_at(v, &there).unwrap_or(0), "selector": selector}})
}

impl Call<'_> {
    pub(super) fn get_scale(&self) -> Result<Response<Out>> {
        let (res, key) = (&self.target.res, self.target.res.key(&self.target.ns, &self.target.name));
        let o = self.api.store.read().kind(res).objects.get(key.as_str()).cloned();
        let o = o.ok_or_else(|| Status::not_found(res, &self.target.name))?;
        Ok(respond(200, &scale_of(res, &o.value())))
    }

    pub(super) async fn put_scale(self, is_patch: bool) -> Result<Response<Out>> {
        let (res, key) = (self.target.res.clone(), self.target.res.key(&self.target.ns, &self.target.name));
        let body = decode(if is_patch { "" } else { &self.content_type }, &self.body)?;
        let (name, ranges) = (self.target.name.clone(), self.api.ranges.clone());
        let old = self.api.store.read().kind(&res).objects.get(key.as_str()).cloned();
        let old = old.ok_or_else(|| Status::not_found(&res, &name))?;
        let mut scale = scale_of(&res, &old.value());
        match self.content_type.as_str() {
            _ if !is_patch => scale = body,
            "application/json-patch+json" => patch::json_patch(&mut scale, &body)?,
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                patch::merge(&mut scale, &body)
            }
            other => {
                return Err(Status::unsupported_media(
                    other,
                    "application/merge-patch+json, application/json-patch+json",
                ));
            }
        }
        let found = schema::check(&mut scale, "Scale");
        if let Some(first) = found.wrong.first() {
            return Err(Status::bad_request(format!("Scale cannot be handled: {first}")));
        }
        let Some(replicas) = int_at(&scale, &["spec", "replicas"]).filter(|n| *n >= 0) else {
            let mut c = Causes::default();
            c.invalid(
                "spec.replicas",
                at(&scale, &["spec", "replicas"]).unwrap_or(&Value::Null),
                "must be greater than or equal to 0",
            );
            return Err(c.finish(&res, &name).err().unwrap_or_else(|| Status::bad_request("spec.replicas is missing")));
        };
        let rv = str_at(&scale, &["metadata", "resourceVersion"]).to_owned();
        let kind = res.clone();
        let o = self
            .api
            .store
            .write(self.q.dry_run()?, move |tx| {
                let kind = &*tx.current(&kind)?;
                let old = tx.get(kind, &key).ok_or_else(|| Status::not_found(kind, &name))?;
                let mut v = old.value();
                if kind.custom.is_some() {
                    v = to_client(v, kind);
                }
                if !is_patch && !rv.is_empty() {
                    obj(&mut v, "metadata").insert("resourceVersion".into(), rv.into());
                }
                let [wanted, ..] = places(kind);
                if let Some((last, above)) = wanted.split_last() {
                    let mut v = &mut v;
                    for key in above {
                        obj(v, key);
                        v = &mut v[*key];
                    }
                    v[*last] = replicas.into();
                }
                objects::replace(tx, kind, &key, &old, objects::to_stored(v, kind), Part::Main, &ranges)
            })
            .await?;
        Ok(respond(200, &scale_of(&res, &o.value())))
    }
}
