//! Doors for fuzzing: what other programs answer and what the agent's files say, on any bytes. They must not panic, hang or
//! hold much memory.

use std::collections::BTreeSet;

use crate::{CniResult, NetConf, Version, config, networks, podspec};

/// The answer of a plugin: a result of any version, or an error.
pub fn answer(data: &[u8]) {
    let Ok(m) = config::object(data) else { return };
    let _ = crate::delegate::foreign(std::path::Path::new("/opt/cni/bin/x"), &m);
    let Ok(read) = CniResult::read(&m, "the result of x") else { return };
    // The newest form says everything.
    let again = read.write(Version::NEWEST);
    let again = again.as_object().and_then(|m| CniResult::read(m, "x").ok());
    assert_eq!(again.as_ref(), Some(&read), "what is written is read");
    for v in Version::ALL {
        let written = read.write(v);
        assert_eq!(written["cniVersion"].as_str(), Some(v.as_str()));
        let _ = written.as_object().map(|m| CniResult::read(m, "x"));
    }
}

/// What the agent says of a pod, and what is to be run for it.
pub fn pod_spec(data: &[u8]) {
    let Ok(spec) = podspec::parse(data) else { return };
    if let Ok(text) = serde_json::to_vec(&spec) {
        assert_eq!(podspec::parse(&text).ok().as_ref(), Some(&spec), "what is written is read");
    }
    let Ok(ifname) = "eth0".parse() else { return };
    for ipam in [r#""ranges": ["10.1.0.0/24"]"#, r#""ipam": {"type": "seaway", "pools": "/x/pools.json"}"#] {
        let text = format!(r#"{{"cniVersion": "1.1.0", "name": "n", "type": "seaway-cni", {ipam}}}"#);
        let Ok(conf) = NetConf::parse(text.as_bytes()) else { return };
        let wiring = spec.wiring.as_ref().unwrap_or(&conf.wiring);
        let Ok(run) = networks::delegates(&conf, &spec, wiring, &ifname) else { continue };
        let last: Vec<_> = run.iter().filter(|d| d.last).map(|d| &d.ifname).collect();
        assert_eq!(last.len(), last.iter().collect::<BTreeSet<_>>().len(), "an interface has one network");
        assert!(run.iter().all(|d| d.conf.contains_key("cniVersion") && d.conf.contains_key("name")));
    }
}
