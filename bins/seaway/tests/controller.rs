//! What `seaway controller` says of itself, with a server that denies everything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{PATIENCE, SEAWAY, eventually, run};

/// An API server to which the account of `deploy/seaway.yaml` may not read a thing.
fn deny(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(first)) = lines.next() else { continue };
            let _ = lines.find(|l| l.as_ref().is_ok_and(String::is_empty));
            let path = first.split(' ').nth(1).unwrap_or_default();
            let resource = path.split('?').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
            let body = format!(
                r#"{{"apiVersion":"v1","kind":"Status","status":"Failure","code":403,"reason":"Forbidden","message":"{resource} is forbidden: User \"system:serviceaccount:kube-system:seaway-controller\" cannot list resource \"{resource}\" in API group \"\" at the cluster scope"}}"#
            );
            let head = format!(
                "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = (&stream).write_all((head + &body).as_bytes());
        }
    });
}

struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn rights_that_are_missing_are_seen_without_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    deny(&socket);
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let at = format!("127.0.0.1:{port}");
    let mut c = Command::new(SEAWAY);
    c.args([
        "controller",
        "--only",
        "scheduler",
        "--api",
        &format!("unix:{}", socket.display()),
        "--status-listen",
        &at,
    ]);
    let _controller = Controller(c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let get = |path: &str| {
        let out =
            run(Command::new("curl").args(["-s", "-m", "5", "-w", "\n%{http_code}", &format!("http://{at}{path}")]));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap();
        (code.parse::<u16>().unwrap_or(0), body.to_owned())
    };
    let rule = "to the rules of ClusterRole seaway-controller";
    let told = eventually("two missing rights", PATIENCE, || {
        let (_, text) = get("/metrics");
        text.lines().any(|l| l.starts_with("seaway_missing_rights ") && l > "seaway_missing_rights 1").then_some(text)
    });
    assert!(told.contains("seaway_controller_leading 1") && told.ends_with("# EOF\n"), "{told}");
    let (code, ready) = get("/readyz");
    assert!(code == 503 && ready.contains("[-]rights: ") && ready.contains(rule), "{ready}");
    let (code, healthy) = get("/healthz");
    assert!(code == 200 && healthy.contains("[!]rights: ") && healthy.contains(rule), "{healthy}");
    let (code, status) = get("/status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let denied = status["denied"].as_array().unwrap();
    for resource in ["nodes", "pods"] {
        let wanted = format!("{{apiGroups: [\"\"], resources: [{resource}], verbs: [list]}}");
        assert!(code == 200 && denied.iter().any(|d| d.as_str().unwrap().contains(&wanted)), "{status}");
    }
}
