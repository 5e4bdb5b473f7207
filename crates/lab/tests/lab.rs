//! Real labs: brought up, looked at, broken, taken down. Each test has a lab of its own name and leaves nothing.
//! Needs root, iproute2 and curl-free Debian: only what a lab itself needs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lab::procs::{recorded, scan};
use lab::{LabName, ns};
use rustix::process::Signal;
use serde_json::Value;

/// The programs under test, beside each other as a lab wants them. Built once, by the same cargo and profile.
fn seaway() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let deps = std::env::current_exe().unwrap();
        let dir = deps.parent().unwrap().parent().unwrap().to_path_buf();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "-q", "-p", "seaway", "-p", "seaway-cni"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        build.env("CARGO_TARGET_DIR", dir.parent().unwrap());
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "cargo build -p seaway -p seaway-cni failed");
        assert!(dir.join("seaway").is_file() && dir.join("seaway-cni").is_file());
        dir.join("seaway")
    })
}

fn shop() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop")
}

/// Two cores do not time-share labs well: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lab of a test. Dropping it removes it, also when the test failed.
struct TestLab {
    name: LabName,
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(dir) = std::fs::read_dir(self.name.dir().root().join("logs"))
        {
            for f in dir.flatten() {
                let text = std::fs::read_to_string(f.path()).unwrap_or_default();
                let last: Vec<&str> = text.lines().rev().take(8).collect();
                eprintln!("== {}\n{}", f.path().display(), last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        let _ = lab::down::down(&self.name);
    }
}

impl TestLab {
    fn name(word: &str) -> Self {
        Self { name: format!("{word}{}", std::process::id()).parse().unwrap() }
    }

    fn up(word: &str, args: &[&str]) -> Self {
        let l = Self::name(word);
        let mut all = vec!["up"];
        all.extend(args);
        let out = l.run(&all);
        assert!(out.status.success(), "{}", text(&out));
        l
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(seaway());
        c.arg("lab").arg(args[0]).args(["--name", self.name.as_str()]).args(&args[1..]).stdin(Stdio::null());
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    fn apply(&self, manifest: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest).unwrap();
        self.ok(&["apply", "-f", file.path().to_str().unwrap()]);
    }

    /// Ends the lab's own processes whose name begins so.
    fn kill(&self, prefix: &str) -> usize {
        let all = recorded(&self.name.dir().pids());
        let hit: Vec<_> = all.into_iter().filter(|(n, p)| n.starts_with(prefix) && p.alive()).collect();
        for (_, p) in &hit {
            p.signal(Signal::KILL);
        }
        wait("killed processes to end", || hit.iter().all(|(_, p)| !p.alive()).then_some(()));
        hit.len()
    }

    /// Namespaces, processes, files and mounts of this lab.
    fn traces(&self) -> Vec<String> {
        let mut v: Vec<String> = ns::list().into_iter().filter(|n| self.name.owns_netns(n)).collect();
        v.extend(scan().into_iter().filter(|s| s.lab.as_deref() == Some(self.name.as_str())).map(|s| s.command));
        let root = self.name.dir().root().to_path_buf();
        v.extend(root.exists().then(|| root.display().to_string()));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = [format!("/{}-", self.name), format!("{}/", root.display())];
        v.extend(mounts.lines().filter(|l| own.iter().any(|o| l.contains(o))).map(str::to_owned));
        v
    }

    fn down(self) {
        self.ok(&["down"]);
        assert_eq!(self.traces(), Vec::<String>::new());
    }

    /// The shop's pods, once there are `n` and each is ready.
    fn ready_pods(&self, n: usize) -> Option<Vec<Value>> {
        let mut list = self.json(&["get", "pods", "-n", "shop"]);
        let Value::Array(pods) = list["items"].take() else { return None };
        let ready = |p: &Value| lab::up::condition(p, "Ready").is_some_and(|c| c["status"] == "True");
        (pods.len() == n && pods.iter().all(ready)).then_some(pods)
    }

    /// The processes of pods' containers, by pod and container.
    fn containers(&self) -> Vec<(String, i32)> {
        let lab = lab::Lab::load(&self.name).unwrap();
        let mut v = Vec::new();
        for p in lab::pods::all(&lab) {
            for c in p.containers() {
                let Some(n) = p.dir.attempt(&c) else { continue };
                if let Some(s) = p.dir.run_files(&c, n).read_started().filter(|s| s.process.alive()) {
                    v.push((format!("{}/{c}", p.name), s.process.pid));
                }
            }
        }
        v.sort();
        v
    }
}

fn text(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

fn wait<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(v) = f() {
            return v;
        }
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn host_links() -> String {
    String::from_utf8(Command::new("ip").args(["-br", "link"]).output().unwrap().stdout).unwrap()
}

#[test]
fn the_shop_comes_up_every_path_works_and_nothing_is_left() {
    let _one = alone();
    let links = host_links();
    let start = Instant::now();
    let l = TestLab::up("shop", &[shop().to_str().unwrap(), "--nodes", "3"]);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(if cfg!(debug_assertions) { 15 } else { 5 }), "up took {took:?}");
    assert_eq!(host_links(), links, "the machine's own network is not touched");

    let matrix = l.json(&["test"]);
    assert_eq!(matrix["ok"], true, "{matrix:#}");
    for row in matrix["rows"].as_array().unwrap() {
        for f in ["ipv4", "ipv6"] {
            assert!(row[f]["probes"].as_u64().unwrap() > 0 && row[f]["lost"] == 0, "{row}");
        }
    }
    assert_eq!(matrix["own_pods"], false, "the shop is enough to ask");
    let table = l.ok(&["test"]);
    assert!(table.lines().all(|t| t.chars().count() <= 80), "{table}");

    let status = l.ok(&["status"]);
    assert!(status.contains("Processes: 8 of 8 alive") && status.contains("node3   yes"), "{status}");
    let pods = l.json(&["get", "pods", "-n", "shop"]);
    for p in pods["items"].as_array().unwrap() {
        let s = &p["status"];
        assert_eq!((s["phase"].as_str(), s["podIPs"].as_array().unwrap().len()), (Some("Running"), 2), "{s}");
        assert_eq!(s["hostIPs"].as_array().unwrap().len(), 2);
        assert!(s["containerStatuses"].as_array().unwrap().iter().all(|c| c["restartCount"] == 0), "{s}");
    }
    assert_eq!(pods["items"].as_array().unwrap().len(), 13);

    // Inside a pod: its own host name, files, environment; and only two routes.
    let inside =
        l.ok(&["exec", "shop/api", "--", "sh", "-c", "hostname; cat /etc/hosts; echo $CART_SERVICE_PORT $POD_IPS"]);
    let name = inside.lines().next().unwrap().to_owned();
    assert!(
        name.starts_with("api-") && inside.contains(&format!("\t{name}\n")) && inside.contains("6379 10.244."),
        "{inside}"
    );
    let routes = l.ok(&["exec", "shop/api", "--", "ip", "-4", "route"]);
    assert_eq!(routes.lines().count(), 2, "{routes}");
    // The visitor's requests reach the api pods and are logged.
    wait("a visitor's log line", || l.ok(&["logs", "web", "-c", "visitor"]).contains("pod=shop/api-").then_some(()));
    assert!(l.ok(&["logs", "api", "-c", "migrate"]).contains("schema is up to date"));

    // A pod that is deleted goes with its namespace, and another takes its place.
    let victim = pods["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let netns = format!("{}-pod-shop-{victim}", l.name);
    assert!(ns::list().contains(&netns));
    let manifest = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {victim}, namespace: shop}}}}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), manifest).unwrap();
    l.ok(&["delete", "-f", file.path().to_str().unwrap()]);
    wait("the namespace to go", || (!ns::list().contains(&netns)).then_some(()));
    wait("a new pod", || l.ready_pods(13));
    l.down();
}

