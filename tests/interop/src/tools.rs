//! Programs: Debian's, ours, and those that Debian does not have, built from their released Go modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where Debian's containernetworking-plugins puts the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// A program of Debian's.
///
/// # Panics
/// When it is missing: says which package has it.
#[must_use]
pub fn debian(program: &str, package: &str) -> PathBuf {
    let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", REFERENCE];
    dirs.iter()
        .map(|d| Path::new(d).join(program))
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("{program} is missing: apt-get install --no-install-recommends {package}"))
}

/// What these packages of Debian's hold, unpacked into a directory that is kept below the target directory: they are
/// never installed, since some start daemons that change the machine's own firewall.
///
/// # Panics
/// When apt knows them not or cannot fetch them.
#[must_use]
pub fn unpacked(name: &str, packages: &[&str]) -> PathBuf {
    let cache = profile().parent().unwrap().join("interop").join(format!("debian-{name}"));
    if cache.is_dir() {
        return cache;
    }
    let new = cache.with_extension("new");
    let _ = fs::remove_dir_all(&new);
    fs::create_dir_all(&new).unwrap();
    eprintln!("fetching {} (once)", packages.join(" "));
    let download = || {
        let mut c = Command::new(debian("apt-get", "apt"));
        c.args(["download", "-qq"]).args(packages).current_dir(&new).output().unwrap()
    };
    if !download().status.success() {
        // Lists that were never fetched, or that name a version the mirror has no more.
        let _ = Command::new(debian("apt-get", "apt")).args(["update", "-qq"]).status();
        let out = download();
        assert!(out.status.success(), "apt-get download {packages:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    for deb in fs::read_dir(&new).unwrap().flatten().map(|e| e.path()).filter(|p| p.extension().is_some()) {
        let done = Command::new(debian("dpkg-deb", "dpkg")).arg("-x").arg(&deb).arg(&new).status().unwrap();
        assert!(done.success(), "dpkg-deb -x {}", deb.display());
        fs::remove_file(deb).unwrap();
    }
    fs::rename(&new, &cache).unwrap();
    cache
}

/// The directory of the profile that this test was built with: `target/debug`.
fn profile() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/test-hash
    test.parent().unwrap().parent().unwrap().to_owned()
}

/// One of the project's own programs, built by the same cargo into the same target directory as this test.
///
/// # Panics
/// When it does not build.
fn ours(package: &str, release: bool) -> PathBuf {
    let target = profile().parent().unwrap().to_owned();
    let release = release || profile().ends_with("release");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "-q", "--locked", "-p", package]).current_dir(env!("CARGO_MANIFEST_DIR"));
    build.env("CARGO_TARGET_DIR", &target);
    if release {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "cargo build -p {package} failed");
    let program = target.join(if release { "release" } else { "debug" }).join(package);
    assert!(program.is_file(), "{} was not built", program.display());
    program
}

/// The plugin.
#[must_use]
pub fn plugin() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| ours("seaway-cni", false))
}

/// Agent, API server and all the rest.
#[must_use]
pub fn seaway() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| ours("seaway", false))
}

/// The process that holds a sandbox's namespaces; its release build alone needs no library.
#[must_use]
pub fn pause() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| ours("seaway-pause", true))
}

/// A command of a released Go module.
#[derive(Debug, Clone, Copy)]
pub struct Go {
    module: &'static str,
    version: &'static str,
    /// Below the module.
    commands: &'static [&'static str],
    tags: &'static str,
    /// The version that its staging modules (`k8s.io/api v0.0.0` and the like in its go.mod) are released under.
    staging: Option<&'static str>,
    /// Variables that the linker sets.
    set: &'static [&'static str],
    /// Packages, with their paths below the module, that are built empty: they need what is not to be had, or C, and the
    /// tests do not use them.
    without: &'static [&'static str],
}

const NEW: &str = "Go 1.26 or newer is needed (https://go.dev/dl); Debian 12's golang-go is too old";
const NO_GO: Go = Go { module: "", version: "", commands: &[], tags: "", staging: None, set: &[], without: &[] };

/// The reference client of the specification.
pub const CNITOOL: Go =
    Go { module: "github.com/containernetworking/cni", version: "v1.3.1", commands: &["cnitool"], ..NO_GO };
/// The client of the container runtime interface.
pub const CRICTL: Go = Go { module: "sigs.k8s.io/cri-tools", version: "v1.36.0", commands: &["cmd/crictl"], ..NO_GO };
/// A containerd whose libcni speaks 1.1.0.
pub const CONTAINERD: Go = Go {
    module: "github.com/containerd/containerd/v2",
    version: "v2.2.9",
    commands: &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
    tags: "no_btrfs,no_devmapper,no_zfs,no_aufs",
    ..NO_GO
};
/// Reference plugins that speak 1.1.0.
pub const PLUGINS: Go = Go {
    module: "github.com/containernetworking/plugins",
    version: "v1.9.1",
    commands: &[
        "plugins/main/bridge",
        "plugins/main/loopback",
        "plugins/main/ptp",
        "plugins/ipam/host-local",
        "plugins/meta/portmap",
        "plugins/meta/bandwidth",
        "plugins/meta/firewall",
        "plugins/meta/tuning",
        "plugins/meta/sbr",
    ],
    ..NO_GO
};
/// The service proxy that ours takes over from and is compared with.
pub const KUBE_PROXY: Go = Go {
    module: "k8s.io/kubernetes",
    version: "v1.36.3",
    commands: &["cmd/kube-proxy"],
    staging: Some("v0.36.3"),
    set: &["k8s.io/component-base/version.gitVersion=v1.36.3"],
    ..NO_GO
};

