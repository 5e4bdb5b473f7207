//! Names that are the same at every pass: a write that is repeated hits the object it made.

use serde_json::Value;

/// The letters of Kubernetes' generated names: no vowels, so no words.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a, 64 bit.
#[derive(Clone, Copy)]
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(mut self, bytes: &[u8]) -> Self {
        // The length first, so that ("ab", "c") and ("a", "bc") differ.
        for b in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    /// `len` letters, at most 10.
    pub(crate) fn letters(self, len: usize) -> String {
        // FNV's low bits are its weak ones: fold.
        let mut n = self.0 ^ (self.0 >> 32);
        let mut out = String::new();
        for _ in 0..len.min(10) {
            let i = usize::try_from(n % LETTERS.len() as u64).unwrap_or(0);
            out.push(LETTERS.get(i).copied().unwrap_or(b'x').into());
            n /= LETTERS.len() as u64;
        }
        out
    }

    /// JSON by value: the order of an object's keys does not count.
    pub(crate) fn json(self, v: &Value) -> Self {
        match v {
            Value::Object(m) => {
                let mut keys: Vec<_> = m.iter().collect();
                keys.sort_by_key(|(k, _)| *k);
                keys.into_iter().fold(self.add(b"{"), |h, (k, v)| h.add(k.as_bytes()).json(v)).add(b"}")
            }
            Value::Array(a) => a.iter().fold(self.add(b"["), |h, v| h.json(v)).add(b"]"),
            other => self.add(other.to_string().as_bytes()),
        }
    }
}

/// The first of `prefix-<letters>` that is not taken; `seed` makes it differ between owners.
pub(crate) fn free(prefix: &str, seed: &[&str], taken: impl Fn(&str) -> bool) -> String {
    let seed = seed.iter().fold(Hash::new(), |h, s| h.add(s.as_bytes()));
    // A pod's name is also its host name, at most 63 bytes (RFC 1123).
    let cut: String = prefix.chars().take(57).collect();
    let cut = cut.trim_end_matches(['-', '.']);
    let mut n: u64 = 0;
    loop {
        let name = format!("{cut}-{}", seed.add(&n.to_le_bytes()).letters(5));
        if !taken(&name) {
            return name;
        }
        n += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hashes_and_names() {
        assert_eq!(Hash::new().json(&json!({"a": 1, "b": [2]})).0, Hash::new().json(&json!({"b": [2], "a": 1})).0);
        assert_ne!(Hash::new().json(&json!({"a": 1})).0, Hash::new().json(&json!({"a": 2})).0);
        assert_ne!(Hash::new().json(&json!(["ab", "c"])).0, Hash::new().json(&json!(["a", "bc"])).0);
        let first = free("web", &["uid"], |_| false);
        assert_eq!(first, free("web", &["uid"], |_| false));
        let second = free("web", &["uid"], |n| n == first);
        assert_ne!(first, second);
        assert!(first.len() == 9 && first.starts_with("web-"));
        assert!(free(&"x".repeat(200), &[], |_| false).len() <= 63);
    }
}
