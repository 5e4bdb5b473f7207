//! `deploy/seaway.yaml` in one file: the definitions of `deploy/crds` are at its end, and cannot differ.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What begins the part that is written here.
const MARK: &str = "# --- deploy/crds: written by `cargo xtask manifest` ---\n";

/// The manifest with the definitions as they are now.
fn whole(root: &Path) -> Result<(String, String)> {
    let file = root.join("deploy/seaway.yaml");
    let have = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let mut want = have.split(MARK).next().unwrap_or_default().to_owned();
    want.push_str(MARK);
    let mut crds: Vec<_> = fs::read_dir(root.join("deploy/crds"))?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    crds.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
    crds.sort();
    for crd in crds {
        let text = fs::read_to_string(&crd).with_context(|| format!("read {}", crd.display()))?;
        want.push_str("---\n");
        want.push_str(text.trim_start_matches("---\n").trim_end());
        want.push('\n');
    }
    Ok((have, want))
}

/// Writes them.
pub fn write(root: &Path) -> Result<()> {
    let (have, want) = whole(root)?;
    if have != want {
        fs::write(root.join("deploy/seaway.yaml"), want)?;
    }
    Ok(())
}

/// Whether they are old.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let (have, want) = whole(root)?;
    let old = "deploy/seaway.yaml: its definitions are not those of deploy/crds: cargo xtask manifest";
    Ok((have != want).then(|| old.to_owned()).into_iter().collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn definitions_follow_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let deploy = dir.path().join("deploy");
        fs::create_dir_all(deploy.join("crds")).unwrap();
        fs::write(deploy.join("seaway.yaml"), "kind: A\n").unwrap();
        fs::write(deploy.join("crds/b.yaml"), "kind: B\n\n").unwrap();
        fs::write(deploy.join("crds/a.yaml"), "---\nkind: C\n").unwrap();
        assert_eq!(check(dir.path()).unwrap().len(), 1);
        write(dir.path()).unwrap();
        assert!(check(dir.path()).unwrap().is_empty());
        let text = fs::read_to_string(deploy.join("seaway.yaml")).unwrap();
        assert_eq!(text, format!("kind: A\n{MARK}---\nkind: C\n---\nkind: B\n"));
        fs::write(deploy.join("crds/b.yaml"), "kind: D\n").unwrap();
        assert_eq!(check(dir.path()).unwrap().len(), 1);
    }
}
