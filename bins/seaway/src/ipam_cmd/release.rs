//! `seaway ipam release`: an attachment is undone by hand.

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use ipam::Record;
use kernel::Linux;

pub fn run(dir: &Path, what: &str, force: bool) -> anyhow::Result<ExitCode> {
    let records = ipam::read(dir)?;
    let mut found: Vec<&Record> = match what.parse::<IpAddr>() {
        Ok(ip) => records.iter().filter(|r| r.addresses.contains(&ip)).collect(),
        Err(_) => records.iter().filter(|r| !what.is_empty() && r.key.container.starts_with(what)).collect(),
    };
    if found.iter().any(|r| *r.key.container == *what) {
        found.retain(|r| *r.key.container == *what);
    }
    let containers: std::collections::BTreeSet<&str> = found.iter().map(|r| &*r.key.container).collect();
    match containers.len() {
        0 => bail!("nothing in {} has {what}: `seaway ipam show` lists what there is", dir.display()),
        1 => {}
        n => bail!("{what} begins {n} container ids: write more of it"),
    }
    for r in &found {
        if !force && !cni::namespace_gone(r) {
            let whose = r.pod.as_ref().map_or_else(|| "it".to_owned(), |p| format!("pod {}/{}", p.namespace, p.name));
            bail!(
                "{}: {whose} lives (namespace {}): delete it, and its runtime releases the addresses; --force takes them \
                 from it at once",
                r.key,
                r.netns
            );
        }
    }
    for r in found {
        let undone = cni::remove(&mut Linux, plugins::by_name, dir, &r.key).map_err(|e| anyhow!("{}: {e}", r.key))?;
        if let Some(r) = undone {
            let addresses: Vec<String> = r.addresses.iter().map(ToString::to_string).collect();
            println!("released {}: {}", r.key, addresses.join(" "));
        }
    }
    Ok(ExitCode::SUCCESS)
}
