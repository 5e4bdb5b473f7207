//! Load balancers ask each node whether it has endpoints of a Service (`healthCheckNodePort`): 200 and how many, or 503.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use intent::{NodeIntent, ServiceChanges};
use resolve::{Key, Kind};
use source::{Note, Recorder};
use tokio::net::TcpSocket;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use types::{Family, ObjectName};

use super::answers::{self, Answer};

/// A listener that could not be opened is tried again after so long.
const AGAIN: Duration = Duration::from_secs(5);

/// What a node tells of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Check {
    /// `healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints of this node, by family: IPv4, IPv6.
    pub local: [usize; 2],
}

/// Everything that is to be told, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checks {
    /// The addresses at which node ports are served.
    pub addresses: BTreeSet<IpAddr>,
    /// By Service.
    pub services: BTreeMap<ObjectName, Check>,
}

impl Checks {
    /// From an intent. Says whether anything is other than before.
    pub fn update(&mut self, intent: &NodeIntent, changed: &ServiceChanges) -> bool {
        let mut other = self.addresses != intent.node_port_addresses;
        if other {
            self.addresses.clone_from(&intent.node_port_addresses);
        }
        match changed {
            ServiceChanges::All => {
                let checked = intent.services.iter().filter(|(_, p)| p.health_check_port.is_some());
                let names: BTreeSet<&ObjectName> = checked.map(|(k, _)| &k.service).collect();
                let all = names.into_iter().filter_map(|n| Some((n.clone(), check(intent, n)?))).collect();
                other |= self.services != all;
                self.services = all;
            }
            ServiceChanges::Some(names) => {
                for name in names.keys() {
                    let now = check(intent, name);
                    other |= self.services.get(name) != now.as_ref();
                    match now {
                        Some(c) => drop(self.services.insert(name.clone(), c)),
                        None => drop(self.services.remove(name)),
                    }
                }
            }
        }
        other
    }
}

/// What is told of a Service, if anything is.
fn check(intent: &NodeIntent, name: &ObjectName) -> Option<Check> {
    let ports: Vec<_> = intent.ports_of(name).map(|(_, p)| p).collect();
    let port = ports.iter().find_map(|p| p.health_check_port)?;
    // An endpoint of two ports is one; one that only serves while it terminates is none, so that balancers turn away.
    let local = Family::BOTH.map(|f| {
        let of = ports.iter().filter(|p| *p.local_scope.get(f) == intent::Scope::Ready);
        let all = of.flat_map(|p| &p.local_endpoints).map(|e| e.addr).filter(|a| Family::of(*a) == f);
        all.collect::<BTreeSet<_>>().len()
    });
    // A Service of one family is told of at the node's addresses of both: it is the same Service that is asked about.
    let has = Family::BOTH.map(|f| ports.iter().any(|p| p.families.has(f)));
    let local = match has {
        [true, false] => [local[0]; 2],
        [false, true] => [local[1]; 2],
        _ => local,
    };
    Some(Check { port, local })
}

/// Whether the node's proxy is healthy, asked at each answer.
pub type Healthy = Arc<dyn Fn() -> bool + Send + Sync>;

/// A listener: whose, and at which address and port.
type At = (ObjectName, SocketAddr);

/// Keeps the listeners.
pub struct Server {
    recorder: Recorder,
    node: String,
    healthy: Healthy,
    permits: Arc<Semaphore>,
    /// What the listeners answer.
    now: Arc<Mutex<BTreeMap<ObjectName, Check>>>,
    open: BTreeMap<At, AbortHandle>,
    /// Those that could not be opened, and why.
    failed: BTreeMap<At, String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.open.values().for_each(AbortHandle::abort);
    }
}

