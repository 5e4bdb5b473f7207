//! A pod's status from what was observed: pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not started, or between two starts.
    Waiting {
        /// One word: ContainerCreating, CrashLoopBackOff...
        reason: String,
        /// For people.
        message: String,
    },
    /// Its process lives.
    Running {
        /// Since when (RFC 3339).
        since: String,
    },
    /// It ended and stays so.
    Terminated(Ending),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Exit code.
    pub code: i32,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// One word: Completed, Error, StartError...
    pub reason: String,
    /// For people.
    pub message: String,
    /// Since when it had run, if it had.
    pub started: Option<String>,
    /// When it ended.
    pub finished: String,
}

/// A container as observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Name.
    pub name: String,
    /// Image, for show.
    pub image: String,
    /// Now.
    pub state: State,
    /// The run before.
    pub last: Option<Ending>,
    /// Starts after the first.
    pub restarts: u32,
    /// Whether its readiness says yes.
    pub ready: bool,
    /// Whether its startup probe (if any) says yes.
    pub started: bool,
    /// Identity of this run.
    pub id: Option<String>,
}

impl Container {
    /// Before anything happened.
    #[must_use]
    pub fn new(name: &str, image: Option<&str>) -> Self {
        Self {
            name: name.into(),
            image: image.unwrap_or_default().into(),
            state: State::Waiting { reason: "ContainerCreating".into(), message: String::new() },
            last: None,
            restarts: 0,
            ready: false,
            started: false,
            id: None,
        }
    }
}

/// A pod as observed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// When it was admitted (RFC 3339).
    pub admitted: String,
    /// Addresses, the first family first.
    pub ips: Vec<IpAddr>,
    /// The node's.
    pub host_ips: Vec<IpAddr>,
    /// The network is attached.
    pub sandbox: bool,
    /// Init containers.
    pub init: Vec<Container>,
    /// Containers.
    pub containers: Vec<Container>,
}

/// The phase, by a kubelet's rules.
#[must_use]
pub fn phase(policy: &str, o: &Observed) -> &'static str {
    let failed = |c: &Container| matches!(&c.state, State::Terminated(e) if e.code != 0);
    let succeeded = |c: &Container| matches!(&c.state, State::Terminated(e) if e.code == 0);
    if o.init.iter().any(failed) && policy == "Never" {
        return "Failed";
    }
    if !o.init.iter().all(succeeded) {
        return "Pending";
    }
    let (mut waiting, mut running, mut ended, mut good) = (0, 0, 0, 0);
    for c in &o.containers {
        match &c.state {
            State::Waiting { .. } if c.last.is_none() => waiting += 1,
            // Between two runs: it has run and will again.
            State::Waiting { .. } | State::Running { .. } => running += 1,
            State::Terminated(e) => {
                ended += 1;
                good += usize::from(e.code == 0);
            }
        }
    }
    match (waiting, running) {
        (w, _) if w > 0 => "Pending",
        (_, r) if r > 0 => "Running",
        _ if policy == "Always" => "Running",
        _ if ended == good => "Succeeded",
        _ if policy == "Never" => "Failed",
        _ => "Running",
    }
}

fn ending(e: &Ending, id: Option<&String>) -> Value {
    let mut t = json!({"exitCode": e.code, "reason": e.reason, "finishedAt": e.finished});
    if let Some(s) = &e.started {
        t["startedAt"] = json!(s);
    }
    if let Some(s) = e.signal {
        t["signal"] = json!(s);
    }
    if !e.message.is_empty() {
        t["message"] = json!(e.message);
    }
    if let Some(i) = id {
        t["containerID"] = json!(i);
    }
    json!({"terminated": t})
}

fn container(c: &Container) -> Value {
    let state = match &c.state {
        State::Waiting { reason, message } if message.is_empty() => json!({"waiting": {"reason": reason}}),
        State::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
        State::Running { since } => json!({"running": {"startedAt": since}}),
        State::Terminated(e) => ending(e, c.id.as_ref()),
    };
    let mut v = json!({
        "name": c.name, "image": c.image, "imageID": "", "ready": c.ready, "started": c.started,
        "restartCount": c.restarts, "state": state,
        "lastState": c.last.as_ref().map_or(json!({}), |e| ending(e, None)),
    });
    if let Some(i) = &c.id {
        v["containerID"] = json!(i);
    }
    v
}

