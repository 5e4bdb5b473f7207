//! The Helm chart, out of `deploy/seaway.yaml`: a marked line is a value of the chart, and what stands there is the
//! value's default. So the chart with its default values is the manifest.
//!
//! Marks are comments, one above what it is about:
//!
//!     #@ value PATH: HELP      the value of the key below, whatever it is
//!     #@ image PATH: HELP      the same for an image: repository, tag, digest
//!     #@ joined PATH: HELP     the words after `=` of the argument below, as a list
//!     #@ setting KEY           the value of the key below is ConfigMap key KEY as a string
//!     #@ env PATH: HELP        the rest of this list: variables of the command PATH begins with
//!     #@ data                  the rest of this map: the keys of the ConfigMap
//!     #@ if PATH: HELP         the whole document, while PATH is true
//!     #@ with PATH WORD        the lines below that are comments, while list PATH has WORD

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::settings;

/// A value of the chart.
struct Entry {
    path: String,
    help: String,
    text: Text,
    /// What it may be.
    schema: Value,
}

/// A value as it is in `values.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    /// Behind its key.
    Inline(String),
    /// Below its key, without common indent.
    Block(Vec<String>),
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Inline(text.to_owned())
    }
}

/// The chart's files by name.
pub type Files = BTreeMap<String, String>;

/// All of it. `crds` are the definitions' documents by file name, `version` is that of the program.
pub fn render(manifest: &str, crds: &[(String, String)], version: &str) -> Result<Files> {
    let mut r = Renderer::default();
    let mut documents = Vec::new();
    for d in manifest.split("\n---\n") {
        documents.push(r.document(d)?);
    }
    let mut files = Files::new();
    files.insert("Chart.yaml".into(), format!("{WRITTEN}{}", CHART.replace("@VERSION@", version)));
    files.insert("templates/seaway.yaml".into(), format!("{{{{- /* {BY} */}}}}\n{}\n", documents.join("\n---\n")));
    let mut definitions = format!("{{{{- /* {BY} */}}}}\n");
    for (name, text) in crds {
        ensure!(!text.contains("{{"), "deploy/crds/{name}: {{{{ would be Helm's");
        let path = if name.starts_with("network-attachment") { "crds.networkAttachments" } else { "crds.seaway" };
        definitions.push_str(&format!("{{{{- if .Values.{path} }}}}\n---\n{}\n{{{{- end }}}}\n", text.trim_end()));
    }
    files.insert("templates/crds.yaml".into(), definitions);
    for (path, help) in [
        (
            "crds.seaway",
            "The kinds of Seaway (deploy/crds). They stay when the chart is uninstalled: with them would go the objects.",
        ),
        ("crds.networkAttachments", "The kind NetworkAttachmentDefinition. Off where another program has brought it."),
    ] {
        r.add(path, help, "true".into(), json!({"type": "boolean"}))?;
    }
    files.insert("values.yaml".into(), r.values());
    files.insert("values.schema.json".into(), r.schema());
    Ok(files)
}

const BY: &str = "Written by `cargo xtask manifest` from deploy/seaway.yaml and the table of settings: change those.";
const WRITTEN: &str =
    "# Written by `cargo xtask manifest` from deploy/seaway.yaml and the table of settings: change those.\n";
const CHART: &str = "\
apiVersion: v2
name: seaway
description: The network of a container cluster, its pods, Services and load balancer addresses.
type: application
version: @VERSION@
appVersion: \"@VERSION@\"
kubeVersion: \">=1.30.0-0\"
";

