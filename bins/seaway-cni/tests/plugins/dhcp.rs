use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page, result, with};

/// A DHCP server (dnsmasq) and a daemon on a node with one container on the server's link. Ends with the value.
struct World {
    /// Whose plugins and daemon.
    t: Twin,
    daemon: Child,
    server: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl World {
    fn new(plugin: Whose, daemon: Whose, options: &[&str], flags: &[&str]) -> Self {
        Self::at("", plugin, daemon, options, flags)
    }

    /// With a daemon whose flags say where its socket is.
    fn at(socket: &str, plugin: Whose, daemon: Whose, options: &[&str], flags: &[&str]) -> Self {
        let t = Twin::new(plugin);
        t.node.pod("c1");
        t.node.sh("ip link add br0 type bridge; ip address add 10.1.2.1/24 dev br0; ip link set br0 up");
        Self::link(&t, "c1", "02:00:00:00:00:01");
        let server = Self::server(&t, options);
        let path = match daemon {
            Whose::Ours => PathBuf::from(env!("CARGO_BIN_EXE_seaway-cni")),
            Whose::Theirs => PathBuf::from("/usr/lib/cni/dhcp"),
        };
        let mut c = Command::new(path);
        if daemon == Whose::Ours {
            c.arg("dhcp");
        }
        c.arg("daemon")
            .args(["-hostprefix", t.node.dir.path().to_str().unwrap(), "-pidfile", &t.dir("pid")])
            .args(flags);
        c.stdout(Stdio::null()).stderr(std::fs::File::create(t.dir("daemon.log")).unwrap());
        std::fs::create_dir_all(t.dir("run/cni")).unwrap();
        let daemon = t.node.ns.run(|| c.spawn().unwrap()).unwrap();
        let world = Self { t, daemon, server };
        let usual = world.t.dir("run/cni/dhcp.sock");
        let socket = PathBuf::from(if socket.is_empty() { &usual } else { socket });
        world.eventually("the daemon listens", || socket.exists());
        world
    }

    fn link(t: &Twin, pod: &str, mac: &str) {
        t.node.sh(&format!(
            "ip link add h{pod} master br0 type veth peer name p{pod}; ip link set h{pod} up; ip link set p{pod} netns {}/netns/{pod}",
            t.node.dir.path().display()
        ));
        t.node.sh_pod(pod, &format!("ip link set p{pod} name eth0; ip link set eth0 address {mac}"));
    }

    fn server(t: &Twin, options: &[&str]) -> Child {
        let mut c = Command::new("dnsmasq");
        c.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=br0", "--bind-interfaces"]);
        c.args([
            "--no-ping",
            "--dhcp-authoritative",
            "--user=root",
            "--dhcp-range=10.1.2.100,10.1.2.120,255.255.255.0,2m",
        ]);
        c.arg(format!("--dhcp-leasefile={}", t.dir("leases")))
            .arg("--pid-file=")
            .args(["--log-dhcp", "--log-facility=-"]);
        c.args(options).stdout(Stdio::null()).stderr(std::fs::File::create(t.dir("server.log")).unwrap());
        t.node.ns.run(|| c.spawn().expect("dnsmasq: apt-get install dnsmasq-base")).unwrap()
    }

    fn conf(&self) -> Value {
        json!({"cniVersion": "1.0.0", "name": "net", "type": "dhcp", "ipam": {"type": "dhcp"}})
    }

    /// Another server instead (busybox's), with leases of a few seconds.
    fn short_leases(&mut self, more: &str) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let conf = format!(
            "start 10.1.2.100\nend 10.1.2.100\ninterface br0\nmin_lease 2\noption lease 16\noption subnet 255.255.255.0\n\
             option router 10.1.2.1\nlease_file {0}\npidfile {0}.pid\n{more}",
            self.t.dir("short")
        );
        std::fs::write(self.t.dir("udhcpd.conf"), conf).unwrap();
        std::fs::write(self.t.dir("short"), "").unwrap();
        let mut c = Command::new("udhcpd");
        c.args(["-f", &self.t.dir("udhcpd.conf")]).stdout(Stdio::null());
        c.stderr(std::fs::File::create(self.t.dir("server.log")).unwrap());
        self.server = self.t.node.ns.run(|| c.spawn().expect("udhcpd: apt-get install udhcpd")).unwrap();
    }

