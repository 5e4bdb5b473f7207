//! Where the parts of a bundle come from. Each can be missing: then it says why.

use std::fmt::{Debug, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use kernel::{Ct, Nftables, Rt};
use kernel_api::Rtnetlink;
use plan::Kernel;
use plane_nft::NftKernel;
use resolve::Kind;

use super::ReportArgs;
use super::archive::Bundle;

/// A part: what is said while it is gathered, and how.
pub type Step = (&'static str, fn(&ReportArgs, &mut Bundle));

/// All of them, in order.
pub const STEPS: &[Step] = &[
    ("versions and settings", about),
    ("the agent", agent),
    ("links, addresses, routes", links),
    ("nftables", nft),
    ("connections", connections),
    ("CNI configuration and records", cni),
    ("logs", logs),
    ("names of objects", objects),
];

/// Files of a folder that are read, lines of a log, and names of a kind, at most.
const FILES: usize = 64;
const LINES: usize = 2000;
const NAMES: usize = 5000;

fn read(path: impl AsRef<Path>) -> anyhow::Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn about(_: &ReportArgs, b: &mut Bundle) {
    let u = rustix::system::uname();
    let missing = kernel::missing_features();
    let mut text = format!(
        "seaway {}\nkernel {} {} {}\nnode {}\ntime {}\nkernel features that are missing: {}\n",
        env!("CARGO_PKG_VERSION"),
        u.sysname().to_string_lossy(),
        u.release().to_string_lossy(),
        u.machine().to_string_lossy(),
        u.nodename().to_string_lossy(),
        source::now(),
        if missing.is_empty() { "none".into() } else { missing.into_iter().collect::<Vec<_>>().join(", ") },
    );
    for file in ["/etc/os-release", "/proc/uptime", "/proc/loadavg", "/proc/meminfo"] {
        let _ = writeln!(text, "\n# {file}\n{}", read(file).unwrap_or_else(|e| format!("{e:#}")));
    }
    b.add("about.txt", &text);
    b.add("processes.txt", &processes());
    let knobs = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
        "net/netfilter/nf_conntrack_max",
        "net/ipv4/ip_local_port_range",
        "net/ipv4/neigh/default/gc_thresh3",
    ];
    let said = knobs.map(|k| format!("{k} = {}", read(format!("/proc/sys/{k}")).map_or("not there\n".into(), |t| t)));
    b.add("sysctls.txt", &said.concat());
}

/// Our processes with their arguments and `SEAWAY_` variables, and others of a node's network by name alone.
fn processes() -> String {
    let mut out = String::new();
    for e in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = e.file_name().to_str().and_then(|s| s.parse::<u32>().ok()) else { continue };
        let name = read(e.path().join("comm")).unwrap_or_default();
        let name = name.trim();
        let words = |f: &str| read(e.path().join(f)).unwrap_or_default().replace('\0', " ");
        if name.starts_with("seaway") {
            let _ = writeln!(out, "{pid} {}", words("cmdline"));
            for v in words("environ").split(' ').filter(|v| v.starts_with("SEAWAY_")) {
                let _ = writeln!(out, "    {v}");
            }
            let memory = words("status");
            let memory = memory.lines().find(|l| l.starts_with("VmRSS")).unwrap_or_default();
            let _ = writeln!(out, "    {memory}");
        } else if ["kubelet", "kube-proxy", "containerd", "crio", "flanneld", "firewalld", "dockerd"].contains(&name) {
            let _ = writeln!(out, "{pid} {name}");
        }
    }
    out
}

fn agent(args: &ReportArgs, b: &mut Bundle) {
    for (path, file) in [
        ("/status", "agent/status.json"),
        ("/readyz", "agent/readyz.txt"),
        ("/healthz", "agent/healthz.txt"),
        ("/metrics", "agent/metrics.txt"),
        ("/services", "agent/services.json"),
    ] {
        let got = crate::services_cmd::takeover::get(args.agent, path);
        b.add_result(
            file,
            got.and_then(|a| a.map(|(_, body)| body).with_context(|| format!("nobody listens at {}", args.agent))),
        );
    }
}

/// One thing a line.
fn list<T: Debug, E: std::error::Error + Send + Sync + 'static>(all: Result<Vec<T>, E>) -> anyhow::Result<String> {
    Ok(all?.iter().fold(String::new(), |mut out, x| {
        let _ = writeln!(out, "{x:?}");
        out
    }))
}

fn links(_: &ReportArgs, b: &mut Bundle) {
    let mut rt = match Rt::open().context("open rtnetlink") {
        Ok(rt) => rt,
        Err(e) => return b.add_result("kernel/links.txt", Err(e)),
    };
    b.add_result("kernel/links.txt", list(rt.links()));
    b.add_result("kernel/addresses.txt", list(rt.addresses()));
    b.add_result("kernel/routes.txt", list(rt.routes()));
    b.add_result("kernel/neighbours.txt", list(rt.neighbours()));
    b.add_result("kernel/forwarding-entries.txt", list(rt.fdb()));
}

