//! Makes the planned namespaces and links real.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::topology::{Netns, Topology};
use crate::{Doing, LabError, ns};

/// Makes every namespace, then everything in them.
///
/// # Errors
/// What could not be made, with the command's own words. Whatever exists by then is removed by `down`.
pub fn build(t: &Topology) -> Result<(), LabError> {
    for n in &t.namespaces {
        ns::create(&n.name)?;
    }
    // The first namespace makes the links of all others.
    let Some((first, rest)) = t.namespaces.split_first() else { return Ok(()) };
    t.namespaces.iter().try_for_each(sysctls)?;
    batch(first)?;
    std::thread::scope(|s| {
        let all: Vec<_> = rest.iter().map(|n| s.spawn(|| batch(n))).collect();
        all.into_iter().try_for_each(|h| h.join().unwrap_or_else(|_| Err(LabError::new("a thread died"))))
    })
}

fn sysctls(n: &Netns) -> Result<(), LabError> {
    ns::within(&ns::path(&n.name), || {
        for (key, value) in &n.sysctls {
            let path = format!("/proc/sys/{key}");
            match std::fs::write(&path, value) {
                // A kernel without IPv6.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                r => r.doing(|| format!("{}: {path} = {value}", n.name))?,
            }
        }
        Ok(())
    })
}

fn batch(n: &Netns) -> Result<(), LabError> {
    let what = || format!("ip (Debian package iproute2) in {}", n.name);
    let mut child = Command::new("ip")
        .args(["-n", &n.name, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        let text = n.ip.join("\n") + "\n";
        // When it stops reading, its own error says why.
        let _ = stdin.write_all(text.as_bytes());
    }
    let out = child.wait_with_output().doing(what)?;
    if out.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&out.stderr);
        let line = said.lines().find_map(|l| l.rsplit(':').next()?.trim().parse::<usize>().ok());
        let command = line.and_then(|l| n.ip.get(l.wrapping_sub(1))).map_or("", String::as_str);
        Err(LabError::new(format!("{}: {command}: {}", what(), said.trim().replace('\n', "; "))))
    }
}
