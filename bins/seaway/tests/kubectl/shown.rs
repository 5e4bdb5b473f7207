//! Every kubectl command that a page, an example or a manifest shows, as it stands there: found in the texts, run in a lab.
//! A command that is written into a page tomorrow is run tomorrow.

use std::collections::BTreeMap;
use std::fs;

use super::*;

/// Shown for a real cluster alone: what does not go in a lab, why, and the script that runs it.
const ELSEWHERE: &[(&str, &str, &str)] =
    &[("apply -f deploy/seaway.yaml", "the built-in server has no roles", "tests/k8s/seaway")];

/// What words in capitals stand for.
const PLACEHOLDERS: &[(&str, &str)] = &[("NODE", "node1"), ("KIND", "pods")];

/// What the pages speak of, beside the demo: what `deploy/seaway.yaml` makes on a cluster, and kube-proxy.
const THINGS: &str = r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: seaway-agent, namespace: kube-system}
spec:
  selector: {matchLabels: {app: seaway-agent}}
  template:
    metadata: {labels: {app: seaway-agent}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: agent, image: x}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: seaway-controller, namespace: kube-system}
spec:
  selector: {matchLabels: {app: seaway-controller}}
  template:
    metadata: {labels: {app: seaway-controller}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: controller, image: x}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system}
spec:
  selector: {matchLabels: {app: kube-proxy}}
  template:
    metadata: {labels: {app: kube-proxy}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: proxy, image: x}]}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: seaway-controller, namespace: kube-system}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: x}]}
";

/// A command as a page shows it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Shown {
    /// Page and line.
    at: String,
    /// What is after `kubectl`.
    command: String,
    /// Its here document.
    input: String,
    /// What the page shows of its output.
    output: Vec<String>,
}

/// The words of kubectl that are followed by what they are done to; in a sentence they may stand alone.
const VERBS: &[&str] = &[
    "annotate",
    "api-resources",
    "apply",
    "attach",
    "auth",
    "cp",
    "create",
    "delete",
    "describe",
    "diff",
    "drain",
    "edit",
    "events",
    "exec",
    "explain",
    "get",
    "label",
    "logs",
    "patch",
    "port-forward",
    "replace",
    "rollout",
    "run",
    "scale",
    "set",
    "taint",
    "top",
    "wait",
];

/// The command in what follows `kubectl `, without the flag that says which cluster; none in a sentence.
fn command(text: &str) -> Option<String> {
    let text = text.split("  #").next().unwrap_or_default();
    let text = text.split(" <<").next().unwrap_or_default();
    let mut words: Vec<&str> = text.trim().trim_end_matches(['.', ',', ':', ';']).split(' ').collect();
    if words.first() == Some(&"--kubeconfig") {
        words.drain(..words.len().min(2));
    }
    let verb = match words.as_slice() {
        ["-n", _, verb, ..] | [verb, ..] => verb,
        [] => return None,
    };
    VERBS.contains(verb).then(|| words.join(" "))
}

/// What follows `kubectl ` where a line has it as a word of its own, or as a file's name.
fn after(line: &str) -> Option<&str> {
    let at = line.find("kubectl ")?;
    let before = line.get(..at)?.chars().next_back();
    before.is_none_or(|c| " /`(\"".contains(c)).then(|| line.get(at + "kubectl ".len()..)).flatten()
}

