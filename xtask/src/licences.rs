//! Licences of everything we link: SPDX expressions, evaluated.

use crate::metadata::Metadata;

/// Licences that fit a work under Apache-2.0. Nothing that obliges the whole binary.
const ACCEPTED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "OpenSSL",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
];

/// Exceptions that only give more rights.
const EXCEPTIONS: &[&str] = &["LLVM-exception"];

/// Packages without a usable licence, one line each.
pub fn check(meta: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    for p in &meta.packages {
        let what = format!("{} {}", p.name, p.version);
        match p.license.as_deref() {
            None => {
                let file = p.license_file.as_deref().unwrap_or("none");
                found.push(format!("{what}: no licence expression (licence file: {file}): read it and choose another crate, or list it here"));
            }
            Some(text) => {
                if let Err(why) = accept(text) {
                    found.push(format!("{what}: licence {text:?}: {why}"));
                }
            }
        }
    }
    found
}

/// Whether we can take something under this expression (SPDX 2.3, annex D; `/` is cargo's old `OR`).
fn accept(text: &str) -> Result<(), String> {
    let spaced = text.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let verdict = either(&words, &mut at);
    if at < words.len() {
        return Err("not a licence expression".to_owned());
    }
    verdict
}

fn either(words: &[&str], at: &mut usize) -> Result<(), String> {
    let mut verdict = both(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        let other = both(words, at);
        verdict = verdict.or(other);
    }
    verdict
}

fn both(words: &[&str], at: &mut usize) -> Result<(), String> {
    let mut verdict = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        let other = one(words, at);
        verdict = verdict.and(other);
    }
    verdict
}

fn one(words: &[&str], at: &mut usize) -> Result<(), String> {
    let word = *words.get(*at).ok_or("not a licence expression")?;
    *at += 1;
    if word == "(" {
        let verdict = either(words, at);
        if words.get(*at) != Some(&")") {
            return Err("not a licence expression".to_owned());
        }
        *at += 1;
        return verdict;
    }
    let verdict = if ACCEPTED.contains(&word) {
        Ok(())
    } else if word.contains("GPL") {
        Err(format!("{word} obliges the whole work: choose another crate"))
    } else {
        Err(format!(
            "{word} is not known to fit: read it, then list it in xtask/src/licences.rs or choose another crate"
        ))
    };
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or("");
        *at += 2;
        if !EXCEPTIONS.contains(&exception) {
            return Err(format!("exception {exception:?} is not known"));
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn expressions() {
        for (text, good) in [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only", false),
            ("GPL-3.0-only OR MIT", true),
            ("MIT OR LGPL-2.1-or-later", true),
            ("MIT AND LGPL-2.1-or-later", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND AGPL-3.0", false),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
            ("Apache-2.0 WITH Some-exception", false),
            ("SSPL-1.0", false),
            ("", false),
            ("(MIT", false),
            ("MIT MIT", false),
        ] {
            assert_eq!(accept(text).is_ok(), good, "{text:?}: {:?}", accept(text));
        }
    }

    #[test]
    fn what_we_link_is_free_to_link() {
        let meta = Metadata::load(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).unwrap();
        assert!(meta.packages.len() > 100);
        assert_eq!(check(&meta), Vec::<String>::new());
    }
}
