//! An OCI image archive (image specification 1.1, "Image Layout", as a tar) of one layer: what `ctr image import`,
//! `podman load` and `skopeo` take. No builder and no registry is asked, and the same files give the same digest.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tar::{self, Entry, What};

pub const HELP: &str = "\
cargo xtask image --out FILE --name REFERENCE [FLAG...] [--] [COMMAND...]: writes an OCI image archive of one layer

  --out FILE            the archive
  --name REFERENCE      what the image is called: host/path:tag; may be repeated
  --file PATH=FILE      FILE of this machine at PATH, with mode 0755; may be repeated
  --link PATH=TARGET    a symbolic link; may be repeated
  --folder PATH         an empty folder; may be repeated
  --root DIR            everything below DIR
  --entrypoint PATH     what is run; COMMAND are its arguments when none are given
  --env NAME=VALUE      may be repeated
  --label NAME=VALUE    may be repeated
  --user UID[:GID]      root when not given
  --gzip LEVEL          packs the layer, as registries keep it: 1 to 9
  --most BYTES          fail when the layer, packed if it is, is larger
";

/// What the image is made of.
#[derive(Debug, Default)]
pub struct Spec {
    out: PathBuf,
    names: Vec<String>,
    entries: Vec<Entry>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    env: Vec<String>,
    labels: Vec<(String, String)>,
    user: String,
    gzip: Option<u32>,
    most: Option<u64>,
}

impl Spec {
    /// From the words after `image`.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut s = Self::default();
        while let Some(flag) = args.next() {
            if flag == "--" || !flag.starts_with("--") {
                s.command.extend((flag != "--").then_some(flag));
                s.command.extend(args);
                break;
            }
            let value = args.next().with_context(|| format!("{flag} needs a value\n\n{HELP}"))?;
            let pair = || {
                let (a, b) = value.split_once('=').with_context(|| format!("{flag} {value}: write A=B"))?;
                anyhow::Ok((a.trim_start_matches('/').to_owned(), b.to_owned()))
            };
            match flag.as_str() {
                "--out" => s.out = value.into(),
                "--name" => s.names.push(value),
                "--file" => {
                    let (path, file) = pair()?;
                    s.entries.push(Entry { path, mode: 0o755, what: What::File(file.into()) });
                }
                "--link" => {
                    let (path, to) = pair()?;
                    s.entries.push(Entry { path, mode: 0o777, what: What::Link(to) });
                }
                "--folder" => s.entries.push(Entry::folder(value.trim_matches('/'))),
                "--root" => s.entries.extend(tar::below(Path::new(&value))?),
                "--entrypoint" => s.entrypoint.push(value),
                "--env" => s.env.push(value),
                "--label" => s.labels.push(pair()?),
                "--user" => s.user = value,
                "--gzip" => match value.parse() {
                    Ok(level @ 1..=9) => s.gzip = Some(level),
                    _ => bail!("--gzip {value}: a level is 1 to 9"),
                },
                "--most" => s.most = Some(value.parse().with_context(|| format!("--most {value}"))?),
                _ => bail!("{flag} is no flag\n\n{HELP}"),
            }
        }
        if s.out.as_os_str().is_empty() || s.names.is_empty() || s.entries.is_empty() {
            bail!("--out, --name and something to be in it are needed\n\n{HELP}");
        }
        s.complete();
        Ok(s)
    }

    /// Folders above each entry; in order; of two at one path the last counts.
    fn complete(&mut self) {
        let mut all = std::collections::BTreeMap::new();
        for e in &self.entries {
            for (n, _) in e.path.match_indices('/') {
                all.entry(e.path[..n].to_owned()).or_insert_with(|| Entry::folder(&e.path[..n]));
            }
            all.insert(e.path.clone(), e.clone());
        }
        self.entries = all.into_values().collect();
    }
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The manifest's digest: what `image@sha256:...` names.
    pub digest: String,
    /// Bytes of the layer, packed if it was to be.
    pub layer: u64,
    /// Bytes of the layer when it is unpacked.
    pub unpacked: u64,
}

/// Writes the archive, by way of a second name.
pub fn write(spec: &Spec) -> Result<Written> {
    if let Some(dir) = spec.out.parent() {
        fs::create_dir_all(dir)?;
    }
    let beside = |more: &str| PathBuf::from(format!("{}.{more}", spec.out.display()));
    let (layer, new) = (beside("layer"), beside("new"));
    let done = write_by_way_of(spec, &layer, &new);
    let _ = fs::remove_file(&layer);
    let _ = fs::remove_file(&new);
    done
}