fn nft(_: &ReportArgs, b: &mut Bundle) {
    let ours = || -> anyhow::Result<String> {
        let mut k = NftKernel::new(Nftables::open()?, Ct::open()?);
        Ok(plane_nft::render::image(&k.observe()?))
    };
    b.add_result("kernel/nftables-seaway.txt", ours());
    // Others' rules as their own tool prints them, where it is installed.
    b.add_result("kernel/nftables-all.txt", tool(&["nft", "--stateless", "list", "ruleset"]));
    b.add_result("kernel/iptables.txt", tool(&["iptables-save"]));
}

/// What a tool prints; this is no hot path.
fn tool(args: &[&str]) -> anyhow::Result<String> {
    let (program, rest) = args.split_first().context("no program")?;
    let out = std::process::Command::new(program).args(rest).stdin(std::process::Stdio::null()).output();
    let out = out.with_context(|| (*program).to_owned())?;
    if !out.status.success() {
        bail!("{}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn connections(_: &ReportArgs, b: &mut Bundle) {
    let count = |name: &str| read(format!("/proc/sys/net/netfilter/{name}")).unwrap_or_else(|e| format!("{e:#}\n"));
    let mut text = format!("tracked {}most {}", count("nf_conntrack_count"), count("nf_conntrack_max"));
    for file in ["/proc/net/stat/nf_conntrack", "/proc/net/sockstat", "/proc/net/snmp", "/proc/net/softnet_stat"] {
        let _ = writeln!(text, "\n# {file}\n{}", read(file).unwrap_or_else(|e| format!("{e:#}")));
    }
    b.add("kernel/connections.txt", &text);
}

/// The files of a folder, by name, that are no longer than a configuration is.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    all.retain(|p| p.metadata().is_ok_and(|m| m.is_file() && m.len() <= 1 << 20));
    all.sort();
    all.truncate(FILES);
    all
}

/// A file's name as one in the bundle.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')).take(60).collect()
}

fn cni(args: &ReportArgs, b: &mut Bundle) {
    let found = files(&args.cni_conf_dir);
    if found.is_empty() {
        b.add("cni/none.missing", &format!("{} has no configuration\n", args.cni_conf_dir.display()));
    }
    for f in found {
        // A kubeconfig that a plugin left there is no configuration of CNI, and full of keys.
        let known = f.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "conf" | "conflist" | "json"));
        if known {
            b.add_result(format!("cni/{}", name(&f)), read(&f));
        } else {
            b.add(format!("cni/{}.missing", name(&f)), "not a CNI configuration: its contents were not taken\n");
        }
    }
    b.add_result(
        "cni/records.txt",
        ipam::read(&args.ipam_dir).map_err(Into::into).map(|all| {
            all.iter().fold(String::new(), |mut out, r| {
                let _ = writeln!(out, "{r:?}");
                out
            })
        }),
    );
    if let Ok(text) = read(crate::agent::SUBNET_FILE) {
        b.add("cni/subnet.env", &text);
    }
}

/// The last lines.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(LINES)).fold(String::new(), |mut out, l| {
        out += l;
        out.push('\n');
        out
    })
}

fn logs(args: &ReportArgs, b: &mut Bundle) {
    for (n, f) in args.log.iter().enumerate() {
        b.add_result(format!("logs/{n}-{}", name(f)), read(f).map(|t| tail(&t)));
    }
    // As the kubelet keeps them: NAMESPACE_POD_UID/CONTAINER/0.log.
    let pods = std::fs::read_dir("/var/log/pods").into_iter().flatten().flatten();
    for pod in pods.filter(|p| p.file_name().to_string_lossy().contains("_seaway-")).take(8) {
        for container in std::fs::read_dir(pod.path()).into_iter().flatten().flatten() {
            for f in files(&container.path()).into_iter().rev().take(2) {
                let pod = name(&pod.path());
                b.add_result(
                    format!("logs/{}-{}", pod.chars().take(40).collect::<String>(), name(&f)),
                    read(&f).map(|t| tail(&t)),
                );
            }
        }
    }
    let lines = LINES.to_string();
    b.add_result("logs/journal.txt", tool(&["journalctl", "--no-pager", "-q", "-u", "seaway-agent", "-n", &lines]));
}

fn objects(args: &ReportArgs, b: &mut Bundle) {
    let Some(target) = &args.api else {
        return b.add("objects.missing", "not asked for: give --api\n");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = runtime.map_err(anyhow::Error::from).and_then(|r| {
        r.block_on(async {
            let api = source::connect_at(target, &args.api_server).await?;
            let mut out = String::new();
            for kind in Kind::AGENT {
                let all = tokio::time::timeout(Duration::from_secs(20), api.list(&kind.into(), "")).await;
                match all.map_err(|_| anyhow::anyhow!("no answer")).and_then(|a| Ok(a?)) {
                    Ok(all) => {
                        let _ = writeln!(out, "{kind}: {}", all.len());
                        for v in all.iter().take(NAMES) {
                            let of = |f: &str| v["metadata"][f].as_str().unwrap_or_default().to_owned();
                            let slash = if of("namespace").is_empty() { "" } else { "/" };
                            let _ = writeln!(out, "  {}{slash}{}", of("namespace"), of("name"));
                        }
                    }
                    Err(e) => {
                        let _ = writeln!(out, "{kind}: {e:#}");
                    }
                }
            }
            anyhow::Ok(out)
        })
    });
    b.add_result("objects.txt", asked);
}
