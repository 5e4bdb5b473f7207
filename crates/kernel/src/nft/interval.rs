//! Ranges of sets with one field. The kernel keeps them as two elements: the first key, and the key after the last
//! one, flagged as an end. A range up to the highest key has no end element.

use kernel_api::nft::Element;

/// A half of a range, or a plain element.
pub(crate) struct Half<'a> {
    pub(crate) key: Vec<u8>,
    /// Whose data it carries; `None` for an end.
    pub(crate) of: Option<&'a Element>,
}

/// The key after `key` as a big-endian number, or `None` after the highest.
fn after(key: &[u8]) -> Option<Vec<u8>> {
    let mut k = key.to_vec();
    for b in k.iter_mut().rev() {
        *b = b.wrapping_add(1);
        if *b != 0 {
            return Some(k);
        }
    }
    None
}

fn before(key: &[u8]) -> Option<Vec<u8>> {
    let mut k = key.to_vec();
    for b in k.iter_mut().rev() {
        *b = b.wrapping_sub(1);
        if *b != 0xff {
            return Some(k);
        }
    }
    None
}

/// The halves of a range.
pub(crate) fn split(e: &Element) -> impl Iterator<Item = Half<'_>> {
    let end = after(e.key_end.as_deref().unwrap_or(&e.key));
    [Some(Half { key: e.key.clone(), of: Some(e) }), end.map(|key| Half { key, of: None })].into_iter().flatten()
}

/// Ranges from the kernel's halves: elements without their ends, and the keys of ends. A range of one key has no
/// `key_end`.
pub(crate) fn join(mut starts: Vec<Element>, mut ends: Vec<Vec<u8>>) -> Vec<Element> {
    starts.sort_by(|a, b| a.key.cmp(&b.key));
    ends.sort();
    let mut ends = ends.into_iter().peekable();
    for s in &mut starts {
        // Ends at or before this start belong to earlier ranges, or are nft's own mark at the lowest key.
        while ends.next_if(|e| *e <= s.key).is_some() {}
        let last = ends.peek().and_then(|e| before(e)).unwrap_or_else(|| vec![0xff; s.key.len()]);
        s.key_end = (last != s.key).then_some(last);
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(a: &[u8], b: &[u8]) -> Element {
        Element { key_end: (a != b).then(|| b.to_vec()), ..Element::new(a.to_vec(), None) }
    }

    #[test]
    fn ranges_split_and_join() {
        let all = vec![
            range(&[0, 0], &[0, 0]),
            range(&[0, 1], &[0, 255]),
            range(&[1, 0], &[1, 0]),
            range(&[9, 9], &[200, 1]),
            range(&[255, 0], &[255, 255]),
        ];
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        for h in all.iter().flat_map(split) {
            match h.of {
                Some(_) => starts.push(Element::new(h.key, None)),
                None => ends.push(h.key),
            }
        }
        assert_eq!((starts.len(), ends.len()), (5, 4));
        starts.reverse();
        assert_eq!(join(starts, ends), all);
        assert_eq!(after(&[255, 255]), None);
        assert_eq!(before(&[0, 0]), None);
    }
}