#[test]
fn killed_processes_change_no_path_and_a_new_runner_adopts() {
    let _one = alone();
    let l = TestLab::up("adopt", &[shop().to_str().unwrap(), "--nodes", "2", "--ip", "v4", "--backend", "host-gw"]);
    let before = l.containers();
    assert!(before.len() >= 12, "{before:?}");
    let pods = l.json(&["get", "pods", "-n", "shop"])["items"].as_array().unwrap().len();
    assert_eq!(l.kill(""), 6);
    assert_eq!(l.containers(), before, "pods live on without the lab's own processes");
    assert!(!l.run(&["status"]).status.success());
    // The API server alone comes back, and a pod is deleted by force while no runner looks.
    l.ok(&["heal"]);
    wait("the lab to be whole", || l.run(&["status"]).status.success().then_some(()));
    assert_eq!(l.kill("runner-"), 2);
    let victim = l.containers().into_iter().find(|(n, _)| n.starts_with("cart-")).unwrap();
    let pod = victim.0.split('/').next().unwrap().to_owned();
    let api = lab::api::Api::new(&l.name.dir().api_sock());
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = format!("/api/v1/namespaces/shop/pods/{pod}");
    rt.block_on(api.delete(&path, &serde_json::json!({"gracePeriodSeconds": 0}))).unwrap();
    l.ok(&["heal"]);
    // Its replacement has the same name, and may be there at once.
    wait("the orphan to go", || (!l.containers().contains(&victim)).then_some(()));
    wait("the lab to be whole", || l.run(&["status"]).status.success().then_some(()));
    let now = l.containers();
    for c in before.iter().filter(|c| c.0 != victim.0) {
        assert!(now.contains(c), "{c:?} was restarted: {now:?}");
    }
    // The lab is whole between the end of the orphan and the making of its replacement, too.
    for p in &wait("every pod to be ready", || l.ready_pods(pods)) {
        assert!(p["status"]["containerStatuses"].as_array().unwrap().iter().all(|c| c["restartCount"] == 0), "{p}");
    }
    assert_eq!(l.json(&["test"])["ok"], true);
    // Everything killed, pods too: `down` still removes all of it.
    l.kill("");
    l.down();
}

