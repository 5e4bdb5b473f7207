//! The specification's own client.

use serde_json::Value;

use crate::Node;
use crate::node::ADDRESSES;
use crate::tools::CNITOOL;

/// The versions of the specification, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One call for the network `seaway`; with variables of its environment.
///
/// # Errors
/// What it prints.
pub fn cnitool(n: &Node, env: &[&str], verb: &str, netns: &str) -> Result<Value, String> {
    let program = CNITOOL.program("cnitool");
    let netns = format!("/run/netns/{netns}");
    let args = [&["env", "CNI_PATH=/opt/cni/bin"], env, &[program.to_str().unwrap(), verb, "seaway", &netns]];
    let text = n.attempt(&args.concat())?;
    Ok(if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
}

/// A namespace, attached.
#[track_caller]
pub fn add(n: &Node, netns: &str) -> Value {
    n.run(&["ip", "netns", "add", netns]);
    cnitool(n, &[], "add", netns).unwrap_or_else(|e| panic!("ADD {netns}: {e}"))
}

/// The addresses of a result.
#[must_use]
pub fn ips(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.map(|i| i["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

/// Pings from a namespace to the node and to another, and from the node to it, in both families as it has them.
#[track_caller]
pub fn reaches(n: &Node, netns: &str, result: &Value, other: Option<&Value>) {
    const PING: [&str; 4] = ["ping", "-nq", "-c1", "-W2"];
    let own = ips(result);
    let node = ADDRESSES.iter().filter(|a| own.iter().any(|o| o.contains(':') == a.contains(':')));
    for to in node.map(|a| (*a).to_owned()).chain(other.into_iter().flat_map(ips)) {
        n.run(&[&["ip", "netns", "exec", netns], &PING[..], &[&to]].concat());
    }
    for to in own {
        n.run(&[&PING[..], &[&to]].concat());
    }
}
