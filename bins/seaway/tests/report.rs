//! A support bundle says what is needed and no secret.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::path::Path;
use std::process::Command;

use common::{Lab, SEAWAY, ok};

/// Planted wherever a bundle looks.
const SECRETS: [&str; 5] = [
    "hunter2hunter2",
    "s3cr3t-of-a-flag",
    "Zk3kQ9vT2mB7xR4wL8nP6sD1fH5jA0cE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
    "MHcCAQEEIPlantedKeyOfThisTest",
];

fn texts(dir: &Path, out: &mut Vec<(String, String)>) {
    for e in std::fs::read_dir(dir).unwrap().flatten() {
        if e.path().is_dir() {
            texts(&e.path(), out);
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(e.path()).unwrap()).into_owned();
            out.push((e.path().strip_prefix(dir.parent().unwrap()).unwrap_or(&e.path()).display().to_string(), text));
        }
    }
}

#[test]
fn a_bundle_of_a_node_has_what_is_needed_and_no_secret() {
    let lab = Lab::up(&["--nodes", "2"]);
    let dir = tempfile::tempdir().unwrap();
    let [password, flag, random, token, key] = SECRETS;
    // In the API: a Secret, and an annotation of the node's.
    let secret = format!(
        r#"{{"apiVersion": "v1", "kind": "Secret", "metadata": {{"name": "planted"}}, "stringData": {{"password": "{password}"}}}}"#
    );
    lab.api("POST", "/api/v1/namespaces/default/secrets", Some(("application/json", &secret)));
    let note = format!(r#"{{"metadata": {{"annotations": {{"example.com/note": "{random}"}}}}}}"#);
    lab.patch("/api/v1/nodes/node1", &note);
    // In a CNI configuration, and beside it.
    let conf = dir.path().join("net.d");
    std::fs::create_dir(&conf).unwrap();
    let text = format!(
        r#"{{"cniVersion": "1.0.0", "name": "x", "plugins": [{{"type": "other", "policy": {{"k8s_auth_token": "{password}"}},
            "args": ["--token", "{flag}"], "note": "{random}"}}]}}"#
    );
    std::fs::write(conf.join("20-x.conflist"), text).unwrap();
    std::fs::write(conf.join("x-kubeconfig"), format!("users: [{{token: {token}}}]\n")).unwrap();
    // In a log.
    let log = dir.path().join("agent.log");
    let lines = format!(
        "an ordinary line\nAuthorization: Bearer {token}\nstarted with --etcd-password {flag} and url http://joe:{password}@host/\n\
         -----BEGIN EC PRIVATE KEY-----\n{key}\n-----END EC PRIVATE KEY-----\nlast line\n"
    );
    std::fs::write(&log, lines).unwrap();

    let file = dir.path().join("r.tar.gz");
    let out = lab
        .on_node("node1", &[SEAWAY, "report", "--api", &format!("unix:{}", lab.dir().join("api.sock").display())])
        .arg("--cni-conf-dir")
        .arg(&conf)
        .arg("--ipam-dir")
        .arg(lab.dir().join("node1/ipam"))
        .arg("--log")
        .arg(&log)
        .arg("-o")
        .arg(&file)
        .env("SEAWAY_ETCD_PASSWORD", password)
        .output()
        .unwrap();
    let (said, progress) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}{progress}");
    assert!(said.contains("r.tar.gz: ") && progress.contains("nftables"), "{said}{progress}");
    let size = std::fs::metadata(&file).unwrap();
    assert!(size.len() < 8 << 20, "{} bytes", size.len());
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&size.permissions()) & 0o777, 0o600);

    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    ok(Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(&open));
    let mut all = Vec::new();
    texts(&open, &mut all);
    for (name, text) in &all {
        for s in SECRETS {
            assert!(!text.contains(s), "{name} has {s}");
        }
    }
    let has = |name: &str, part: &str| {
        let text = all.iter().find(|(n, _)| n.ends_with(name)).map(|(_, t)| t);
        let text = text.unwrap_or_else(|| panic!("{name}: {:?}", all.iter().map(|(n, _)| n).collect::<Vec<_>>()));
        assert!(text.contains(part), "{name} has no {part:?}:\n{text}");
    };
    has("about.txt", concat!("seaway ", env!("CARGO_PKG_VERSION")));
    has("agent/status.json", "\"node\": \"node1\"");
    has("agent/metrics.txt", "seaway_peers 1");
    has("agent/readyz.txt", "[+]fabric programmed");
    has("kernel/links.txt", "seaway.1");
    has("kernel/routes.txt", "10.244.");
    has("kernel/nftables-seaway.txt", "chain");
    has("kernel/connections.txt", "tracked ");
    has("sysctls.txt", "net/ipv4/ip_forward = 1");
    has("cni/20-x.conflist", "\"type\": \"other\"");
    has("cni/x-kubeconfig.missing", "not a CNI configuration");
    has("0-agent.log", "an ordinary line");
    has("0-agent.log", "last line");
    has("objects.txt", "Node: 2\n  node1\n  node2\n");
    assert!(!all.iter().any(|(_, t)| t.contains("planted")), "not even the names of Secrets");
}
