//! Bodies of fuzz targets: what configurations, servers and other halves of `dhcp` may send us.

use std::io::{self, Read, Write};
use std::time::Duration;

use cni::ports::{Image, Owner};
use cni::{Call, CniResult, Command, Fields};
use serde_json::{Map, Value};

use crate::dhcp::client::{Client, Output, Params};
use crate::dhcp::kept::Kept;
use crate::dhcp::packet::{self, Message};
use crate::dhcp::rpc::Peer;
use crate::{
    bridge, calico, device, dhcp, firewall, flannel, host_device, host_local, portmap, ptp, static_ips, tuning, vrf,
};

/// `CNI_ARGS` in the first line, a configuration in the rest, for every plugin with a decoder of its own.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (args, conf) = text.split_once('\n').unwrap_or(("", text));
    let Ok(conf) = serde_json::from_str::<Map<String, Value>>(conf) else { return };
    // Whatever file it names is not to be read.
    if conf.get("ipam").is_some_and(|i| i.to_string().to_ascii_lowercase().contains("rangefromfile")) {
        return;
    }
    let _ = flannel::Env::read(text);
    let call = Call { command: Command::Add, key: None, netns: None, pod: None, ips: Vec::new(), args: args.into() };
    let f = Fields::new(&conf, "");
    if let Ok(c) = bridge::Conf::read(&f, &call) {
        assert!(!(c.hairpin && c.promisc));
        assert!(c.vlan.is_none() || c.trunk.is_none_or(|t| t.is_empty()));
    }
    for kind in device::Kind::ALL {
        if let Ok(device::Conf { device: device::Device::Vlan(id), master, .. }) = device::Conf::read(kind, &f, &call) {
            assert!(id <= 4094 && master.is_some());
        }
    }
    let _ = (ptp::Conf::read(&f), vrf::Conf::read(&f), host_device::Which::read(&f));
    if let Ok(env) = flannel::Env::read(args)
        && let Ok(d) = flannel::delegate(&f, "net", "1.0.0", &env)
    {
        assert!(d.get("ipam").is_some_and(|i| i["ranges"].as_array().is_some_and(|r| r.len() == env.subnets.len())));
    }
    let node = cni::node::Node::parse(args.as_bytes()).ok();
    if let Ok(own) = calico::translated(&f, node.as_ref(), &ipam::Pools::default(), "/d") {
        let _ = cni::NetConf::parse(Value::Object(own).to_string().as_bytes());
    }
    let _ = static_ips::Conf::read(&f, &call);
    if let Ok(c) = dhcp::conf::Conf::read(&f, args) {
        assert!(c.options.iter().all(|(c, v)| !matches!(c, 0 | 255) && v.len() <= 255));
    }
    mapped(&f);
    let _ = firewall::Conf::read(&f);
    if let Ok(l) = cni::shape::limits(&f) {
        for r in [l.ingress, l.egress].into_iter().flatten() {
            let t = cni::shape::bucket(r, 1500);
            assert!(t.rate > 0 && t.burst > 0 && t.limit >= t.burst);
        }
        if let ipam::Scope::Only(list) | ipam::Scope::AllBut(list) = l.scope {
            assert!(!list.is_empty() && list.is_sorted());
        }
    }
    if let Ok(c) = "eth0".parse().map_err(cni::bad).and_then(|n| tuning::Conf::read(&f, &call, &n)) {
        assert!(c.sysctls.iter().all(|(path, _)| path.starts_with("net/") && !path.split('/').any(|p| p == "..")));
    }
    if let Ok(c) = host_local::Conf::read(&f, &call) {
        host_local::fuzzed(&c);
    }
}

/// A mapping that is taken is there afterwards, and gone when it is taken away.
fn mapped(f: &Fields<'_>) {
    let Ok(c) = portmap::Conf::read(f) else { return };
    let Ok(Some(Ok(prev))) = f.map("prevResult").map(|p| p.map(|p| CniResult::read(p, "prevResult"))) else { return };
    let Ok(ifname) = "eth0".parse() else { return };
    let addresses = prev.addresses_of(&ifname);
    let owner = Owner::of_comment("net c1/eth0");
    let ports = c.ports(owner.clone(), &addresses);
    let mut image = Image::default();
    if image.put(&ports).is_ok() {
        assert!(!image.plan(&Image::default()).is_empty());
        assert!(!image.lacks(&ports).iter().any(|l| l.contains("host port")), "{:?}", image.lacks(&ports));
        image.remove(|o| *o == owner);
        assert!(image.owners().is_empty());
    }
}

/// An IPv4 packet from the wire, or a message alone, to a client that waits for one.
pub fn dhcp_packet(data: &[u8]) {
    let Some(m) = packet::payload(data).and_then(Message::decode).or_else(|| Message::decode(data)) else { return };
    let again = Message::decode(&m.encode());
    // What stood in the fields of names is written among the options, so it is not read from there again.
    let plain = |m: &Message| {
        let mut m = m.clone();
        m.options.retain(|(c, _)| *c != packet::code::OVERLOAD);
        m
    };
    assert_eq!(again.as_ref().map(plain), Some(plain(&m)), "what is written is read");
    let _ = dhcp::result(&m);
    let params = Params { mac: m.chaddr, options: Vec::new(), broadcast: false, resend_max: Duration::from_secs(9) };
    let (mut client, out) = Client::new(params, 1, Duration::ZERO);
    let mut xid = 0;
    for o in out {
        if let Output::Broadcast(m) = o {
            xid = m.xid;
        }
    }
    for n in 1..4 {
        let _ = client.receive(&Message { xid, reply: true, ..m.clone() }, Duration::from_secs(n));
        if let Some(d) = client.deadline() {
            let _ = client.tick(d);
        }
    }
}

/// A lease on disk, and a client that goes on with it.
pub fn dhcp_lease(data: &[u8]) {
    let Some(k) = Kept::parse(data) else { return };
    let lease = k.lease.clone();
    let _ = dhcp::result(&lease.ack);
    let params = Params { mac: k.mac, options: k.options, broadcast: false, resend_max: Duration::from_secs(9) };
    let mut client = Client::resume(params, lease, 1, Duration::ZERO);
    for _ in 0..64 {
        let Some(d) = client.deadline() else { break };
        let _ = client.tick(d);
    }
    assert!(client.release().len() <= 1);
}

/// What a client of the daemon may send.
pub fn dhcp_call(data: &[u8]) {
    struct Wire<'a>(&'a [u8]);
    impl Read for Wire<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }
    impl Write for Wire<'_> {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let Ok(mut peer) = Peer::accept(Wire(data)) else { return };
    while let Ok(Some(call)) = peer.call() {
        let _ = peer.answer(&call, &Err("no".into()));
    }
}
