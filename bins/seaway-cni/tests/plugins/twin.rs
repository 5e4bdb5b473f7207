//! One machine to attach containers to, with plugins of one making.
#![allow(dead_code)] // each plugin's file uses a part

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::common::{Node, answer, program, repository};

/// Where Debian's containernetworking-plugins are.
const REFERENCE: &str = "/usr/lib/cni";

/// Whose plugins a [`Twin`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Ours,
    Theirs,
}

pub const BOTH: [Whose; 2] = [Whose::Ours, Whose::Theirs];

/// A node, and a folder of plugins.
pub struct Twin {
    pub node: Node,
    pub whose: Whose,
    /// `CNI_PATH`.
    pub path: PathBuf,
}

impl Twin {
    pub fn new(whose: Whose) -> Self {
        let node = Node::new();
        let path = match whose {
            Whose::Theirs => {
                assert!(
                    Path::new(REFERENCE).join("bridge").exists(),
                    "the reference plugins are missing: apt-get install containernetworking-plugins"
                );
                PathBuf::from(REFERENCE)
            }
            Whose::Ours => {
                let dir = node.dir.path().join("bin");
                std::fs::create_dir(&dir).unwrap();
                for name in plugins::NAMES {
                    std::os::unix::fs::symlink(program(), dir.join(name)).unwrap();
                }
                dir
            }
        };
        Self { node, whose, path }
    }

    /// A fresh directory's path, for `dataDir` and the like.
    pub fn dir(&self, name: &str) -> String {
        self.node.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// One call of the plugin that `conf` names, on interface eth0 of a container whose namespace, if there is one, was
    /// made by `node.pod(container)`.
    pub fn call(&self, command: &str, container: &str, conf: &Value) -> Result<Value, Value> {
        self.call_with(command, container, conf, &[])
    }

    /// The same with other or more variables.
    pub fn call_with(
        &self,
        command: &str,
        container: &str,
        conf: &Value,
        env: &[(&str, &str)],
    ) -> Result<Value, Value> {
        let mut out = self.spawn(command, container, conf, env).wait_with_output().unwrap();
        if self.whose == Whose::Theirs {
            // Some of them chat.
            out.stderr.clear();
        }
        answer(out)
    }

    /// Starts a call.
    pub fn spawn(&self, command: &str, container: &str, conf: &Value, env: &[(&str, &str)]) -> Child {
        let netns = self.node.dir.path().join("netns").join(container);
        let mut c = Command::new(self.path.join(conf["type"].as_str().expect("type")));
        // iptables and the like are on the path of a runtime.
        c.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        c.env("CNI_COMMAND", command).env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0");
        c.env("CNI_PATH", &self.path);
        if netns.exists() {
            c.env("CNI_NETNS", &netns);
        }
        c.envs(env.iter().copied());
        c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.node.ns.run(|| c.spawn().expect("start the plugin")).unwrap();
        let _ = child.stdin.take().unwrap().write_all(conf.to_string().as_bytes());
        child
    }

    pub fn add(&self, container: &str, conf: &Value) -> Value {
        self.call("ADD", container, conf).unwrap_or_else(|e| panic!("{:?}: ADD {container}: {e}", self.whose))
    }

    pub fn del(&self, container: &str, conf: &Value) {
        self.call("DEL", container, conf).unwrap_or_else(|e| panic!("{:?}: DEL {container}: {e}", self.whose));
    }

    /// Runs `command` in the container and reads what it prints as JSON.
    pub fn json_pod(&self, container: &str, command: &str) -> Value {
        let text = self.node.sh_pod(container, command);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command}: {e}: {text}"))
    }

