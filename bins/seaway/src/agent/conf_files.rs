//! The node's CNI configuration files: what a NetworkAttachmentDefinition without configuration speaks of.

use std::collections::BTreeMap;
use std::path::Path;

use resolve::networks::{Config, config};

use super::conflist;

/// Files that are looked at, and bytes of one, at most.
const MOST: usize = 256;
const LARGEST: u64 = 1 << 20;

/// Every configuration in `dir` by the name it gives its network, or why it cannot be used. Of two files with one name
/// the first by file name counts, as everywhere in CNI. Our own is none of them: the cluster's network has no further
/// interface.
pub fn read(dir: &Path) -> BTreeMap<Box<str>, Result<Config, String>> {
    let mut files: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.retain(|p| {
        let known = p.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "conf" | "conflist" | "json"));
        known && p.file_name().is_some_and(|n| n != conflist::FILE)
    });
    files.sort();
    files.truncate(MOST);
    let mut out = BTreeMap::new();
    for path in files {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
        let (name, found) = match text(&path) {
            Ok(text) => match config(&text, &stem) {
                Ok(c) => (c.name.clone(), Ok(c)),
                Err((field, why)) => {
                    let place = if field.is_empty() { String::new() } else { format!("{field}: ") };
                    // What it calls itself, as far as that can be read, is what people look for.
                    let said = serde_json::from_str::<serde_json::Value>(&text).ok();
                    let said = said.and_then(|v| v["name"].as_str().map(str::to_owned)).unwrap_or(stem);
                    (said.into(), Err(format!("{}: {place}{why}", path.display())))
                }
            },
            Err(why) => (stem.into(), Err(format!("{}: {why}", path.display()))),
        };
        out.entry(name).or_insert(found);
    }
    out
}

fn text(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > LARGEST {
        return Err(format!("has {size} bytes: at most {LARGEST} are read"));
    }
    std::fs::read_to_string(path).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_by_the_name_of_their_network() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(conflist::FILE, r#"{"name": "seaway", "type": "seaway-cni"}"#);
        write("20-a.conf", r#"{"cniVersion": "1.0.0", "name": "one", "type": "bridge"}"#);
        write("30-b.conflist", r#"{"cniVersion": "1.0.0", "name": "one", "plugins": [{"type": "macvlan"}]}"#);
        write("40-c.json", r#"{"cniVersion": "1.0.0", "type": "ptp"}"#);
        write("50-d.conf", r#"{"name": "bad", "type": 5}"#);
        write("60-e.conf", "{");
        write("70-f.txt", "not looked at");
        let all = read(dir.path());
        let names: Vec<&str> = all.keys().map(|k| &**k).collect();
        assert_eq!(names, ["40-c", "60-e", "bad", "one"]);
        assert_eq!(all["one"].as_ref().unwrap().plugins[0]["type"], "bridge", "the first by file name");
        assert!(all["bad"].as_ref().unwrap_err().contains("50-d.conf: type"), "{:?}", all["bad"]);
        assert!(all["60-e"].as_ref().unwrap_err().contains("is no JSON"), "{:?}", all["60-e"]);
        assert!(read(&dir.path().join("none")).is_empty());
    }
}
