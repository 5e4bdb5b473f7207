//! What `deploy/` has in several places from one source: `deploy/seaway.yaml` has the definitions of `deploy/crds` at its
//! end and the table of settings in its ConfigMap, and the Helm chart is the manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::chart;

/// What begins the part that is written here.
const MARK: &str = "# --- deploy/crds: written by `cargo xtask manifest` ---\n";
/// The folder of the chart.
const CHART: &str = "deploy/charts/seaway";

/// Every file that is written here, as it is to be.
fn whole(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let read = |file: &Path| fs::read_to_string(file).with_context(|| format!("read {}", file.display()));
    let have = read(&root.join("deploy/seaway.yaml"))?;
    let mut paths: Vec<_> = fs::read_dir(root.join("deploy/crds"))?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
    paths.sort();
    let mut crds = Vec::new();
    for crd in paths {
        let text = read(&crd)?.trim_start_matches("---\n").trim_end().to_owned();
        crds.push((crd.file_name().unwrap_or_default().to_string_lossy().into_owned(), text));
    }
    let manifest = chart::documented(have.split(MARK).next().unwrap_or_default())?;
    let mut files = BTreeMap::new();
    let version = version(&read(&root.join("Cargo.toml"))?).context("Cargo.toml has no version")?;
    for (name, text) in chart::render(manifest.trim_end(), &crds, &version)? {
        files.insert(Path::new(CHART).join(name), text);
    }
    let definitions: String = crds.iter().map(|(_, text)| format!("---\n{text}\n")).collect();
    files.insert("deploy/seaway.yaml".into(), format!("{manifest}{MARK}{definitions}"));
    Ok(files)
}

/// The workspace's version.
fn version(cargo: &str) -> Option<String> {
    cargo.lines().find_map(|l| Some(l.strip_prefix("version = \"")?.strip_suffix('"')?.to_owned()))
}

/// Writes them.
pub fn write(root: &Path) -> Result<()> {
    for (name, want) in whole(root)? {
        let file = root.join(&name);
        if fs::read_to_string(&file).ok().as_ref() != Some(&want) {
            fs::create_dir_all(file.parent().unwrap_or(root))?;
            fs::write(&file, want).with_context(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}

/// Which are old.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let old = |(name, want): (PathBuf, String)| {
        let have = fs::read_to_string(root.join(&name)).unwrap_or_default();
        (have != want).then(|| {
            format!(
                "{}: not what deploy/seaway.yaml, deploy/crds and the table of settings say: cargo xtask manifest",
                name.display()
            )
        })
    };
    Ok(whole(root)?.into_iter().filter_map(old).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_follows_its_sources() {
        let dir = tempfile::tempdir().unwrap();
        let deploy = dir.path().join("deploy");
        fs::create_dir_all(deploy.join("crds")).unwrap();
        fs::write(dir.path().join("Cargo.toml"), "[workspace.package]\nversion = \"1.2.3\"\n").unwrap();
        fs::write(deploy.join("seaway.yaml"), "kind: A\n").unwrap();
        fs::write(deploy.join("crds/b.yaml"), "kind: B\n\n").unwrap();
        fs::write(deploy.join("crds/a.yaml"), "---\nkind: C\n").unwrap();
        assert_eq!(check(dir.path()).unwrap().len(), 6);
        write(dir.path()).unwrap();
        assert!(check(dir.path()).unwrap().is_empty());
        let text = fs::read_to_string(deploy.join("seaway.yaml")).unwrap();
        assert_eq!(text, format!("kind: A\n{MARK}---\nkind: C\n---\nkind: B\n"));
        assert!(fs::read_to_string(dir.path().join(CHART).join("Chart.yaml")).unwrap().contains("\nversion: 1.2.3\n"));
        fs::write(deploy.join("crds/b.yaml"), "kind: D\n").unwrap();
        assert_eq!(check(dir.path()).unwrap().len(), 2, "the manifest and the chart's definitions");
    }

    #[test]
    fn those_of_the_house_are_current() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(check(root).unwrap(), Vec::<String>::new());
    }
}
