//! Texts that many objects have, held once.

use std::collections::HashSet;
use std::sync::Arc;

/// As many are held before those that nobody has any more are looked for.
const FEW: usize = 1024;

/// Names of namespaces, nodes, ports and the like: tens of thousands of objects have the same few. A text goes when no
/// object has it any more: at the latest when there are twice as many as at the last look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    all: HashSet<Arc<str>>,
    look_at: usize,
}

impl Texts {
    /// Makes this the same text in memory as that of all others who have it.
    pub(crate) fn share(&mut self, text: &mut Arc<str>) {
        if let Some(same) = self.all.get(&**text) {
            *text = Arc::clone(same);
            return;
        }
        if self.all.len() >= self.look_at.max(FEW) {
            self.all.retain(|t| Arc::strong_count(t) > 1);
            self.look_at = self.all.len() * 2;
        }
        self.all.insert(Arc::clone(text));
    }
}

/// What is shared is no difference of two snapshots.
impl PartialEq for Texts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_and_none_that_nobody_has() {
        let mut texts = Texts::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("node-1".into(), "node-1".into());
        texts.share(&mut a);
        texts.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for n in 0..100_000 {
            texts.share(&mut n.to_string().into());
        }
        assert!(texts.all.len() <= 2 * FEW, "{}", texts.all.len());
        let mut c: Arc<str> = "node-1".into();
        texts.share(&mut c);
        assert!(Arc::ptr_eq(&a, &c));
    }
}
