//! The end of a definition: its objects go first.

use std::sync::Arc;

use serde_json::Value;

use super::definition;
use crate::error::Result;
use crate::objects::{self, DeleteOptions};
use crate::resource::definitions;
use crate::store::{Stored, Tx};
use crate::util::{at, obj};

/// Deletes the objects of a custom kind, then its definition; the flag says whether it is gone. One whose objects wait
/// for finalizers stays until the last of them went.
pub(crate) fn delete(tx: &mut Tx<'_>, name: &str, mut v: Value) -> Result<(Arc<Stored>, bool)> {
    let res = definitions();
    definition::terminating(&mut v);
    let marked = tx.put(res, name, v);
    if let Some(kind) = tx.storages().into_iter().find(|r| *r.storage == *name) {
        for (key, _) in tx.list(&kind, "") {
            objects::delete(tx, &kind, &key, &DeleteOptions::default())?;
        }
    }
    collect(tx, name);
    match tx.get(res, name) {
        Some(left) => Ok((left, false)),
        None => Ok((marked, true)),
    }
}

/// Removes a terminating definition whose objects are gone.
pub(crate) fn collect(tx: &mut Tx<'_>, name: &str) {
    let res = definitions();
    let Some(mut v) = tx.get(res, name).map(|d| d.value()) else { return };
    let left = tx.storages().iter().any(|r| *r.storage == *name && !tx.list(r, "").is_empty());
    if left || at(&v, &["metadata", "deletionTimestamp"]).is_none() {
        return;
    }
    if let Some(list) = obj(&mut v, "metadata").get_mut("finalizers").and_then(Value::as_array_mut) {
        list.retain(|f| f != definition::FINALIZER);
        if !list.is_empty() {
            tx.put(res, name, v);
            return;
        }
        obj(&mut v, "metadata").remove("finalizers");
    }
    erase(tx, name, v);
}

/// Removes a definition and whatever is left of its kind; others of its group may have waited for its names.
pub(crate) fn erase(tx: &mut Tx<'_>, name: &str, v: Value) -> Arc<Stored> {
    let res = definitions();
    for kind in tx.storages().iter().filter(|r| *r.storage == *name) {
        for (key, o) in tx.list(kind, "") {
            tx.remove(kind, &key, o.value());
        }
    }
    let gone = tx.remove(res, name, v);
    for (key, o) in tx.list(res, "") {
        let before = o.value();
        let mut after = before.clone();
        definition::settle(tx, &mut after);
        if after != before {
            tx.put(res, &key, after);
        }
    }
    gone
}