    /// A call in a mount namespace of its own is not needed: the socket's path goes by the configuration, which the
    /// reference of 1.1.1 knows as well; paths of namespaces are told without the prefix that the daemon adds.
    fn call(&self, command: &str, conf: &Value, env: &[(&str, &str)]) -> Result<Value, Value> {
        let mut c = conf.clone();
        c["ipam"]["daemonSocketPath"] = self.t.dir("run/cni/dhcp.sock").into();
        let mut env = env.to_vec();
        env.push(("CNI_NETNS", "/netns/c1"));
        self.t.call_with(command, "c1", &c, &env)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.t.dir("server.log")).unwrap()
    }

    fn leases(&self) -> String {
        std::fs::read_to_string(self.t.dir("leases")).unwrap_or_default()
    }

    fn eventually(&self, what: &str, mut is: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is() {
            let daemon = std::fs::read_to_string(self.t.dir("daemon.log")).unwrap_or_default();
            assert!(Instant::now() < end, "{what}\nserver: {}\ndaemon: {daemon}", self.log());
            sleep(Duration::from_millis(50));
        }
    }
}

const ROUTES: &[&str] = &["--dhcp-option=3,10.1.2.1", "--dhcp-option-force=33,192.168.7.0,10.1.2.3"];

#[test]
fn either_plugin_with_either_daemon_says_the_same() {
    let mut said = Vec::new();
    for plugin in BOTH {
        for daemon in BOTH {
            let w = World::new(plugin, daemon, ROUTES, &[]);
            for version in ["0.3.1", "0.4.0", "1.0.0"] {
                let c = with(&w.conf(), "cniVersion", version.into());
                let mut v = result(&w.call("ADD", &c, &[]).unwrap());
                v["cniVersion"].take();
                said.push(v);
                if version > "0.3.1" {
                    w.call("CHECK", &c, &[]).unwrap();
                }
                w.call("DEL", &c, &[]).unwrap();
                w.call("DEL", &c, &[]).unwrap();
                w.eventually("the lease is given back", || !w.leases().contains("02:00:00:00:00:01"));
            }
        }
    }
    let first = said[0].clone();
    assert_eq!(first["ips"][0]["gateway"], "10.1.2.1");
    let routes = json!([{"dst": "192.168.7.0/24", "gw": "10.1.2.3"}, {"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]);
    assert_eq!(first["routes"], routes);
    for v in said {
        assert_eq!(v, first);
    }
}

#[test]
fn options_go_out_as_told() {
    let mut seen = Vec::new();
    for whose in BOTH {
        let w = World::new(whose, whose, &[], &["-broadcast=true"]);
        let mut c = w.conf();
        c["ipam"]["provide"] = json!([{"option": "host-name", "fromArg": "K8S_POD_NAME"},
            {"option": "vendor-class-identifier", "value": "seaway"}, {"option": "77", "value": "users"}]);
        c["ipam"]["request"] = json!([{"skipDefault": true, "option": "subnet-mask"}, {"option": "42"}]);
        w.call("ADD", &c, &[("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web")]).unwrap();
        let log = w.log();
        let told = [
            "client provides name: web",
            "vendor class: seaway",
            "user class:",
            "requested options: 1:netmask, 42:ntp-server",
        ];
        seen.push(told.map(|t| log.contains(t)));
        assert!(log.contains("broadcast response"), "{log}");
        let id: String = "c1/net/eth0".bytes().map(|b| format!(":{b:02x}")).collect();
        assert!(w.leases().contains(&format!("00{id}")), "{}", w.leases());
    }
    assert_eq!(seen[0], [true; 4]);
    assert_eq!(seen, [seen[0]; 2]);
}

#[test]
fn a_lease_is_kept_while_the_container_lives_and_no_longer() {
    let mut w = World::new(Whose::Ours, Whose::Ours, &[], &[]);
    w.short_leases("");
    let c = w.conf();
    let v = w.call("ADD", &c, &[]).unwrap();
    // As the plugin that asked does it.
    assert_eq!(v["ips"][0]["address"], "10.1.2.100/24");
    w.t.node.sh_pod("c1", "ip address add 10.1.2.100/24 dev eth0");
    let given = |w: &World| w.log().matches("sending ACK to 10.1.2.100").count();
    // Sixteen seconds (eight would be over when a busy machine does nothing for four) are over when it was renewed for the second time.
    w.eventually("it is renewed", || given(&w) >= 3);
    assert!(w.t.node.sh_pod("c1", "ip -o link show eth0").contains("state UP"));
    // The same interface again: the same lease, and no new one.
    let offers = |w: &World| w.log().matches("sending OFFER").count();
    let before = offers(&w);
    assert_eq!(w.call("ADD", &c, &[]).unwrap(), v);
    assert_eq!(offers(&w), before);
    w.call("CHECK", &with(&c, "prevResult", v.clone()), &[]).unwrap();
    let mut other = v;
    other["ips"][0]["address"] = "10.1.2.101/24".into();
    w.call("CHECK", &with(&c, "prevResult", other), &[]).unwrap_err();
    // The container goes without DEL: nothing holds its namespace, and nobody asks any longer.
    w.t.node.sh("ip link del hc1");
    w.eventually("the daemon lets go of it", || {
        std::fs::read_to_string(w.t.dir("daemon.log")).unwrap().contains("the interface is gone")
    });
    w.call("DEL", &c, &[]).unwrap();
}

#[test]
fn a_daemon_that_is_started_anew_goes_on_with_the_leases_and_gives_back_those_of_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n).to_str().unwrap().to_owned();
    let (socket, state) = (at("dhcp.sock"), at("leases"));
    let flags = ["-hostprefix=", "-socketpath", &socket, "-statedir", &state];
    let mut w = World::at(&socket, Whose::Ours, Whose::Ours, &[], &flags);
    w.t.node.pod("c2");
    World::link(&w.t, "c2", "02:00:00:00:00:02");
    let mut c = w.conf();
    c["ipam"]["daemonSocketPath"] = socket.clone().into();
    let said = w.t.call("ADD", "c1", &c).unwrap();
    w.t.call("ADD", "c2", &c).unwrap();
    assert!(w.leases().contains("02:00:00:00:00:01") && w.leases().contains("02:00:00:00:00:02"));
    let _ = w.daemon.kill();
    let _ = w.daemon.wait();
    // Meanwhile one of the two goes.
    w.t.node.sh("ip link del hc2");
    let mut again = Command::new(env!("CARGO_BIN_EXE_seaway-cni"));
    again.args(["dhcp", "daemon"]).args(flags);
    again.stdout(Stdio::null()).stderr(std::fs::File::create(w.t.dir("daemon.log")).unwrap());
    w.daemon = w.t.node.ns.run(|| again.spawn().unwrap()).unwrap();
    w.eventually("the lease of the dead is given back", || !w.leases().contains("02:00:00:00:00:02"));
    let asked = |w: &World| w.log().matches("DHCPDISCOVER").count();
    let before = asked(&w);
    // The lease is known: nobody is asked for another.
    w.eventually("the socket is served", || w.t.call("ADD", "c1", &c).is_ok_and(|v| v == said));
    assert_eq!(asked(&w), before);
    assert!(w.leases().contains("02:00:00:00:00:01"));
    w.t.del("c1", &c);
    w.eventually("the lease is given back", || !w.leases().contains("02:00:00:00:00:01"));
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
}

fn with_socket(w: &World, c: &Value) -> Value {
    let mut c = c.clone();
    c["ipam"]["daemonSocketPath"] = w.t.dir("run/cni/dhcp.sock").into();
    c
}

#[test]
fn an_address_that_the_server_takes_back_is_used_no_longer() {
    let mut w = World::new(Whose::Ours, Whose::Ours, &[], &[]);
    w.short_leases("");
    w.call("ADD", &w.conf(), &[]).unwrap();
    w.t.node.sh_pod("c1", "ip address add 10.1.2.100/24 dev eth0");
    // The server comes back and knows of nothing; the address is another interface's now.
    w.short_leases("static_lease 02:00:00:00:00:99 10.1.2.100\n");
    w.eventually("the interface is down", || w.t.node.sh_pod("c1", "ip -o link show eth0").contains("state DOWN"));
    w.call("DEL", &w.conf(), &[]).unwrap();
}

#[test]
fn without_server_or_daemon_or_interface_it_fails_and_says_why() {
    let w = World::new(Whose::Ours, Whose::Ours, &["--dhcp-ignore=tag:!known"], &["-resendtimeout", "1s"]);
    let says = |e: Value| e["msg"].as_str().unwrap().to_owned();
    let start = Instant::now();
    assert!(says(w.call("ADD", &w.conf(), &[]).unwrap_err()).contains("no DHCP server"));
    assert!(start.elapsed() < Duration::from_secs(30));
    w.t.node.sh_pod("c1", "ip link del eth0");
    assert!(says(w.call("ADD", &w.conf(), &[]).unwrap_err()).contains("there is no interface eth0"));
    let status = with(&with_socket(&w, &w.conf()), "cniVersion", "1.1.0".into());
    w.t.call("STATUS", "c1", &status).unwrap();
    for whose in BOTH {
        let t = Twin::new(whose);
        t.node.pod("c1");
        let c = json!({"cniVersion": "1.0.0", "name": "net", "type": "dhcp", "ipam": {"type": "dhcp", "daemonSocketPath": t.dir("none.sock")}});
        let e = says(t.call("ADD", "c1", &c).unwrap_err());
        assert!(e.contains("DHCP daemon") && e.contains("none.sock"), "{e}");
        t.call("DEL", "c1", &c).unwrap_err();
        if whose == Whose::Ours {
            assert_eq!(t.call("STATUS", "c1", &with(&c, "cniVersion", "1.1.0".into())).unwrap_err()["code"], 50);
        }
    }
    // Options that are none.
    for (field, v, why) in [
        ("provide", json!([{"option": "nothing", "value": "x"}]), "ipam.provide[0].option"),
        ("provide", json!([{"option": "host-name", "value": "x".repeat(256)}]), "255"),
        ("request", json!([{"option": "256"}]), "ipam.request[0].option"),
    ] {
        for whose in BOTH {
            let w = World::new(whose, whose, &[], &[]);
            let mut c = w.conf();
            c["ipam"][field] = v.clone();
            let e = says(w.call("ADD", &c, &[]).unwrap_err());
            assert!(whose == Whose::Theirs || e.contains(why), "{e}");
        }
    }
}

#[test]
fn a_daemon_that_died_leaves_no_obstacle_and_a_second_one_is_refused() {
    let mut w = World::new(Whose::Ours, Whose::Ours, &[], &[]);
    let again = |w: &World| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_seaway-cni"));
        c.args(["dhcp", "daemon", "-socketpath", &w.t.dir("run/cni/dhcp.sock"), "-hostprefix", ""]);
        c.stdout(Stdio::null()).stderr(Stdio::piped());
        w.t.node.ns.run(|| c.spawn().unwrap()).unwrap()
    };
    let second = again(&w).wait_with_output().unwrap();
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("another daemon"));
    assert_eq!(std::fs::read_to_string(w.t.dir("pid")).unwrap(), w.daemon.id().to_string());
    let _ = w.daemon.kill();
    let _ = w.daemon.wait();
    w.daemon = again(&w);
    let c = with_socket(&w, &w.conf());
    w.eventually("the socket is served", || w.t.call("ADD", "c1", &c).is_ok());
    w.t.del("c1", &c);
}

