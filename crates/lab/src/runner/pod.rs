//! One pod on this node, from its admission to its end.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::state::{Network, PodDir, Record};
use super::status::{Container, Observed, State, build};
use super::{Context, Desired};
use crate::cni::{self, Attachment};
use crate::ns::{self, Enter};
use crate::shim::now;
use crate::{Doing, LabError, dns_files};

/// The longest grace period honoured when an object is gone already.
const GRACE_WHEN_GONE: Duration = Duration::from_secs(1);

/// A pod's life on this node.
pub(super) struct Life {
    pub context: Arc<Context>,
    pub uid: String,
    pub dir: PodDir,
    pub namespace: String,
    pub name: String,
    /// The object as the API has it now.
    pod: Mutex<Arc<Pod>>,
    record: Mutex<Record>,
    observed: Mutex<Observed>,
    dirty: Notify,
    /// Held by whoever changes the network: an ADD under way is never overtaken by a DEL.
    network: tokio::sync::Mutex<()>,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the pod until it is gone.
pub(super) async fn run(
    context: Arc<Context>,
    uid: &str,
    mut desired: watch::Receiver<Desired>,
) -> Result<(), LabError> {
    let dir = PodDir::new(&context.config.dir.pods(), uid)?;
    let first = desired.borrow_and_update().clone();
    let record = dir.load()?;
    let known = record.is_some();
    let pod = match (&first, &record) {
        (Desired::Run(p) | Desired::Stop(p), _) => p.clone(),
        (Desired::Gone, Some(r)) => Arc::new(r.pod.clone()),
        (Desired::Gone, None) => {
            dir.remove();
            return Ok(());
        }
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let network = if spec.host_network == Some(true) { Network::Host } else { Network::Released };
    let record = record.unwrap_or(Record { pod: Pod::clone(&pod), network, admitted: now(), finished: false });
    let life = Arc::new(Life {
        context,
        uid: uid.into(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        observed: Mutex::new(first_look(&spec, &record)),
        pod: Mutex::new(pod.clone()),
        record: Mutex::new(record),
        dir,
        dirty: Notify::new(),
        network: tokio::sync::Mutex::new(()),
    });
    let wanted = matches!(first, Desired::Run(_));
    let ended = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    // It ended in an earlier life of which nothing is left here: only its deletion is waited for.
    let forgotten = ended && !known;
    if wanted && !known && !forgotten {
        let record = life.record();
        life.dir.save(&record)?;
    }
    let status = tokio::spawn(publish(life.clone()));
    if wanted && !forgotten {
        let mut living = std::pin::pin!(life.live());
        let mut done = false;
        loop {
            tokio::select! {
                () = &mut living, if !done => done = true,
                c = desired.changed() => {
                    if c.is_err() {
                        break;
                    }
                    match desired.borrow_and_update().clone() {
                        Desired::Run(p) => {
                            *locked(&life.pod) = p;
                            life.dirty.notify_one();
                        }
                        Desired::Stop(p) => {
                            *locked(&life.pod) = p;
                            break;
                        }
                        Desired::Gone => break,
                    }
                }
            }
        }
    } else if wanted {
        while desired.changed().await.is_ok() && matches!(*desired.borrow_and_update(), Desired::Run(_)) {}
    }
    let gone = matches!(*desired.borrow(), Desired::Gone);
    life.end(gone, &mut desired).await;
    status.abort();
    Ok(())
}

fn first_look(spec: &PodSpec, record: &Record) -> Observed {
    let list = |l: &[k8s_openapi::api::core::v1::Container]| {
        l.iter().map(|c| Container::new(&c.name, c.image.as_deref())).collect()
    };
    Observed {
        admitted: record.admitted.clone(),
        init: list(spec.init_containers.as_deref().unwrap_or_default()),
        containers: list(&spec.containers),
        ..Observed::default()
    }
}

/// Writes the status whenever it changed.
async fn publish(life: Arc<Life>) {
    let path = format!("/api/v1/namespaces/{}/pods/{}/status", life.namespace, life.name);
    let mut sent = Value::Null;
    let mut hosts = life.context.host_ips.clone();
    loop {
        tokio::select! {
            () = life.dirty.notified() => {}
            Ok(()) = hosts.changed() => {}
        }
        // What changes together is written together.
        tokio::time::sleep(Duration::from_millis(15)).await;
        let status = {
            let mut o = locked(&life.observed);
            o.host_ips = life.context.host_ips.borrow().clone();
            if life.spec().host_network == Some(true) {
                o.ips = o.host_ips.clone();
            }
            build(&life.pod(), &o, &now())
        };
        if status == sent {
            continue;
        }
        let patch = json!({"metadata": {"uid": life.uid}, "status": status});
        match life.context.api.merge(&path, &patch).await {
            Ok(_) => sent = status,
            // Gone, or another pod of that name.
            Err(e) if matches!(e.code(), Some(404 | 409)) => {}
            Err(e) => {
                tracing::warn!("status of pod {}/{}: {e}", life.namespace, life.name);
                tokio::time::sleep(Duration::from_millis(500)).await;
                life.dirty.notify_one();
            }
        }
    }
}

impl Life {
    /// The object as last seen.
    pub fn pod(&self) -> Arc<Pod> {
        locked(&self.pod).clone()
    }

    /// Its spec.
    pub fn spec(&self) -> PodSpec {
        self.pod().spec.clone().unwrap_or_default()
    }

    fn record(&self) -> Record {
        locked(&self.record).clone()
    }

    fn set_network(&self, network: Network) -> Result<(), LabError> {
        let record = {
            let mut r = locked(&self.record);
            r.network = network;
            r.clone()
        };
        self.dir.save(&record)
    }

    /// Changes what is observed; the status follows.
    pub fn observe<T>(&self, f: impl FnOnce(&mut Observed) -> T) -> T {
        let r = f(&mut locked(&self.observed));
        self.dirty.notify_one();
        r
    }

    /// The pod's addresses.
    pub fn ips(&self) -> Vec<IpAddr> {
        locked(&self.observed).ips.clone()
    }

    /// Says something as an event.
    pub fn event(&self, kind: &str, reason: &str, message: &str) {
        self.context.events.pod(&self.namespace, &self.name, &self.uid, kind, reason, message);
    }

    /// What the pod's processes enter.
    pub fn enter(&self) -> Enter {
        let netns = match &locked(&self.record).network {
            Network::Begun { netns, .. } | Network::Attached { netns, .. } => Some(ns::path(netns)),
            Network::Host | Network::Released => None,
        };
        let hostname = match netns {
            Some(_) => dns_files::hostname(&self.pod()),
            None => self.context.config.node.clone(),
        };
        Enter { netns, hosts: Some(self.dir.hosts()), resolv: Some(self.dir.resolv()), hostname: Some(hostname) }
    }

    /// Everything from the network to the last container's end.
    async fn live(self: &Arc<Self>) {
        let mut known = self.context.services_known.subscribe();
        if known.wait_for(|k| *k).await.is_err() {
            return;
        }
        let record = self.record();
        if matches!(record.network, Network::Released) && !record.finished {
            self.say_what_is_ignored();
        }
        // A pod that ended in an earlier life has given its address back; only its containers' ends are told again.
        if !record.finished {
            self.join_network().await;
            while let Err(e) = self.write_files() {
                self.event("Warning", "FailedMount", &e.to_string());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        let spec = self.spec();
        for c in spec.init_containers.iter().flatten() {
            if !self.supervise(c, true).await {
                // Only with restartPolicy Never; the pod has failed.
                self.finish().await;
                return;
            }
        }
        join_all(spec.containers.iter().map(|c| self.supervise(c, false))).await;
        self.finish().await;
    }

    /// Attaches the pod, however often it takes.
    async fn join_network(self: &Arc<Self>) {
        let mut wait = Duration::from_millis(100);
        loop {
            // A task of its own: dropping this future must not drop an ADD half-way.
            let attaching = tokio::spawn(self.clone().attach());
            let e = match attaching.await {
                Ok(Ok(ips)) => {
                    self.observe(|o| {
                        o.ips = ips;
                        o.sandbox = true;
                    });
                    return;
                }
                Ok(Err(e)) => e,
                Err(e) => LabError::new(e.to_string()),
            };
            self.not_attached(&e, wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }

    async fn not_attached(&self, e: &LabError, wait: Duration) {
        let text = e.to_string();
        // The agent's first moments are no event.
        if wait > Duration::from_millis(800) || !text.contains("network is not ready") {
            self.event("Warning", "FailedCreatePodSandBox", &text);
        }
        self.observe(|o| {
            for c in o.init.iter_mut().chain(&mut o.containers) {
                if let State::Waiting { message, .. } = &mut c.state {
                    message.clone_from(&text);
                }
            }
        });
        tokio::time::sleep(wait).await;
    }

    /// All containers ended for good: the address is given back, the pod stays as a record.
    async fn finish(self: &Arc<Self>) {
        let me = self.clone();
        let released = tokio::spawn(async move { me.release().await });
        if released.await.is_ok() {
            let record = {
                let mut r = locked(&self.record);
                r.finished = true;
                r.clone()
            };
            // If this is not written, a runner that returns attaches the pod once more, and releases it again.
            let _ = self.dir.save(&record);
        }
        self.observe(|o| o.sandbox = false);
    }

    fn say_what_is_ignored(&self) {
        let spec = self.spec();
        for c in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let image = c.image.as_deref().unwrap_or_default();
            let what = if c.command.as_ref().is_some_and(|v| !v.is_empty()) {
                "the command runs as a process of this machine".to_owned()
            } else {
                let ports: Vec<String> = super::container::echo_ports(c).iter().map(ToString::to_string).collect();
                format!("the built-in echo server answers on port {}", ports.join(", "))
            };
            let mut text = format!("image {image:?} of container {} is ignored in a lab: {what}", c.name);
            if c.volume_mounts.as_ref().is_some_and(|v| v.iter().any(|m| !m.mount_path.starts_with("/var/run/secrets")))
            {
                text.push_str("; its volume mounts are ignored too");
            }
            self.event("Normal", "ImageIgnored", &text);
        }
    }

    fn write_files(&self) -> Result<(), LabError> {
        let pod = self.pod();
        let spec = self.spec();
        let ips = self.ips();
        let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
        let hosts = if spec.host_network == Some(true) {
            dns_files::hosts_of_host_network(&read("/etc/hosts"), &spec)
        } else {
            dns_files::hosts(&pod, &ips)
        };
        let node = dns_files::Resolv::parse(&read("/etc/resolv.conf"));
        let r = dns_files::resolv(&pod, &self.context.cluster_dns(), &node);
        if r.missing_cluster_dns {
            let text = "there is no Service kube-system/kube-dns: /etc/resolv.conf is the machine's own";
            self.event("Normal", "NoClusterDNS", text);
        }
        // In place: a process of an earlier life has these very files mounted.
        for (path, text) in [(self.dir.hosts(), hosts), (self.dir.resolv(), r.resolv.render())] {
            if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
                std::fs::write(&path, text).doing(|| format!("{}", path.display()))?;
            }
        }
        Ok(())
    }

    fn attachment(&self, netns: &str) -> Attachment {
        let spec = self.spec();
        let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
        Attachment {
            container_id: self.uid.replace('-', ""),
            netns: ns::path(netns),
            namespace: self.namespace.clone(),
            pod: self.name.clone(),
            uid: self.uid.clone(),
            port_mappings: ports
                .filter_map(|p| {
                    let host = p.host_port.filter(|h| *h > 0)?;
                    let proto = p.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
                    let mut m = json!({"hostPort": host, "containerPort": p.container_port, "protocol": proto});
                    if let Some(ip) = p.host_ip.as_deref().filter(|i| !i.is_empty()) {
                        m["hostIP"] = json!(ip);
                    }
                    Some(m)
                })
                .collect(),
        }
    }

    /// Makes the namespace and calls ADD, unless that is done; the pod's addresses.
    async fn attach(self: Arc<Self>) -> Result<Vec<IpAddr>, LabError> {
        let _guard = self.network.lock().await;
        match self.record().network {
            Network::Host => {
                let mut rx = self.context.host_ips.clone();
                let known = tokio::time::timeout(Duration::from_secs(2), rx.wait_for(|i| !i.is_empty())).await;
                let none = || LabError::new(format!("node {}: has no address", self.context.config.node));
                return Ok(known.map_err(|_| none())?.map_err(|_| none())?.clone());
            }
            Network::Attached { netns, result, .. } if kernel::Netns::is_netns(ns::path(&netns)) => {
                return Ok(cni::addresses(&result));
            }
            // Its namespace was taken away, or the last attempt did not end well: begin anew.
            Network::Attached { .. } | Network::Begun { .. } => self.detach().await?,
            Network::Released => {}
        }
        let list = self.context.conf_list()?;
        let _attaching = self.context.attach.read().await;
        let mut netns = self.context.config.lab.pod_netns(&self.namespace, &self.name, &self.uid);
        if ns::path(&netns).exists() {
            // A pod of this name that was deleted by force may still be on its way out, here or on another node.
            netns = format!("{netns}-{}", &self.uid[..self.uid.len().min(8)]);
        }
        let attachment = self.attachment(&netns);
        let begun = |list| Network::Begun { netns: netns.clone(), list, attachment: attachment.clone() };
        self.set_network(begun(None))?;
        ns::create(&netns)?;
        ns::loopback_up(&netns)?;
        self.set_network(begun(Some(list.clone())))?;
        match self.context.cni.add(&list, &attachment).await {
            Ok(result) => {
                let ips = cni::addresses(&result);
                self.set_network(Network::Attached { netns, list, attachment, result })?;
                Ok(ips)
            }
            Err(e) => {
                // The next attempt begins with DEL if this one fails.
                if let Err(again) = self.detach().await {
                    tracing::warn!("after {e}: {again}");
                }
                Err(e)
            }
        }
    }

    /// DEL once and the namespace away. The caller holds the network.
    async fn detach(&self) -> Result<(), LabError> {
        let (netns, list, attachment, result) = match self.record().network {
            Network::Begun { netns, list, attachment } => (netns, list, attachment, None),
            Network::Attached { netns, list, attachment, result } => (netns, Some(list), attachment, Some(result)),
            Network::Host | Network::Released => return Ok(()),
        };
        if let Some(list) = list {
            self.context.cni.del(&list, &attachment, result.as_ref()).await?;
        }
        ns::delete(&netns)?;
        self.set_network(Network::Released)
    }

    /// DEL until it succeeds.
    async fn release(&self) {
        let _guard = self.network.lock().await;
        let mut wait = Duration::from_millis(100);
        while let Err(e) = self.detach().await {
            tracing::warn!("pod {}/{}: {e}", self.namespace, self.name);
            self.event("Warning", "FailedKillPod", &e.to_string());
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    /// Ends every process, gives the network back, forgets the pod and deletes its object.
    async fn end(&self, gone: bool, desired: &mut watch::Receiver<Desired>) {
        let pod = self.pod();
        let asked = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
        let grace = Duration::from_secs(u64::try_from(asked).unwrap_or(0));
        self.stop_containers(if gone { grace.min(GRACE_WHEN_GONE) } else { grace }, desired).await;
        self.release().await;
        self.dir.remove();
        if gone {
            return;
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name);
        let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}});
        loop {
            match self.context.api.delete(&path, &options).await {
                Ok(()) => return,
                // Another pod has the name.
                Err(e) if e.code() == Some(409) => return,
                Err(e) => tracing::warn!("delete pod {}/{}: {e}", self.namespace, self.name),
            }
            if matches!(*desired.borrow(), Desired::Gone) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
