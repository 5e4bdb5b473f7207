//! `seaway services takeover`: kube-proxy's work passes to Seaway on a live node, and back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kernel::Nftables;
use serde_json::Value;

use super::{gather, leftovers};
use crate::agent::ServiceProxy;
use crate::kube_proxy;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

/// Replace kube-proxy on this node while it carries traffic, or give the node back to it.
#[derive(clap::Args)]
#[command(
    after_help = "Run it on the node, as root, in this order; nothing breaks a connection (docs/takeover.md):\n  \
    1. start the agent with --service-proxy beside: its rules come first for new connections\n  \
    2. seaway services takeover: waits until they are all in, then until you have stopped kube-proxy, then removes\n     \
    what it left behind\n  \
    3. from then on the agent may run with --service-proxy on, the default\n\n\
    Back again: start kube-proxy, then `seaway services takeover --give-back`, which waits until its rules are in, then\n\
    until you have started the agent with --service-proxy off.\n\n\
    Exit code 1 when what it waits for does not come."
)]
pub struct TakeoverArgs {
    /// The other way: from Seaway to kube-proxy
    #[arg(long)]
    give_back: bool,
    /// How long to wait for each step, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    wait: u64,
    /// Where the agent of this node listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = gather::AGENT)]
    agent: SocketAddr,
}

/// Runs the steps.
pub fn run(args: &TakeoverArgs) -> anyhow::Result<ExitCode> {
    let patience = Duration::from_secs(args.wait);
    if args.give_back { give_back(args.agent, patience) } else { takeover(args.agent, patience) }
}

fn takeover(agent: SocketAddr, patience: Duration) -> anyhow::Result<ExitCode> {
    let what = format!("an agent listens at {agent}: start it with --service-proxy beside (or say --agent)");
    wait(&what, patience, || Ok(mode(agent)?.is_some()))?;
    if mode(agent)?.is_some_and(|m| m == ServiceProxy::Off.to_string()) {
        bail!(
            "the agent runs with --service-proxy off, so it serves no Services: start it with --service-proxy beside"
        );
    }
    wait("the agent has programmed all Services", patience, || {
        Ok(get(agent, "/readyz")?.is_some_and(|(status, _)| status == 200))
    })?;
    println!("Seaway's rules are in; they come first for every new connection.");
    if let Some(how) = kube_proxy::active() {
        println!("kube-proxy is running ({how}): stop it now. Its connections go on.");
    }
    wait("kube-proxy has ended", patience, || Ok(kube_proxy::active().is_none()))?;
    let gone = leftovers::remove().context("remove what kube-proxy left behind")?;
    if gone.is_empty() {
        println!("kube-proxy left nothing behind.");
    }
    gone.iter().for_each(|g| println!("removed {g}"));
    println!("Services of this node are Seaway's.");
    Ok(ExitCode::SUCCESS)
}

fn give_back(agent: SocketAddr, patience: Duration) -> anyhow::Result<ExitCode> {
    if kube_proxy::active().is_none() {
        println!("kube-proxy is not running: start it now.");
    }
    wait("kube-proxy runs and has its rules in", patience, || {
        let mut nft = Nftables::open().context("open nf_tables")?;
        let rules = nft.foreign(&plane_nft::foreign::MARKERS)?;
        Ok(kube_proxy::active().is_some() && plane_nft::foreign::has_kube_proxy(&rules))
    })?;
    println!("kube-proxy's rules are in.");
    let off = || Ok(mode(agent)?.is_some_and(|m| m == ServiceProxy::Off.to_string()));
    if !off()? {
        println!("Start the agent anew with --service-proxy off: it takes its Services out in one step.");
    }
    wait("the agent runs with --service-proxy off", patience, off)?;
    wait("the agent has taken its Services out", patience, || {
        Ok(get(agent, "/readyz")?.is_some_and(|(status, _)| status == 200))
    })?;
    println!("Services of this node are kube-proxy's.");
    Ok(ExitCode::SUCCESS)
}

fn wait(what: &str, patience: Duration, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !so()? {
        if began.elapsed() >= patience {
            bail!("not within {} s: {what}", patience.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// What the agent says of `--service-proxy`; `None` when none listens.
fn mode(agent: SocketAddr) -> anyhow::Result<Option<String>> {
    let Some((_, body)) = get(agent, "/status")? else { return Ok(None) };
    let status: Value = serde_json::from_str(&body).context("read the agent's /status")?;
    Ok(status["serviceProxy"].as_str().map(str::to_owned))
}

/// Status and body; `None` when nobody listens.
pub fn get(at: SocketAddr, path: &str) -> anyhow::Result<Option<(u16, String)>> {
    let Ok(mut s) = TcpStream::connect_timeout(&at, gather::PATIENCE) else { return Ok(None) };
    s.set_read_timeout(Some(gather::PATIENCE))?;
    s.set_write_timeout(Some(gather::PATIENCE))?;
    // 1.0: the answer is not chunked and ends with the connection.
    write!(s, "GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n")?;
    let mut answer = String::new();
    s.take(gather::MOST).read_to_string(&mut answer).context("read its answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("it speaks no HTTP")?;
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).context("it speaks no HTTP")?;
    Ok(Some((status, body.to_owned())))
}