/// The store of Kubernetes and of flannel; its program is called `server`.
pub const ETCD: Go = Go { module: "go.etcd.io/etcd/server/v3", version: "v3.6.16", commands: &[""], ..NO_GO };
/// The daemon whose networks we join; its program is called `flannel`.
pub const FLANNEL: Go = Go {
    module: "github.com/flannel-io/flannel",
    version: "v0.28.10",
    commands: &[""],
    without: &["pkg/backend/udp", "pkg/backend/tencentvpc"],
    ..NO_GO
};

impl Go {
    /// The directory with its commands; built once, kept below the target directory.
    ///
    /// # Panics
    /// When it does not build.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        let cache = profile().parent().unwrap().join("interop");
        let parts: Vec<&str> = self.module.split('/').collect();
        let is_version = |p: &&&str| p.strip_prefix('v').is_some_and(|n| n.parse::<u8>().is_ok());
        let name = parts.iter().rfind(|p| !is_version(p)).unwrap();
        let done = cache.join(format!("{name}-{}", self.version));
        if done.is_dir() {
            return done;
        }
        // Of the tests that need it at once, in one process or several, the first builds it.
        fs::create_dir_all(&cache).unwrap();
        let lock = fs::File::create(cache.join("lock")).unwrap();
        lock.lock().unwrap();
        if done.is_dir() {
            return done;
        }
        let (module, out) = (cache.join(format!("{name}.mod")), cache.join(format!("{name}.new")));
        for d in [&module, &out] {
            let _ = fs::remove_dir_all(d);
            fs::create_dir_all(d).unwrap();
        }
        // A module of our own that requires theirs, so that their go.mod is taken as it was released.
        let mut text = format!("module interop\n\ngo 1.24.0\n\nrequire {} {}\n", self.module, self.version);
        eprintln!("building {}@{} (once)", self.module, self.version);
        for m in self.staging_modules() {
            text += &format!("replace {m} => {m} {}\n", self.staging.unwrap());
        }
        if !self.without.is_empty() {
            let tree = self.thinned(&module);
            text += &format!("replace {} => {}\n", self.module, tree.display());
        }
        fs::write(module.join("go.mod"), text).unwrap();
        let mut c = Command::new("go");
        c.current_dir(&module).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false");
        let ldflags = self.set.iter().fold("-s -w".to_owned(), |all, v| format!("{all} -X {v}"));
        c.args(["build", "-mod=mod", "-trimpath", "-ldflags", &ldflags, "-tags", self.tags, "-o"]);
        // A directory, also for one command.
        c.arg(format!("{}/", out.display()));
        c.args(self.commands.iter().map(|p| format!("{}/{p}", self.module).trim_end_matches('/').to_owned()));
        let built = c.output().unwrap_or_else(|e| panic!("go: {e}: {NEW}"));
        assert!(built.status.success(), "{}: {} ({NEW})", self.module, String::from_utf8_lossy(&built.stderr));
        fs::rename(&out, &done).unwrap();
        let _ = fs::remove_dir_all(&module);
        done
    }

    /// A copy of the module in which some packages are empty.
    fn thinned(&self, place: &Path) -> PathBuf {
        let said = self.downloaded();
        let tree = place.join("tree");
        let copied =
            Command::new("cp").args(["-r", "--no-preserve=mode", said["Dir"].as_str().unwrap()]).arg(&tree).status();
        assert!(copied.unwrap().success(), "cp -r {}", said["Dir"]);
        for package in self.without {
            let dir = tree.join(package);
            fs::remove_dir_all(&dir).unwrap();
            fs::create_dir(&dir).unwrap();
            let name = package.rsplit('/').next().unwrap();
            fs::write(dir.join("empty.go"), format!("package {name}\n")).unwrap();
        }
        tree
    }

    /// What `go mod download` says of the module.
    fn downloaded(&self) -> serde_json::Value {
        let mut c = Command::new("go");
        c.args(["mod", "download", "-json", &format!("{}@{}", self.module, self.version)]);
        let out = c.current_dir("/").output().unwrap_or_else(|e| panic!("go: {e}: {NEW}"));
        assert!(out.status.success(), "{}: {} ({NEW})", self.module, String::from_utf8_lossy(&out.stdout));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// The modules that its go.mod names at v0.0.0, since they live in its own tree and are released beside it.
    fn staging_modules(&self) -> Vec<String> {
        if self.staging.is_none() {
            return Vec::new();
        }
        let said = self.downloaded();
        let file = fs::read_to_string(said["GoMod"].as_str().unwrap()).unwrap();
        let words = file.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
        let all: BTreeSet<String> = words.filter(|w| w.get(1) == Some(&"v0.0.0")).map(|w| w[0].to_owned()).collect();
        all.into_iter().collect()
    }

    /// One of its commands.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }
}
