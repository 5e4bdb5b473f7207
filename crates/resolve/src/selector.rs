//! Label selectors with expressions (`metav1.LabelSelector`).

use serde::{Deserialize, Serialize};

use crate::labels::Labels;

/// Which labels are meant. The default, an empty one, means all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selector {
    /// `matchLabels`.
    pub labels: Labels,
    /// `matchExpressions`.
    pub expressions: Box<[Expression]>,
    /// It could not be read: it means none, so that a typing error widens nothing.
    pub unreadable: bool,
}

/// One of `matchExpressions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expression {
    /// The label.
    pub key: Box<str>,
    /// What must be so.
    pub op: Operator,
    /// `values`.
    pub values: Box<[Box<str>]>,
}

/// `operator` of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The label is there and has one of the values.
    In,
    /// It is not there or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Selector {
    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty() && !self.unreadable
    }

    /// Whether it selects an object of these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        !self.unreadable
            && labels.matches(&self.labels)
            && self.expressions.iter().all(|e| {
                let value = labels.get(&e.key);
                let listed = value.is_some_and(|v| e.values.iter().any(|w| **w == *v));
                match e.op {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (*k, *v)).collect()
    }

    #[test]
    fn expressions_mean_what_the_api_says() {
        let expr = |op, values: &[&str]| Selector {
            expressions: [Expression { key: "zone".into(), op, values: values.iter().map(|v| (*v).into()).collect() }]
                .into(),
            ..Selector::default()
        };
        let (a, b, none) = (labels(&[("zone", "a")]), labels(&[("zone", "b")]), labels(&[("rack", "a")]));
        for (s, want) in [
            (expr(Operator::In, &["a", "c"]), [true, false, false]),
            (expr(Operator::NotIn, &["a"]), [false, true, true]),
            (expr(Operator::Exists, &[]), [true, true, false]),
            (expr(Operator::DoesNotExist, &[]), [false, false, true]),
            (Selector::default(), [true, true, true]),
            (Selector { unreadable: true, ..Selector::default() }, [false, false, false]),
        ] {
            assert_eq!([s.matches(&a), s.matches(&b), s.matches(&none)], want, "{s:?}");
        }
        let both = Selector { labels: a.clone(), ..expr(Operator::In, &["b"]) };
        assert!(!both.matches(&a), "labels and expressions must both hold");
    }
}
