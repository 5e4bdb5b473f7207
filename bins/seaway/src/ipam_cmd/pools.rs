//! `seaway ipam pools` and `seaway ipam show --blocks`: what the API says.

use std::process::ExitCode;

use serde::Serialize;
use source::ClusterSnapshot;
use types::Cidr;

use super::{print, table};
use crate::plan_cmd::Output;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolRow {
    name: Box<str>,
    cidr: Cidr,
    block_size: u8,
    /// `open`, `disabled`, `deleting` or `overlaps POOL`.
    state: String,
    blocks: usize,
    nodes: usize,
    lent: usize,
    /// Addresses that pods report.
    in_use: usize,
    message: String,
}

pub fn run(s: &ClusterSnapshot, output: Output) -> anyhow::Result<ExitCode> {
    let (_, overlapping) = resolve::pools::sound(s);
    let rows: Vec<PoolRow> = s
        .pools
        .iter()
        .map(|(name, p)| {
            let blocks: Vec<_> = s.blocks.values().filter(|b| b.pool == *name).collect();
            let nodes: std::collections::BTreeSet<_> = blocks.iter().filter_map(|b| b.node.as_ref()).collect();
            let pods = s.pods.values().filter(|p| !p.host_network && !p.phase.ended());
            let state = match overlapping.get(&**name) {
                Some(other) => format!("overlaps {other}"),
                None if p.terminating => "deleting".into(),
                None if p.disabled => "disabled".into(),
                None => "open".into(),
            };
            PoolRow {
                name: name.clone(),
                cidr: p.cidr,
                block_size: p.size(),
                state,
                blocks: blocks.len(),
                nodes: nodes.len(),
                lent: blocks.iter().map(|b| b.lent.len()).sum(),
                in_use: pods.flat_map(|pod| &*pod.ips).filter(|ip| p.cidr.contains(**ip)).count(),
                message: p.status.get("message").and_then(|m| m.as_str()).unwrap_or_default().into(),
            }
        })
        .collect();
    if print(&rows, output)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut t = table(["POOL", "CIDR", "BLOCKS OF", "STATE", "BLOCKS", "NODES", "LENT", "IN USE", ""]);
    for r in rows {
        t.add_row([
            r.name.to_string(),
            r.cidr.to_string(),
            format!("/{}", r.block_size),
            r.state,
            r.blocks.to_string(),
            r.nodes.to_string(),
            r.lent.to_string(),
            r.in_use.to_string(),
            r.message,
        ]);
    }
    println!("{t}");
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct BlockRow {
    cidr: Cidr,
    pool: Box<str>,
    node: String,
    lent: Vec<String>,
    requests: Vec<String>,
    /// Addresses that pods report.
    in_use: usize,
}

pub fn blocks(s: &ClusterSnapshot, output: Output) -> anyhow::Result<ExitCode> {
    let mut rows: Vec<BlockRow> = s
        .blocks
        .values()
        .map(|b| BlockRow {
            cidr: b.cidr,
            pool: b.pool.clone(),
            node: b.node.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            lent: b.lent.iter().map(|l| format!("{} to {}", l.address, l.node)).collect(),
            requests: b.requests.iter().map(|r| r.node.to_string()).collect(),
            in_use: s.pods.values().flat_map(|p| &*p.ips).filter(|ip| b.cidr.contains(**ip)).count(),
        })
        .collect();
    rows.sort_by_key(|r| r.cidr);
    if print(&rows, output)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut t = table(["BLOCK", "POOL", "NODE", "IN USE", "LENT", "ASKED BY"]);
    for r in rows {
        t.add_row([
            r.cidr.to_string(),
            r.pool.to_string(),
            r.node,
            r.in_use.to_string(),
            r.lent.join(", "),
            r.requests.join(", "),
        ]);
    }
    println!("{t}");
    Ok(ExitCode::SUCCESS)
}
