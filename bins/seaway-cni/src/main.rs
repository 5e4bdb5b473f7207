//! The CNI plugin: environment and standard input to [`cni::execute`], over the real kernel. No threads, no runtime; only
//! the DHCP daemon, which is the same program, has threads.

mod dhcp;

use std::io::{self, Write};
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use cni::{Env, Version};

// The C library of the static build gives memory back to the kernel and asks for it again all the time: a tenth of the
// run time.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let env = Env::of_process();
    if env.command.is_none() {
        if std::env::args_os().nth(1).is_some_and(|a| a == "plugins") {
            println!("{}", plugins::NAMES.join("\n"));
            return ExitCode::SUCCESS;
        }
        return match daemon() {
            Some(flags) => match dhcp::main(&flags) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    eprintln!("dhcp daemon: {e}");
                    ExitCode::FAILURE
                }
            },
            None => by_hand(),
        };
    }
    // Waits here are shorter than the 50 us by which the kernel may stretch each.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
    kernel::process::set_short_lived();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (machine, stdin) = (&mut kernel::Linux, &mut io::stdin().lock());
    // Called by a reference plugin's name (a link to this program), it is that plugin.
    let plugin = called().as_deref().and_then(plugins::by_name);
    let plugin = plugin.as_deref().unwrap_or(&cni::Seaway);
    let out = cni::serve(plugin, plugins::by_name, machine, &env, stdin, now);
    if !out.stdout.is_empty() {
        // A reader that went away does not make the attachment undone.
        let _ = writeln!(io::stdout().lock(), "{}", out.stdout);
    }
    ExitCode::from(out.exit)
}

/// The name this program was called by.
fn called() -> Option<String> {
    let path = std::env::args_os().next()?;
    Some(std::path::Path::new(&path).file_name()?.to_str()?.to_owned())
}

/// The flags of `dhcp daemon`, called so or as `seaway-cni dhcp daemon`.
fn daemon() -> Option<Vec<String>> {
    let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let rest = if called().as_deref() == Some("dhcp") { &args[..] } else { args.strip_prefix(&["dhcp".to_owned()])? };
    Some(rest.strip_prefix(&["daemon".to_owned()])?.to_vec())
}

/// Somebody ran us from a shell.
fn by_hand() -> ExitCode {
    let text = format!(
        "\
seaway-cni {}: the CNI plugin of Seaway, for CNI {}

A container runtime runs this; it takes its command from the environment and its configuration from standard input
(https://www.cni.dev/docs/spec/). To replay what a runtime does:

  ip netns add demo
  echo '{{\"cniVersion\": \"1.1.0\", \"name\": \"seaway\", \"type\": \"seaway-cni\",
         \"ranges\": [\"10.244.1.0/24\", \"fd00:10:244:1::/64\"], \"mtu\": 1450}}' > net.json
  export CNI_CONTAINERID=demo CNI_IFNAME=eth0 CNI_NETNS=/run/netns/demo CNI_PATH=/opt/cni/bin
  CNI_COMMAND=ADD seaway-cni < net.json
  CNI_COMMAND=DEL seaway-cni < net.json

Called by another plugin's name (a link to this program), it is that plugin: `seaway-cni plugins` prints the names.
`seaway-cni dhcp daemon` keeps the leases of the plugin dhcp.

Commands: ADD DEL CHECK GC STATUS VERSION. Fields of the configuration: ranges (at most one per family), mtu (bytes),
dataDir (the journal's directory, {}), mode (\"routed\"), routes, dns; runtimeConfig: aliases, bandwidth, dns,
ipRanges, ips, mac, portMappings.
",
        env!("CARGO_PKG_VERSION"),
        Version::ALL.map(Version::as_str).join(", "),
        ipam::DEFAULT_DIR,
    );
    let _ = io::stdout().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