/// The commands of a page: in blocks by lines, in sentences between backticks.
fn commands(name: &str, text: &str) -> Vec<Shown> {
    let (mut found, mut prose) = (Vec::new(), String::new());
    let (page, mut fenced) = (name.ends_with(".md"), false);
    let lines: Vec<&str> = text.lines().collect();
    let mut i = 0;
    while let Some(line) = lines.get(i) {
        let at = format!("{name}:{}", i + 1);
        i += 1;
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if page && !fenced && !line.starts_with("    ") {
            prose.push_str(line);
            prose.push(' ');
            continue;
        }
        let mut whole = (*line).to_owned();
        while let (true, Some(more)) = (whole.ends_with('\\'), lines.get(i)) {
            whole.truncate(whole.trim_end_matches(['\\', ' ']).len());
            whole = format!("{whole} {}", more.trim());
            i += 1;
        }
        let Some(command) = after(&whole).and_then(command) else { continue };
        let mut shown = Shown { at, command, ..Shown::default() };
        if let Some((_, end)) = whole.split_once(" <<") {
            let end = end.trim().trim_matches('\'');
            while let Some(l) = lines.get(i).filter(|l| **l != end) {
                shown.input += &format!("{l}\n");
                i += 1;
            }
            i += 1;
        }
        if line.starts_with("$ ") {
            let output = lines.iter().skip(i).take_while(|l| !l.starts_with("$ ") && !l.starts_with("```"));
            shown.output = output.map(|l| (*l).to_owned()).collect();
        }
        found.push(shown);
    }
    for span in prose.split("`kubectl ").skip(1).filter_map(|s| s.split('`').next()) {
        let command = command(span);
        found.extend(command.map(|command| Shown { at: name.into(), command, ..Shown::default() }));
    }
    found
}

/// Every text that a person may take a command from.
fn texts(root: &Path) -> BTreeMap<String, String> {
    let mut files = vec![root.join("README.md")];
    let mut dirs = vec![root.join("docs"), root.join("examples"), root.join("deploy")];
    while let Some(d) = dirs.pop() {
        for e in fs::read_dir(&d).unwrap().map(|e| e.unwrap().path()) {
            if e.is_dir() { dirs.push(e) } else { files.push(e) }
        }
    }
    let text = |f: PathBuf| {
        let name = f.strip_prefix(root).unwrap().display().to_string();
        fs::read_to_string(&f).ok().map(|t| (name, t))
    };
    files.into_iter().filter_map(text).collect()
}

/// A line with its columns one blank apart.
fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn commands_are_found_where_people_read_them() {
    let page = "As `kubectl get` prints. kubectl get on, as `kubectl -n a describe\npod b` says: `seaway`.\n\
        ```\n$ kubectl --kubeconfig /x api-resources --verbs=list   # all\nNAME\nkubectl --kubeconfig /x\n\
        tests/kubectl get nodes\n$ kubectl create -f - <<'X'\na: 1\nX\nsaid\n```\n\n    \
        kubectl patch x \\\n      -p '{}'   # once\n";
    let found = commands("p.md", page);
    let all: Vec<&str> = found.iter().map(|s| s.command.as_str()).collect();
    assert_eq!(
        all,
        ["api-resources --verbs=list", "get nodes", "create -f -", "patch x -p '{}'", "get", "-n a describe pod b"]
    );
    assert_eq!((found[2].input.as_str(), &found[2].output), ("a: 1\n", &vec!["said".to_owned()]));
    let manifest = commands("m.yaml", "# Told at the object: kubectl describe.\n#   kubectl apply -f x\n");
    assert_eq!(manifest.iter().map(|s| s.command.as_str()).collect::<Vec<_>>(), ["describe", "apply -f x"]);
}

