//! What belongs to an object that is deleted: left behind by itself, or deleted before it.
//!
//! In the background, the usual way, the controllers' garbage collector deletes it afterwards.

use std::sync::Arc;

use serde_json::Value;

use super::{erase, meta, ready_to_go};
use crate::resource::Resource;
use crate::store::Tx;
use crate::util::{at, list_at, str_at};

/// The finalizer of an object that waits for what belongs to it (apimachinery `metav1.FinalizerDeleteDependents`).
const FOREGROUND: &str = "foregroundDeletion";

/// What belongs to an object, by its UID.
pub(super) fn dependents(tx: &Tx<'_>, owner: &str) -> Vec<(Arc<Resource>, String)> {
    let mut out = Vec::new();
    for res in tx.storages() {
        for (key, o) in tx.list(&res, "") {
            if o.owners.iter().any(|u| **u == *owner) {
                out.push((res.clone(), String::from(&*key)));
            }
        }
    }
    out
}

/// Takes the owner's name out of everything it owns.
pub(super) fn orphan(tx: &mut Tx<'_>, owner: &str) {
    for (res, key) in dependents(tx, owner) {
        let Some(o) = tx.get(&res, &key) else { continue };
        let mut v = o.value();
        if let Some(list) = meta(&mut v).get_mut("ownerReferences").and_then(Value::as_array_mut) {
            list.retain(|r| str_at(r, &["uid"]) != owner);
        }
        tx.put(&res, &key, v);
    }
}

/// Lets an object that is deleted wait for what belongs to it.
pub(super) fn hold(v: &mut Value) {
    let mut all = list_at(v, &["metadata", "finalizers"]).to_vec();
    if !all.iter().any(|f| f == FOREGROUND) {
        all.push(FOREGROUND.into());
    }
    meta(v).insert("finalizers".into(), all.into());
}

/// Lets owners go that waited for the object of this key, if it was the last.
pub(super) fn release(tx: &mut Tx<'_>, key: &str, owners: &[Value]) {
    let namespace = key.split_once('/').map_or("", |(ns, _)| ns);
    for r in owners {
        let group = str_at(r, &["apiVersion"]).split_once('/').map_or("", |(g, _)| g);
        let kind = str_at(r, &["kind"]);
        let Some(res) = tx.storages().into_iter().find(|x| x.group == group && x.kind == kind) else { continue };
        let key = res.key(namespace, str_at(r, &["name"]));
        let Some(old) = tx.get(&res, &key) else { continue };
        let mut v = old.value();
        let waits = at(&v, &["metadata", "deletionTimestamp"]).is_some()
            && list_at(&v, &["metadata", "finalizers"]).iter().any(|f| f == FOREGROUND);
        if *old.uid != *str_at(r, &["uid"]) || !waits || !dependents(tx, &old.uid).is_empty() {
            continue;
        }
        if let Some(all) = meta(&mut v).get_mut("finalizers").and_then(Value::as_array_mut) {
            all.retain(|f| f != FOREGROUND);
        }
        if ready_to_go(&res, &v) {
            erase(tx, &res, &key, v);
        } else {
            tx.put(&res, &key, v);
        }
    }
}
