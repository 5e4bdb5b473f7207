//! `seaway services takeover`: kube-proxy's work passes to Seaway on a live node, and back.

use std::io::{ErrorKind, Read, Write};
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

/// Status and body; `None` when nobody listens, or who did ended before it had answered.
pub fn get(at: SocketAddr, path: &str) -> anyhow::Result<Option<(u16, String)>> {
    let Ok(mut s) = TcpStream::connect_timeout(&at, gather::PATIENCE) else { return Ok(None) };
    s.set_read_timeout(Some(gather::PATIENCE))?;
    s.set_write_timeout(Some(gather::PATIENCE))?;
    // 1.0: the answer is not chunked and ends with the connection.
    let asked = write!(s, "GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n");
    let mut answer = String::new();
    match asked.and_then(|()| s.take(gather::MOST).read_to_string(&mut answer)) {
        Ok(_) => whole(&answer),
        Err(e) if ended(e.kind()) => Ok(None),
        Err(e) => Err(e).context(format!("ask {at} for {path}")),
    }
}

/// How a connection breaks off when the other end's process is gone.
fn ended(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe)
}

/// Takes an answer apart; `None` where its end is missing.
fn whole(answer: &str) -> anyhow::Result<Option<(u16, String)>> {
    if answer.is_empty() {
        return Ok(None);
    }
    let (head, body) = answer.split_once("\r\n\r\n").context("it speaks no HTTP")?;
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).context("it speaks no HTTP")?;
    let length = head.lines().filter_map(|l| l.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case("content-length"));
    let missing = length.and_then(|(_, l)| l.trim().parse().ok()).is_some_and(|l: usize| body.len() < l);
    Ok((!missing).then(|| (status, body.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::{get, whole};

    /// An agent that is stopped while it is asked is one that is not there: whoever waits for the next asks again.
    #[test]
    fn who_ends_before_the_answer_does_not_listen() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let at = listener.local_addr().unwrap();
        // What is said is not read, so the kernel resets the connection.
        let gone = std::thread::spawn(move || drop(listener.accept().unwrap()));
        assert!(get(at, "/status").unwrap().is_none());
        gone.join().unwrap();
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let at = listener.local_addr().unwrap();
        let cut = std::thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            assert!(std::io::Read::read(&mut s, &mut asked).unwrap() > 0);
            s.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\"").unwrap();
        });
        assert!(get(at, "/status").unwrap().is_none());
        cut.join().unwrap();
        assert_eq!(whole("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap(), Some((200, "ok".to_owned())));
        assert!(whole("SSH-2.0").is_err());
    }
}