#[test]
fn every_command_that_a_page_shows_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut all: BTreeMap<String, Shown> = BTreeMap::new();
    for s in texts(&root).iter().flat_map(|(name, text)| commands(name, text)) {
        let known = all.entry(s.command.clone()).or_insert_with(|| s.clone());
        if known.output.is_empty() {
            *known = s;
        }
    }
    assert!(all.len() > 25, "{all:#?}");
    // Said without what it is done to, in a sentence: there is a command that begins so.
    let begins = |s: &Shown| {
        let of = |c: &str| format!("{c} ").contains(&format!("{} ", s.command)) && c != s.command;
        all.keys().any(|c| of(c))
    };
    let all: Vec<Shown> = all.values().filter(|s| !begins(s)).cloned().collect();
    let alone = all.iter().find(|s| VERBS.contains(&s.command.as_str()));
    assert_eq!(alone, None, "no page shows what it is done to, so nothing can be run");
    for (command, why, script) in ELSEWHERE {
        let file = command.split(' ').next_back().unwrap();
        assert!(fs::read_to_string(root.join(script)).unwrap().contains(file), "{script} runs {command}: {why}");
        assert!(all.iter().any(|s| s.command == *command), "no page shows {command}");
    }

    let shop = root.join("examples/shop");
    let k = Kube::up(&[shop.to_str().unwrap(), "--nodes", "2"]);
    k.file("things.yaml", THINGS);
    k.ok("apply -f things.yaml");
    k.ok("wait --for=condition=Ready pod/web --timeout=60s");
    k.ok("-n shop rollout status deploy/web --timeout=60s");
    k.until("-n shop logs deploy/web -c visitor", "pod=");
    for s in all.iter().filter(|s| ELSEWHERE.iter().all(|(c, ..)| *c != s.command)) {
        shown(&k, s);
    }
}

/// Runs one, and looks whether what it prints is what the page shows, where that is the same at any time.
fn shown(k: &Kube, s: &Shown) {
    let mut words: Vec<&str> = s.command.split(' ').collect();
    for w in &mut words {
        *w = PLACEHOLDERS.iter().find(|(name, _)| *name == *w).map_or(*w, |(_, stands_for)| *stands_for);
        let placeholder = w.len() > 2 && w.bytes().all(|b| b.is_ascii_uppercase());
        assert!(!placeholder, "{}: say in PLACEHOLDERS what {w} stands for", s.at);
    }
    let line = words.join(" ");
    if words.contains(&"port-forward") {
        // Any local port: the one that is shown may be another's here.
        let (words, ports) = line.rsplit_once(' ').unwrap();
        let port = ports.rsplit(':').next().unwrap();
        k.follow(&format!("{words} :{port}"), &[]).line("Forwarding from 127.0.0.1:");
        return;
    }
    // By a shell, as a person's.
    let mut c = k.command(&[]);
    let envs: Vec<_> = c.get_envs().map(|(k, v)| (k.to_owned(), v.unwrap().to_owned())).collect();
    k.file("input", &s.input);
    c = Command::new("sh");
    c.args(["-c", &format!("{} {line} <input", k.program.display())]).envs(envs).current_dir(k.home());
    let o = common::run(&mut c);
    let (out, err) = (text(&o.stdout), text(&o.stderr));
    // Some are shown for what they refuse.
    if s.output.first().is_some_and(|l| l.contains("invalid")) {
        assert!(!o.status.success(), "{}: kubectl {line}: {out}{err}", s.at);
        assert_eq!(err.lines().map(str::trim_end).collect::<Vec<_>>(), s.output, "{}: kubectl {line}", s.at);
        return;
    }
    assert!(o.status.success(), "{}: kubectl {line}: {}\n{out}{err}", s.at, o.status);
    if words.contains(&"explain") {
        let full = |l: &&str| !l.trim().is_empty();
        let (have, page) = (out.lines().filter(full), s.output.iter().map(String::as_str).filter(full));
        assert_eq!(have.collect::<Vec<_>>(), page.collect::<Vec<_>>(), "{}: kubectl {line}", s.at);
    }
    let columns = if words.contains(&"api-resources") { usize::MAX } else { 1 };
    if words.contains(&"api-resources") || words.contains(&"crd") {
        let of = |l: &str| squeezed(l).split(' ').take(columns).collect::<Vec<_>>().join(" ");
        let have: Vec<String> = out.lines().map(of).collect();
        for l in s.output.iter().map(|l| of(l)) {
            assert!(have.contains(&l), "{}: kubectl {line} does not print {l:?}, but\n{out}", s.at);
        }
    }
}
