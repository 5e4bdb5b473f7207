//! `dhcp`: addresses from a DHCP server on the network that the interface is in. A lease must be renewed for as long as
//! the container lives, so a daemon (`dhcp daemon`) asks for it and keeps it; the plugin's verbs are calls to it.

pub mod client;
pub mod conf;
pub mod daemon;
mod gob;
pub(crate) mod kept;
mod lease;
pub mod packet;
pub(crate) mod rpc;

use std::io;
use std::time::Duration;

use cni::{CniResult, Code, Context, Error, Plugin};
use kernel_api::machine::Machine;
use serde_json::Value;

use conf::Conf;
pub use lease::result;
use rpc::Args;

/// A daemon gives up sooner.
const PATIENCE: Duration = Duration::from_secs(600);

/// See the module.
pub struct Dhcp;

fn wrong(what: impl Into<String>) -> Error {
    Error::new(Code::TryAgainLater, what)
}

/// The daemon's answer.
fn ask<M: Machine>(cx: &Context<'_, M>, conf: &Conf, method: &str) -> Result<CniResult, Error> {
    let text = |t: &Option<std::ffi::OsString>| t.as_deref().and_then(|t| t.to_str()).unwrap_or_default().to_owned();
    let key = cx.key()?;
    let args = Args {
        container: key.container.to_string(),
        netns: cx.netns_path().into(),
        ifname: key.ifname.to_string(),
        args: cx.call.args.to_string(),
        path: text(&cx.env.path),
        stdin: Value::Object(cx.conf.clone()).to_string().into_bytes(),
    };
    match rpc::ask(&conf.socket, method, &args, PATIENCE) {
        Ok(Ok(r)) => Ok(r),
        Ok(Err(e)) => Err(wrong(format!("the DHCP daemon: {e}"))),
        Err(e) => Err(unreachable(&conf.socket, &e)),
    }
}

fn unreachable(socket: &str, e: &io::Error) -> Error {
    wrong(format!("call the DHCP daemon at {socket}: {e}; start it with `dhcp daemon`"))
}

impl<M: Machine> Plugin<M> for Dhcp {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(&cx.fields(), &cx.call.args)?;
        let mut out = ask(cx, &conf, "DHCP.Allocate")?;
        for r in &mut out.routes {
            r.priority = conf.priority;
        }
        Ok(out)
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields(), "")?;
        ask(cx, &conf, "DHCP.Release").map(drop)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields(), &cx.call.args)?;
        let now = ask(cx, &conf, "DHCP.Allocate")?;
        let Some(prev) = &cx.prev else { return Ok(()) };
        let has = |a| prev.ips.iter().any(|p| p.address == a);
        match now.ips.iter().find(|i| !has(i.address)) {
            Some(i) => Err(Error::new(Code::Differs, format!("the lease is {}, prevResult has another", i.address))),
            None => Ok(()),
        }
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let no = |e: Error| Error { code: Code::NotAvailable, ..e };
        let conf = Conf::read(&cx.fields(), "").map_err(no)?;
        let reached = std::os::unix::net::UnixStream::connect(&conf.socket);
        reached.map(drop).map_err(|e| no(unreachable(&conf.socket, &e)))
    }
}
