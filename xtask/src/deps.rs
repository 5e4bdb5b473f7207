//! Edges between our crates against the doors; who reaches tokio; who has unsafe code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use crate::doors::{TESTS_ONLY, TOKIO, UNSAFE, open};
use crate::metadata::Metadata;
use crate::sources;

/// Whether a room stands above the crates: it may use them all.
fn is_top(room: &str) -> bool {
    room.starts_with("bins/") || is_tests(room)
}

/// `tests`, and the folders in it that are packages of their own.
fn is_tests(room: &str) -> bool {
    room == "tests" || room.starts_with("tests/")
}

/// Every edge that has no door, one line each.
pub fn check(meta: &Metadata) -> Vec<String> {
    let rooms = meta.rooms();
    let by_package: BTreeMap<&str, &str> = rooms.iter().map(|(room, p)| (p.name.as_str(), room.as_str())).collect();
    let mut found = Vec::new();
    for (from, package) in &rooms {
        for d in &package.dependencies {
            let Some(to) = by_package.get(d.name.as_str()).copied() else { continue };
            let dev = d.kind.as_deref() == Some("dev");
            if let Some(problem) = edge(from, to, dev) {
                found.push(format!(
                    "{}: {from} uses {to}{}: {problem}",
                    package.manifest_path,
                    if dev { " in tests" } else { "" }
                ));
            }
        }
    }
    found.extend(check_tokio(meta));
    found
}

fn edge(from: &str, to: &str, dev: bool) -> Option<&'static str> {
    if to.starts_with("bins/") || is_tests(to) || to == "xtask" {
        return Some("nobody uses bins, tests or xtask: move what is shared into a crate");
    }
    if to == TESTS_ONLY && !dev {
        return Some("the fake exists for tests: make it a dev-dependency");
    }
    if is_top(from) || open(from, to, dev) {
        return None;
    }
    Some(
        "no such door: find the room the code belongs to, or draw the door in docs/design.md and xtask/src/doors.rs with its reason",
    )
}

/// Crates that reach tokio through normal dependencies and may not. Test-only tokio does not count.
fn check_tokio(meta: &Metadata) -> Vec<String> {
    let Some(resolve) = &meta.resolve else {
        return vec!["cargo metadata gave no resolved graph: run it without --no-deps".to_owned()];
    };
    let names: BTreeMap<&str, &str> = meta.packages.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
    let edges: BTreeMap<&str, Vec<&str>> = resolve
        .nodes
        .iter()
        .map(|n| {
            let normal = n.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind.is_none()));
            (n.id.as_str(), normal.map(|d| d.pkg.as_str()).collect())
        })
        .collect();
    let mut found = Vec::new();
    for (room, package) in meta.rooms() {
        if is_top(&room) || TOKIO.contains(&room.as_str()) {
            continue;
        }
        if let Some(path) = path_to("tokio", &package.id, &edges, &names) {
            found.push(format!("{room} reaches tokio ({}): only {} and bins may", path.join(" -> "), TOKIO.join(", ")));
        }
    }
    found
}

/// The shortest way from a package to one of this name.
fn path_to(
    name: &str,
    start: &str,
    edges: &BTreeMap<&str, Vec<&str>>,
    names: &BTreeMap<&str, &str>,
) -> Option<Vec<String>> {
    let mut seen = BTreeSet::from([start]);
    let mut paths = vec![vec![start]];
    while !paths.is_empty() {
        let mut longer = Vec::new();
        for path in paths {
            let Some(last) = path.last() else { continue };
            if names.get(last) == Some(&name) {
                return Some(path.iter().map(|id| (*names.get(id).unwrap_or(id)).to_owned()).collect());
            }
            for next in edges.get(last).into_iter().flatten().copied().filter(|n| !seen.contains(n)).collect::<Vec<_>>()
            {
                seen.insert(next);
                longer.push(path.iter().copied().chain([next]).collect());
            }
        }
        paths = longer;
    }
    None
}

