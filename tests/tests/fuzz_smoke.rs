//! The bodies of the fuzz targets on stable, as ordinary tests: every committed seed, cut and bent at every place, and
//! random bytes. `make fuzz` looks longer and with coverage.

#![allow(clippy::unwrap_used, clippy::panic)] // all of this file is tests

#[path = "../../fuzz/src/lib.rs"]
#[allow(dead_code)] // `run` is what libFuzzer calls
mod bodies;

use std::path::{Path, PathBuf};

use proptest::prelude::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let dir = root().join("seeds").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seed", dir.display());
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

#[test]
fn every_body_has_its_target_and_every_target_its_body() {
    let mut files: Vec<String> = std::fs::read_dir(root().join("fuzz_targets"))
        .unwrap()
        .map(|f| f.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    files.sort();
    let mut names: Vec<&str> = bodies::BODIES.iter().map(|(n, _)| *n).collect();
    names.sort_unstable();
    assert_eq!(files, names);
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for n in names {
        assert!(manifest.contains(&format!("name = \"{n}\"")), "{n} is no bin of fuzz/Cargo.toml");
    }
}

#[test]
fn seeds_whole_cut_and_bent() {
    for (name, body) in bodies::BODIES {
        for seed in seeds(name) {
            body(&seed);
            // At most some 200 places of each: the whole is under a second.
            let step = seed.len() / 200 + 1;
            for at in (0..seed.len()).step_by(step) {
                body(&seed[..at]);
                for change in [0x01, 0x80, 0xff] {
                    let mut bent = seed.clone();
                    bent[at] ^= change;
                    body(&bent);
                }
            }
        }
    }
}

/// Seeds that are refused at the door would make the rest look at nothing.
#[test]
fn seeds_get_in() {
    cni::NetConf::parse(&seeds("cni_config")[0]).unwrap();
    let mended = bodies::journal(&seeds("ipam_journal")[0]);
    assert_eq!(ipam::parse(Path::new("journal"), &mended, "boot").unwrap().len(), 1);
    for seed in seeds("dhcp_packet") {
        plugins::dhcp::packet::Message::decode(&seed).unwrap();
    }
    for seed in seeds("ipam_pools") {
        ipam::Pools::parse(&seed).unwrap();
    }
    for seed in seeds("pod_spec") {
        serde_json::from_slice::<intent::PodSpec>(&seed).unwrap();
    }
    for seed in seeds("nft_table") {
        let image = plane_nft::parse(Some(&kernel::fuzz::table(&seed)));
        let full = image.sets.values().filter(|s| s.elements.len() > 1).count();
        assert!(
            image.chains.len() > 20 && image.sets.len() > 20 && full > 5,
            "{} {} {full}",
            image.chains.len(),
            image.sets.len()
        );
    }
    for seed in seeds("services") {
        let text = String::from_utf8(seed).unwrap();
        assert!(text.lines().all(|l| resolve::parse(&serde_json::from_str(l).unwrap()).is_some()), "{text}");
    }
    let folder = source::read_text(Path::new("x"), &String::from_utf8(seeds("manifest").remove(0)).unwrap());
    assert_eq!((folder.snapshot.services.len(), folder.problems.len()), (1, 0), "{:?}", folder.problems);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (_, body) in bodies::BODIES {
            body(&data);
        }
    }

    #[test]
    fn seeds_spliced(which in 0..bodies::BODIES.len(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(), resume in any::<prop::sample::Index>()) {
        let (name, body) = bodies::BODIES[which];
        let seeds = seeds(name);
        let (a, b) = (a.get(&seeds), b.get(&seeds));
        let spliced = [&a[..cut.index(a.len() + 1)], &b[resume.index(b.len() + 1)..]].concat();
        body(&spliced);
    }
}

/// What stands in place of something else: addresses that others have, ranges' ends, words of other fields, wrong types.
const INSTEAD: &[&str] = &[
    "null",
    "[]",
    "{}",
    "true",
    "0",
    "1",
    "80",
    "30080",
    "70000",
    "-1",
    r#""""#,
    r#""None""#,
    r#""Local""#,
    r#""Cluster""#,
    r#""ClientIP""#,
    r#""NodePort""#,
    r#""LoadBalancer""#,
    r#""ExternalName""#,
    r#""UDP""#,
    r#""SCTP""#,
    r#""http""#,
    r#""web""#,
    r#""lb""#,
    r#""near""#,
    r#""a""#,
    r#""node1""#,
    r#""node2""#,
    r#""192.0.2.1""#,
    r#""192.0.2.2""#,
    r#""10.96.0.10""#,
    r#""10.96.0.20""#,
    r#""10.244.1.7""#,
    r#""10.244.2.9""#,
    r#""203.0.113.77""#,
    r#""198.51.100.1""#,
    r#""fd00:10:96::20""#,
    r#""fd00:1::7""#,
    r#""2001:db8:51::2""#,
    r#""127.0.0.1""#,
    r#""224.0.0.1""#,
    r#""0.0.0.0/0""#,
    r#""192.0.2.0/24""#,
    r#"["10.96.0.10","fd00:10:96::10"]"#,
    r#"["198.51.100.2","10.96.0.20","192.0.2.1"]"#,
];

/// The places of everything within a value that holds nothing else, and of lists.
fn places(v: &serde_json::Value, at: &str, out: &mut Vec<String>) {
    match v {
        serde_json::Value::Object(m) => {
            m.iter().for_each(|(k, v)| places(v, &format!("{at}/{}", k.replace('/', "~1")), out))
        }
        serde_json::Value::Array(a) => {
            out.push(at.to_owned());
            a.iter().enumerate().for_each(|(n, v)| places(v, &format!("{at}/{n}"), out));
        }
        _ => out.push(at.to_owned()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Services and slices of all seeds, mixed, with other values here and there: they get past JSON.
    #[test]
    fn services_with_other_values(lines in proptest::collection::vec((any::<prop::sample::Index>(),
        proptest::collection::vec((any::<prop::sample::Index>(), 0..INSTEAD.len()), 0..4)), 1..7)) {
        let seeds = seeds("services").into_iter().map(|s| String::from_utf8(s).unwrap()).collect::<String>();
        let all: Vec<serde_json::Value> = seeds.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let mut text = String::new();
        for (line, changes) in &lines {
            let mut v = line.get(&all).clone();
            for (at, what) in changes {
                let mut found = Vec::new();
                places(&v, "", &mut found);
                // Kind and version stay, or nobody reads it.
                found.retain(|p| !matches!(p.as_str(), "/kind" | "/apiVersion"));
                let place: &String = at.get(&found);
                *v.pointer_mut(place).unwrap() = serde_json::from_str(INSTEAD[*what]).unwrap();
            }
            text += &format!("{v}\n");
        }
        bodies::services(text.as_bytes());
    }
}