fn write_by_way_of(spec: &Spec, layer: &Path, new: &Path) -> Result<Written> {
    let mut file = BufWriter::new(File::create(layer).with_context(|| format!("write {}", layer.display()))?);
    tar::write(&spec.entries, &mut file)?;
    file.flush()?;
    let unpacked = fs::metadata(layer)?.len();
    let inside = sum_of(layer)?;
    if let Some(level) = spec.gzip {
        pack(layer, level)?;
    }
    let size = fs::metadata(layer)?.len();
    if let Some(most) = spec.most.filter(|m| size > *m) {
        bail!("{}: the layer has {size} bytes, more than {most}", spec.out.display());
    }
    let sum = if spec.gzip.is_some() { sum_of(layer)? } else { inside.clone() };
    let mut entries = vec![
        Entry::folder("blobs"),
        Entry::folder("blobs/sha256"),
        Entry { path: format!("blobs/sha256/{sum}"), mode: 0o644, what: What::File(layer.to_owned()) },
    ];
    let media = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let digest = format!("sha256:{sum}");
    let (config, bytes) = blob(&media("config.v1+json"), &config(spec, &format!("sha256:{inside}")));
    entries.push(bytes);
    let kind = media(if spec.gzip.is_some() { "layer.v1.tar+gzip" } else { "layer.v1.tar" });
    let layers = json!([{"mediaType": kind, "digest": digest, "size": size}]);
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media("manifest.v1+json"), "config": config, "layers": layers});
    let (manifest, bytes) = blob(&media("manifest.v1+json"), &manifest);
    entries.push(bytes);
    let named = spec.names.iter().map(|name| {
        let mut m = manifest.clone();
        let tag = name.rsplit_once(':').map_or("latest", |(_, t)| t);
        m["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        m
    });
    let index =
        json!({"schemaVersion": 2, "mediaType": media("index.v1+json"), "manifests": named.collect::<Vec<_>>()});
    entries.push(Entry::bytes("index.json", index.to_string().into_bytes()));
    entries.push(Entry::bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut file = BufWriter::new(File::create(new).with_context(|| format!("write {}", new.display()))?);
    tar::write(&entries, &mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(new, &spec.out)?;
    Ok(Written { digest: manifest["digest"].as_str().unwrap_or_default().to_owned(), layer: size, unpacked })
}

/// The SHA-256 of a file, in hexadecimal digits.
fn sum_of(file: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(file)?, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// Replaces a file by what gzip (RFC 1952) makes of it: without name and time, so that the same gives the same.
fn pack(file: &Path, level: u32) -> Result<()> {
    let packed = PathBuf::from(format!("{}.gz", file.display()));
    let mut to = GzEncoder::new(BufWriter::new(File::create(&packed)?), Compression::new(level));
    let done = io::copy(&mut File::open(file)?, &mut to).and_then(|_| to.finish()?.flush());
    if done.is_err() {
        let _ = fs::remove_file(&packed);
    }
    done.with_context(|| format!("write {}", packed.display()))?;
    Ok(fs::rename(packed, file)?)
}

fn config(spec: &Spec, layer: &str) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut run = serde_json::Map::new();
    let mut put = |key: &str, v: Value| drop(run.insert(key.into(), v));
    if !spec.entrypoint.is_empty() {
        put("Entrypoint", json!(spec.entrypoint));
    }
    if !spec.command.is_empty() {
        put("Cmd", json!(spec.command));
    }
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    put("Env", json!(std::iter::once(path).chain(spec.env.iter().map(String::as_str)).collect::<Vec<_>>()));
    if !spec.labels.is_empty() {
        put("Labels", spec.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<serde_json::Map<_, _>>().into());
    }
    if !spec.user.is_empty() {
        put("User", json!(spec.user));
    }
    json!({
        "architecture": architecture, "os": "linux", "created": "1970-01-01T00:00:00Z", "config": run,
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    })
}

/// A descriptor, and the blob that it describes.
fn blob(media: &str, v: &Value) -> (Value, Entry) {
    let bytes = v.to_string().into_bytes();
    let sum = hex(&Sha256::digest(&bytes));
    let d = json!({"mediaType": media, "digest": format!("sha256:{sum}"), "size": bytes.len()});
    (d, Entry::bytes(&format!("blobs/sha256/{sum}"), bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(dir: &Path, out: &str, more: &[&str]) -> Spec {
        let program = dir.join("program");
        fs::write(&program, "#!/bin/true\n").unwrap();
        let words = [
            "--out",
            &format!("{}/{out}", dir.display()),
            "--name",
            "localhost/a/b:1",
            "--file",
            &format!("/usr/bin/p={}", program.display()),
            "--link",
            "/bin=usr/bin",
            "--entrypoint",
            "/usr/bin/p",
        ]
        .map(ToOwned::to_owned);
        Spec::parse(words.into_iter().chain(more.iter().map(|w| (*w).to_owned()))).unwrap()
    }

    #[test]
    fn the_same_files_give_the_same_bytes_and_each_digest_is_its_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let one = write(&spec(dir.path(), "1.tar", &["--", "serve", "--all"])).unwrap();
        let two = write(&spec(dir.path(), "2.tar", &["--", "serve", "--all"])).unwrap();
        let bytes = fs::read(dir.path().join("1.tar")).unwrap();
        assert_eq!(one.digest, two.digest);
        assert!(bytes == fs::read(dir.path().join("2.tar")).unwrap());
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let tar = |from: &Path, to: &Path| {
            fs::create_dir_all(to).unwrap();
            std::process::Command::new("tar").arg("-xf").arg(from).arg("-C").arg(to).status().unwrap()
        };
        assert!(tar(&dir.path().join("1.tar"), &out).success());
        for f in fs::read_dir(out.join("blobs/sha256")).unwrap() {
            let f = f.unwrap();
            let sum = hex(&Sha256::digest(fs::read(f.path()).unwrap()));
            assert_eq!(f.file_name().to_string_lossy(), sum);
        }
        let blob =
            |d: &Value| out.join("blobs/sha256").join(d["digest"].as_str().unwrap().trim_start_matches("sha256:"));
        let json = |p: &Path| serde_json::from_slice::<Value>(&fs::read(p).unwrap()).unwrap();
        let index = json(&out.join("index.json"));
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/a/b:1");
        assert_eq!(index["manifests"][0]["digest"], one.digest);
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Cmd"], json!(["serve", "--all"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let packed = write(&spec(dir.path(), "3.tar", &["--gzip", "9"])).unwrap();
        assert!(packed.layer < packed.unpacked && packed.unpacked == one.unpacked, "{packed:?}");
        let small = dir.path().join("small");
        fs::create_dir(&small).unwrap();
        assert!(tar(&dir.path().join("3.tar"), &small).success());
        let names =
            |d: &Path| fs::read_dir(d.join("blobs/sha256")).unwrap().map(|f| f.unwrap().path()).collect::<Vec<_>>();
        let layer = names(&small).into_iter().find(|f| fs::read(f).unwrap().starts_with(&[0x1f, 0x8b])).unwrap();
        let text = names(&small)
            .iter()
            .map(|f| String::from_utf8_lossy(&fs::read(f).unwrap()).into_owned())
            .collect::<String>();
        let of_files = manifest["layers"][0]["digest"].as_str().unwrap();
        assert!(text.contains(&format!(r#""diff_ids":["{of_files}"]"#)) && text.contains("tar+gzip"), "{text}");
        assert!(tar(&layer, &dir.path().join("again")).success());
        assert_eq!(fs::read_to_string(dir.path().join("again/usr/bin/p")).unwrap(), "#!/bin/true\n");
        let root = dir.path().join("root");
        assert!(tar(&blob(&manifest["layers"][0]), &root).success());
        assert_eq!(fs::read_to_string(root.join("usr/bin/p")).unwrap(), "#!/bin/true\n");
        assert_eq!(fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
        assert!(
            !fs::exists(dir.path().join("1.tar.layer")).unwrap() && !fs::exists(dir.path().join("1.tar.new")).unwrap()
        );
    }

    #[test]
    fn too_large_and_nonsense_are_said() {
        let dir = tempfile::tempdir().unwrap();
        let e = write(&spec(dir.path(), "3.tar", &["--most", "10"])).unwrap_err().to_string();
        assert!(e.contains("more than 10"), "{e}");
        assert!(!fs::exists(dir.path().join("3.tar")).unwrap());
        for bad in [&["--name", "x"][..], &["--oops", "1"], &["--file", "nothing"], &["--out"]] {
            assert!(Spec::parse(bad.iter().map(|w| (*w).to_owned())).is_err(), "{bad:?}");
        }
    }
}
