//! The difference of two keyed collections, in key order.

use std::collections::BTreeMap;

/// What brings `have` to `want`.
#[derive(Debug, PartialEq, Eq)]
pub struct Diff<'a, K, V> {
    /// In `want` only.
    pub add: Vec<(&'a K, &'a V)>,
    /// In both with another value: (key, wanted, present).
    pub change: Vec<(&'a K, &'a V, &'a V)>,
    /// In `have` only.
    pub del: Vec<(&'a K, &'a V)>,
}

/// Compares two maps in one merge walk.
#[must_use]
pub fn diff<'a, K: Ord, V: PartialEq>(want: &'a BTreeMap<K, V>, have: &'a BTreeMap<K, V>) -> Diff<'a, K, V> {
    let mut d = Diff { add: Vec::new(), change: Vec::new(), del: Vec::new() };
    let (mut w, mut h) = (want.iter().peekable(), have.iter().peekable());
    loop {
        match (w.peek(), h.peek()) {
            (None, None) => return d,
            (Some(_), None) => d.add.extend(w.by_ref()),
            (None, Some(_)) => d.del.extend(h.by_ref()),
            (Some((wk, wv)), Some((hk, hv))) => match wk.cmp(hk) {
                std::cmp::Ordering::Less => d.add.extend(w.next()),
                std::cmp::Ordering::Greater => d.del.extend(h.next()),
                std::cmp::Ordering::Equal => {
                    if wv != hv {
                        d.change.push((*wk, *wv, *hv));
                    }
                    w.next();
                    h.next();
                }
            },
        }
    }
}

impl<K, V> Diff<'_, K, V> {
    /// Whether the two were equal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.change.is_empty() && self.del.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn applying_the_diff_gives_want(want: BTreeMap<u8, u8>, have: BTreeMap<u8, u8>) {
            let d = diff(&want, &have);
            prop_assert_eq!(d.is_empty(), want == have);
            let mut got = have.clone();
            for (k, _) in &d.del { prop_assert!(got.remove(*k).is_some()); }
            for (k, v) in &d.add { prop_assert!(got.insert(**k, **v).is_none()); }
            for (k, v, old) in &d.change { prop_assert_eq!(got.insert(**k, **v), Some(**old)); }
            prop_assert_eq!(got, want);
        }
    }
}