#[derive(Default)]
struct Renderer {
    entries: Vec<Entry>,
    /// The ConfigMap's keys that are set.
    data: BTreeMap<String, String>,
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// A mark's word, path and help.
fn mark(line: &str) -> Option<(&str, &str, &str)> {
    let text = line.trim_start().strip_prefix("#@ ")?;
    let (head, help) = text.split_once(": ").unwrap_or((text, ""));
    let (word, path) = head.split_once(' ').unwrap_or((head, ""));
    Some((word, path, help))
}

/// The type of a value, from the text of its default.
fn kind_of(text: &Text) -> Value {
    json!({"type": match text {
        Text::Block(lines) if lines.first().is_some_and(|l| l.starts_with("- ")) => "array",
        Text::Block(_) => "object",
        Text::Inline(t) if t.starts_with('[') => "array",
        Text::Inline(t) if t.starts_with('{') => "object",
        Text::Inline(t) if t == "true" || t == "false" => "boolean",
        Text::Inline(t) if t.parse::<i64>().is_ok() => "integer",
        Text::Inline(_) => "string",
    }})
}

impl Renderer {
    fn add(&mut self, path: &str, help: &str, text: Text, schema: Value) -> Result<()> {
        if let Some(e) = self.entries.iter().find(|e| e.path == path) {
            ensure!(e.text == text, "deploy/seaway.yaml: {path} has two defaults: {:?} and {text:?}", e.text);
            return Ok(());
        }
        ensure!(!help.is_empty(), "deploy/seaway.yaml: {path} has no help");
        ensure!(path.split('.').count() <= 2, "deploy/seaway.yaml: {path} has more than two parts");
        self.entries.push(Entry { path: path.into(), help: help.into(), text, schema });
        Ok(())
    }

