//! The doors of the house: which crate may use which, and why. One list; `docs/design.md` draws it, a test compares.

/// A door: `from` may use `to`. A name is a folder of `crates/`; a trailing `*` stands for any rest.
pub struct Door {
    /// Who goes through.
    pub from: &'static str,
    /// Where to.
    pub to: &'static str,
    /// In tests only.
    pub dev: bool,
    /// Why the door is there.
    pub why: &'static str,
}

const fn door(from: &'static str, to: &'static str, why: &'static str) -> Door {
    Door { from, to, dev: false, why }
}

const fn tests(from: &'static str, to: &'static str, why: &'static str) -> Door {
    Door { from, to, dev: true, why }
}

/// Every door between crates. Beside them: `bins/*` and `tests` may use every crate; nobody may use those.
pub const DOORS: &[Door] = &[
    // Pure: what the cluster means, what a node must do.
    door("intent", "types", "an intent is made of the shared newtypes"),
    door("resolve", "types", "names and addresses of the snapshot"),
    door("resolve", "intent", "its result is a NodeIntent"),
    door("source", "types", "names and addresses it parses"),
    door("source", "resolve", "it fills the ClusterSnapshot that resolve defines"),
    door("controller", "types", "it allocates ranges and addresses"),
    door("controller", "resolve", "it reads the same snapshot"),
    door("plan", "types", "capabilities name interfaces and ranges"),
    door("plan", "intent", "Dataplane::compile takes a NodeIntent"),
    // Dataplanes: pure planning over request data; they never see `kernel`.
    door("fabric", "types", "routes and links carry the newtypes"),
    door("fabric", "intent", "it compiles a NodeIntent"),
    door("fabric", "plan", "it is a Dataplane"),
    door("fabric", "kernel-api", "its ops are kernel-api requests; its adapter drives the trait"),
    door("plane-*", "types", "rules and elements carry the newtypes"),
    door("plane-*", "intent", "it compiles a NodeIntent"),
    door("plane-*", "plan", "it is a Dataplane"),
    door("plane-*", "kernel-api", "its ops are kernel-api requests; its adapter drives the trait"),
    // Effects.
    door("kernel-api", "types", "requests carry the newtypes"),
    door("kernel", "types", "what it reads back becomes the newtypes"),
    door("kernel", "kernel-api", "it implements the traits on the kernel"),
    door("kernel-fake", "types", "as the kernel"),
    door("kernel-fake", "kernel-api", "it implements the traits in memory"),
    // Attaching pods.
    door("ipam", "types", "pools are ranges"),
    door("cni", "types", "attachments carry the newtypes"),
    door("cni", "intent", "what a pod is to have: intent::PodSpec"),
    door("cni", "ipam", "ADD takes an address, DEL gives it back"),
    door("cni", "kernel-api", "verbs are plans of kernel-api requests"),
    door("plugins", "types", "results carry the newtypes"),
    door("plugins", "cni", "each is a cni::Plugin"),
    door("plugins", "ipam", "host-local's locks"),
    door("plugins", "kernel-api", "verbs are kernel-api requests"),
    // Around the agent.
    door("announce", "types", "addresses and nodes"),
    door("apiserver", "types", "Service ranges"),
    door(
        "apiserver",
        "controller",
        "its admission uses the allocators of ClusterIP and NodePort; one merge patch serves both",
    ),
    door("telemetry", "types", "settings are typed"),
    door("lab", "types", "topologies carry the newtypes"),
    door("lab", "intent", "trace walks packets and verdicts"),
    door("lab", "resolve", "the connectivity matrix is read from the snapshot"),
    door("lab", "source", "it reads and writes the lab's objects through the API"),
    door("lab", "kernel", "it makes namespaces, links and switches"),
    door("lab", "kernel-api", "with kernel-api requests"),
    door("lab", "telemetry", "logs of its processes"),
    door("xtask", "telemetry", "the manifest and the chart are written from the one table of settings"),
    // In tests only.
    tests("fabric", "kernel-fake", "the same cases against the fake"),
    tests("fabric", "kernel", "and against the kernel"),
    tests("plane-*", "kernel-fake", "the same cases against the fake"),
    tests("plane-*", "kernel", "and against the kernel"),
    tests("cni", "kernel-fake", "the same cases against the fake"),
    tests("cni", "kernel", "and against the kernel"),
    tests("plugins", "kernel-fake", "faults in the middle of a verb"),
    tests("plugins", "kernel", "the real thing"),
    tests("source", "apiserver", "a real API to watch"),
    tests("source", "controller", "its loop with the real controllers"),
];

