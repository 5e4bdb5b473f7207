//! Others' rules in the layout of their programs, loaded into a fresh namespace: what breaks pods is said, the fix that is told
//! with it silences it, and what breaks nothing is not mentioned.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use kernel::{Netns, Nftables};
use plane_nft::foreign::{MARKERS, findings};
use types::Cidr;

/// The layout of the filter table as `dockerd` 28 sets it up by iptables, with one bridge.
const DOCKER: &str = "
    *filter
    :INPUT ACCEPT [0:0]
    :FORWARD DROP [0:0]
    :OUTPUT ACCEPT [0:0]
    :DOCKER - [0:0]
    :DOCKER-BRIDGE - [0:0]
    :DOCKER-CT - [0:0]
    :DOCKER-FORWARD - [0:0]
    :DOCKER-ISOLATION-STAGE-1 - [0:0]
    :DOCKER-ISOLATION-STAGE-2 - [0:0]
    :DOCKER-USER - [0:0]
    -A FORWARD -j DOCKER-USER
    -A FORWARD -j DOCKER-FORWARD
    -A DOCKER ! -i docker0 -o docker0 -j DROP
    -A DOCKER-BRIDGE -o docker0 -j DOCKER
    -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A DOCKER-FORWARD -j DOCKER-CT
    -A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
    -A DOCKER-FORWARD -j DOCKER-BRIDGE
    -A DOCKER-FORWARD -i docker0 -j ACCEPT
    -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
    -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
    COMMIT
";

/// The layout of firewalld's forward path (1.3, backend nftables): zone public by default, trusted beside it.
const FIREWALLD: &str = "
    table inet firewalld {
        chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state { established, related } accept
            ct status dnat accept
            iifname \"lo\" accept
            ct state invalid drop
            ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24 } reject with icmpv6 addr-unreachable
            jump filter_FORWARD_ZONES
            reject with icmpx admin-prohibited
        }
        chain filter_FORWARD_ZONES {
            goto filter_FWD_public
        }
        chain filter_FWD_public {
            jump filter_FWD_public_deny
            jump filter_FWD_public_allow
            reject with icmpx admin-prohibited
        }
        chain filter_FWD_public_deny { }
        chain filter_FWD_public_allow {
            oifname \"eth0\" accept
        }
        chain filter_FWD_trusted {
            accept
        }
    }
";

fn feed(ns: &Netns, program: &str, args: &[&str], text: &str) {
    let text: String = text.lines().map(|l| if program == "nft" { l } else { l.trim() }.to_owned() + "\n").collect();
    ns.run(|| {
        let mut c = Command::new(program).args(args).stdin(Stdio::piped()).spawn().unwrap();
        c.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(c.wait().unwrap().success(), "{program}: {text}");
    })
    .unwrap();
}

fn say(ns: &Netns) -> String {
    let pods: BTreeSet<Cidr> = ["10.244.0.0/16", "fd00:10:244::/48"].map(|c| c.parse().unwrap()).into();
    let rules = Nftables::open_in(ns).unwrap().foreign(&MARKERS).unwrap();
    findings(&rules, &pods, false).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn docker_drops_what_is_not_its_own_until_it_is_told_of_pods() {
    let ns = Netns::new().unwrap();
    feed(&ns, "iptables-nft-restore", &[], DOCKER);
    let text = say(&ns);
    assert!(
        text.contains("nft chain ip filter FORWARD") && text.contains("iptables -I DOCKER-USER -s 10.244.0.0/16"),
        "{text}"
    );
    for way in ["-s", "-d"] {
        feed(&ns, "iptables-nft", &["-I", "DOCKER-USER", way, "10.244.0.0/16", "-j", "ACCEPT"], "");
    }
    assert_eq!(say(&ns), "", "the fix that was told");
}

#[test]
fn firewalld_rejects_pods_until_they_are_trusted() {
    let ns = Netns::new().unwrap();
    feed(&ns, "nft", &["-f", "-"], FIREWALLD);
    let text = say(&ns);
    assert!(text.contains("filter_FORWARD") && text.contains("--zone=trusted --add-source=10.244.0.0/16"), "{text}");
    // What `firewall-cmd --zone=trusted --add-source` adds.
    for source in ["ip saddr 10.244.0.0/16", "ip6 saddr fd00:10:244::/48"] {
        let rule = format!("insert rule inet firewalld filter_FORWARD_ZONES {source} goto filter_FWD_trusted");
        feed(&ns, "nft", &["-f", "-"], &rule);
    }
    assert_eq!(say(&ns), "", "the fix that was told");
}

#[test]
fn rules_that_drop_are_seen_and_those_for_others_are_not() {
    let chain = |rules: &str| {
        let ns = Netns::new().unwrap();
        let text = format!(
            "table inet mine {{\n set bad {{ type ipv4_addr; }}\n chain deep {{\n {rules}\n }}\n chain forwarding {{\n type filter hook \
             forward priority 0; policy accept;\n jump deep\n }}\n}}"
        );
        feed(&ns, "nft", &["-f", "-"], &text);
        say(&ns)
    };
    for breaks in [
        "drop",
        "counter log prefix \"no \" reject",
        "ip saddr 10.0.0.0/8 drop",
        "ct state new meta l4proto tcp reject with tcp reset",
        "ip6 daddr fd00::/8 drop",
        "iifname != \"eth0\" drop",
    ] {
        let text = chain(breaks);
        assert!(
            text.contains("nft chain inet mine forwarding") && text.contains("drops or rejects"),
            "{breaks}: {text}"
        );
    }
    for quiet in [
        "ip saddr 192.168.0.0/16 drop",
        "iifname \"docker0\" drop",
        "ct state invalid drop",
        "udp dport 53 drop",
        "ip saddr @bad drop",
        "tcp dport 22 drop",
        "ip saddr 10.244.0.0/16 accept\n ip6 saddr fd00:10:244::/48 accept\n drop",
        "return\n drop",
    ] {
        assert_eq!(chain(quiet), "", "{quiet}");
    }
}
