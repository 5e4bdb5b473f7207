//! A folder of manifests, read offline into the same snapshot that a watch fills.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use resolve::{ClusterSnapshot, Event, Key, Kind, apply, parse_as};
use serde::Deserialize;
use serde_json::Value;

/// Files beyond this are refused: no manifest is so large, and a list in memory is larger yet.
const MAX_FILE: u64 = 16 << 20;
/// Objects beyond these are refused.
const MAX_OBJECTS: usize = 200_000;

/// Why a folder cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder or file cannot be opened.
    #[error("{path}: {source}: give a folder of .yaml, .yml or .json manifests, or one such file", path = path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is nothing to read.
    #[error("{path}: no .yaml, .yml or .json file in it", path = .0.display())]
    Empty(PathBuf),
}

/// Something wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileProblem {
    /// The file.
    pub file: PathBuf,
    /// Which document of it, from 1.
    pub document: usize,
    /// The object: `Service/default/web`; empty when the document is none.
    pub object: String,
    /// The field of it.
    pub field: String,
    /// What is wrong, and what to do.
    pub why: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {}: ", self.file.display(), self.document)?;
        for part in [&self.object, &self.field].into_iter().filter(|p| !p.is_empty()) {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.why)
    }
}

/// What was read.
#[derive(Debug, Default)]
pub struct Folder {
    /// The objects of the kinds that Seaway knows, slim. Their own problems are in `problems` below, and in the
    /// snapshot as well.
    pub snapshot: ClusterSnapshot,
    /// Every object with `apiVersion` and `kind`, as it stands in the files, lists unfolded, in order.
    pub objects: Vec<Value>,
    /// What is wrong, in the order of the files.
    pub problems: Vec<FileProblem>,
    /// Objects of kinds that Seaway does not read, as `apiVersion/kind name`.
    pub ignored: Vec<String>,
}

/// Reads every `.yaml`, `.yml` and `.json` file of a folder (not of folders within), by name; or one file.
///
/// # Errors
/// When the folder or a file cannot be opened, or there is none. What is wrong inside a file is no error: it is in
/// [`Folder::problems`], and the rest is read.
pub fn read_dir(path: &Path) -> Result<Folder, FolderError> {
    let open = |path: &Path, source| FolderError::Open { path: path.into(), source };
    let meta = std::fs::metadata(path).map_err(|e| open(path, e))?;
    let mut files = Vec::new();
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).map_err(|e| open(path, e))? {
            let file = entry.map_err(|e| open(path, e))?.path();
            let wanted =
                file.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"));
            if wanted && file.is_file() {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(FolderError::Empty(path.into()));
        }
    } else {
        files.push(path.into());
    }
    let mut reader = Reader::default();
    for file in files {
        let size = std::fs::metadata(&file).map_err(|e| open(&file, e))?.len();
        if size > MAX_FILE {
            reader.complain(&file, 1, "", "", format!("the file has {size} bytes, more than {MAX_FILE}: split it"));
            continue;
        }
        match std::fs::read(&file).map_err(|e| open(&file, e)).map(String::from_utf8)? {
            Ok(text) => reader.file(&file, &text),
            Err(e) => reader.complain(&file, 1, "", "", format!("not UTF-8 text ({e}): save it as UTF-8")),
        }
    }
    Ok(reader.folder)
}

/// Reads manifests from text, as [`read_dir`] does from a file; `name` stands for the file in problems.
#[must_use]
pub fn read_text(name: &Path, text: &str) -> Folder {
    let mut reader = Reader::default();
    reader.file(name, text);
    reader.folder
}

#[derive(Default)]
struct Reader {
    folder: Folder,
    seen: BTreeMap<Key, (PathBuf, usize)>,
}

impl Reader {
    fn complain(&mut self, file: &Path, document: usize, object: &str, field: &str, why: String) {
        let (object, field) = (object.into(), field.into());
        self.folder.problems.push(FileProblem { file: file.into(), document, object, field, why });
    }

