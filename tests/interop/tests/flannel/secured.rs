//! An etcd that lets nobody in without a certificate and a password, and a network of another name in it.

use interop::node::{ADDRESSES, wait, wait_for};
use interop::{Node, tools};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use seaway_tests_interop as interop;
use serde_json::{Value, json};

use super::arg;

const URL: &str = "https://192.0.2.1:2379";
const PREFIX: &str = "/fleets/a";
/// What others know this node by.
const PUBLIC: &str = "203.0.113.7";
const PUBLIC6: &str = "2001:db8::7";
const PASSWORD: &str = "of the node's";

/// Two authorities, of which the first signs the server's certificate and a client's.
fn certificates(node: &Node) {
    let issuer = |name: &str| {
        let mut p = CertificateParams::new(Vec::new()).unwrap();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // One that is called as what it signs would be taken for that itself.
        p.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        node.write(&format!("/etc/{name}.pem"), &p.self_signed(&key).unwrap().pem());
        Issuer::new(p, key)
    };
    let ca = issuer("ca");
    issuer("other-ca");
    for name in ["server", "client", "named"] {
        let mut p = CertificateParams::new(vec!["192.0.2.1".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        if name == "client" {
            // A name in a certificate is a user to etcd, but not through its gateway, which then refuses.
            p.distinguished_name = DistinguishedName::new();
        }
        // Its gateway is a client of the server's, by the server's own certificate.
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        node.write(&format!("/etc/{name}.pem"), &p.signed_by(&key, &ca).unwrap().pem());
        node.write(&format!("/etc/{name}-key.pem"), &key.serialize_pem());
    }
}

struct Store {
    node: Node,
    token: String,
}

impl Store {
    /// etcd with users: `root`, and `node` who may write below the prefix only.
    fn new() -> Self {
        let mut node = Node::boot();
        certificates(&node);
        let program = arg(&tools::ETCD.program("server"));
        let urls = ["--listen-client-urls", URL, "--advertise-client-urls", URL];
        let peer = ["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync", "--auth-token-ttl", "3"];
        let tls = ["--cert-file", "/etc/server.pem", "--key-file", "/etc/server-key.pem", "--client-cert-auth"];
        let ca = ["--trusted-ca-file", "/etc/ca.pem"];
        node.start("etcd", &[&[program.as_str(), "--data-dir", "/var/lib/etcd"], &urls[..], &peer, &tls, &ca].concat());
        let mut s = Self { node, token: String::new() };
        wait("etcd answers", || s.attempt("/v3/kv/range", &json!({"key": s.encoded("x")})).is_ok());
        let range = |s: &Self, text: &str| s.encoded(text);
        let permission =
            json!({"permType": "READWRITE", "key": range(&s, "/fleets/a/"), "range_end": range(&s, "/fleets/a0")});
        for (path, body) in [
            ("/v3/auth/user/add", json!({"name": "root", "password": "of root's"})),
            ("/v3/auth/role/add", json!({"name": "root"})),
            ("/v3/auth/user/grant", json!({"user": "root", "role": "root"})),
            ("/v3/auth/user/add", json!({"name": "node", "password": PASSWORD})),
            ("/v3/auth/role/add", json!({"name": "fleet"})),
            ("/v3/auth/role/grant", json!({"name": "fleet", "perm": permission})),
            ("/v3/auth/user/grant", json!({"user": "node", "role": "fleet"})),
            ("/v3/auth/enable", json!({})),
        ] {
            s.attempt(path, &body).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        s.login();
        s
    }

    fn encoded(&self, text: &str) -> String {
        String::from_utf8(self.node.output(&["base64", "-w0"], text).stdout).unwrap()
    }

    fn decoded(&self, v: &Value) -> String {
        String::from_utf8(self.node.output(&["base64", "-d"], v.as_str().unwrap()).stdout).unwrap()
    }

    fn login(&mut self) {
        let said = self.attempt("/v3/auth/authenticate", &json!({"name": "root", "password": "of root's"})).unwrap();
        self.token = said["token"].as_str().unwrap().to_owned();
    }

    fn attempt(&self, path: &str, body: &Value) -> Result<Value, String> {
        let (url, header, body) = (format!("{URL}{path}"), format!("Authorization: {}", self.token), body.to_string());
        let mut args = vec!["curl", "-sS", "--fail-with-body", "--cacert", "/etc/ca.pem", "--cert", "/etc/client.pem"];
        args.extend(["--key", "/etc/client-key.pem", &url, "-d", &body]);
        if !self.token.is_empty() {
            args.extend(["-H", &header]);
        }
        self.node.attempt(&args).map(|text| serde_json::from_str(&text).unwrap())
    }

    fn put(&mut self, key: &str, value: &str) {
        self.login();
        let body = json!({"key": self.encoded(key), "value": self.encoded(value)});
        self.attempt("/v3/kv/put", &body).unwrap();
    }

    /// Keys and values below the prefix, with the number of the lease that each goes with.
    fn all(&mut self) -> Vec<(String, String, String)> {
        self.login();
        let body = json!({"key": self.encoded("/fleets/"), "range_end": self.encoded("/fleets0")});
        let all = self.attempt("/v3/kv/range", &body).unwrap();
        let kvs = all["kvs"].as_array().cloned().unwrap_or_default();
        let lease = |kv: &Value| kv["lease"].as_str().unwrap_or("0").to_owned();
        kvs.iter().map(|kv| (self.decoded(&kv["key"]), self.decoded(&kv["value"]), lease(kv))).collect()
    }

    fn ours(&mut self) -> Option<(String, String, String)> {
        self.all().into_iter().find(|(k, v, _)| k.contains("/subnets/") && v.contains(PUBLIC))
    }

    /// The agent, with these in place of its own options.
    fn agent(&mut self, name: &str, other: &[(&str, &str)]) -> usize {
        let program = arg(tools::seaway());
        let mut options = std::collections::BTreeMap::from([
            // The first does not answer: the next has its turn.
            ("--etcd-endpoints", "https://127.0.0.1:9,https://192.0.2.1:2379"),
            ("--etcd-cafile", "/etc/ca.pem"),
            ("--etcd-certfile", "/etc/client.pem"),
            ("--etcd-keyfile", "/etc/client-key.pem"),
            ("--etcd-username", "node"),
            ("--etcd-prefix", PREFIX),
            ("--public-ip", PUBLIC),
            // By address, as flannel's daemon takes it.
            ("--iface", ADDRESSES[0]),
            ("--node", "n1"),
        ]);
        options.extend(other.iter().copied());
        let password = format!("SEAWAY_ETCD_PASSWORD={}", options.remove("password").unwrap_or(PASSWORD));
        let flags: Vec<&str> = options.iter().flat_map(|(k, v)| [*k, *v]).collect();
        let args = [&["env", &password, program.as_str(), "agent", "--source", "etcd"], &flags[..]].concat();
        self.node.start(name, &args)
    }
}

#[test]
fn by_certificate_and_password_below_another_prefix_and_known_by_another_address() {
    let mut s = Store::new();
    // What is refused is said, with the reason of whoever refuses.
    for (name, other, want) in [
        (
            "with-a-name",
            &[("--etcd-certfile", "/etc/named.pem"), ("--etcd-keyfile", "/etc/named-key.pem")][..],
            "CommonName",
        ),
        ("wrong-password", &[("password", "wrong")], "authentication failed, invalid user ID or password"),
        ("wrong-ca", &[("--etcd-cafile", "/etc/other-ca.pem")], "certificate"),
        ("wrong-prefix", &[("--etcd-prefix", "/fleets/b")], "permission denied"),
    ] {
        let agent = s.agent(name, other);
        // Whichever server it has asked last.
        wait_for(name, 60, || {
            let ready = s.node.attempt(&["curl", "-s", "http://127.0.0.1:9642/readyz"]).unwrap_or_default();
            ready.contains(want) && ready.contains("192.0.2.1:2379")
        });
        s.node.kill(agent);
    }
    assert_eq!(s.all(), []);

    s.put(&format!("{PREFIX}/config"), r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let agent = s.agent("agent", &[]);
    wait_for("our lease", 60, || s.ours().is_some());
    let (key, value, lease) = s.ours().unwrap();
    assert!(key.starts_with("/fleets/a/subnets/10.5."), "{key}");
    assert!(value.starts_with(r#"{"PublicIP":"203.0.113.7","PublicIPv6":null,"BackendType":"vxlan""#), "{value}");
    // Its own packets leave by the interface's address.
    wait("the device", || s.node.attempt(&["ip", "-d", "link", "show", "seaway.1"]).is_ok());
    let device = s.node.run(&["ip", "-d", "link", "show", "seaway.1"]);
    assert!(device.contains("local 192.0.2.1 "), "{device}");
    // A day, as flannel's.
    let life = s.attempt("/v3/lease/timetolive", &json!({"ID": lease})).unwrap();
    assert_eq!(life["grantedTTL"], "86400", "{life}");

    // Its token runs out every three seconds: it goes on following, and writing.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let peer = r#"{"PublicIP":"192.0.2.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"22:1e:35:0c:d0:77"}}"#;
    s.put("/fleets/a/subnets/10.5.77.0-24", peer);
    wait_for("a node that came", 60, || {
        s.node.run(&["ip", "route"]).contains("10.5.77.0/24 via 10.5.77.0 dev seaway.1")
    });
    s.login();
    let body = json!({"key": s.encoded(&key)});
    assert_eq!(s.attempt("/v3/kv/deleterange", &body).unwrap()["deleted"], "1");
    wait_for("our lease again", 60, || s.ours().is_some_and(|(k, ..)| k == key));

    // Of IPv6 likewise.
    s.node.kill(agent);
    assert_eq!(s.attempt("/v3/kv/deleterange", &body).unwrap()["deleted"], "1");
    let both = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    s.put(&format!("{PREFIX}/config"), both);
    s.agent("agent", &[("--public-ipv6", PUBLIC6)]);
    wait_for("a lease of both families", 60, || s.ours().is_some_and(|(_, v, _)| v.contains(PUBLIC6)));
    let (key, value, _) = s.ours().unwrap();
    assert!(key.contains("&fd00:5:"), "{key}");
    let begins = r#"{"PublicIP":"203.0.113.7","PublicIPv6":"2001:db8::7","BackendType":"vxlan""#;
    assert!(value.starts_with(begins) && value.contains("BackendV6Data"), "{value}");
    wait("the device of IPv6", || s.node.attempt(&["ip", "link", "show", "seaw6.1"]).is_ok());
    let device = s.node.run(&["ip", "-d", "link", "show", "seaw6.1"]);
    assert!(device.contains(&format!("local {} ", ADDRESSES[1])), "{device}");
}