/// Crates that may reach tokio; `bins/*` and `tests` may too.
pub const TOKIO: &[&str] = &["source", "dns", "bgp", "l7", "apiserver", "lab"];

/// Where unsafe code may be: what the path begins with, and why.
pub const UNSAFE: &[(&str, &str)] = &[
    ("crates/kernel/", "system calls that no safe crate has, one folder of them"),
    (
        "bins/pause/src/sys.rs",
        "its start and its six system calls: it has no C library, so none of what is made for one",
    ),
];

/// A crate that exists for tests: never a normal dependency of anything.
pub const TESTS_ONLY: &str = "kernel-fake";

/// Whether a name of the list stands for a crate.
pub fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

/// Whether there is a door.
pub fn open(from: &str, to: &str, dev: bool) -> bool {
    DOORS.iter().any(|d| (dev || !d.dev) && matches(d.from, from) && matches(d.to, to))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    type Edges = BTreeSet<(String, String, bool)>;

    /// Reads the drawing: `A <- B` is "B may use A", `<~` the same in tests only, `{ A, B }` is each of them.
    fn drawn(page: &str) -> Edges {
        let mut edges = Edges::new();
        let section = page.split("\nDoors ").nth(1).expect("design.md has a Doors section");
        for line in
            section.lines().skip(1).skip_while(|l| l.is_empty()).take_while(|l| l.starts_with("    ") || l.is_empty())
        {
            let (arrow, dev) = if line.contains("<~") { ("<~", true) } else { ("<-", false) };
            let terms: Vec<Vec<String>> = line
                .split(arrow)
                .map(|t| t.trim().trim_matches(['{', '}']).split(',').map(|n| n.trim().to_owned()).collect())
                .collect();
            for pair in terms.windows(2) {
                for to in &pair[0] {
                    for from in &pair[1] {
                        edges.insert((from.clone(), to.clone(), dev));
                    }
                }
            }
        }
        edges
    }

    /// What follows from normal edges: who may use a crate may also name what that crate is made of.
    fn closure(edges: &Edges) -> Edges {
        let mut all = edges.clone();
        loop {
            let more: Vec<_> = all
                .iter()
                .flat_map(|(a, b, dev)| {
                    all.iter()
                        .filter(move |(c, _, d)| b == c && !dev && !d)
                        .map(|(_, e, _)| (a.clone(), e.clone(), false))
                })
                .filter(|e| !all.contains(e))
                .collect();
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }

    #[test]
    fn the_drawing_and_the_list_agree() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/design.md");
        let drawing = closure(&drawn(&std::fs::read_to_string(page).unwrap()));
        let list: Edges = DOORS.iter().map(|d| (d.from.to_owned(), d.to.to_owned(), d.dev)).collect();
        let list = closure(&list);
        let missing: Vec<_> = drawing.difference(&list).collect();
        let undrawn: Vec<_> = list.difference(&drawing).collect();
        assert!(missing.is_empty() && undrawn.is_empty(), "drawn only: {missing:#?}\nlisted only: {undrawn:#?}");
        assert!(list.len() > 40, "the drawing was parsed: {}", list.len());
    }

    #[test]
    fn a_drawing_is_read_as_people_read_it() {
        let e = drawn(
            "x\nDoors (some words):\n\n    a <- b <- { c, d }\n         b <- p-*\n    z <~ a\n\nrest <- of page\n",
        );
        let want = [("b", "a", false), ("c", "b", false), ("d", "b", false), ("p-*", "b", false), ("a", "z", true)];
        assert_eq!(e, want.into_iter().map(|(a, b, d)| (a.to_owned(), b.to_owned(), d)).collect());
    }

    #[test]
    fn no_circle_and_every_door_has_a_reason_of_its_own_pair() {
        let mut seen = BTreeSet::new();
        for d in DOORS {
            assert!(d.why.len() > 8, "{} -> {}", d.from, d.to);
            assert!(seen.insert((d.from, d.to)), "{} -> {} twice", d.from, d.to);
        }
        let list: Edges =
            DOORS.iter().filter(|d| !d.dev).map(|d| (d.from.to_owned(), d.to.to_owned(), false)).collect();
        assert!(closure(&list).iter().all(|(a, b, _)| a != b), "a circle");
    }

    #[test]
    fn stars() {
        assert!(matches("plane-*", "plane-nft") && !matches("plane-*", "plan") && !matches("plan", "plane-nft"));
        assert!(
            open("plane-ebpf", "plan", false)
                && !open("plane-nft", "kernel", false)
                && open("plane-nft", "kernel", true)
        );
    }
}