    fn document(&mut self, text: &str) -> Result<String> {
        let lines: Vec<&str> = text.lines().collect();
        let mut out: Vec<String> = Vec::new();
        let mut end = None;
        let mut i = 0;
        while let Some(line) = lines.get(i) {
            i += 1;
            ensure!(!line.contains("{{"), "deploy/seaway.yaml: {line:?}: {{{{ would be Helm's");
            let Some((word, path, help)) = mark(line) else {
                out.push((*line).to_owned());
                continue;
            };
            let next = *lines.get(i).with_context(|| format!("nothing follows {line:?}"))?;
            let pad = " ".repeat(indent(line));
            // Lines of the block below: those deeper than its key.
            let block = |from: usize| lines[from..].iter().take_while(|l| indent(l) > indent(next)).count();
            // The rest of this list or map.
            let rest = |from: usize| lines[from..].iter().take_while(|l| indent(l) >= indent(line)).count();
            match word {
                "value" => {
                    let (key, value) = next.split_once(':').with_context(|| format!("{next:?} has no key"))?;
                    let n = block(i + 1);
                    let value = value.trim();
                    let text = if value.is_empty() {
                        let lines = &lines[i + 1..i + 1 + n];
                        let least = lines.iter().map(|l| indent(l)).min().unwrap_or(0);
                        Text::Block(lines.iter().map(|l| l[least..].to_owned()).collect())
                    } else {
                        Text::Inline(value.to_owned())
                    };
                    let schema = kind_of(&text);
                    if matches!(schema["type"].as_str(), Some("array" | "object")) {
                        out.push(format!("{key}:"));
                        out.push(format!("{{{{- toYaml .Values.{path} | nindent {} }}}}", indent(next) + 2));
                    } else {
                        let quote = if schema["type"] == "string" { " | quote" } else { "" };
                        out.push(format!("{key}: {{{{ .Values.{path}{quote} }}}}"));
                    }
                    self.add(path, help, text, schema)?;
                    i += 1 + n;
                }
                "image" => {
                    let (key, value) = next.split_once(": ").with_context(|| format!("{next:?} has no key"))?;
                    let (repository, tag) = value.rsplit_once(':').with_context(|| format!("{value:?} has no tag"))?;
                    out.push(format!(
                        "{key}: {{{{ with .Values.{path} }}}}{{{{ if .digest }}}}{{{{ .repository }}}}@{{{{ .digest }}}}\
                         {{{{ else }}}}{{{{ .repository }}}}:{{{{ .tag }}}}{{{{ end }}}}{{{{ end }}}}"
                    ));
                    let text = Text::Block(vec![
                        format!("repository: {repository}"),
                        format!("tag: {}", settings::quoted(tag)),
                        "digest: \"\"".into(),
                    ]);
                    let string = || json!({"type": "string"});
                    let parts = json!({"repository": string(), "tag": string(), "digest": string()});
                    self.add(
                        path,
                        help,
                        text,
                        json!({"type": "object", "properties": parts, "additionalProperties": false}),
                    )?;
                    i += 1;
                }
                "joined" => {
                    let (flag, value) = next.split_once('=').with_context(|| format!("{next:?} has no ="))?;
                    out.push(format!("{flag}={{{{ join \",\" .Values.{path} }}}}"));
                    let list = format!("[{}]", value.replace(',', ", "));
                    self.add(path, help, Text::Inline(list), json!({"type": "array", "items": {"type": "string"}}))?;
                    i += 1;
                }
                "setting" => {
                    let (key, _) = next.split_once(": ").with_context(|| format!("{next:?} has no key"))?;
                    out.push(format!("{key}: {{{{ default \"\" .Values.settings.{path} | quote }}}}"));
                    i += 1;
                }
                "env" => {
                    let n = rest(i);
                    let mut set = BTreeMap::new();
                    for l in &lines[i..i + n] {
                        let item = l.trim().strip_prefix("- { name: ").and_then(|l| l.strip_suffix(" }"));
                        let (name, value) = item
                            .and_then(|l| l.split_once(", value: "))
                            .with_context(|| format!("{l:?} is no - {{ name: N, value: V }}"))?;
                        set.insert(name.to_owned(), value.to_owned());
                    }
                    out.push(format!(
                        "{pad}{{{{- range $name, $value := .Values.{path} }}}}\n{pad}- name: {{{{ $name }}}}\n\
                         {pad}  value: {VALUE}\n{pad}{{{{- end }}}}"
                    ));
                    let command = path.split('.').next().unwrap_or_default();
                    let mut text = vec![];
                    let mut properties = Map::new();
                    for (name, s) in settings::variables(command) {
                        let value = set.remove(name);
                        text.extend(settings::row(name, s, value.as_deref(), 0).lines().map(ToOwned::to_owned));
                        properties.insert(name.into(), settings::schema(s));
                    }
                    ensure!(set.is_empty(), "deploy/seaway.yaml: `seaway {command}` reads no {set:?}");
                    self.add(
                        path,
                        help,
                        Text::Block(text),
                        json!({"type": "object", "properties": properties, "additionalProperties": false}),
                    )?;
                    i += n;
                }
                "data" => {
                    let n = rest(i);
                    self.data = data(&lines[i..i + n])?;
                    out.push(format!(
                        "{pad}{{{{- range $key, $value := .Values.settings }}}}\n{pad}{{{{- if ne (toString $value) \"\" }}}}\n\
                         {pad}{{{{ $key }}}}: {VALUE}\n{pad}{{{{- end }}}}\n{pad}{{{{- end }}}}"
                    ));
                    i += n;
                }
                "if" => {
                    ensure!(end.is_none(), "deploy/seaway.yaml: one `if` a document");
                    out.insert(0, format!("{{{{- if .Values.{path} }}}}\n---"));
                    end = Some("{{- end }}");
                    if !help.is_empty() || self.entries.iter().all(|e| e.path != path) {
                        self.add(path, help, "true".into(), json!({"type": "boolean"}))?;
                    }
                }
                "with" => {
                    let (path, word) = path.split_once(' ').with_context(|| format!("{line:?} names no word"))?;
                    out.push(format!("{pad}{{{{- if has {word:?} .Values.{path} }}}}"));
                    let comment = format!("{pad}# ");
                    while let Some(l) = lines.get(i).and_then(|l| l.strip_prefix(&comment)) {
                        out.push(format!("{pad}{l}"));
                        i += 1;
                    }
                    out.push(format!("{pad}{{{{- end }}}}"));
                }
                other => bail!("deploy/seaway.yaml: {line:?}: {other:?} is no mark"),
            }
        }
        out.extend(end.map(ToOwned::to_owned));
        Ok(out.join("\n"))
    }

