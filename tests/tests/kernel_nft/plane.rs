//! The plane's image in the real kernel: read back equal, healed in one pass, listed and loaded by nft.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use intent::NodeIntent;
use intent::generate::node_intent;
use kernel::{Ct, Netns, Nftables};
use plan::{Caps, Dataplane, Kernel, Plan, converge};
use plane_nft::{Image, NftKernel, NftPlane};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::world::{nft, sh};

type Kern = NftKernel<Nftables, Ct>;

fn kernel(ns: &Netns) -> Kern {
    NftKernel::new(Nftables::open_in(ns).unwrap(), Ct::open_in(ns).unwrap())
}

fn compile(i: &NodeIntent) -> Image {
    NftPlane.compile(i, &Caps::default()).image
}

fn intents(n: usize) -> Vec<NodeIntent> {
    let mut runner = TestRunner::deterministic();
    (0..n).map(|_| node_intent().new_tree(&mut runner).unwrap().current()).collect()
}

fn converged(k: &mut Kern, want: &Image) {
    converge(&NftPlane, k, want, None).unwrap_or_else(|e| panic!("{e}\n{}", plane_nft::render::image(want)));
    let have = k.observe().unwrap();
    let left = Plan { batches: NftPlane.plan(want, &have) }.to_string();
    assert_eq!(left, "", "the next plan is empty");
    assert_eq!(have, *want);
}

#[test]
fn any_image_follows_any_other_in_one_pass() {
    let ns = Netns::new().unwrap();
    let mut k = kernel(&ns);
    nft(&ns, "table inet theirs { chain c { type filter hook input priority 0; counter accept; } ; }");
    let foreign = sh(&ns, "nft list table inet theirs");
    for i in intents(60) {
        converged(&mut k, &compile(&i));
    }
    converged(&mut k, &Image::default());
    assert_eq!(sh(&ns, "nft list tables").trim(), "table inet theirs");
    assert_eq!(sh(&ns, "nft list table inet theirs"), foreign);
}

/// What people do to a ruleset, each healed by one pass.
#[test]
fn what_others_do_to_the_table_is_undone_in_one_pass() {
    let ns = Netns::new().unwrap();
    let mut k = kernel(&ns);
    let i = intents(20).into_iter().max_by_key(|i| i.services.len()).unwrap();
    let want = compile(&i);
    converged(&mut k, &want);
    let endpoints = want.sets.iter().find(|(n, s)| n.starts_with("endpoints") && !s.elements.is_empty()).unwrap().0;
    for line in [
        "nft flush ruleset".to_owned(),
        "nft flush table inet seaway".into(),
        "nft delete table inet seaway".into(),
        "nft flush chain inet seaway prerouting".into(),
        "nft insert rule inet seaway output ip daddr 10.0.0.0/8 accept".into(),
        "nft add rule inet seaway postrouting ip daddr { 10.0.0.1, 10.0.0.2 } counter accept".into(),
        format!("nft flush map inet seaway {endpoints}"),
        "nft flush map inet seaway services4; nft flush map inet seaway services6".into(),
        "nft add table inet seaway '{ flags dormant; }'".into(),
        "nft add chain inet seaway theirs; nft add rule inet seaway output goto theirs".into(),
        "nft add set inet seaway theirs '{ type ipv4_addr; }'; nft add rule inet seaway output ip daddr @theirs drop".into(),
        "nft add map inet seaway theirs '{ type ipv4_addr : verdict; }'; nft add element inet seaway theirs '{ 1.1.1.1 : goto reject_unused_port }'".into(),
        "nft add chain inet seaway mine '{ type filter hook input priority 0; policy drop; }'".into(),
        "nft list table inet seaway > /dev/null".into(),
    ] {
        sh(&ns, &line);
        converged(&mut k, &want);
    }
    // What nft prints, nft loads; and what it then is, one pass makes ours again.
    sh(&ns, "nft list table inet seaway | (cat; echo) > /dev/null");
    let text = sh(&ns, "nft list table inet seaway");
    assert!(!text.contains("[invalid"), "{text}");
    sh(&ns, "nft delete table inet seaway");
    nft(&ns, &text);
    converged(&mut k, &want);
}

/// Our own rendering is nft's language: nft loads it, and then lists the same as for what we commit.
#[test]
fn the_rendered_image_is_what_nft_lists() {
    for i in intents(12) {
        let image = compile(&i);
        let (ours, theirs) = (Netns::new().unwrap(), Netns::new().unwrap());
        converged(&mut kernel(&ours), &image);
        nft(&theirs, &plane_nft::render::image(&image));
        // Elements come in the kernel's order of the moment.
        let list = |ns: &Netns| {
            let text = sh(ns, "nft list table inet seaway");
            let mut lines: Vec<String> = text
                .replace("elements = {", "")
                .lines()
                .map(|l| l.trim().trim_end_matches([',', '}', ' ']).to_owned())
                .flat_map(|l| l.split(", ").map(str::to_owned).collect::<Vec<_>>())
                .collect();
            lines.sort();
            lines
        };
        assert_eq!(list(&ours), list(&theirs));
    }
}

/// A thousand Services: the table has as many chains and sets as with one, and a change of one Service is one small
/// transaction.
#[test]
fn a_thousand_services_and_a_change_of_one() {
    let ns = Netns::new().unwrap();
    let mut k = kernel(&ns);
    let mut i = crate::world::cluster(types::FamilySet { v4: true, v6: true });
    for n in 0..1000u16 {
        crate::world::add_service(&mut i, n, 3);
    }
    let want = compile(&i);
    let started = Instant::now();
    converged(&mut k, &want);
    let full = started.elapsed();
    let key = i.services.keys().nth(500).unwrap().clone();
    let gone = *i.services[&key].endpoints.iter().next().unwrap();
    std::sync::Arc::make_mut(i.services.get_mut(&key).unwrap()).endpoints.remove(&gone);
    let next = compile(&i);
    let plan = NftPlane.plan(&next, &want);
    assert!(plan.iter().map(Vec::len).sum::<usize>() <= 20, "{}", Plan { batches: plan });
    let (mut planning, mut committing) = (Duration::ZERO, Duration::ZERO);
    for (to, from) in [(&next, &want), (&want, &next), (&next, &want)] {
        let started = Instant::now();
        let batches = NftPlane.plan(to, from);
        planning = started.elapsed();
        let started = Instant::now();
        batches.iter().for_each(|b| k.commit(b).unwrap());
        committing = started.elapsed();
    }
    println!("1000 services in {full:?}; one endpoint less: planned in {planning:?}, committed in {committing:?}");
    // Far from a full sync. (The kernel still walks the verdict maps when it checks a transaction for loops.)
    assert!(committing * 5 < full, "{committing:?} of {full:?}");
    converged(&mut k, &next);
}

#[test]
fn nft_is_there() {
    let ok = Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    assert!(ok, "nft is missing: install the Debian package nftables");
}