#[test]
fn containers_restart_end_and_fail_as_their_policies_say() {
    let _one = alone();
    let l = TestLab::up("policy", &["--nodes", "1"]);
    l.apply(
        r#"
apiVersion: v1
kind: Namespace
metadata: {name: x}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: cm, namespace: x}, data: {COLOUR: green}}
---
{apiVersion: v1, kind: Pod, metadata: {name: crash, namespace: x}, spec: {containers: [
  {name: c, image: i, command: [sh, -c, "echo run; exit 3"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: x}, spec: {restartPolicy: Never, containers: [
  {name: c, image: i, command: [sh, -c, "exit 0"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: failed, namespace: x}, spec: {restartPolicy: Never,
  initContainers: [{name: i, image: i, command: ["false"]}], containers: [{name: c, image: i}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: nothere, namespace: x}, spec: {containers: [
  {name: c, image: i, command: [/no/such/program]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: x}, spec: {containers: [
  {name: c, image: i, command: [sh, -c, "echo $(COLOUR) $HOSTNAME; sleep 1; touch $HOME/../tmp/$(POD); sleep 1000"],
   envFrom: [{configMapRef: {name: cm}}], env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}],
   readinessProbe: {exec: {command: [sh, -c, "test -e /tmp/$POD"]}, periodSeconds: 1}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: sick, namespace: x}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: c, image: i, command: [sleep, "1000"], livenessProbe: {tcpSocket: {port: 1}, periodSeconds: 1, failureThreshold: 1}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: hostnet, namespace: x}, spec: {hostNetwork: true, containers: [
  {name: c, image: i, ports: [{containerPort: 9999}]}]}}
"#,
    );
    let pod = |name: &str| l.json(&["get", "pod", name, "-n", "x"]);
    let state = |p: &Value| p["status"]["containerStatuses"][0].clone();
    // A container's restart changes neither its pod's namespace nor its address.
    let place = || {
        let ip = pod("crash")["status"]["podIP"].as_str()?.to_owned();
        let netns = std::fs::metadata(format!("/run/netns/{}-pod-x-crash", l.name)).ok()?;
        Some((netns.ino(), ip))
    };
    let before = wait("a place of its own", place);
    let crash = wait("three restarts", || {
        let s = state(&pod("crash"));
        (s["restartCount"].as_u64()? >= 3).then_some(s)
    });
    assert_eq!(crash["lastState"]["terminated"]["exitCode"], 3, "{crash}");
    assert_eq!(place(), Some(before));
    assert_eq!(crash["state"]["waiting"]["reason"], "CrashLoopBackOff", "{crash}");
    assert_eq!(pod("done")["status"]["phase"], "Succeeded");
    assert_eq!(pod("failed")["status"]["phase"], "Failed");
    // A runner that returns leaves pods that ended as they are: same start, same end, no namespace again.
    let ended = pod("done");
    wait("the ended pod's namespace to go", || (!ns::list().contains(&format!("{}-pod-x-done", l.name))).then_some(()));
    assert_eq!(l.kill("runner-"), 1);
    l.ok(&["heal"]);
    std::thread::sleep(Duration::from_millis(500));
    let now = pod("done");
    assert_eq!(now["status"]["containerStatuses"], ended["status"]["containerStatuses"]);
    assert_eq!(
        (&now["status"]["phase"], &now["status"]["podIP"]),
        (&ended["status"]["phase"], &ended["status"]["podIP"])
    );
    assert!(!ns::list().contains(&format!("{}-pod-x-done", l.name)));
    let nothere = state(&pod("nothere"));
    assert!(
        nothere["lastState"]["terminated"]["message"].as_str().unwrap().contains("commands of this machine"),
        "{nothere}"
    );
    wait("readiness", || {
        let p = pod("late");
        (lab::up::condition(&p, "Ready")?["status"] == "True").then_some(())
    });
    assert_eq!(l.ok(&["logs", "x/late"]), "green late\n");
    let uid = pod("late")["metadata"]["uid"].as_str().unwrap().to_owned();
    std::fs::remove_file(format!("/tmp/{uid}")).unwrap();
    wait("unreadiness", || {
        let p = pod("late");
        (lab::up::condition(&p, "Ready")?["status"] == "False").then_some(())
    });
    wait("a restart for illness", || (state(&pod("sick"))["restartCount"].as_u64()? >= 1).then_some(()));
    let host = pod("hostnet");
    assert_eq!(host["status"]["podIP"], "172.31.1.11", "{host}");
    assert_eq!(l.ok(&["exec", "x/hostnet", "--", "hostname"]), "node1\n");
    let events = l.ok(&["get", "events", "-n", "x"]);
    for word in ["ImageIgnored", "BackOff", "Unhealthy", "Killing"] {
        assert!(events.contains(word), "{word}: {events}");
    }

    // The node's address changes: so do its Node object and the pod on its network.
    let ip = |args: &str| {
        let node = format!("{}-node1", l.name);
        let all: Vec<&str> = ["-n", &node].into_iter().chain(args.split(' ')).collect();
        assert!(Command::new("ip").args(all).status().unwrap().success(), "{args}");
    };
    // In this order: with the first address of a subnet go the later ones (promote_secondaries is 0).
    ip("address del 172.31.1.11/24 dev eth0");
    ip("address add 172.31.1.99/24 dev eth0");
    wait("the new address", || {
        let n = l.json(&["get", "node", "node1"]);
        n["status"]["addresses"].as_array()?.iter().any(|a| a["address"] == "172.31.1.99").then_some(())
    });
    wait("the pod's address", || (pod("hostnet")["status"]["podIP"] == "172.31.1.99").then_some(()));
    l.down();
}

#[test]
fn a_broken_path_fails_its_cells_and_names_the_hop() {
    let _one = alone();
    let l = TestLab::up("broken", &[shop().to_str().unwrap(), "--nodes", "2", "--ip", "v4"]);
    assert_eq!(l.kill("agent-"), 2);
    assert_eq!(l.json(&["test"])["ok"], true, "a killed agent changes no cell");
    let node = format!("{}-node1", l.name);
    let lab = l.json(&["get", "node", "node2"]);
    let range = lab["spec"]["podCIDR"].as_str().unwrap();
    assert!(Command::new("ip").args(["-n", &node, "route", "del", range]).status().unwrap().success());
    let out = l.run(&["test"]);
    assert_eq!(out.status.code(), Some(1));
    let table = String::from_utf8(out.stdout).unwrap();
    let row = |t: &str| table.lines().find(|l| l.starts_with(t)).unwrap().to_owned();
    assert!(row("pod to pod, other node").contains("FAIL") && row("pod to pod, same node").contains("ok"), "{table}");
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("it stops on node1: there should be a route to node2's pods"), "{table}");
    assert!(table.lines().all(|t| t.chars().count() <= 80), "{table}");
    l.down();
}

#[test]
fn two_labs_do_not_meet_and_each_is_named() {
    let _one = alone();
    let a = TestLab::up("twoa", &["--nodes", "1", "--ip", "v6"]);
    let b = TestLab::up("twob", &["--nodes", "2", "--segments", "2"]);
    let bare = Command::new(seaway()).args(["lab", "status"]).output().unwrap();
    let said = text(&bare);
    assert!(!bare.status.success() && said.contains(a.name.as_str()) && said.contains("--name"), "{said}");
    let matrix = b.json(&["test"]);
    assert_eq!((&matrix["ok"], &matrix["own_pods"]), (&Value::Bool(true), &Value::Bool(true)), "{matrix:#}");
    let pods = b.json(&["get", "pods", "-n", "seaway-test"]);
    assert_eq!(pods["items"].as_array().unwrap().len(), 0, "the test removes its own pods");
    let again = a.run(&["up"]);
    assert!(!again.status.success() && text(&again).contains("is up already"), "{}", text(&again));
    a.down();
    assert_eq!(b.json(&["test"])["ok"], true, "taking one down leaves the other");
    b.down();
}

#[test]
fn an_interrupted_up_is_removed_by_down() {
    let _one = alone();
    for ms in [0, 20, 60, 120, 250, 500, 900] {
        let l = TestLab::name("halt");
        let mut up = l.command(&["up", shop().to_str().unwrap()]);
        let mut child = up.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(ms));
        child.kill().unwrap();
        child.wait().unwrap();
        l.down();
    }
    // Taking down what never was is no error.
    TestLab::name("never").down();
}

#[test]
fn runners_killed_at_any_moment_leave_one_process_per_container_and_no_interface() {
    let _one = alone();
    let l = TestLab::up("kill", &["--nodes", "2", "--ip", "dual"]);
    let dir = shop();
    let dir = dir.to_str().unwrap();
    for round in 0..3u64 {
        l.ok(&["apply", "-f", dir]);
        // Again and again while pods are being attached and started.
        for step in 0..4 {
            std::thread::sleep(Duration::from_millis(20 + 37 * ((round * 4 + step) % 9)));
            l.kill("runner-");
            l.ok(&["heal"]);
        }
        wait("the shop", || {
            let ready = |p: &&Value| lab::up::condition(p, "Ready").is_some_and(|c| c["status"] == "True");
            let pods = l.json(&["get", "pods", "-n", "shop"]);
            // Two of the DaemonSet, ten of the Deployments.
            (pods["items"].as_array()?.iter().filter(ready).count() == 12).then_some(())
        });
        let mut shims: Vec<String> = scan()
            .into_iter()
            .filter(|s| s.lab.as_deref() == Some(l.name.as_str()) && s.command.contains(" lab shim "))
            .map(|s| {
                let env = std::fs::read_to_string(format!("/proc/{}/environ", s.id.pid)).unwrap_or_default();
                let run = env.split('\0').find_map(|v| v.strip_prefix("SEAWAY_RUN=")).unwrap_or_default();
                run.rsplit_once('/').unwrap_or_default().0.to_owned()
            })
            .collect();
        let all = shims.len();
        shims.sort();
        shims.dedup();
        assert_eq!((all, shims.len()), (14, 14), "one shim per container, two pods have two: {shims:?}");
        l.ok(&["delete", "-f", dir]);
        l.kill("runner-");
        l.ok(&["heal"]);
        wait("the shop to go", || {
            let none = !ns::list().iter().any(|n| n.starts_with(&format!("{}-pod-", l.name)));
            (none && l.json(&["get", "pods"])["items"].as_array()?.is_empty()).then_some(())
        });
        for n in ["node1", "node2"] {
            let node = format!("{}-{n}", l.name);
            let out = Command::new("ip").args(["-n", &node, "-br", "link"]).output().unwrap();
            let links = String::from_utf8(out.stdout).unwrap();
            let left: Vec<&str> = links.lines().filter(|l| l.starts_with("sea") && !l.starts_with("seaway.")).collect();
            assert_eq!(left, Vec::<&str>::new(), "{n}");
        }
        wait("the namespace to go", || l.run(&["get", "ns/shop"]).status.code().filter(|c| *c != 0));
    }
    l.down();
}