    /// The same on the node.
    pub fn json(&self, command: &str) -> Value {
        let text = self.node.sh(command);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command}: {e}: {text}"))
    }

    /// What the container has: links with kind, MTU and state, addresses, routes of every table, rules. Random names and
    /// hardware addresses, indices and lifetimes are left out.
    pub fn inside(&self, container: &str) -> Value {
        self.view(|c| self.json_pod(container, c))
    }

    /// The same of the node, less its uplink.
    pub fn outside(&self) -> Value {
        self.view(|c| self.json(c))
    }

    /// What the ports of the node's bridges are like: hairpin, isolation, VLANs.
    pub fn ports(&self) -> Value {
        let shown = |command: &str, of: &dyn Fn(&Value) -> Value| {
            let all = self.json(command);
            let mut out: Vec<Value> = all.as_array().unwrap().iter().map(of).collect();
            out.sort_by_key(ToString::to_string);
            out
        };
        let name = |p: &Value| stable(p["ifname"].as_str().unwrap());
        let on = |v: &Value| v.as_bool().unwrap_or(false);
        json!({
            "ports": shown("bridge -j -d link show", &|p| json!([name(p), on(&p["hairpin"]), on(&p["isolated"])])),
            "vlans": shown("bridge -j vlan show", &|p| json!([name(p), p["vlans"]])),
        })
    }

    fn view(&self, run: impl Fn(&str) -> Value) -> Value {
        // The references' IPv6 addresses on the node wait for duplicate detection.
        for _ in 0..100 {
            if run("ip -6 -j addr show scope global tentative")
                .as_array()
                .is_none_or(|l| l.iter().all(|l| l["addr_info"].as_array().is_none_or(Vec::is_empty)))
            {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let shown = run("ip -j -d addr");
        let links = shown.as_array().unwrap().iter().map(|l| {
            let name = l["ifname"].as_str().unwrap();
            let addresses: Vec<_> = l["addr_info"].as_array().into_iter().flatten()
                .filter(|a| a["scope"] != "link" || a["family"] == "inet")
                .map(|a| format!("{}/{} {}", a["local"].as_str().unwrap_or("?"), a["prefixlen"], a["scope"].as_str().unwrap_or("?")))
                .collect();
            json!({
                "name": stable(name), "kind": l["linkinfo"]["info_kind"], "data": stable_data(&l["linkinfo"]["info_data"]),
                "port": l["linkinfo"]["info_slave_kind"], "mtu": l["mtu"], "up": flag(l, "UP"), "promisc": l["promiscuity"],
                "addresses": addresses,
            })
        });
        let mut links: Vec<_> = links.filter(|l| !["up0", "up1"].iter().any(|n| l["name"] == *n)).collect();
        links.sort_by_key(ToString::to_string);
        let routes = |family: &str| {
            let mut routes: Vec<String> = run(&format!("ip -j {family} route show table all"))
                .as_array()
                .unwrap()
                .iter()
                .filter(|r| {
                    !(r["dst"].as_str().unwrap_or("").starts_with("fe80:")
                        || r["type"] == "multicast"
                        || r["dev"] == "up0"
                        || r["dev"] == "up1")
                })
                .map(|r| {
                    let t = |k: &str| {
                        r[k].as_str()
                            .map(|v| format!(" {k} {}", if k == "dev" { stable(v) } else { v.into() }))
                            .unwrap_or_default()
                    };
                    format!(
                        "{}{}{}{}{}{}{}",
                        r["dst"].as_str().unwrap_or("?"),
                        t("type"),
                        t("gateway"),
                        t("dev"),
                        t("table"),
                        t("scope"),
                        t("prefsrc")
                    )
                })
                .collect();
            routes.sort();
            routes
        };
        let rules = |family: &str| -> Vec<String> {
            run(&format!("ip -j {family} rule"))
                .as_array()
                .unwrap()
                .iter()
                .map(|r| {
                    format!(
                        "{} from {} table {}",
                        r["priority"],
                        r["src"].as_str().unwrap_or("?"),
                        r["table"].as_str().unwrap_or("?")
                    )
                })
                .collect()
        };
        json!({"links": links, "routes4": routes("-4"), "routes6": routes("-6"), "rules4": rules("-4"), "rules6": rules("-6")})
    }
}

/// A copy of `v` with one field set.
pub fn with(v: &Value, field: &str, value: Value) -> Value {
    let mut v = v.clone();
    v[field] = value;
    v
}

/// An ADD with this configuration is refused by both, and ours names what is wrong with `why`.
pub fn refused_by_both(conf: impl Fn(&Twin) -> Value, why: &str) {
    for whose in BOTH {
        let t = Twin::new(whose);
        t.node.pod("c1");
        let before = (t.inside("c1"), t.outside());
        let c = conf(&t);
        let e = t.call("ADD", "c1", &c).expect_err(&format!("{whose:?} takes {c}"));
        if whose == Whose::Ours {
            let says = format!("{} {}", e["msg"], e["details"]);
            assert!(says.contains(why), "{c}: {says}");
            assert_eq!((t.inside("c1"), t.outside()), before, "{c}: something is left");
        }
    }
}

/// The first configuration of the plugin's page.
pub fn page(name: &str) -> Value {
    let path = repository("docs/plugins").join(format!("{name}.md"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let block = text.split("```json\n").nth(1).and_then(|t| t.split("```").next()).expect("a json block");
    serde_json::from_str(block).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The page's configuration attaches a container, is found right and detaches it.
pub fn the_page_works(t: &Twin, name: &str) {
    let mut c = page(name);
    c["ipam"]["dataDir"] = t.dir("store").into();
    t.node.pod("c1");
    let said = t.add("c1", &c);
    t.call("CHECK", "c1", &with(&c, "prevResult", said)).unwrap();
    t.del("c1", &c);
}

/// A configuration of `kind` with addresses of both families by host-local, routes of both and one through `gateway`, and
/// the fields of `more`.
pub fn dual_stack(t: &Twin, kind: &str, gateway: &str, more: &Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": kind,
        "ipam": {"type": "host-local", "dataDir": t.dir("store"),
            "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.77.0.0/16", "gw": gateway}]}});
    c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    c
}

