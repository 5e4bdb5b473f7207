//! Docker's and firewalld's own programs on a node of ours: what their rules do to pods is said, what is told to do about
//! it mends it, and neither touches what the other made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use std::net::SocketAddr;
use std::path::Path;

use interop::cluster::{CLUSTER_IPS, Families, agent, cluster, of, pods};
use interop::node::wait;
use interop::traffic::{PORT, Server, once};
use interop::{Node, tools};
use kernel::Netns;
use seaway_tests_interop as interop;
use serde_json::Value;
use types::{Family, Proto};

/// A node with packages of Debian's as if they were installed there.
fn node(name: &str, packages: &[&str]) -> Node {
    let files = tools::unpacked(name, packages);
    let n = Node::boot();
    layer(&n, &files);
    n
}

/// A cluster on it, with the agent running. Pods 1 and 2 are Service default/web; all three answer.
fn serve(n: &mut Node, families: Families) -> (Vec<Netns>, Vec<Server>) {
    cluster(n, families);
    let pods = pods(n);
    let servers = (1..).zip(&pods).map(|(i, pod)| Server::start(pod, i)).collect();
    agent(n, "on");
    let ready = || n.attempt(&["curl", "-sSf", "http://127.0.0.1:9642/readyz"]).is_ok();
    wait("the agent is ready", ready);
    (pods, servers)
}

/// Lays the files of packages over /usr and into /etc of the node.
fn layer(n: &Node, files: &Path) {
    let files = files.display();
    n.sh(&format!(
        "mount -t overlay overlay -o lowerdir={files}/usr:/usr /usr
        if [ -d {files}/etc ]; then cp -a {files}/etc/. /etc/; fi"
    ));
}

/// Another pod by its own address, and by the Service's, of each family.
fn pod_and_service(families: Families) -> Vec<SocketAddr> {
    let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port);
    let pods = of(["10.244.1.3", "fd00:10:244:1::3"], families).into_iter().map(|ip| at(ip, PORT));
    pods.chain(of(CLUSTER_IPS, families).into_iter().map(|ip| at(ip, 80))).collect()
}

/// What the agent says of others' rules.
fn said(n: &Node) -> Vec<String> {
    let status: Value =
        serde_json::from_str(&n.attempt(&["curl", "-s", "http://127.0.0.1:9642/status"]).unwrap_or_default())
            .unwrap_or_default();
    let text = |f: &Value| format!("{} {}: {}", f["object"], f["field"], f["why"]).replace('"', "");
    status["foreign"].as_array().into_iter().flatten().map(text).collect()
}

/// The rules of everybody but us, without what changes by itself.
fn theirs(n: &Node) -> Vec<String> {
    let all = n.run(&["nft", "-s", "list", "ruleset"]);
    let tables = all.split("\ntable ").filter(|t| !t.trim_start_matches("table ").starts_with("inet seaway"));
    tables.map(|t| t.trim().to_owned()).collect()
}