    /// `values.yaml`: the settings first.
    fn values(&self) -> String {
        let mut out = format!(
            "{WRITTEN}\n# ConfigMap kube-system/seaway, the same on every node: docs/settings.md. What is \"\" or left out is not set.\nsettings:\n"
        );
        for (key, s) in settings::keys() {
            out.push_str(&settings::row(key, s, self.data.get(key).map(String::as_str), 2));
        }
        let mut done: Vec<&str> = Vec::new();
        for e in &self.entries {
            let group = e.path.split('.').next().unwrap_or_default();
            if done.contains(&group) {
                continue;
            }
            done.push(group);
            out.push('\n');
            let of_group: Vec<_> = self.entries.iter().filter(|e| e.path.split('.').next() == Some(group)).collect();
            if of_group.iter().any(|e| e.path.contains('.')) {
                out.push_str(&format!("{group}:\n"));
            }
            for e in of_group {
                let (key, deep) = e.path.split_once('.').map_or((e.path.as_str(), 0), |(_, k)| (k, 2));
                let pad = " ".repeat(deep);
                out.push_str(&settings::comment(&e.help, deep));
                match &e.text {
                    Text::Inline(one) => out.push_str(&format!("{pad}{key}: {one}\n")),
                    Text::Block(many) => {
                        out.push_str(&format!("{pad}{key}:\n"));
                        many.iter().for_each(|l| out.push_str(&format!("{pad}  {l}\n")));
                    }
                }
            }
        }
        out
    }