fn flag(l: &Value, name: &str) -> bool {
    l["flags"].as_array().is_some_and(|f| f.iter().any(|f| f == name))
}

/// A veth's random name becomes `veth*`.
fn stable(name: &str) -> String {
    let random = name.strip_prefix("veth").is_some_and(|r| r.len() >= 6 && r.bytes().all(|b| b.is_ascii_hexdigit()));
    if random { "veth*".into() } else { name.into() }
}

/// What a link's kind says, without what is random or counts.
fn stable_data(v: &Value) -> BTreeMap<String, Value> {
    const KEEP: &[&str] = &[
        "mode",
        "flags",
        "table",
        "id",
        "protocol",
        "vlan_filtering",
        "vlan_default_pvid",
        "hairpin",
        "type",
        "owner",
        "group",
        "multi_queue",
    ];
    let Value::Object(m) = v else { return BTreeMap::new() };
    m.iter().filter(|(k, _)| KEEP.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// A result with random hardware addresses and names made equal, and what only newer references tell left out.
pub fn result(v: &Value) -> Value {
    let mut v = v.clone();
    // Before 1.0.0 the specification wants it; the references leave it out at times.
    for o in v["ips"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        o.remove("version");
    }
    for i in v["interfaces"].as_array_mut().into_iter().flatten() {
        i["name"] = stable(i["name"].as_str().unwrap_or("")).into();
        if i["mac"].as_str().is_some_and(|m| m != "00:00:00:00:00:00") {
            i["mac"] = "random".into();
        }
        if let (Some(s), Some(o)) = (i["sandbox"].as_str().map(str::to_owned), i.as_object_mut()) {
            o.insert("sandbox".into(), Path::new(&s).file_name().unwrap().to_str().unwrap().into());
        }
        if let Some(o) = i.as_object_mut() {
            o.remove("mtu");
        }
    }
    v
}