#[test]
fn docker_drops_pods_until_it_is_told_of_them() {
    let mut n = node("docker", &["docker.io"]);
    // A machine that does not forward before Docker lets it, which then drops what is not its own.
    n.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let dockerd = |n: &mut Node| {
        let own = ["--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "-H", "unix:///run/docker.sock"];
        n.start("dockerd", &[&["dockerd", "--storage-driver", "vfs"], &own[..]].concat())
    };
    let daemon = dockerd(&mut n);
    let up = |n: &Node| n.attempt(&["docker", "-H", "unix:///run/docker.sock", "network", "ls"]);
    wait("dockerd is up", || up(&n).is_ok_and(|t| t.contains("bridge")));
    let docker = theirs(&n);
    let (pods, _servers) = serve(&mut n, &[Family::V4]);
    wait("the agent says it", || said(&n).iter().any(|s| s.contains("DOCKER-USER")));
    let to = pod_and_service(&[Family::V4])[0];
    once(&pods[0], Proto::Tcp, to).expect_err("Docker drops it");

    // As it is told.
    let text = said(&n).concat();
    let fix = text.split_once("this is Docker's; ").and_then(|(_, f)| f.split_once(" (or ")).unwrap().0;
    assert_eq!(fix.matches("iptables -I DOCKER-USER").count(), 2, "{text}");
    n.sh(fix);
    for to in pod_and_service(&[Family::V4]) {
        wait(&format!("{to} answers again"), || once(&pods[0], Proto::Tcp, to).is_ok());
    }
    wait("nothing is in the way", || said(&n).is_empty());
    let added: Vec<String> = theirs(&n).iter().flat_map(|t| t.lines()).map(|l| l.trim().to_owned()).collect();
    for line in docker.iter().flat_map(|t| t.lines()) {
        assert!(added.iter().any(|l| l == line.trim()), "Docker's {line:?} is gone");
    }
    // It keeps that when it begins anew, and our table is what it was.
    let before = n.run(&["nft", "-s", "list", "table", "inet", "seaway"]);
    n.kill(daemon);
    dockerd(&mut n);
    wait("dockerd is up again", || up(&n).is_ok_and(|t| t.contains("bridge")));
    for to in pod_and_service(&[Family::V4]) {
        wait(&format!("{to} still answers"), || once(&pods[0], Proto::Tcp, to).is_ok());
    }
    // While it makes its rules anew, they may be in the way for a moment.
    wait("nothing is in the way again", || said(&n).is_empty());
    assert_eq!(n.run(&["nft", "-s", "list", "table", "inet", "seaway"]), before);
}

/// A bus on which everybody may do everything: there is nobody but root on the node.
const BUS: &str = r#"<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_type="method_return"/><allow send_type="error"/><allow receive_type="method_call"/><allow receive_type="signal"/>
<allow receive_type="method_return"/><allow receive_type="error"/></policy></busconfig>"#;

#[test]
fn firewalld_rejects_pods_until_they_are_trusted() {
    let packages =
        ["firewalld", "python3-firewall", "python3-nftables", "python3-gi", "python3-dbus", "gir1.2-glib-2.0"];
    let packages = [&packages[..], &["libgirepository-1.0-1", "libnftables1"]].concat();
    let _ = (tools::debian("dbus-daemon", "dbus-daemon"), tools::debian("python3", "python3"));
    let mut n = node("firewalld", &packages);
    let (pods, _servers) = serve(&mut n, &Family::BOTH);
    for to in pod_and_service(&Family::BOTH) {
        wait(&format!("{to} answers"), || once(&pods[0], Proto::Tcp, to).is_ok());
    }
    let before = n.run(&["nft", "-s", "list", "table", "inet", "seaway"]);
    n.write("/run/dbus/bus.conf", BUS);
    n.start("dbus", &["dbus-daemon", "--config-file=/run/dbus/bus.conf", "--nofork", "--nopidfile"]);
    wait("the bus is there", || n.path("/run/dbus/system_bus_socket").exists());
    let firewalld =
        |n: &mut Node| n.start("firewalld", &["/usr/bin/python3", "/usr/sbin/firewalld", "--nofork", "--nopid"]);
    let daemon = firewalld(&mut n);
    wait("the agent says it", || said(&n).iter().any(|s| s.contains("nft chain inet firewalld filter_FORWARD")));
    // Pods are refused, also by a Service's address, unless the Service translated it.
    for to in pod_and_service(&Family::BOTH).into_iter().filter(|to| to.port() == PORT) {
        once(&pods[0], Proto::Tcp, to).expect_err("firewalld rejects it");
    }

    // As it is told: `firewall-cmd --permanent` writes what `firewall-offline-cmd` does, and needs polkit.
    let text = said(&n).concat();
    let fix = text.split_once("firewall-cmd --permanent ").and_then(|(_, f)| f.split_once(" && firewall-cmd --reload"));
    let fix = fix.unwrap_or_else(|| panic!("{text}")).0;
    assert!(fix.contains("--zone=trusted --add-source=10.244.0.0/16 --add-source=fd00:10:244::/56"), "{text}");
    n.sh(&format!("firewall-offline-cmd {fix}"));
    n.kill(daemon);
    firewalld(&mut n);
    for to in pod_and_service(&Family::BOTH) {
        wait(&format!("{to} answers again"), || once(&pods[0], Proto::Tcp, to).is_ok());
    }
    wait("nothing is in the way", || said(&n).is_empty());
    assert_eq!(n.run(&["nft", "-s", "list", "table", "inet", "seaway"]), before);
    let zones = n.run(&["nft", "list", "chain", "inet", "firewalld", "filter_FORWARD_ZONES"]);
    assert!(zones.contains("filter_FWD_trusted"), "firewalld's own rules are as it made them: {zones}");
}
