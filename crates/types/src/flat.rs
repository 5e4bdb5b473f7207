//! A set in one piece of memory.

use std::fmt;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// A sorted set as one boxed slice, without a byte to spare: a `BTreeSet` of one address takes room for eleven. For sets
/// that are made once, are mostly of one or a few, and are kept by the ten thousand. Everything a slice has that changes
/// nothing is at hand; adding or removing costs as much as the set is large.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlatSet<T>(Box<[T]>);

impl<T> Default for FlatSet<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for FlatSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&*self.0).finish()
    }
}

impl<T> FlatSet<T> {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.0 = Box::default();
    }
}

impl<T: Ord> FlatSet<T> {
    /// Whether it holds `value`: by halves.
    #[must_use]
    pub fn contains(&self, value: &T) -> bool {
        self.0.binary_search(value).is_ok()
    }

    /// Adds one; whether it was not there.
    pub fn insert(&mut self, value: T) -> bool {
        match self.0.binary_search(&value) {
            Ok(_) => false,
            Err(at) => {
                self.change(|all| all.insert(at, value));
                true
            }
        }
    }

    /// Takes one out; whether it was there.
    pub fn remove(&mut self, value: &T) -> bool {
        match self.0.binary_search(value) {
            Ok(at) => {
                self.change(|all| drop(all.remove(at)));
                true
            }
            Err(_) => false,
        }
    }

    /// Keeps those that `keep` says.
    pub fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        self.change(|all| all.retain(keep));
    }

    /// What either holds, in order.
    pub fn union<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a T> {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        std::iter::from_fn(move || match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x > y => b.next(),
            (Some(x), Some(y)) => {
                if x == y {
                    b.next();
                }
                a.next()
            }
            (Some(_), None) => a.next(),
            (None, _) => b.next(),
        })
    }

    fn change(&mut self, with: impl FnOnce(&mut Vec<T>)) {
        let mut all = std::mem::take(&mut self.0).into_vec();
        with(&mut all);
        self.0 = all.into_boxed_slice();
    }
}

impl<T> Deref for FlatSet<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Ord> FromIterator<T> for FlatSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut all: Vec<T> = all.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into_boxed_slice())
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for FlatSet<T> {
    fn from(all: [T; N]) -> Self {
        all.into_iter().collect()
    }
}

impl<T: Ord> Extend<T> for FlatSet<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, more: I) {
        let mut more = more.into_iter().peekable();
        if more.peek().is_some() {
            let mut all = std::mem::take(&mut self.0).into_vec();
            all.extend(more);
            *self = all.into_iter().collect();
        }
    }
}

impl<T> IntoIterator for FlatSet<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

impl<'a, T> IntoIterator for &'a FlatSet<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T: Serialize> Serialize for FlatSet<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(&*self.0)
    }
}

impl<'de, T: Ord + Deserialize<'de>> Deserialize<'de> for FlatSet<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Vec::deserialize(d).map(|all| all.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::FlatSet;

    proptest! {
        /// Everything it does, a tree does too.
        #[test]
        fn is_a_set(a: Vec<u8>, b: Vec<u8>, one: u8) {
            let (mut flat, mut tree): (FlatSet<u8>, BTreeSet<u8>) = (a.iter().copied().collect(), a.into_iter().collect());
            let (other, others): (FlatSet<u8>, BTreeSet<u8>) = (b.iter().copied().collect(), b.iter().copied().collect());
            let same = |flat: &FlatSet<u8>, tree: &BTreeSet<u8>| flat.iter().eq(tree);
            prop_assert!(same(&flat, &tree));
            prop_assert!(flat.union(&other).eq(tree.union(&others)));
            prop_assert_eq!(flat.contains(&one), tree.contains(&one));
            prop_assert_eq!(flat.insert(one), tree.insert(one));
            prop_assert!(same(&flat, &tree));
            flat.extend(b.iter().copied());
            tree.extend(b);
            prop_assert!(same(&flat, &tree));
            prop_assert_eq!(flat.remove(&one), tree.remove(&one));
            prop_assert_eq!(flat.remove(&one), tree.remove(&one));
            flat.retain(|n| n % 3 == 0);
            tree.retain(|n| n % 3 == 0);
            prop_assert!(same(&flat, &tree));
            let text = serde_json::to_string(&flat).expect("text");
            prop_assert_eq!(&text, &serde_json::to_string(&tree).expect("text"));
            prop_assert_eq!(serde_json::from_str::<FlatSet<u8>>(&text).expect("set"), flat);
        }
    }
}
