//! Gathers the facts of a living lab, sends the probes, gathers what came of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kernel_api::Rtnetlink;
use tokio::io::AsyncWriteExt;
use types::Family;

use super::facts::{Facts, Host, echo_pods, services};
use super::own;
use super::plan::{HOST_PORT, Probe, Source, host, missing, plan, plan_settled};
use super::table::{Failure, Report};
use crate::api::Api;
use crate::name::LAB_MARKER;
use crate::ns::{self, Enter};
use crate::pods;
use crate::prober::Said;
use crate::progress::Progress;
use crate::record::{Lab, own_program};
use crate::{Doing, LabError, LabName};

/// How a failing probe is explained: source and destination as `seaway trace` takes them, and the family; the hop.
pub type Why<'a> = &'a dyn Fn(&str, &str, Family) -> Option<String>;

/// The most failures explained.
const EXPLAINED: usize = 8;

/// Options of the test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Use only pods of the test's own.
    pub only_own: bool,
}

/// Servers of the test's own on nodes and outside; they end with this value.
struct Servers(Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for c in &mut self.0 {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

impl Servers {
    fn start(lab: &Lab, exe: &Path) -> Result<Self, LabError> {
        let mut all = Self(Vec::new());
        let name = &lab.spec.name;
        let hosts = lab.nodes.iter().map(|n| (n.name.as_str(), n.netns.clone()));
        let hosts: Vec<_> = hosts.chain([("outside", name.outside_netns())]).collect();
        for (host, netns) in &hosts {
            let enter = Enter { netns: Some(ns::path(netns)), ..Enter::default() };
            let child = Command::new(exe)
                .args(["lab", "enter"])
                .args(enter.to_args())
                .arg("--")
                .arg(exe)
                .args(["lab", "echo", "--pod", &format!("host/{host}"), "--node", host])
                .args(["--port", &HOST_PORT.to_string()])
                .env(LAB_MARKER, name.as_str())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .doing(|| "start the test's own servers")?;
            all.0.push(child);
        }
        let until = Instant::now() + Duration::from_secs(5);
        for (host, netns) in &hosts {
            // A moment after TCP is there, so is UDP: it is opened right behind it.
            let local = SocketAddr::from(([127, 0, 0, 1], HOST_PORT));
            while ns::within(&ns::path(netns), || TcpStream::connect(local).map(drop).doing(|| "connect")).is_err() {
                if Instant::now() > until {
                    return Err(LabError::new(format!(
                        "{host}: the test's server on port {HOST_PORT} does not answer"
                    )));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        std::thread::sleep(Duration::from_millis(50));
        Ok(all)
    }
}

/// Every address of a namespace, but loopback's.
fn own_addresses(netns: &str) -> Result<Vec<IpAddr>, LabError> {
    ns::within(&ns::path(netns), || {
        let mut rt = kernel::Rt::open().doing(|| "rtnetlink")?;
        let all = rt.addresses().doing(|| "addresses")?;
        Ok(all.into_iter().filter(|a| a.link.as_str() != "lo").map(|a| a.addr).collect())
    })
}

async fn gather(lab: &Lab, api: &Api, only_own: bool) -> Result<Facts, LabError> {
    let list = async |p: &str| -> Result<Vec<serde_json::Value>, LabError> {
        let mut v = api.list(p).await?;
        v.retain(|o| !only_own || o["metadata"]["namespace"] == own::NAMESPACE);
        Ok(v)
    };
    let pods = echo_pods(&list("/api/v1/pods").await?);
    let slices = list("/apis/discovery.k8s.io/v1/endpointslices").await?;
    let services = services(&list("/api/v1/services").await?, &slices, &pods);
    let mut nodes: Vec<Host> = Vec::new();
    for o in api.list("/api/v1/nodes").await? {
        let name = o["metadata"]["name"].as_str().unwrap_or_default();
        let addresses: Vec<IpAddr> = o["status"]["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|a| a["type"] == "InternalIP")
            .filter_map(|a| a["address"].as_str()?.parse().ok())
            .collect();
        if let Some(n) = lab.node(name) {
            nodes.push(host(name, &addresses, own_addresses(&n.netns)?));
        }
    }
    let outside = Some(host("outside", &lab.outside, lab.outside.clone()));
    Ok(Facts { nodes, outside, pods, services })
}

fn netns_of(lab: &Lab, source: &Source) -> Result<PathBuf, LabError> {
    Ok(match source {
        Source::Outside => ns::path(&lab.spec.name.outside_netns()),
        Source::Node(n) => ns::path(&lab.spec.name.node_netns(n)),
        Source::Pod(p) => {
            let found = pods::find(lab, p)?;
            found.netns.ok_or_else(|| LabError::new(format!("pod {p}: has no network namespace")))?
        }
    })
}

/// Sends all probes of one sender.
async fn ask(exe: &Path, lab: &LabName, netns: PathBuf, probes: &[Probe]) -> Result<Vec<Said>, LabError> {
    let enter = Enter { netns: Some(netns), ..Enter::default() };
    let asks: Vec<_> = probes.iter().map(|p| &p.ask).collect();
    let what = || "start a prober";
    let mut child = tokio::process::Command::new(exe)
        .args(["lab", "enter"])
        .args(enter.to_args())
        .arg("--")
        .arg(exe)
        .args(["lab", "probe"])
        .env(LAB_MARKER, lab.as_str())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .doing(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(&asks).doing(what)?).await.doing(what)?;
    }
    let out = child.wait_with_output().await.doing(what)?;
    let said: Vec<Said> = serde_json::from_slice(&out.stdout)
        .map_err(|e| LabError::new(format!("a prober: {e}: {}", String::from_utf8_lossy(&out.stderr).trim())))?;
    if said.len() == probes.len() { Ok(said) } else { Err(LabError::new("a prober answered too little")) }
}

/// Runs the matrix.
///
/// # Errors
/// When the lab cannot be asked at all. Paths that fail are in the report.
pub fn test(lab: &Lab, options: Options, progress: &Progress, why: Why<'_>) -> Result<Report, LabError> {
    let exe = own_program()?;
    let api = Api::new(&lab.spec.name.dir().api_sock());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "tokio")?;
    let servers = Servers::start(lab, &exe)?;
    let families = lab.spec.families;
    let mut report = runtime.block_on(async {
        progress.doing("what is there to ask");
        let facts = gather(lab, &api, options.only_own).await?;
        let probes = plan(&facts, families);
        let lacking = missing(&probes, &facts, families);
        if lacking.is_empty() && !options.only_own {
            return send(lab, &exe, probes, progress).await;
        }
        progress.doing("pods of the test's own");
        let made = async {
            own::make(&api, lab).await?;
            // Their Services are new: a node that has not heard of them yet is no fault of a path. One that never
            // hears of them is, and shows in the table.
            let until = Instant::now() + Duration::from_secs(5);
            while settled(lab, &api, &exe).await.is_err() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let facts = gather(lab, &api, options.only_own).await?;
            send(lab, &exe, plan(&facts, families), progress).await
        };
        let report = made.await;
        progress.doing("clean up");
        // Also when the test could not be made.
        let removed = own::remove(&api, lab).await;
        let report = report?;
        removed?;
        Ok(Report { own_pods: true, ..report })
    })?;
    drop(servers);
    report.ms = u64::try_from(progress.elapsed().as_millis()).unwrap_or(u64::MAX);
    for f in report.shown_mut().take(EXPLAINED) {
        f.stops = why(&f.from, &trace_target(f), f.family);
    }
    Ok(report)
}

/// A failing probe's destination as `seaway trace` takes it.
fn trace_target(f: &Failure) -> String {
    if f.to.ends_with("/udp") { format!("{}/udp", f.address) } else { f.address.clone() }
}

async fn send(lab: &Lab, exe: &Path, probes: Vec<Probe>, progress: &Progress) -> Result<Report, LabError> {
    // First contact: neighbours are learned by the first packet of each pair, which no kernel drops. Nothing is
    // warmed up here, so that a first packet that is lost is seen.
    let mut by_source: BTreeMap<Source, Vec<Probe>> = BTreeMap::new();
    let total = probes.len();
    for p in probes {
        by_source.entry(p.source.clone()).or_default().push(p);
    }
    progress.doing(format!("{total} paths from {} senders", by_source.len()));
    let name = &lab.spec.name;
    let asked = by_source.iter().map(async |(source, probes)| {
        let netns = netns_of(lab, source)?;
        ask(exe, name, netns, probes).await
    });
    let mut results = Vec::new();
    // A few at a time: the senders share this machine with what they ask.
    let mut asked = futures::StreamExt::buffered(futures::stream::iter(asked), 4);
    for probes in by_source.values() {
        let said = futures::StreamExt::next(&mut asked).await.ok_or_else(|| LabError::new("a prober is missing"))??;
        results.extend(probes.iter().cloned().zip(said));
    }
    Ok(Report::new(&results, lab.spec.families))
}

/// Whether every node forwards to every endpoint of every Service whose pods can be asked; how many Services that
/// are. A node learns of endpoints a moment after their pods are ready.
///
/// # Errors
/// What does not answer yet, or why nothing can be asked.
pub async fn settled(lab: &Lab, api: &Api, exe: &Path) -> Result<usize, String> {
    let facts = gather(lab, api, false).await.map_err(|e| e.to_string())?;
    let probes = plan_settled(&facts, lab.spec.families);
    let report = send(lab, exe, probes, &Progress::silent()).await.map_err(|e| e.to_string())?;
    match report.failures.first() {
        None => Ok(facts.services.len()),
        Some(f) => Err(format!("{} from {}: {}", f.to, f.from, f.problem)),
    }
}
