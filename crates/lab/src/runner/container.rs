//! One container: start, watch, probe, restart, stop.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Probe};
use resolve::host_ports;
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::sync::watch;

use super::Desired;
use super::pod::Life;
use super::probe::{Gate, Target, ask, seconds};
use super::status::{self, Ending, State};
use crate::name::{LAB_MARKER, POD_MARKER};
use crate::procs::{ProcId, scan};
use crate::shim::{Ended, RunFiles, Started, now};
use crate::{Doing, LabError, echo, pod_env};

/// Which run of which container a process belongs to: `UID/NAME/ATTEMPT`.
const RUN_MARKER: &str = "SEAWAY_RUN";
/// The longest pause between two starts.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A run of this length was a good one: the next pause is none.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// The ports of the built-in server in a container.
pub(super) fn echo_ports(c: &Container) -> Vec<u16> {
    let mut v: Vec<u16> =
        c.ports.iter().flatten().filter_map(|p| u16::try_from(p.container_port).ok()).filter(|p| *p > 0).collect();
    v.sort_unstable();
    v.dedup();
    if v.is_empty() { vec![echo::DEFAULT_PORT] } else { v }
}

/// The pause before restart number `crashes` (from zero) in a row.
fn backoff(crashes: u32) -> Duration {
    match crashes.checked_sub(1) {
        None => Duration::ZERO,
        Some(n) => Duration::from_secs(1u64 << n.min(6)).min(MAX_BACKOFF),
    }
}