impl Server {
    /// One without listeners.
    pub fn new(recorder: Recorder, node: String, healthy: Healthy) -> Self {
        Self {
            recorder,
            node,
            healthy,
            permits: Arc::new(Semaphore::new(answers::CONNECTIONS)),
            now: Arc::default(),
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Follows what is to be told until the sender is gone.
    pub async fn run(mut self, mut wanted: watch::Receiver<Checks>) {
        loop {
            let checks = wanted.borrow_and_update().clone();
            self.sync(&checks);
            let again = async {
                match self.failed.is_empty() {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(AGAIN).await,
                }
            };
            tokio::select! {
                r = wanted.changed() => if r.is_err() { return },
                () = again => {}
            }
        }
    }

    fn sync(&mut self, checks: &Checks) {
        let mut want: BTreeSet<At> = BTreeSet::new();
        for (name, c) in &checks.services {
            want.extend(checks.addresses.iter().map(|a| (name.clone(), SocketAddr::new(*a, c.port))));
        }
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&checks.services);
        // First close, so that a port may change hands.
        self.open.retain(|at, task| {
            let keep = want.contains(at) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        self.failed.retain(|at, _| want.contains(at));
        for at in want {
            if self.open.contains_key(&at) {
                continue;
            }
            match self.listen(&at) {
                Ok(task) => {
                    self.failed.remove(&at);
                    self.open.insert(at, task);
                }
                Err(e) => self.refuse(at, &e),
            }
        }
    }

    fn listen(&self, (name, at): &At) -> std::io::Result<AbortHandle> {
        let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A listener that was just closed may still have connections.
        socket.set_reuseaddr(true)?;
        socket.bind(*at)?;
        let listener = socket.listen(128)?;
        let (name, now, healthy) = (name.clone(), Arc::clone(&self.now), Arc::clone(&self.healthy));
        let v6 = at.is_ipv6();
        let answer = move |_: &str| {
            let check = now.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied().unwrap_or_default();
            let local = if v6 { check.local[1] } else { check.local[0] };
            answer(&name, local, healthy())
        };
        Ok(tokio::spawn(answers::serve(listener, Arc::clone(&self.permits), Arc::new(answer))).abort_handle())
    }

    fn refuse(&mut self, at: At, e: &std::io::Error) {
        let why = e.to_string();
        let (name, address) = &at;
        if self.failed.get(&at) != Some(&why) {
            tracing::warn!("Service {name}: the health check port {address} cannot be served: {why}");
            self.recorder.note(Note {
                about: Key { kind: Kind::Service, name: name.clone() },
                warning: true,
                reason: "FailedToStartServiceHealthcheck".into(),
                message: format!(
                    "node {} cannot listen at {address} (spec.healthCheckNodePort): {why}: stop who has the port, or \
                     make the Service anew with another",
                    self.node
                ),
            });
        }
        self.failed.insert(at, why);
    }
}

/// As kube-proxy words it (`pkg/proxy/healthcheck/service_health.go` of Kubernetes 1.36).
fn answer(name: &ObjectName, local: usize, healthy: bool) -> Answer {
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {:?},\n\t\t\"name\": {:?}\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        &*name.namespace, &*name.name
    );
    let status = if local > 0 && healthy { 200 } else { 503 };
    Answer { status, headers: format!("X-Load-Balancing-Endpoint-Weight: {local}\r\n"), body }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use intent::{Endpoint, Scope, ServiceKey, ServicePort};
    use types::Proto;

    use super::*;

    fn intent(endpoints: &[&str], scope: Scope) -> NodeIntent {
        let mut i = NodeIntent::empty("n".parse().unwrap());
        i.node_port_addresses = ["127.0.0.1".parse().unwrap()].into();
        for port in ["http", "dns"] {
            let mut p = ServicePort { port: 80, health_check_port: Some(32000), ..ServicePort::default() };
            p.local_endpoints = endpoints.iter().map(|a| Endpoint { addr: a.parse().unwrap(), port: 8080 }).collect();
            p.local_scope.v4 = scope;
            let service = ObjectName::new("shop", "web");
            i.services.insert(ServiceKey { service, port: port.into(), proto: Proto::Tcp }, p.into());
        }
        i
    }

    #[test]
    fn ready_endpoints_of_this_node_are_counted_once_and_by_family() {
        let mut c = Checks::default();
        let name = ObjectName::new("shop", "web");
        assert!(c.update(&intent(&["10.0.0.1", "10.0.0.2", "fd00::1"], Scope::Ready), &ServiceChanges::All));
        assert_eq!(c.services[&name], Check { port: 32000, local: [2, 1] });
        assert!(!c.update(&intent(&["10.0.0.1", "10.0.0.2", "fd00::1"], Scope::Ready), &ServiceChanges::All));
        let changed = ServiceChanges::Some([(name.clone(), Vec::new())].into());
        assert!(c.update(&intent(&["10.0.0.1"], Scope::Terminating), &changed));
        assert_eq!(c.services[&name], Check { port: 32000, local: [0, 0] });
        let mut single = intent(&["10.0.0.1", "10.0.0.2"], Scope::Ready);
        for p in single.services.values_mut() {
            let p = Arc::make_mut(p);
            (p.families.v4, p.families.v6) = (true, false);
        }
        assert!(c.update(&single, &changed));
        assert_eq!(c.services[&name].local, [2, 2], "at the node's addresses of either family");
        let mut none = intent(&[], Scope::Ready);
        none.services.clear();
        assert!(c.update(&none, &changed) && c.services.is_empty());
    }

    #[test]
    fn the_answer_is_kube_proxys() {
        let name = ObjectName::new("shop", "web");
        let a = answer(&name, 2, true);
        assert_eq!((a.status, a.headers.as_str()), (200, "X-Load-Balancing-Endpoint-Weight: 2\r\n"));
        assert_eq!(
            a.body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        assert_eq!(answer(&name, 0, true).status, 503);
        assert_eq!(answer(&name, 2, false).status, 503);
    }

    /// Over real sockets: clients that say nothing hold nobody up, and what is no HTTP gets no answer.
    #[test]
    fn answers_over_sockets() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let at = listener.local_addr().unwrap();
        let permits = Arc::new(Semaphore::new(answers::CONNECTIONS));
        let name = ObjectName::new("shop", "web");
        runtime.spawn(answers::serve(listener, permits, Arc::new(move |_: &str| answer(&name, 1, true))));
        let silent: Vec<_> = (0..10).map(|_| std::net::TcpStream::connect(at).unwrap()).collect();
        let ask = |text: &str| {
            let mut s = std::net::TcpStream::connect(at).unwrap();
            s.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let _ = s.write_all(text.as_bytes());
            let mut got = String::new();
            let _ = s.read_to_string(&mut got);
            got
        };
        let got = ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("\"localEndpoints\": 1"), "{got}");
        let head = ask("HEAD / HTTP/1.1\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert_eq!(ask(&"x".repeat(10_000)), "");
        drop(silent);
    }
}
