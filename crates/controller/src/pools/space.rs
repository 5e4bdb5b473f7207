//! Which block of a pool is free.

use resolve::pools::IpPool;
use types::Cidr;

/// The first block of a pool, from a place that depends on `seed` on, that touches none of `taken` and is not all of it
/// reserved. Different nodes begin at different places, so that few of them want the same.
pub(crate) fn free_block(pool: &IpPool, taken: &[Cidr], reserved: &[Cidr], seed: u64) -> Option<Cidr> {
    let (range, len) = (pool.cidr, pool.size());
    if len < range.len() {
        return None;
    }
    let step = u32::from(range.family().bits() - len);
    let count = 1u128.checked_shl(u32::from(len - range.len())).unwrap_or(u128::MAX);
    let near: Vec<&Cidr> =
        taken.iter().filter(|t| t.overlaps(&range)).chain(reserved.iter().filter(|r| r.len() <= len)).collect();
    let search = |from: u128, to: u128| {
        let mut n = from;
        // Each turn but the last jumps behind one member of `near`.
        while n < to {
            let c = range.nth_subnet(len, n)?;
            let Some(hit) = near.iter().find(|t| t.overlaps(&c)) else { return Some(c) };
            n = match range.index_of(hit.last()) {
                Some(last) => (last.checked_shr(step).unwrap_or(0) + 1).max(n + 1),
                None => return None,
            };
        }
        None
    };
    let start = u128::from(seed) % count;
    search(start, count).or_else(|| search(0, start))
}

/// FNV-1a.
pub(crate) fn seed(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_found_once_from_anywhere() {
        let c = |s: &str| s.parse::<Cidr>().unwrap();
        let object = serde_json::json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "p"},
            "spec": {"cidr": "10.0.0.0/24", "blockSize": 28}});
        let Some(resolve::Object::IPPool(pool)) = resolve::parse(&object).unwrap().object else { panic!() };
        for seed in [0, 5, 15, u64::MAX] {
            // A node's range in the middle, a part of one block reserved, one block reserved whole.
            let mut taken = vec![c("10.0.0.64/27"), c("10.9.0.0/16")];
            let reserved = [c("10.0.0.1/32"), c("10.0.0.32/28")];
            let mut got = Vec::new();
            while let Some(b) = free_block(&pool, &taken, &reserved, seed) {
                taken.push(b);
                got.push(b);
            }
            got.sort();
            assert_eq!(got.len(), 13, "{got:?}");
            got.dedup();
            assert_eq!(got.len(), 13);
        }
        assert_eq!(free_block(&pool, &[c("10.0.0.0/8")], &[], 3), None);
    }
}
