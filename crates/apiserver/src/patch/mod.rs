//! The four ways to change part of an object.

pub(crate) mod apply;
mod json;
mod strategic;

pub(crate) use controller::offline::merge;
pub(crate) use json::json_patch;
pub(crate) use strategic::strategic_merge;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Any small JSON value.
    pub(crate) fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3i64..3).prop_map(Value::from),
            "[a-c/~]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn has_null(v: &Value) -> bool {
        match v {
            Value::Null => true,
            Value::Object(m) => m.values().any(has_null),
            _ => false,
        }
    }

    #[test]
    fn the_examples_of_rfc_7396() {
        for (mut t, p, want) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            merge(&mut t, &p);
            assert_eq!(t, want);
        }
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(t in values(), p in values()) {
            let mut once = t;
            merge(&mut once, &p);
            let mut twice = once.clone();
            merge(&mut twice, &p);
            prop_assert_eq!(once, twice);
        }
        #[test]
        fn an_object_without_nulls_merged_into_nothing_is_itself(p in values()) {
            prop_assume!(!has_null(&p));
            let mut t = Value::Null;
            merge(&mut t, &p);
            prop_assert_eq!(t, p);
        }
    }
}