#[test]
fn a_bridge_takes_its_addresses_from_a_server_on_it_and_gives_them_back() {
    for whose in BOTH {
        // Where the socket is goes by a later flag, and names of namespaces are whole.
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("dhcp.sock").to_str().unwrap().to_owned();
        let w = World::at(&socket, whose, Whose::Ours, ROUTES, &["-hostprefix=", "-socketpath", &socket]);
        w.t.node.pod("c2");
        let c = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br0",
            "ipam": {"type": "dhcp", "daemonSocketPath": socket}});
        let said = w.t.add("c2", &c);
        assert!(said["ips"][0]["address"].as_str().unwrap().starts_with("10.1.2.1"), "{said}");
        w.t.node.sh_pod("c2", "ping -c1 -W2 10.1.2.1; ip route show default | grep 10.1.2.1; ip route show 192.168.7.0/24 | grep 10.1.2.3");
        w.t.call("CHECK", "c2", &with(&c, "prevResult", said)).unwrap();
        assert_eq!(w.leases().lines().filter(|l| l.contains(" 10.1.2.1")).count(), 1, "{}", w.leases());
        w.t.del("c2", &c);
        // The reference takes the interface away first, and nothing is said to the server.
        if whose == Whose::Ours {
            w.eventually("the lease is given back", || !w.leases().contains(" 10.1.2.1"));
        }
        w.t.node.sh_pod("c2", "! ip link show eth0 2>/dev/null");
    }
}