    /// `values.schema.json`: a word that is no value of the chart's is refused at the install.
    fn schema(&self) -> String {
        let keys: Map<String, Value> = settings::keys().map(|(k, s)| (k.to_owned(), settings::schema(s))).collect();
        let closed = |properties: Map<String, Value>| json!({"type": "object", "properties": properties, "additionalProperties": false});
        let mut top = Map::new();
        top.insert("settings".into(), closed(keys));
        // What a chart that has this one in it gives to all of its charts.
        top.insert("global".into(), json!({"type": "object"}));
        for e in &self.entries {
            let mut leaf = e.schema.clone();
            leaf["description"] = e.help.clone().into();
            match e.path.split_once('.') {
                None => drop(top.insert(e.path.clone(), leaf)),
                Some((group, key)) => {
                    top.entry(group).or_insert_with(|| closed(Map::new()))["properties"][key] = leaf;
                }
            }
        }
        let mut whole = closed(top);
        whole["$schema"] = "http://json-schema.org/draft-07/schema#".into();
        whole["title"] = "Values of the Seaway chart".into();
        format!("{whole:#}\n")
    }
}

/// A value as the ConfigMap and the environment take it: numbers without exponents, lists with commas, objects as JSON.
const VALUE: &str = "{{ if kindIs \"float64\" $value }}{{ int64 $value | quote }}{{ else if kindIs \"slice\" $value }}\
    {{ join \",\" $value | quote }}{{ else if kindIs \"map\" $value }}{{ toJson $value | quote }}{{ else }}\
    {{ $value | toString | quote }}{{ end }}";

/// The keys that are set, and their values as they are written.
fn data(lines: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut set = BTreeMap::new();
    for l in lines.iter().filter(|l| !l.trim_start().starts_with('#')) {
        let (key, value) = l.trim().split_once(": ").with_context(|| format!("{l:?} is no key and value"))?;
        ensure!(settings::keys().any(|(k, _)| k == key), "deploy/seaway.yaml: {key} is in no row of the table");
        set.insert(key.to_owned(), value.to_owned());
    }
    Ok(set)
}

/// The manifest with the ConfigMap's comments as the table has them now; what is set stays.
pub fn documented(manifest: &str) -> Result<String> {
    let mut out = String::new();
    let mut lines = manifest.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        if mark(line).is_some_and(|(word, ..)| word == "data") {
            let mut old = Vec::new();
            while let Some(l) = lines.next_if(|l| indent(l) >= indent(line)) {
                old.push(l);
            }
            let set = data(&old)?;
            for (key, s) in settings::keys() {
                out.push_str(&settings::row(key, s, set.get(key).map(String::as_str), indent(line)));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MANIFEST: &str = "\
kind: ConfigMap
data:
  #@ data
  # of before
  vni: \"7\"
---
#@ if b.enabled: Whether.
kind: B
spec:
  #@ value b.count: How many.
  count: 2
  #@ value b.tolerations: Which.
  tolerations: [{ operator: Exists }]
  #@ value b.resources: What.
  resources:
    requests:
      cpu: 1
  #@ image image: Which.
  image: host:1/name:0.1
  args:
    #@ joined b.only: Parts.
    - --only=x,y
  env:
    #@ env controller.env: More.
    - { name: SEAWAY_LOG_FORMAT, value: json }
rules:
  #@ with b.only y
  # - a
  #   b
";

    #[test]
    fn a_marked_line_is_a_value() {
        let files = render(MANIFEST, &[("a.yaml".into(), "kind: A\n".into())], "0.1").unwrap();
        let t = &files["templates/seaway.yaml"];
        for want in [
            "count: {{ .Values.b.count }}\n",
            "  tolerations:\n{{- toYaml .Values.b.tolerations | nindent 4 }}\n",
            "  resources:\n{{- toYaml .Values.b.resources | nindent 4 }}\n  image: ",
            "    - --only={{ join \",\" .Values.b.only }}\n",
            "  {{- if has \"y\" .Values.b.only }}\n  - a\n    b\n  {{- end }}\n{{- end }}\n",
        ] {
            assert!(t.contains(want), "{want}\n{t}");
        }
        assert!(!t.contains("vni") && !t.contains("json }"), "{t}");
        let v = &files["values.yaml"];
        for want in [
            "\n  vni: \"7\"\n",
            "\n  # backend: \"vxlan\"\n",
            "  # How many.\n  count: 2\n",
            "  tolerations: [{ operator: Exists }]\n",
            "  resources:\n    requests:\n      cpu: 1\n",
            "image:\n  repository: host:1/name\n  tag: \"0.1\"\n",
            "  only: [x, y]\n",
            "    SEAWAY_LOG_FORMAT: json\n",
            "  enabled: true\n",
        ] {
            assert!(v.contains(want), "{want}\n{v}");
        }
        let s: Value = serde_json::from_str(&files["values.schema.json"]).unwrap();
        assert_eq!(s["properties"]["b"]["properties"]["count"]["type"], "integer");
        assert_eq!(s["properties"]["settings"]["additionalProperties"], false);
        assert!(files["templates/crds.yaml"].contains("{{- if .Values.crds.seaway }}\n---\nkind: A\n{{- end }}\n"));
    }

    #[test]
    fn what_is_set_stays_and_comments_are_the_tables() {
        let new = documented(MANIFEST).unwrap();
        assert!(new.contains("\n  vni: \"7\"\n") && !new.contains("of before"), "{new}");
        assert_eq!(documented(&new).unwrap(), new);
        assert_eq!(settings::keys().filter(|(k, _)| new.contains(&format!("{k}: "))).count(), settings::keys().count());
        let e = documented("  #@ data\n  nosuch: 1\n").unwrap_err().to_string();
        assert!(e.contains("nosuch"), "{e}");
    }

    #[test]
    fn what_cannot_be_rendered_is_named() {
        for (text, word) in [
            ("#@ vaule a: B.\na: b\n", "vaule"),
            ("#@ value a\na: b\n", "a has no help"),
            ("a: {{ b }}\n", "Helm"),
            ("#@ value a: B.\na: b\n---\n#@ value a: B.\na: c\n", "a has two defaults"),
        ] {
            let e = format!("{:#}", render(text, &[], "1").unwrap_err());
            assert!(e.contains(word), "{text}: {e}");
        }
    }
}