/// Crates that switch the workspace's lints off: a manifest without `[lints] workspace = true`, or a source file
/// outside [`UNSAFE`] that allows unsafe code.
pub fn check_unsafe(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in sources::files(root)? {
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        if name.starts_with("fuzz/") {
            continue;
        }
        let is_manifest = name.ends_with("/Cargo.toml");
        if !is_manifest && !name.ends_with(".rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file)?;
        if is_manifest && text.contains("[package]") && !inherits_lints(&text) {
            found.push(format!("{name}: add [lints] with workspace = true, so that the house's lints hold"));
        }
        if !is_manifest && allows_unsafe(&text) && !UNSAFE.iter().any(|(place, _)| name.starts_with(place)) {
            found.push(format!("{name}: allows unsafe code: put the call into {}", UNSAFE[0].0));
        }
    }
    Ok(found)
}

fn inherits_lints(manifest: &str) -> bool {
    let Some(at) = manifest.find("\n[lints]\n") else { return false };
    manifest[at + 9..].lines().take_while(|l| !l.starts_with('[')).any(|l| l.replace(' ', "") == "workspace=true")
}

/// Attributes that lift the lint. Split so that this file does not find itself.
fn allows_unsafe(text: &str) -> bool {
    ["allow", "expect", "warn"].iter().any(|a| {
        text.lines()
            .map(str::trim)
            .filter(|l| l.starts_with("#[") || l.starts_with("#!["))
            .any(|l| l.contains(&format!("{a}(")) && l.contains("unsafe_code"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder and (package it uses, kind of dependency) of each.
    type Member<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)]);

    /// A workspace of made-up crates.
    fn workspace(members: &[Member<'_>]) -> Metadata {
        let id = |folder: &str| format!("pkg-{}", folder.rsplit('/').next().unwrap());
        let name = |folder: &str| if folder.starts_with('/') { folder[10..].to_owned() } else { id(folder) };
        let all: Vec<&str> = members.iter().map(|m| m.0).chain(["/registry/mio", "/registry/tokio"]).collect();
        let deps = |folder: &str| members.iter().find(|m| m.0 == folder).map_or(&[][..], |m| m.1);
        serde_json::from_value(serde_json::json!({
            "workspace_root": "/house",
            "workspace_members": members.iter().map(|m| id(m.0)).collect::<Vec<_>>(),
            "packages": all.iter().map(|f| serde_json::json!({
                "id": id(f), "name": name(f), "version": "1.0.0", "license": "MIT",
                "manifest_path": if f.starts_with('/') { format!("{f}/Cargo.toml") } else { format!("/house/{f}/Cargo.toml") },
                "dependencies": deps(f).iter().map(|(n, k)| serde_json::json!({"name": format!("pkg-{n}"), "kind": k})).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "resolve": {"nodes": all.iter().map(|f| serde_json::json!({
                "id": id(f),
                "deps": deps(f).iter().map(|(n, k)| serde_json::json!({"pkg": format!("pkg-{n}"), "dep_kinds": [{"kind": k}]}))
                    .chain((*f == "/registry/mio").then(|| serde_json::json!({"pkg": "pkg-tokio", "dep_kinds": [{"kind": null}]})))
                    .collect::<Vec<_>>(),
            })).collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    #[test]
    fn an_undrawn_edge_fails_and_a_drawn_one_passes() {
        let dev = Some("dev");
        for (from, to, kind, want) in [
            ("crates/plane-nft", "crates/plan", None, None),
            ("crates/plane-nft", "crates/kernel", None, Some("plane-nft uses kernel: no such door")),
            ("crates/plane-nft", "crates/kernel", Some("build"), Some("no such door")),
            ("crates/plane-nft", "crates/kernel", dev, None),
            ("crates/plane-nft", "crates/resolve", dev, Some("plane-nft uses resolve in tests: no such door")),
            ("crates/plane-ebpf", "crates/kernel-api", None, None),
            ("crates/types", "crates/intent", None, Some("types uses intent: no such door")),
            ("crates/intent", "crates/kernel-api", None, Some("no such door")),
            ("crates/source", "crates/apiserver", dev, None),
            ("crates/source", "crates/apiserver", None, Some("no such door")),
            ("crates/fabric", "crates/kernel-fake", dev, None),
            ("crates/fabric", "crates/kernel-fake", None, Some("make it a dev-dependency")),
            ("bins/seaway", "crates/kernel", None, None),
            ("bins/seaway", "crates/kernel-fake", None, Some("make it a dev-dependency")),
            ("bins/seaway", "bins/seaway-cni", None, Some("nobody uses bins")),
            ("crates/lab", "bins/seaway", None, Some("nobody uses bins")),
            ("tests", "crates/kernel-fake", dev, None),
            ("tests/interop", "crates/kernel", None, None),
            ("xtask", "crates/types", None, Some("no such door")),
            ("crates/brand-new", "crates/types", None, Some("no such door")),
        ] {
            let to_name = to.rsplit('/').next().unwrap();
            let found = check(&workspace(&[(from, &[(to_name, kind)]), (to, &[])]));
            match want {
                None => assert!(found.is_empty(), "{from} -> {to}: {found:?}"),
                Some(w) => assert!(found.len() == 1 && found[0].contains(w), "{from} -> {to}: {found:?}, wanted {w}"),
            }
        }
    }

    #[test]
    fn tokio_is_found_through_others_but_not_through_tests() {
        let found = check(&workspace(&[("crates/telemetry", &[("mio", None)])]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("telemetry reaches tokio (pkg-telemetry -> mio -> tokio)"), "{found:?}");
        for (room, kind) in [("crates/telemetry", Some("dev")), ("crates/lab", None), ("bins/seaway", None)] {
            let found = check(&workspace(&[(room, &[("mio", kind)])]));
            assert!(found.iter().all(|f| !f.contains("tokio")), "{room}: {found:?}");
        }
    }

    #[test]
    fn the_house_as_it_stands_has_no_undrawn_edge() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let meta = Metadata::load(root).unwrap();
        assert!(meta.rooms().len() >= 18, "{:?}", meta.rooms().keys());
        assert_eq!(check(&meta), Vec::<String>::new());
        assert_eq!(check_unsafe(root).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn unsafe_needs_its_room_and_lints_are_inherited() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        let lifted = format!("#![{}({})]\n", "allow", "unsafe_code");
        write("crates/kernel/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n");
        write("crates/kernel/src/lib.rs", &lifted);
        write("crates/lab/Cargo.toml", "[package]\nname = \"x\"\n");
        write("crates/lab/src/lib.rs", &lifted);
        write("bins/pause/src/sys.rs", &lifted);
        write("bins/pause/src/main.rs", &lifted);
        let mut found = check_unsafe(dir.path()).unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.remove(0).starts_with("bins/pause/src/main.rs: allows unsafe code"));
        assert!(found[0].starts_with("crates/lab/Cargo.toml: add [lints]"), "{found:?}");
        assert!(found[1].starts_with("crates/lab/src/lib.rs: allows unsafe code"), "{found:?}");
    }
}
