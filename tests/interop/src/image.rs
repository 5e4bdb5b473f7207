//! An OCI image made by hand: no registry is asked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::tools;

/// The image with a shell, ping, wget and a web server, all busybox; sleeps when nothing else is asked.
pub const BOX: &str = "localhost/seaway/box:1";

/// Commands of busybox that the tests use.
const APPLETS: [&str; 12] =
    ["sh", "sleep", "ping", "ping6", "wget", "httpd", "ip", "cat", "ls", "true", "hostname", "nc"];

/// The sandbox image: our own program alone.
pub const PAUSE: &str = "localhost/seaway/pause:1";

/// Writes [`PAUSE`] as an archive into `dir`.
#[must_use]
pub fn pause(dir: &Path) -> PathBuf {
    let work = tempfile::tempdir_in(dir).unwrap();
    let root = work.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::copy(tools::pause(), root.join("seaway-pause")).unwrap();
    pack(work.path(), &root, PAUSE, &["/seaway-pause"], &dir.join("pause.tar"))
}

/// Writes [`BOX`] as an archive into `dir`.
///
/// # Panics
/// When there is no static busybox, or the disk is full.
#[must_use]
pub fn archive(dir: &Path) -> PathBuf {
    let busybox = tools::debian("busybox", "busybox-static");
    let bytes = fs::read(&busybox).unwrap();
    // The interpreter's name stands in front.
    assert!(
        !bytes[..4096].windows(9).any(|w| w == b"ld-linux-"),
        "{} needs libraries: apt-get install --no-install-recommends busybox-static",
        busybox.display()
    );
    let work = tempfile::tempdir_in(dir).unwrap();
    let root = work.path().join("root");
    for d in ["bin", "tmp", "www", "proc", "sys", "dev", "etc"] {
        fs::create_dir_all(root.join(d)).unwrap();
    }
    fs::copy(&busybox, root.join("bin/busybox")).unwrap();
    for a in APPLETS {
        symlink("busybox", root.join("bin").join(a)).unwrap();
    }
    fs::write(root.join("www/index.html"), "hello from a pod\n").unwrap();
    pack(work.path(), &root, BOX, &["/bin/sleep", "100000"], &dir.join("box.tar"))
}

/// Layer, configuration, manifest, index (OCI image specification 1.0, "Image Layout").
fn pack(work: &Path, root: &Path, name: &str, command: &[&str], out: &Path) -> PathBuf {
    let layout = work.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let tar = |from: &Path, to: &Path| {
        let mut c = Command::new("tar");
        c.args(["--numeric-owner", "--owner=0", "--group=0", "--sort=name", "-C"])
            .arg(from)
            .arg("-cf")
            .arg(to)
            .arg(".");
        assert!(c.status().unwrap().success());
    };
    let layer = work.join("layer");
    tar(root, &layer);
    let put = |file: &Path, media: &str| {
        let sum = Command::new("sha256sum").arg(file).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap().split_whitespace().next().unwrap().to_owned();
        let size = fs::metadata(file).unwrap().len();
        fs::rename(file, blobs.join(&sum)).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{media}"), "digest": format!("sha256:{sum}"), "size": size})
    };
    let put_json = |v: &Value, media: &str| {
        let file = work.join("json");
        fs::write(&file, v.to_string()).unwrap();
        put(&file, media)
    };
    let layer = put(&layer, "layer.v1.tar");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = put_json(
        &json!({"architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": command},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}),
        "config.v1+json",
    );
    let media = "application/vnd.oci.image.manifest.v1+json";
    let mut manifest = put_json(
        &json!({"schemaVersion": 2, "mediaType": media, "config": config, "layers": [layer]}),
        "manifest.v1+json",
    );
    manifest["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    tar(&layout, out);
    out.to_owned()
}
