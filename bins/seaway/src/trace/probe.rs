//! Sends the packet that was traced.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use intent::L4;
use kernel::Netns;
use serde::Serialize;
use types::Proto;

use super::ends::Ends;
use super::walk::Report;

const WAIT: Duration = Duration::from_secs(2);

/// What the real packet did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// In words.
    pub result: String,
    /// Whether the trace said the same.
    pub agrees: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    Answer,
    Refused,
    Silence,
}

/// Sends from the sender's namespace and waits for an answer.
pub fn send(ends: &Ends, report: &Report) -> anyhow::Result<Outcome> {
    let netns = Netns::open(&ends.netns).with_context(|| ends.netns.display().to_string())?;
    let (dst, l4) = (ends.packet.dst, ends.packet.l4);
    let heard = netns.run(move || match l4 {
        L4::Echo => ping(dst),
        L4::Ports { proto: Proto::Tcp, dst: port, .. } => tcp(SocketAddr::new(dst, port)),
        L4::Ports { proto: Proto::Udp, dst: port, .. } => udp(SocketAddr::new(dst, port)),
        L4::Ports { proto: Proto::Sctp, .. } => {
            anyhow::bail!("SCTP has no probe: this machine's kernel has no SCTP sockets")
        }
    })??;
    let rejected = report.stop().is_some_and(|h| h.text.contains("rejects"));
    let (result, agrees) = match heard {
        Heard::Answer => ("answered".to_owned(), report.arrives()),
        // A closed port of a reached host says the same as a reject on the way.
        Heard::Refused => ("refused at once".to_owned(), rejected || report.arrives()),
        Heard::Silence if report.leaves() => {
            (format!("no answer in {} s from beyond the cluster, where nothing is known", WAIT.as_secs()), true)
        }
        Heard::Silence => (format!("no answer in {} s", WAIT.as_secs()), !report.arrives() && !rejected),
    };
    Ok(Outcome { result, agrees })
}

fn tcp(to: SocketAddr) -> anyhow::Result<Heard> {
    match TcpStream::connect_timeout(&to, WAIT) {
        Ok(_) => Ok(Heard::Answer),
        Err(e) => heard(&e),
    }
}

fn udp(to: SocketAddr) -> anyhow::Result<Heard> {
    let any: IpAddr = types::Family::of(to.ip()).unspecified();
    let s = UdpSocket::bind((any, 0)).context("open a UDP socket")?;
    s.connect(to).context("choose a route")?;
    s.set_read_timeout(Some(WAIT))?;
    s.send(b"seaway trace\n").context("send")?;
    match s.recv(&mut [0; 2048]) {
        Ok(_) => Ok(Heard::Answer),
        Err(e) => heard(&e),
    }
}

fn heard(e: &std::io::Error) -> anyhow::Result<Heard> {
    match e.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Ok(Heard::Refused),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Ok(Heard::Silence),
        // ICMP unreachable in other forms: an unreachable route on the way.
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Ok(Heard::Silence),
        _ => Err(anyhow::anyhow!("{e}")),
    }
}

fn ping(dst: IpAddr) -> anyhow::Result<Heard> {
    let status = Command::new("ping")
        .args(["-n", "-c", "1", "-W", "2"])
        .arg(dst.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("run ping (Debian package iputils-ping)")?;
    Ok(if status.success() { Heard::Answer } else { Heard::Silence })
}
