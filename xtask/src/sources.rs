//! Our own files: what they open with, how long they are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lines that a source file may have.
const LONGEST: usize = 600;

/// Files that may be longer, with the reason.
const LONGER: &[(&str, &str)] = &[];

/// Every file of the repository that is not built, fetched or hidden, sorted.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut out, mut todo) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if !name.starts_with('.') && !["target", "corpus", "artifacts"].contains(&name.as_str()) {
                    todo.push(entry.path());
                }
            } else if kind.is_file() {
                out.push(entry.path());
            }
        }
    }
    out.sort();
    Ok(out)
}

/// Libraries that do not open with what they own, never do and are tested by.
pub fn check_lib_docs(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files(root)?.iter().filter(|f| f.ends_with("src/lib.rs")) {
        let name = file.strip_prefix(root).unwrap_or(file).display();
        if !name.to_string().starts_with("crates/") {
            continue;
        }
        let text = std::fs::read_to_string(file)?;
        let doc: Vec<&str> = text.lines().map_while(|l| l.strip_prefix("//!")).map(str::trim).collect();
        for (n, opening) in ["Owns:", "Never does:", "Tested by:"].iter().enumerate() {
            let at = doc.iter().position(|l| l.starts_with(opening));
            match at {
                None => found.push(format!("{name}: the opening has no line \"//! {opening} ...\"")),
                Some(at) if n == 0 && at != 0 => found.push(format!("{name}: \"{opening}\" must be the first line")),
                Some(_) => {}
            }
        }
    }
    Ok(found)
}

/// Source files that are too long, and listed ones that no longer are.
pub fn check_lengths(root: &Path) -> Result<Vec<String>> {
    lengths(root, LONGER)
}

fn lengths(root: &Path, longer: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files(root)? {
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let ours = [".rs", ".sh", ".py", ".c", ".h"].iter().any(|e| name.ends_with(e));
        if !ours {
            continue;
        }
        let lines = std::fs::read(&file)?.iter().filter(|b| **b == b'\n').count();
        match (lines > LONGEST, longer.iter().any(|(n, _)| *n == name)) {
            (true, false) => found.push(format!(
                "{name}: {lines} lines, at most {LONGEST}: split it by subject, or list it in xtask/src/sources.rs with a reason"
            )),
            (false, true) => found.push(format!("{name}: {lines} lines, and still listed in xtask/src/sources.rs: remove it there")),
            _ => {}
        }
    }
    for (name, why) in longer {
        if !root.join(name).is_file() || why.len() < 8 {
            found.push(format!("{name}: listed in xtask/src/sources.rs, but it is no file or has no reason"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = dir.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        dir
    }

    #[test]
    fn openings() {
        let dir = tree(&[
            ("crates/good/src/lib.rs", "//! Owns: x\n//! Never does: y\n//! more of y\n//! Tested by: z\n"),
            ("crates/bad/src/lib.rs", "//! Words.\n//! Owns: x\n//! Tested by: z\n"),
            ("crates/none/src/lib.rs", "mod x;\n"),
            ("crates/bad/target/src/lib.rs", ""),
        ]);
        let found = check_lib_docs(dir.path()).unwrap();
        assert_eq!(found.len(), 5, "{found:#?}");
        assert!(found[0].contains("bad/src/lib.rs: \"Owns:\" must be the first line"), "{found:#?}");
        assert!(found[1].contains("bad/src/lib.rs: the opening has no line \"//! Never does: ...\""), "{found:#?}");
    }

    #[test]
    fn long_files_need_a_reason() {
        let long = "\n".repeat(601);
        let dir = tree(&[("a.rs", &long), ("b.rs", "\n"), ("c.txt", &long), ("target/d.rs", &long)]);
        let found = lengths(dir.path(), &[]).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("a.rs: 601 lines"), "{found:?}");
        assert_eq!(lengths(dir.path(), &[("a.rs", "a table of constants")]).unwrap(), Vec::<String>::new());
        let found = lengths(dir.path(), &[("a.rs", "a table"), ("b.rs", "not long at all"), ("gone.rs", "moved away")])
            .unwrap();
        assert_eq!(found.len(), 3, "{found:#?}");
    }
}
