//! The process that a pod's namespaces belong to: `seaway-pause`, started before the network is attached and ended after
//! it is given back, as a container runtime does it. Containers come and go beside it.

use std::time::Duration;

use kernel::{Netns, Spawn};
use rustix::process::Signal;

use super::container::ended;
use super::pod::Life;
use crate::name::LAB_MARKER;
use crate::procs::{ProcId, Seen, scan};
use crate::{Doing, LabError, dns_files, ns};

/// Its program, beside our own.
const PROGRAM: &str = "seaway-pause";
/// Between its end, which nobody asked for, and its next start.
const AGAIN: Duration = Duration::from_millis(500);
/// It ends at once when asked; this is for one that is stopped.
const PATIENCE: Duration = Duration::from_secs(1);

impl Life {
    /// Starts it in a namespace and remembers it.
    pub(super) fn start_sandbox(&self, netns: &str) -> Result<(), LabError> {
        let program = self.context.config.exe.with_file_name(PROGRAM);
        let inside = Netns::open(ns::path(netns)).doing(|| format!("network namespace {netns}"))?;
        let command = Spawn::new(&program)
            .env_clear()
            .env(LAB_MARKER, self.context.config.lab.to_string())
            .netns(&inside)
            .hostname(dns_files::hostname(&self.pod()))
            .session()
            .stdout(std::process::Stdio::null())
            // It says that it is not PID 1: a lab's containers do not share a PID namespace.
            .stderr(std::process::Stdio::null())
            .into_command()
            .doing(|| PROGRAM)?;
        let child = tokio::process::Command::from(command)
            .spawn()
            .doing(|| format!("start {} (cargo build -p seaway-pause makes it)", program.display()))?;
        self.remember_sandbox(child.id().and_then(|p| i32::try_from(p).ok()).and_then(ProcId::of))
    }

    /// Keeps it running; never returns. A pod on its node's network has none.
    pub(super) async fn hold_sandbox(&self) {
        let Some(netns) = self.netns() else { return std::future::pending().await };
        loop {
            if let Some(process) = self.sandbox() {
                ended(process).await;
                let text = "the process that holds the pod's namespaces ended; another is started";
                self.event("Warning", "SandboxChanged", text);
            }
            if let Err(e) = self.start_sandbox(&netns) {
                self.event("Warning", "FailedCreatePodSandBox", &e.to_string());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Ends it, and one that a runner started which was killed before it could write that down.
    pub(super) async fn end_sandbox(&self, netns: &str) -> Result<(), LabError> {
        if let Some(process) = self.sandbox() {
            process.signal(Signal::TERM);
            if tokio::time::timeout(PATIENCE, ended(process)).await.is_err() {
                process.signal(Signal::KILL);
            }
        }
        let (lab, inode) = (self.context.config.lab.to_string(), ns::inode(&ns::path(netns)));
        let ours = move |s: &Seen| {
            s.netns == inode && s.lab.as_ref() == Some(&lab) && s.pod.is_none() && s.command.ends_with(PROGRAM)
        };
        let strays = move || scan().iter().filter(|s| ours(s)).for_each(|s| s.id.signal(Signal::KILL));
        let _ = tokio::task::spawn_blocking(strays).await;
        self.remember_sandbox(None)
    }
}