/// The status to write. Conditions keep their transition time while they do not change, and those of others stay.
#[must_use]
pub fn build(pod: &Pod, o: &Observed, now: &str) -> Value {
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let phase = phase(policy, o);
    let done = phase == "Succeeded" || phase == "Failed";
    let initialized = o.init.iter().all(|c| matches!(&c.state, State::Terminated(e) if e.code == 0));
    let unready: Vec<&str> = o.containers.iter().filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    let old: Vec<Value> = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .filter_map(|c| serde_json::to_value(c).ok())
        .collect();
    let is_true = |kind: &str| old.iter().any(|c| c["type"] == kind && c["status"] == "True");
    let gates_open =
        pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten()).all(|g| is_true(&g.condition_type));
    let containers_ready = initialized && unready.is_empty() && !done;
    let not_ready = || ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")));
    let ready = containers_ready && gates_open;
    let why_ready = match (containers_ready, gates_open) {
        _ if done => ("PodCompleted", String::new()),
        (true, true) => ("", String::new()),
        (true, false) => ("ReadinessGatesNotReady", "a readiness gate is not true".into()),
        _ => not_ready(),
    };
    let why_containers = match containers_ready {
        _ if done => ("PodCompleted", String::new()),
        true => ("", String::new()),
        false => not_ready(),
    };
    let why_init = if initialized {
        ("", String::new())
    } else {
        ("ContainersNotInitialized", "init containers have not completed".into())
    };
    let ours = [
        ("PodReadyToStartContainers", o.sandbox, ("", String::new())),
        ("Initialized", initialized, why_init),
        ("Ready", ready, why_ready),
        ("ContainersReady", containers_ready, why_containers),
        ("PodScheduled", true, ("", String::new())),
    ];
    let mut conditions = Vec::new();
    for (kind, is, (reason, message)) in &ours {
        let status = if *is { "True" } else { "False" };
        let since = old
            .iter()
            .find(|c| c["type"] == *kind && c["status"] == status)
            .and_then(|c| c["lastTransitionTime"].as_str())
            .unwrap_or(now);
        let mut c = json!({"type": kind, "status": status, "lastTransitionTime": since});
        if !reason.is_empty() {
            c["reason"] = json!(reason);
        }
        if !message.is_empty() {
            c["message"] = json!(message);
        }
        conditions.push(c);
    }
    conditions.extend(old.iter().filter(|c| !ours.iter().any(|(k, _, _)| c["type"] == *k)).cloned());
    let mut s = json!({
        "phase": phase, "startTime": o.admitted, "conditions": conditions,
        "containerStatuses": o.containers.iter().map(container).collect::<Vec<_>>(),
        "qosClass": pod.status.as_ref().and_then(|s| s.qos_class.as_deref()).unwrap_or("BestEffort"),
    });
    if !o.init.is_empty() {
        s["initContainerStatuses"] = o.init.iter().map(container).collect();
    }
    if let Some(h) = o.host_ips.first() {
        s["hostIP"] = json!(h);
        s["hostIPs"] = o.host_ips.iter().map(|i| json!({"ip": i})).collect();
    }
    if let Some(i) = o.ips.first() {
        s["podIP"] = json!(i);
        s["podIPs"] = o.ips.iter().map(|i| json!({"ip": i})).collect();
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(state: State) -> Container {
        Container { state, ..Container::new("c", None) }
    }
    fn running() -> State {
        State::Running { since: "t".into() }
    }
    fn ended(code: i32) -> State {
        State::Terminated(Ending {
            code,
            signal: None,
            reason: "x".into(),
            message: String::new(),
            started: None,
            finished: "t".into(),
        })
    }
    fn waiting() -> State {
        State::Waiting { reason: "r".into(), message: String::new() }
    }

    #[test]
    fn phases_by_the_kubelets_rules() {
        let o = |init: Vec<State>, main: Vec<State>| Observed {
            init: init.into_iter().map(c).collect(),
            containers: main.into_iter().map(c).collect(),
            ..Observed::default()
        };
        for (policy, init, main, want) in [
            ("Always", vec![], vec![waiting()], "Pending"),
            ("Always", vec![running()], vec![waiting()], "Pending"),
            ("Always", vec![ended(1)], vec![waiting()], "Pending"),
            ("Never", vec![ended(1)], vec![waiting()], "Failed"),
            ("Always", vec![ended(0)], vec![running()], "Running"),
            ("Always", vec![], vec![running(), waiting()], "Pending"),
            ("Always", vec![], vec![ended(0)], "Running"),
            ("OnFailure", vec![], vec![ended(0)], "Succeeded"),
            ("OnFailure", vec![], vec![ended(2)], "Running"),
            ("Never", vec![], vec![ended(0), ended(2)], "Failed"),
            ("Never", vec![], vec![ended(0), running()], "Running"),
        ] {
            assert_eq!(phase(policy, &o(init.clone(), main.clone())), want, "{policy} {init:?} {main:?}");
        }
    }

    #[test]
    fn conditions_keep_their_time_and_others_stay() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [],
            "readinessGates": [{"conditionType": "g"}]}, "status": {"conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "g", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}}))
        .unwrap();
        let mut o = Observed { containers: vec![c(running())], sandbox: true, ..Observed::default() };
        o.ips = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        o.containers[0].ready = true;
        let s = build(&pod, &o, "NOW");
        let cond =
            |s: &Value, k: &str| s["conditions"].as_array().unwrap().iter().find(|c| c["type"] == k).unwrap().clone();
        assert_eq!(cond(&s, "Ready")["reason"], "ReadinessGatesNotReady");
        assert_eq!(cond(&s, "Ready")["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(cond(&s, "ContainersReady")["status"], "True");
        assert_eq!(cond(&s, "ContainersReady")["lastTransitionTime"], "NOW");
        assert_eq!(cond(&s, "g")["status"], "False");
        assert_eq!(s["podIPs"], json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]));
        let _: k8s_openapi::api::core::v1::PodStatus = serde_json::from_value({
            let mut s = s.clone();
            // Placeholders of this test are no times.
            s["startTime"] = Value::Null;
            s["conditions"] = Value::Null;
            s["containerStatuses"] = Value::Null;
            s
        })
        .unwrap();
    }
}
