//! Node ports that a process of the node listens at too: the Service has what comes from elsewhere, and the process waits in
//! vain. Nobody sees why but who is told.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use intent::{NodeIntent, ServiceChanges};
use plan::Refused;
use types::{ObjectName, PortKey};

/// Who listens on the node.
type Listeners = BTreeSet<(IpAddr, PortKey)>;

/// What was found, by Service.
#[derive(Debug, Default)]
pub struct Taken(BTreeMap<ObjectName, Vec<Refused>>);

impl Taken {
    /// Looks at the Services that changed, at all with `anew`: processes come and go unheard.
    pub fn follow(
        &mut self,
        intent: &NodeIntent,
        changed: &ServiceChanges,
        anew: bool,
        look: impl FnOnce() -> io::Result<Listeners>,
    ) {
        let names: BTreeSet<ObjectName> = match changed {
            ServiceChanges::Some(names) if !anew => names.keys().cloned().collect(),
            _ => {
                self.0.clear();
                let with = intent.services.iter().filter(|(_, p)| p.node_port.is_some());
                with.map(|(k, _)| k.service.clone()).collect()
            }
        };
        let wants = |name: &ObjectName| intent.ports_of(name).any(|(_, p)| p.node_port.is_some());
        // What is not known is not said.
        let listeners = if names.iter().any(wants) { look().unwrap_or_default() } else { Listeners::new() };
        for name in names {
            let found = of(intent, &name, &listeners);
            if found.is_empty() {
                self.0.remove(&name);
            } else {
                self.0.insert(name, found);
            }
        }
    }

    /// Everything found.
    pub fn all(&self) -> impl Iterator<Item = &Refused> {
        self.0.values().flatten()
    }
}

/// The node ports of one Service that a process has, at an address where they are served.
fn of(intent: &NodeIntent, name: &ObjectName, listeners: &Listeners) -> Vec<Refused> {
    let mut out = Vec::new();
    for (key, p) in intent.ports_of(name) {
        let Some(port) = p.node_port.map(|port| PortKey { proto: key.proto, port }) else { continue };
        let here = |a: &IpAddr| a.is_unspecified() || intent.node_port_addresses.contains(a);
        if !listeners.iter().any(|(a, at)| *at == port && here(a)) {
            continue;
        }
        out.push(Refused {
            object: format!("Service/{name}"),
            field: format!("spec.ports[{}].nodePort", if key.port.is_empty() { "0" } else { &*key.port }),
            why: format!(
                "a process of {} listens at {port} too, and gets nothing that comes to the node's address, since that is the \
                 Service's: stop the process, or choose another node port",
                intent.node
            ),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use intent::{ServiceKey, ServicePort};
    use types::Proto;

    use super::*;

    fn intent(node_port: Option<u16>) -> NodeIntent {
        let mut i = NodeIntent::empty("node1".parse().unwrap());
        i.node_port_addresses = ["192.0.2.1".parse().unwrap()].into();
        let service = ObjectName::new("shop", "web");
        let p = ServicePort { port: 80, node_port, ..ServicePort::default() };
        i.services.insert(ServiceKey { service, port: "http".into(), proto: Proto::Tcp }, p.into());
        i
    }

    #[test]
    fn a_process_at_a_node_port_is_found_and_forgotten() {
        let listens = |addr: &str, proto, port| {
            let one = (addr.parse().unwrap(), PortKey { proto, port });
            move || Ok([one].into())
        };
        let count = |t: &Taken| t.all().count();
        let mut t = Taken::default();
        for (addr, proto, port, found) in [
            ("0.0.0.0", Proto::Tcp, 30080, 1),
            ("::", Proto::Tcp, 30080, 1),
            ("192.0.2.1", Proto::Tcp, 30080, 1),
            // Where node ports are not served, a process may have them.
            ("127.0.0.1", Proto::Tcp, 30080, 0),
            ("0.0.0.0", Proto::Udp, 30080, 0),
            ("0.0.0.0", Proto::Tcp, 30081, 0),
        ] {
            t.follow(&intent(Some(30080)), &ServiceChanges::All, false, listens(addr, proto, port));
            assert_eq!(count(&t), found, "{addr} {proto} {port}");
        }
        let any = || listens("0.0.0.0", Proto::Tcp, 30080);
        t.follow(&intent(Some(30080)), &ServiceChanges::All, false, any());
        let text = t.all().next().unwrap().to_string();
        assert!(
            text.contains("Service/shop/web spec.ports[http].nodePort: a process of node1 listens at 30080/TCP"),
            "{text}"
        );
        // Nothing changed: nobody looks, and it stands. Looked at anew, the process is gone.
        let nobody = || -> io::Result<Listeners> { panic!("nobody asked") };
        t.follow(&intent(Some(30080)), &ServiceChanges::Some([].into()), false, nobody);
        assert_eq!(count(&t), 1);
        t.follow(&intent(Some(30080)), &ServiceChanges::Some([].into()), true, || Ok(Listeners::new()));
        assert_eq!(count(&t), 0);
        // The Service gives the port up.
        t.follow(&intent(Some(30080)), &ServiceChanges::All, false, any());
        let changed = ServiceChanges::Some([(ObjectName::new("shop", "web"), Vec::new())].into());
        t.follow(&intent(None), &changed, false, nobody);
        assert_eq!(count(&t), 0);
    }
}