/// Waits for the end of a process, ours or not.
async fn ended(id: ProcId) {
    let Some(fd) = id.watch() else { return };
    #[expect(deprecated, reason = "the replacement is unsafe for descriptors that others may close; this one is owned")]
    let registered = AsyncFd::<OwnedFd>::with_interest(fd, Interest::READABLE);
    match registered {
        Ok(a) => {
            let _ = a.readable().await;
        }
        Err(_) => {
            while id.alive() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn lost() -> Ended {
    Ended { code: 137, signal: None, error: Some("its shim was killed: the exit status is unknown".into()), at: now() }
}

/// The run of a container that is under way.
struct Run {
    attempt: u32,
    files: RunFiles,
    /// The shim, as long as nothing else is known.
    shim: Option<ProcId>,
}

impl Run {
    /// Waits until the shim says that the process runs, or how it ended.
    async fn begun(&self) -> Result<Started, Ended> {
        loop {
            if let Some(s) = self.files.read_started() {
                return Ok(s);
            }
            if let Some(e) = self.files.read_ended() {
                return Err(e);
            }
            if !self.shim.is_some_and(ProcId::alive) {
                return self.files.read_started().ok_or_else(|| self.files.read_ended().unwrap_or_else(lost));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(&self, s: &Started) -> Ended {
        loop {
            if let Some(e) = self.files.read_ended() {
                return e;
            }
            if s.shim.alive() {
                ended(s.shim).await;
            } else if s.process.alive() {
                ended(s.process).await;
            } else {
                return self.files.read_ended().unwrap_or_else(lost);
            }
        }
    }
}

impl Life {
    fn with<T>(&self, init: bool, name: &str, f: impl FnOnce(&mut status::Container) -> T) -> Option<T> {
        self.observe(|o| {
            let list = if init { &mut o.init } else { &mut o.containers };
            list.iter_mut().find(|c| c.name == name).map(f)
        })
    }

    fn run_id(&self, name: &str, attempt: u32) -> String {
        format!("seaway://{}/{name}/{attempt}", self.uid)
    }

    /// Keeps a container running by the pod's restart policy; whether its last run succeeded.
    pub async fn supervise(self: &Arc<Self>, c: &Container, init: bool) -> bool {
        let policy = self.spec().restart_policy.unwrap_or_else(|| "Always".into());
        let mut crashes = 0;
        let mut adopted = self.adopt(c).await;
        let mut next = adopted.as_ref().map_or_else(|| self.dir.attempt(&c.name).unwrap_or(0), |r| r.attempt + 1);
        loop {
            let run = match adopted.take() {
                Some(r) => r,
                None => {
                    let r = self.start(c, init, next).await;
                    next += 1;
                    r
                }
            };
            let from = Instant::now();
            let ending = self.watch(c, init, &run).await;
            if from.elapsed() >= GOOD_RUN {
                crashes = 0;
            }
            let again = match policy.as_str() {
                "Never" => false,
                "Always" if !init => true,
                _ => ending.code != 0,
            };
            if !again {
                let good = ending.code == 0;
                self.with(init, &c.name, |s| {
                    s.ready = init && good;
                    s.started = false;
                    s.state = State::Terminated(ending);
                });
                return good;
            }
            let pause = backoff(crashes);
            crashes += 1;
            self.with(init, &c.name, |s| {
                s.ready = false;
                s.started = false;
                s.last = Some(ending.clone());
                if !pause.is_zero() {
                    s.state = State::Waiting {
                        reason: "CrashLoopBackOff".into(),
                        message: format!("back-off {} s restarting container {}", pause.as_secs(), c.name),
                    };
                }
            });
            if !pause.is_zero() {
                self.event("Warning", "BackOff", &format!("back-off restarting container {}", c.name));
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Finds the run that an earlier life of this runner began.
    async fn adopt(&self, c: &Container) -> Option<Run> {
        let attempt = self.dir.attempt(&c.name)?;
        let files = self.dir.run_files(&c.name, attempt);
        let shim = match files.read_started() {
            Some(s) => Some(s.shim),
            None if files.read_ended().is_some() => None,
            None => {
                // Killed between writing the attempt and the shim's first word: is there a shim?
                let marker = format!("{}/{}/{attempt}", self.uid, c.name);
                let all = tokio::task::spawn_blocking(scan).await.unwrap_or_default();
                let run = all.iter().filter(|s| s.pod.as_deref() == Some(&self.uid)).find(|s| {
                    std::fs::read(format!("/proc/{}/environ", s.id.pid))
                        .is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == format!("{RUN_MARKER}={marker}").as_bytes()))
                })?;
                Some(run.id)
            }
        };
        Some(Run { attempt, files, shim })
    }

    /// Starts run number `attempt`; tries again while the pod's own description forbids it.
    async fn start(self: &Arc<Self>, c: &Container, init: bool, attempt: u32) -> Run {
        loop {
            let error = match self.environment(c).await {
                Ok(env) => match self.spawn(c, &env, attempt) {
                    Ok(run) => return run,
                    Err(e) => e.to_string(),
                },
                Err(e) => e,
            };
            self.event("Warning", "Failed", &error);
            self.with(init, &c.name, |s| {
                s.state = State::Waiting { reason: "CreateContainerConfigError".into(), message: error };
            });
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn environment(&self, c: &Container) -> Result<pod_env::Env, String> {
        let mut sources = pod_env::Sources::new();
        for (kind, name) in pod_env::needs(c) {
            let path = format!("/api/v1/namespaces/{}/{kind}s/{name}", self.namespace);
            if let Some(v) = self.context.api.find(&path).await.map_err(|e| e.to_string())? {
                sources.insert(format!("{kind}/{name}"), data(kind, &v));
            }
        }
        let mut pod = (*self.pod()).clone();
        let status = pod.status.get_or_insert_default();
        let ips = self.ips();
        let host = self.context.host_ips.borrow().clone();
        status.pod_ip = ips.first().map(ToString::to_string);
        status.pod_ips = Some(ips.iter().map(|i| k8s_openapi::api::core::v1::PodIP { ip: i.to_string() }).collect());
        status.host_ip = host.first().map(ToString::to_string);
        status.host_ips = Some(host.iter().map(|i| k8s_openapi::api::core::v1::HostIP { ip: i.to_string() }).collect());
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links) != Some(false);
        let services = if links { self.context.service_env(&self.namespace) } else { pod_env::Env::new() };
        let services = services.into_iter().chain(self.host_ports().await?).collect();
        let mut env = pod_env::container_env(&pod, c, services, &sources)?;
        env.insert(LAB_MARKER.into(), self.context.config.lab.to_string());
        env.insert(POD_MARKER.into(), self.uid.clone());
        Ok(env)
    }

    /// The variables of random host ports. The agent told them before the pod was attached; the Pod that says so may
    /// not have arrived here yet.
    async fn host_ports(&self) -> Result<pod_env::Env, String> {
        for _ in 0..50 {
            let pod = self.pod();
            let note = |key| pod.metadata.annotations.as_ref().and_then(|n| n.get(key));
            match (note(host_ports::ASK), note(host_ports::TOLD)) {
                (None, _) => return Ok(pod_env::Env::new()),
                (Some(_), Some(told)) => return Ok(host_ports::environment(&host_ports::read(told))),
                (Some(_), None) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        Err(format!("annotation {} is not there: does the node's agent run?", host_ports::TOLD))
    }

    /// A command that runs inside the container's namespaces with its environment.
    fn inside(&self, env: &pod_env::Env, verb: &str, args: Vec<String>, argv: &[String]) -> Command {
        let mut cmd = Command::new(&self.context.config.exe);
        cmd.args(["lab", verb]).args(self.enter().to_args()).args(args).arg("--").args(argv);
        cmd.env_clear().envs(env).stdin(Stdio::null());
        cmd
    }

    fn spawn(&self, c: &Container, env: &pod_env::Env, attempt: u32) -> Result<Run, LabError> {
        let files = self.dir.begin_attempt(&c.name, attempt)?;
        let argv = pod_env::command_line(c, env).unwrap_or_else(|| self.echo_command(c));
        let mut args =
            vec!["--dir".to_owned(), files.dir().display().to_string(), "--attempt".into(), attempt.to_string()];
        if let Some(d) = c.working_dir.as_ref().filter(|d| PathBuf::from(d).is_dir()) {
            args.extend(["--cwd".into(), d.clone()]);
        }
        let log = std::fs::File::create(files.log()).doing(|| format!("{}", files.log().display()))?;
        let err = log.try_clone().doing(|| "log")?;
        let mut cmd = self.inside(env, "shim", args, &argv);
        cmd.env(RUN_MARKER, format!("{}/{}/{attempt}", self.uid, c.name)).stdout(log).stderr(err);
        let child = cmd.spawn().doing(|| format!("start {}", self.context.config.exe.display()))?;
        let pid = child.id().and_then(|p| i32::try_from(p).ok());
        Ok(Run { attempt, files, shim: pid.and_then(ProcId::of) })
    }

    fn echo_command(&self, c: &Container) -> Vec<String> {
        let mut v = vec![self.context.config.exe.display().to_string(), "lab".into(), "echo".into()];
        v.extend(["--pod".into(), format!("{}/{}", self.namespace, self.name)]);
        v.extend(["--node".into(), self.context.config.node.clone()]);
        v.extend(echo_ports(c).into_iter().flat_map(|p| ["--port".to_owned(), p.to_string()]));
        v
    }

    /// Follows one run to its end.
    async fn watch(self: &Arc<Self>, c: &Container, init: bool, run: &Run) -> Ending {
        let started = run.begun().await;
        let id = self.run_id(&c.name, run.attempt);
        let ended = match &started {
            Err(e) => {
                self.with(init, &c.name, |s| {
                    s.restarts = run.attempt;
                    s.id = Some(id);
                });
                e.clone()
            }
            Ok(s) => {
                let was_ready = self.was_ready(&c.name, &id);
                let has = |p: &Option<Probe>| p.is_some();
                self.with(init, &c.name, |o| {
                    o.state = State::Running { since: s.at.clone() };
                    o.restarts = run.attempt;
                    o.id = Some(id);
                    o.started = !has(&c.startup_probe) || was_ready;
                    o.ready = !init && o.started && (!has(&c.readiness_probe) || was_ready);
                });
                if run.attempt == 0 {
                    self.event("Normal", "Started", &format!("started container {}", c.name));
                }
                tokio::select! {
                    e = run.end(s) => e,
                    why = self.probes(c, init, was_ready) => {
                        self.event("Warning", "Killing", &format!("container {} {why}, will be restarted", c.name));
                        let grace = self.spec().termination_grace_period_seconds.unwrap_or(30);
                        s.process.signal(Signal::TERM);
                        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
                        match tokio::time::timeout(grace, run.end(s)).await {
                            Ok(e) => e,
                            Err(_) => {
                                s.process.signal(Signal::KILL);
                                run.end(s).await
                            }
                        }
                    }
                }
            }
        };
        let reason = match (&ended.error, ended.code) {
            (Some(_), 128) => "StartError",
            (Some(_), _) => "ContainerStatusUnknown",
            (None, 0) => "Completed",
            (None, _) => "Error",
        };
        if let (Some(e), Err(_)) = (&ended.error, &started) {
            self.event("Warning", "Failed", &format!("container {}: {e}", c.name));
        }
        Ending {
            code: ended.code,
            signal: ended.signal,
            reason: reason.into(),
            message: ended.error.unwrap_or_default(),
            started: started.ok().map(|s| s.at),
            finished: ended.at,
        }
    }

    /// Whether the API knows this very run as ready: a runner that comes back must not make endpoints flap.
    fn was_ready(&self, name: &str, id: &str) -> bool {
        let pod = self.pod();
        let all = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        all.filter(|s| s.name == name).any(|s| s.ready && s.container_id.as_deref() == Some(id))
    }

    /// Asks the probes; returns when the container must be killed, with why.
    async fn probes(self: &Arc<Self>, c: &Container, init: bool, was_ready: bool) -> String {
        if init {
            return std::future::pending().await;
        }
        let env = self.environment(c).await.unwrap_or_default();
        let exec = |argv: &[String]| self.inside(&env, "enter", Vec::new(), argv);
        let Some(ip) = self.ips().first().copied() else { return std::future::pending().await };
        let target = Target { container: c, ip, exec: &exec };
        if let Some(p) = c.startup_probe.as_ref().filter(|_| !was_ready) {
            if let Err(why) = self.until(c, p, &target, "startup", false).await {
                return why;
            }
            self.with(false, &c.name, |s| s.started = true);
        }
        let readiness = async {
            match &c.readiness_probe {
                Some(p) => self.readiness(c, p, &target, was_ready).await,
                None => {
                    self.with(false, &c.name, |s| s.ready = true);
                    std::future::pending().await
                }
            }
        };
        let liveness = async {
            match &c.liveness_probe {
                // Alive until the threshold says otherwise; then this returns.
                Some(p) => self.until(c, p, &target, "liveness", true).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = readiness => std::future::pending().await,
            r = liveness => match r {
                Err(why) => why,
                Ok(()) => std::future::pending().await,
            },
        }
    }

    /// Asks until the verdict turns: from no to yes (`Ok`), or the failure threshold is reached (`Err`).
    async fn until(&self, c: &Container, p: &Probe, t: &Target<'_>, kind: &str, good: bool) -> Result<(), String> {
        let period = seconds(p.period_seconds, 10, 1);
        let limit = p.failure_threshold.unwrap_or(3).max(1);
        tokio::time::sleep(seconds(p.initial_delay_seconds, 0, 0)).await;
        let mut failed = 0;
        loop {
            match ask(p, t).await {
                Ok(()) if !good => return Ok(()),
                Ok(()) => failed = 0,
                Err(e) => {
                    failed += 1;
                    self.event("Warning", "Unhealthy", &format!("{kind} probe of container {} failed: {e}", c.name));
                    if failed >= limit {
                        return Err(format!("failed {kind} probe"));
                    }
                }
            }
            tokio::time::sleep(period).await;
        }
    }

    async fn readiness(&self, c: &Container, p: &Probe, t: &Target<'_>, was_ready: bool) {
        let period = seconds(p.period_seconds, 10, 1);
        let mut gate = Gate::new(p, was_ready);
        if !was_ready {
            tokio::time::sleep(seconds(p.initial_delay_seconds, 0, 0)).await;
        }
        let mut ever = was_ready;
        let mut soon = Duration::from_millis(50);
        loop {
            let answer = ask(p, t).await;
            if let (Err(e), true) = (&answer, ever || soon > Duration::from_millis(500)) {
                self.event("Warning", "Unhealthy", &format!("readiness probe of container {} failed: {e}", c.name));
            }
            if let Some(ready) = gate.observe(answer.is_ok()) {
                ever |= ready;
                self.with(false, &c.name, |s| s.ready = ready);
            }
            // A process needs a moment to listen: until it was ready once, it is asked sooner than its period.
            tokio::time::sleep(if ever { period } else { soon.min(period) }).await;
            soon *= 2;
        }
    }

    /// SIGTERM, the grace period (shortened when the API shortens it), SIGKILL to everything of the pod.
    pub async fn stop_containers(&self, grace: Duration, desired: &mut watch::Receiver<Desired>) {
        let spec = self.spec();
        let mut processes = Vec::new();
        for c in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let Some(n) = self.dir.attempt(&c.name) else { continue };
            let files = self.dir.run_files(&c.name, n);
            let Some(s) = files.read_started().filter(|s| s.process.alive()) else { continue };
            self.event("Normal", "Killing", &format!("stopping container {}", c.name));
            s.process.signal(Signal::TERM);
            processes.push(s.process);
        }
        let mut until = Instant::now() + grace;
        while processes.iter().any(|p| p.alive()) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if desired.has_changed().unwrap_or(false) {
                match desired.borrow_and_update().clone() {
                    Desired::Gone => until = Instant::now(),
                    Desired::Stop(p) => {
                        let now_asked = p.metadata.deletion_grace_period_seconds.unwrap_or(30);
                        let now_asked = Duration::from_secs(u64::try_from(now_asked).unwrap_or(0));
                        until = until.min(Instant::now() + now_asked);
                    }
                    Desired::Run(_) => {}
                }
            }
        }
        // Shims, what ignored SIGTERM, and what containers left behind.
        for _ in 0..500 {
            let uid = self.uid.clone();
            let left = tokio::task::spawn_blocking(move || {
                let all: Vec<ProcId> =
                    scan().into_iter().filter(|s| s.pod.as_deref() == Some(&uid)).map(|s| s.id).collect();
                all.iter().for_each(|p| p.signal(Signal::KILL));
                all.len()
            });
            if matches!(left.await, Ok(0) | Err(_)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The data of a ConfigMap or Secret as text.
fn data(kind: &str, v: &serde_json::Value) -> BTreeMap<String, String> {
    let map = v["data"].as_object().into_iter().flatten();
    map.filter_map(|(k, v)| {
        let text = v.as_str()?;
        if kind == "configmap" {
            return Some((k.clone(), text.to_owned()));
        }
        let raw: k8s_openapi::ByteString = serde_json::from_value(serde_json::json!(text)).ok()?;
        Some((k.clone(), String::from_utf8_lossy(&raw.0).into_owned()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let all: Vec<u64> = (0..9).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(all, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn echo_listens_on_what_is_declared() {
        let c = |v| serde_json::from_value::<Container>(v).unwrap();
        assert_eq!(echo_ports(&c(json!({"name": "c"}))), [8080]);
        let two = json!({"name": "c", "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53}, {"containerPort": 9}]});
        assert_eq!(echo_ports(&c(two)), [9, 53]);
    }

    #[test]
    fn secrets_are_decoded() {
        let m = data("secret", &json!({"data": {"k": "dmFsdWU="}}));
        assert_eq!(m["k"], "value");
    }
}
