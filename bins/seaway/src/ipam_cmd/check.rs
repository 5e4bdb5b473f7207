//! `seaway ipam check`: looks, compares, mends.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use kernel::{Linux, Rt};
use kernel_api::Rtnetlink;
use kernel_api::rt::{ROUTE_PROTOCOL, RouteTo, RtRequest};
use serde::Serialize;
use source::{Api, Source, WatchConfig};
use types::{NodeName, OwnedName};

use super::find::{Finding, Mend, Seen, find};
use super::{IpamArgs, print, snapshot};
use crate::agent::{PoolsKeeper, PoolsShared, one_agent};
use crate::plan_cmd::Output;

/// How long an ADD or DEL may be half done.
const MOMENT: Duration = Duration::from_millis(500);
/// How long the keeper of pools, ours or the running agent's, may take.
const KEEPER: Duration = Duration::from_secs(15);

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    finding: Finding,
    /// What was done, or what to do.
    outcome: String,
    mended: bool,
}

pub fn run(args: &IpamArgs, fix: bool, output: Output) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cluster = match &args.api {
        Some(target) => {
            let node = args.node.clone().context("--node: say which Node object is this one")?;
            let api = runtime.block_on(source::connect(target)).with_context(|| format!("--api {target}"))?;
            Some((api, node))
        }
        None => None,
    };
    let look = || -> anyhow::Result<Seen> {
        let (links, routes) = kernel_side()?;
        let report = ipam::check(&args.ipam_dir)?;
        let gone = report.intact.iter().filter(|r| cni::namespace_gone(r)).map(|r| r.key.clone()).collect();
        let pools = ipam::Pools::read(&args.ipam_dir.join(ipam::POOLS))?;
        let cluster = match &cluster {
            Some((api, node)) => Some((runtime.block_on(snapshot(api, Some(node.clone())))?, node.clone())),
            None => None,
        };
        Ok(Seen { links, routes, report, gone, pools, cluster })
    };
    let mut seen = look()?;
    let mut findings = find(&seen);
    if !findings.is_empty() {
        // Half an ADD or DEL looks like a disagreement; it is none any more after a moment.
        std::thread::sleep(MOMENT);
        seen = look()?;
        let now = find(&seen);
        findings.retain(|f| now.contains(f));
    }
    let mut lines = Vec::new();
    let mut keeper: Option<Result<(), String>> = None;
    for f in findings {
        let done = match (&f.mend, fix) {
            (Mend::Person(what), _) => Err((*what).to_owned()),
            (_, false) => Err("--fix mends it".to_owned()),
            (Mend::Pools, true) => {
                let what = || match &cluster {
                    Some((api, node)) => runtime.block_on(keep(args, api, node)).map_err(|e| format!("{e:#}")),
                    None => Err("needs --api".to_owned()),
                };
                keeper.get_or_insert_with(what).clone()
            }
            (m, true) => mend(args, m).map_err(|e| format!("{e:#}")),
        };
        let mended = done.is_ok();
        lines.push(Line { finding: f, outcome: done.err().unwrap_or_else(|| "mended".into()), mended });
    }
    if fix && lines.iter().any(|l| l.mended) {
        // Believed when seen.
        let left = find(&look()?);
        for l in lines.iter_mut().filter(|l| l.mended && left.contains(&l.finding)) {
            (l.mended, l.outcome) = (false, "it is so again: something else undoes it".into());
        }
    }
    let bad = lines.iter().filter(|l| !l.mended).count();
    if !print(&lines, output)? {
        for l in &lines {
            println!("{}: {} ({})", l.finding.between, l.finding.what, l.outcome);
        }
        let stale = if seen.report.stale { ", all of an earlier boot" } else { "" };
        let looked = if seen.cluster.is_some() { "API, records, kernel and pods" } else { "records and kernel" };
        println!(
            "{looked}: {} records{stale}, {} disagreements, {bad} not mended",
            seen.report.intact.len(),
            lines.len()
        );
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

type Kernel = (BTreeSet<OwnedName>, Vec<(kernel_api::rt::Route, OwnedName)>);

/// Pod interfaces of ours and the routes of ours to them.
fn kernel_side() -> anyhow::Result<Kernel> {
    let mut rt = Rt::open().context("open rtnetlink")?;
    let pod_link = |n: &types::IfName| OwnedName::recognise(n).ok().filter(OwnedName::is_pod_link);
    let links = rt.links()?.iter().filter_map(|l| pod_link(&l.name)).collect();
    let ours = rt.routes()?.into_iter().filter(|o| o.protocol == ROUTE_PROTOCOL).filter_map(|o| match &o.route.to {
        RouteTo::Link(l) => pod_link(l).map(|n| (o.route.clone(), n)),
        _ => None,
    });
    Ok((links, ours.collect()))
}

/// Mends what is this node's alone.
fn mend(args: &IpamArgs, what: &Mend) -> anyhow::Result<()> {
    let run = |r: RtRequest| -> anyhow::Result<()> {
        match Rt::open().context("open rtnetlink")?.run(&[r]) {
            Err(e) if !e.absent() => Err(e.into()),
            _ => Ok(()),
        }
    };
    let dir = &args.ipam_dir;
    match what {
        Mend::Journal => Ok(ipam::repair(dir).map(drop)?),
        Mend::Release(key) => {
            cni::remove_if_gone(&mut Linux, plugins::by_name, dir, key).map(drop).map_err(|e| anyhow!("{e}"))
        }
        Mend::Rewire(key) => cni::rewire(&mut Linux, dir, key).map_err(|e| anyhow!("{e}")),
        Mend::Link(link) => run(RtRequest::LinkDel(link.clone())),
        Mend::Route(route) => run(RtRequest::RouteDel(route.clone())),
        Mend::Pools | Mend::Person(_) => Ok(()),
    }
}

/// What the agent does about pools: by itself where it runs, by us where none does. Two at once would each believe
/// that the plugin's file says what they wrote.
async fn keep(args: &IpamArgs, api: &Api, node: &NodeName) -> anyhow::Result<()> {
    let Ok(_place) = one_agent() else {
        let start = Instant::now();
        while start.elapsed() < KEEPER {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let s = snapshot(api, Some(node.clone())).await?;
            let report = ipam::check(&args.ipam_dir)?;
            let pools = ipam::Pools::read(&args.ipam_dir.join(ipam::POOLS))?;
            let gone = report.intact.iter().filter(|r| cni::namespace_gone(r)).map(|r| r.key.clone()).collect();
            let cluster = Some((s, node.clone()));
            let (links, routes) = kernel_side()?;
            let seen = Seen { links, routes, report, gone, pools, cluster };
            if !find(&seen).iter().any(|f| f.mend == Mend::Pools) {
                return Ok(());
            }
        }
        return Err(anyhow!("the agent runs and has not mended it in {} s: see its log", KEEPER.as_secs()));
    };
    let mut source = Source::start(api, WatchConfig { pods_of: Some(node.clone()), ..WatchConfig::agent() });
    source.wait_in_sync().await;
    let shared = Arc::new(PoolsShared::default());
    let keeper =
        PoolsKeeper::new(api.clone(), node.clone(), source.reader(), args.ipam_dir.clone(), Arc::clone(&shared));
    let turns = async {
        let told = async {
            loop {
                source.changed().await;
                shared.changed.notify_one();
            }
        };
        tokio::select! {
            () = keeper.run() => {}
            () = told => {}
        }
    };
    // It never ends by itself; what it has not done by then needs another node.
    let _ = tokio::time::timeout(Duration::from_secs(5), turns).await;
    Ok(())
}
