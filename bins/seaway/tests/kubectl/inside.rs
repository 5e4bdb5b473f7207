//! Commands that reach into pods: logs, exec, attach, cp and port-forward, by WebSocket and by SPDY.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

const PODS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: talk, labels: {app: talk}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: x, command: [sh, -c, 'echo begun']}
  containers:
  - {name: count, image: x, workingDir: /usr, env: [{name: GREETING, value: hello}],
     command: [sh, -c, 'i=0; while :; do i=$((i+1)); echo line $i; echo oops $i >&2; sleep 0.3; done']}
  - {name: echo, image: x, ports: [{containerPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: fails}
spec:
  nodeName: node2
  containers: [{name: c, image: x, command: [sh, -c, 'echo run $RANDOM; sleep 1; exit 3']}]
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  nodeName: node2
  restartPolicy: Never
  containers: [{name: c, image: x, command: [sh, -c, 'for i in 1 2 3; do echo $i; sleep 0.5; done']}]
";

fn up() -> Kube {
    let k = Kube::up(&["--nodes", "2"]);
    k.file("pods.yaml", PODS);
    k.ok("apply -f pods.yaml");
    k.ok("wait --for=condition=Ready pod/talk --timeout=30s");
    k
}

/// By which protocol kubectl speaks: WebSocket is its first choice.
fn spdy(command: &str, yes: bool) -> [(String, &'static str); 1] {
    [(format!("KUBECTL_{command}_WEBSOCKETS"), if yes { "false" } else { "true" })]
}

#[test]
fn logs() {
    let k = up();
    // Followed to the end of its container, from before its first line.
    let mut once = k.follow("logs -f once --pod-running-timeout=30s", &[]);
    once.line("3");
    assert!(once.ends());
    k.until("logs talk -c count", "line 4");
    let all = k.ok("logs talk -c count");
    assert!(all.starts_with("line 1\noops 1\nline 2\n"), "{all}");
    assert_eq!(k.ok("logs talk -c first"), "begun\n");
    assert_eq!(k.ok("logs talk -c count --tail=3").lines().count(), 3);
    assert_eq!(k.ok("logs talk -c count --limit-bytes=8"), "line 1\no");
    assert!(k.ok("logs talk --all-containers --prefix --tail=1").contains("[pod/talk/count]"));
    assert!(k.ok("logs -l app=talk -c count --tail=1").ends_with('\n'));
    // Only what is new, and when it was said.
    let last = k.ok("logs talk -c count --timestamps --tail=1");
    let (time, _) = last.split_once(' ').unwrap();
    let since = k.ok(&format!("logs talk -c count --since-time={time}"));
    assert!(!since.contains("line 1\n") && !since.is_empty(), "{since}");
    assert!(k.ok("logs talk -c count --since=1h").starts_with("line 1\n"));
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!k.ok("logs talk -c count --since=1s").contains("line 1\n"));
    let stamps: Vec<String> = k.ok("logs talk -c count --timestamps").lines().map(|l| l[..19].to_owned()).collect();
    assert!(stamps.is_sorted() && stamps.first() < stamps.last(), "{stamps:?}");
    let follow = k.follow("logs -f talk -c count --tail=0", &[]);
    follow.line("line ");
    follow.line("oops ");
    drop(follow);
    // The run before.
    k.until("logs fails --previous", "run");
    assert!(k.ok("logs fails --previous").starts_with("run"));
    assert!(k.ok("logs fails").starts_with("run"));
    let (code, why) = k.fails("logs talk -c count --previous");
    assert!(code == 1 && why.contains("previous terminated container \"count\" in pod \"talk\" not found"), "{why}");
    assert!(k.fails("logs talk -c nope").1.contains("container nope is not valid for pod talk"));
    assert!(k.fails("logs nope").1.contains("\"nope\" not found"));
    // The lab's own reading of the same.
    assert!(k.lab.run(&["logs", "talk", "-c", "count"]).starts_with("line 1\n"));
}

#[test]
fn exec_attach_and_cp() {
    let k = up();
    for old in [false, true] {
        let env = spdy("REMOTE_COMMAND", old);
        let run = |words: &[&str]| {
            let mut c = k.command(words);
            common::run(c.envs(env.clone()))
        };
        let o = run(&["exec", "talk", "-c", "count", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!((o.status.code(), text(&o.stdout)), (Some(7), "out\n".into()), "{o:?}");
        assert_eq!(text(&o.stderr), "err\ncommand terminated with exit code 7\n");
        // In the pod's namespaces, with the container's environment and directory.
        let o = run(&[
            "exec",
            "talk",
            "-c",
            "count",
            "--",
            "sh",
            "-c",
            "hostname; echo $GREETING; pwd; ip -br a show eth0",
        ]);
        let out = text(&o.stdout);
        assert!(out.starts_with("talk\nhello\n/usr\neth0"), "{o:?}");
        assert!(out.contains(&k.ok("get pod talk -o jsonpath={.status.podIP}")), "{out}");
        let o = run(&["exec", "talk", "-c", "count", "--", "no-such-command"]);
        assert_eq!(o.status.code(), Some(127), "{o:?}");
        // Much in, much out, and the end of the input is the end.
        let much: Vec<u8> = (0..3_000_000u32).flat_map(|i| [u8::try_from(i % 251).unwrap(); 1]).collect();
        let mut c = k.command(&["exec", "-i", "talk", "-c", "count", "--", "cat"]);
        c.envs(env.clone()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = c.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = much.clone();
        let feeding = std::thread::spawn(move || stdin.write_all(&feed).unwrap());
        let out = child.wait_with_output().unwrap();
        feeding.join().unwrap();
        assert!(out.status.success() && out.stdout == much, "{} of {}", out.stdout.len(), much.len());
        // A terminal, of the size of ours.
        let line = format!(
            "stty rows 33 cols 99; {} exec -it talk -c count -- sh -c 'test -t 0 && test -t 1 && stty size; tty; exit 4'",
            k.program.display()
        );
        let mut c = Command::new("script");
        c.args(["-qec", &line, "/dev/null"]).current_dir(k.home()).envs(env.clone());
        c.env("HOME", k.home()).env("KUBECONFIG", k.lab.dir().join("kubeconfig"));
        let o = common::run(&mut c);
        let out = text(&o.stdout);
        assert!(out.contains("33 99") && out.contains("/dev/pts/"), "{out}");
        assert_eq!(o.status.code(), Some(4), "{out}");
        // What a container prints, from now on.
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        k.follow("attach talk -c count", &env).line("line ");
        // A client that goes takes its command along.
        let mut c = k.command(&["exec", "talk", "-c", "count", "--", "sleep", "7654"]);
        let mut child = c.envs(env.iter().copied()).spawn().unwrap();
        let sleeps = || !common::Proc::find(&k.lab, &["sleep", "7654"]).is_empty();
        common::eventually("the command runs", PATIENCE, || sleeps().then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
        common::eventually("the command ends", PATIENCE, || (!sleeps()).then_some(()));
    }
    let (code, why) = k.fails("exec talk -c nope -- true");
    assert!(code == 1 && why.contains("container nope is not valid for pod talk"), "{why}");
    assert!(k.fails("exec nope -- true").1.contains("pods \"nope\" not found"));
    // The lab's own way.
    assert_eq!(k.lab.run(&["exec", "talk", "-c", "count", "--", "hostname"]).trim(), "talk");

    // Copies, by exec and tar. A lab's pods see this machine's files.
    let there = tempfile::tempdir().unwrap();
    let there = there.path().join("copy");
    std::fs::create_dir(k.home().join("a")).unwrap();
    let big: Vec<u8> = (0..1_000_000u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    std::fs::write(k.home().join("a/big"), &big).unwrap();
    k.ok(&format!("cp a talk:{} -c count", there.display()));
    assert!(std::fs::read(there.join("big")).unwrap() == big);
    k.ok(&format!("cp talk:{}/big back -c count", there.display()));
    assert!(std::fs::read(k.home().join("back")).unwrap() == big);
}

/// One HTTP request to a local port; the answer.
fn http(port: u16) -> String {
    let mut s = TcpStream::connect(("127.0.0.1", port)).unwrap();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut out = String::new();
    let _ = s.read_to_string(&mut out);
    out
}

#[test]
fn port_forward() {
    let k = up();
    k.ok("expose pod talk --name=talk --port=80 --target-port=8080");
    for old in [false, true] {
        let env = spdy("PORT_FORWARD", old);
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        for (what, port) in [("pod/talk", "8080"), ("svc/talk", "80")] {
            let dead = if what == "pod/talk" { " :9" } else { "" };
            let f = k.follow(&format!("port-forward {what} :{port}{dead}"), &env);
            let local = |l: String| l.split(" -> ").next().unwrap().rsplit(':').next().unwrap().parse::<u16>().unwrap();
            let (good, dead) = if what == "pod/talk" {
                (local(f.line("-> 8080")), Some(local(f.line("-> 9"))))
            } else {
                (local(f.line("-> 8080")), None)
            };
            // Several at once on one connection to the server, and one after the other.
            let many: Vec<_> = (0..8).map(|_| std::thread::spawn(move || http(good))).collect();
            for t in many {
                let out = t.join().unwrap();
                assert!(out.contains("pod=default/talk node=node1"), "{out}");
            }
            assert!(http(good).contains("proto=http"));
            // A line there and back, many times, on a connection that stays.
            let s = TcpStream::connect(("127.0.0.1", good)).unwrap();
            s.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut r = BufReader::new(s.try_clone().unwrap());
            for i in 0..20 {
                (&s).write_all(format!("ask {i}\n").as_bytes()).unwrap();
                let mut line = String::new();
                while !line.contains(&format!("ask {i}")) {
                    line.clear();
                    assert!(r.read_line(&mut line).unwrap() > 0, "closed");
                }
            }
            // Nobody listens there: that connection ends, and kubectl says why.
            if let Some(d) = dead {
                assert_eq!(http(d), "");
            }
        }
    }
    let (code, why) = k.fails("port-forward pod/nope 8080");
    assert!(code == 1 && why.contains("\"nope\" not found"), "{why}");
}