    /// JSON is YAML too: one reader for both.
    fn file(&mut self, file: &Path, text: &str) {
        for (i, doc) in serde_yaml::Deserializer::from_str(text).enumerate() {
            match Value::deserialize(doc) {
                Ok(Value::Null) => {} // an empty document, as between two lines of ---
                Ok(v) => self.document(file, i + 1, v),
                Err(e) => {
                    self.complain(
                        file,
                        i + 1,
                        "",
                        "",
                        format!("no YAML or JSON: {e}; the rest of the file is not read"),
                    );
                    return;
                }
            }
        }
    }

    fn document(&mut self, file: &Path, n: usize, mut value: Value) {
        if self.folder.objects.len() >= MAX_OBJECTS {
            return self.complain(file, n, "", "", format!("more than {MAX_OBJECTS} objects: the rest is not read"));
        }
        if !value.is_object() {
            return self.complain(file, n, "", "", "a manifest is an object with apiVersion and kind".into());
        }
        let text = |k: &str| value.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        for (key, have) in [("apiVersion", &api_version), ("kind", &kind)] {
            if have.is_empty() {
                return self.complain(
                    file,
                    n,
                    "",
                    key,
                    "is missing: every manifest names its apiVersion and kind".into(),
                );
            }
        }
        if kind.ends_with("List") && value.get("items").is_some_and(Value::is_array) {
            // The items of a typed list (PodList) need not say what they are.
            let item_kind = kind.strip_suffix("List").filter(|k| !k.is_empty()).map(str::to_owned);
            if let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) {
                for mut item in items {
                    if let (Some(k), Value::Object(m)) = (&item_kind, &mut item) {
                        m.entry("kind").or_insert_with(|| k.as_str().into());
                        m.entry("apiVersion").or_insert_with(|| api_version.as_str().into());
                    }
                    self.document(file, n, item);
                }
            }
            return;
        }
        match Kind::of(&api_version, &kind) {
            Some(kind) => self.object(file, n, kind, &value),
            None => {
                let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                self.folder.ignored.push(format!("{api_version}/{kind} {name}"));
            }
        }
        self.folder.objects.push(value);
    }

    fn object(&mut self, file: &Path, n: usize, kind: Kind, value: &Value) {
        let parsed = parse_as(kind, value);
        if let Some((first, m)) = self.seen.get(&parsed.key) {
            let why = format!("is already in {}, document {m}: remove one", first.display());
            return self.complain(file, n, &parsed.key.to_string(), "metadata.name", why);
        }
        self.seen.insert(parsed.key.clone(), (file.into(), n));
        for p in &parsed.problems {
            self.complain(file, n, &p.object, &p.field, p.why.clone());
        }
        apply(&mut self.folder.snapshot, Event::Put(parsed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Folder {
        read_text(Path::new("a.yaml"), text)
    }

    #[test]
    fn documents_lists_and_foreign_kinds() {
        let f = read(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: web, namespace: shop}\n  spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}\n- {apiVersion: batch/v1, kind: Job, metadata: {name: once}}\n---\napiVersion: v1\nkind: NodeList\nitems:\n- metadata: {name: node1}\n  spec: {podCIDRs: [10.244.1.0/24]}\n",
        );
        assert_eq!(f.problems, []);
        assert_eq!(f.ignored, ["batch/v1/Job once"]);
        assert_eq!(f.objects.len(), 4);
        assert_eq!(f.snapshot.namespaces.len(), 1);
        let svc = f.snapshot.services.values().next().unwrap();
        assert_eq!(svc.ports[0].target, resolve::TargetPort::Name("http".into()));
        assert_eq!(f.snapshot.nodes.values().next().unwrap().pod_cidrs[0].to_string(), "10.244.1.0/24");
    }

    /// Bad text, and what the one problem says: document, object, field, words.
    #[test]
    fn bad_manifests_name_file_document_object_and_field() {
        for (text, want) in [
            ("a: [", "a.yaml: document 1: no YAML or JSON"),
            ("--- 7", "a.yaml: document 1: a manifest is an object"),
            ("kind: Pod", "document 1: apiVersion: is missing"),
            ("---\n---\napiVersion: v1", "document 2: kind: is missing"),
            ("apiVersion: v1\nkind: Pod", "Pod/default/: metadata.name: every object needs a name"),
            (
                "apiVersion: v1\nkind: Node\nmetadata: {name: N}",
                "Node/N: metadata.name: \"N\" is no node name: lower-case",
            ),
            (
                "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: {podCIDRs: [10.0.0.1/24]}",
                "Node/n: spec.podCIDRs[0]: \"10.0.0.1/24\" has host bits set: the range that holds this address is 10.0.0.0/24",
            ),
            (
                "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.300}]}",
                "Node/n: status.addresses[0].address: \"10.0.0.300\" is no IP address",
            ),
            (
                "apiVersion: v1\nkind: Node\nmetadata: {name: n, annotations: {seaway.io/vxlan: '{}'}}",
                "Node/n: metadata.annotations.seaway.io/vxlan: not what an agent writes (missing field `vni`",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: Magic}",
                "Service/default/s: spec.type: \"Magic\" is no Service type: write ClusterIP, NodePort, LoadBalancer or ExternalName",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 70000}]}",
                "Service/default/s: spec.ports[0].port: 70000: must be a whole number from 1 to 65535",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80, protocol: ICMP}]}",
                "spec.ports[0].protocol: \"ICMP\" is no transport protocol: use TCP, UDP or SCTP",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: 80}",
                "Service/default/s: spec.ports: must be a list, is a number",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {sessionAffinity: Cookie}",
                "spec.sessionAffinity: \"Cookie\": write None or ClientIP",
            ),
            (
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPX",
                "EndpointSlice/default/s: addressType: \"IPX\": write IPv4, IPv6 or FQDN",
            ),
            (
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {selector: {matchLabels: {a: b}}, template: {}}",
                "Deployment/default/d: spec.template.metadata.labels: must have every label of spec.selector.matchLabels",
            ),
            (
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: seaway, namespace: kube-system}\ndata: {bakend: vxlan}",
                "ConfigMap/kube-system/seaway: data.bakend: no such setting: remove it, or correct it to addressesOutsideIPAM",
            ),
            (
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: seaway, namespace: kube-system}\ndata: {clusterCIDR: 10.0.0.0}",
                "ConfigMap/kube-system/seaway: data.clusterCIDR: \"10.0.0.0\" has no prefix length: write it as ADDRESS/LENGTH",
            ),
            (
                "{apiVersion: v1, kind: Pod, metadata: {name: p}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: p}}",
                "document 2: Pod/default/p: metadata.name: is already in a.yaml, document 1: remove one",
            ),
        ] {
            let f = read(text);
            assert_eq!(f.problems.len(), 1, "{text}: {:?}", f.problems);
            assert!(f.problems[0].to_string().contains(want), "{text}\nsays {}\nwant {want}", f.problems[0]);
        }
    }

    #[test]
    fn one_bad_object_does_not_hide_the_next() {
        let f = read("kind: Pod\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: a}}");
        assert_eq!((f.problems.len(), f.snapshot.namespaces.len()), (1, 1));
    }

    #[test]
    fn folders() {
        let dir = tempfile::tempdir().unwrap();
        let e = read_dir(dir.path()).unwrap_err().to_string();
        assert!(e.contains("no .yaml, .yml or .json file"), "{e}");
        let e = read_dir(&dir.path().join("none")).unwrap_err().to_string();
        assert!(e.contains("none: No such file"), "{e}");
        std::fs::write(dir.path().join("b.json"), r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}"#)
            .unwrap();
        std::fs::write(dir.path().join("a.yml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}").unwrap();
        std::fs::write(dir.path().join("note.txt"), "not read").unwrap();
        std::fs::write(dir.path().join("c.yaml"), [0xff, 0xfe]).unwrap();
        let f = read_dir(dir.path()).unwrap();
        assert_eq!(f.snapshot.namespaces.keys().map(|k| &**k).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(f.problems.len(), 1);
        assert!(f.problems[0].why.contains("not UTF-8"), "{}", f.problems[0]);
    }

    #[test]
    fn a_yaml_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 9].join(",");
            text += &format!("a{i}: &a{i} [{refs}]\n");
        }
        let f = read(&text);
        assert_eq!((f.problems.len(), f.objects.len()), (1, 0), "{:?}", f.problems);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-zA-Z0-9:{}\\[\\], \n-]{0,200}") { let _ = read(&text); }
    }
}
