//! `seaway ipam show`: the attachments of this node.

use std::path::Path;
use std::process::ExitCode;

use super::{print, table};
use crate::plan_cmd::Output;

pub fn run(dir: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let records = ipam::read(dir)?;
    if print(&records, output)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut t = table(["POD", "ADDRESSES", "LINK", "NAMESPACE"]);
    for r in &records {
        let pod = r.pod.as_ref().map_or_else(|| r.key.to_string(), |p| format!("{}/{}", p.namespace, p.name));
        let addresses: Vec<String> = r.addresses.iter().map(ToString::to_string).collect();
        t.add_row([pod, addresses.join(" "), r.link.to_string(), r.netns.to_string()]);
    }
    println!("{t}");
    let Some(pools) = ipam::Pools::read(&dir.join(ipam::POOLS))? else { return Ok(ExitCode::SUCCESS) };
    let used = |c: &types::Cidr| records.iter().flat_map(|r| &r.addresses).filter(|a| c.contains(**a)).count();
    let mut t = table(["POOL", "RANGE HERE", "IN USE", "OF"]);
    for (name, p) in &pools.pools {
        for r in &p.ranges {
            t.add_row([name.to_string(), r.to_string(), used(r).to_string(), r.size().to_string()]);
        }
    }
    if !t.is_empty() {
        println!("\n{t}");
    }
    Ok(ExitCode::SUCCESS)
}