#[test]
fn a_macvlan_and_a_moved_device_take_their_addresses_from_a_server_on_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("dhcp.sock").to_str().unwrap().to_owned();
    let w = World::at(&socket, Whose::Ours, Whose::Ours, &[], &["-hostprefix=", "-socketpath", &socket]);
    w.t.node
        .sh("for n in low nic; do ip link add ${n}0 type veth peer name ${n}1 && ip link set ${n}1 master br0; done
         ip link set low0 up; ip link set low1 up; ip link set nic0 up; ip link set nic1 up");
    let before = w.t.outside();
    for (id, more) in
        [("m1", json!({"type": "macvlan", "master": "low0"})), ("h1", json!({"type": "host-device", "device": "nic0"}))]
    {
        w.t.node.pod(id);
        let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": "", "ipam": {"type": "dhcp", "daemonSocketPath": socket}});
        c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let inside = w.t.inside(id);
        let said = w.t.add(id, &c);
        let address = said["ips"][0]["address"].as_str().unwrap().to_owned();
        assert!(address.starts_with("10.1.2."), "{said}");
        assert_eq!(said["ips"][0]["interface"], 0);
        let alone = address.split('/').next().unwrap();
        assert!(w.leases().contains(alone), "{}", w.leases());
        w.t.node.sh_pod(id, "ping -c1 -W2 10.1.2.1");
        w.t.del(id, &c);
        w.eventually("the lease is given back", || !w.leases().contains(alone));
        assert_eq!(w.t.inside(id), inside);
    }
    w.t.node.sh("ip link set nic0 up");
    assert_eq!(w.t.outside(), before);
}

#[test]
fn the_pages_configuration_works() {
    let w = World::new(Whose::Ours, Whose::Ours, ROUTES, &[]);
    let mut c = with(&page("dhcp"), "type", "dhcp".into());
    c["ipam"]["daemonSocketPath"] = w.t.dir("run/cni/dhcp.sock").into();
    let v = w.call("ADD", &c, &[("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web")]).unwrap();
    assert_eq!(v["ips"][0]["gateway"], "10.1.2.1");
}
