//! The machine's kernel: Debian's, taken out of its package and kept in a folder of the build. The package is never
//! installed: no hook runs, no boot loader changes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Debian's name for "the current kernel for virtual machines"; it depends on the package that has the kernel.
#[cfg(target_arch = "x86_64")]
const META: &str = "linux-image-cloud-amd64";
#[cfg(target_arch = "aarch64")]
const META: &str = "linux-image-cloud-arm64";

/// A kernel and its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What `uname -r` says in it.
    pub release: String,
    /// The image.
    pub image: PathBuf,
    /// The folder of `modules.dep`.
    pub modules: PathBuf,
}

/// A program's path, or an error that names the package to install. Sought in PATH and where only root's PATH goes.
///
/// # Errors
/// When it is not there.
pub fn tool(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
        .with_context(|| format!("{program} is missing: apt-get install --no-install-recommends {package}"))
}

/// Runs a tool to its end and gives what it printed.
fn run(cmd: &mut Command) -> Result<String> {
    let out = cmd.output().with_context(|| format!("run {cmd:?}"))?;
    if !out.status.success() {
        bail!("{cmd:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The kernel of the cache; apt fetches it the first time. The cache keeps its version until it is deleted.
///
/// # Errors
/// When apt knows no such package or cannot fetch it, or a tool is missing.
pub fn kernel(cache: &Path) -> Result<Kernel> {
    let kept = cache.join("linux");
    if let Ok(k) = find(&kept) {
        return Ok(k);
    }
    let fresh = cache.join("linux.new");
    let _ = std::fs::remove_dir_all(&fresh);
    std::fs::create_dir_all(&fresh)?;
    let deb = match fetch(&fresh) {
        Ok(deb) => deb,
        Err(_) => {
            // Lists that were never fetched, or that name a version the mirror has no more.
            let apt_get = tool("apt-get", "apt")?;
            run(Command::new(apt_get).args(["update", "-qq"]))
                .context("apt's lists are old or missing: apt-get update")?;
            fetch(&fresh)?
        }
    };
    run(Command::new(tool("dpkg-deb", "dpkg")?).arg("-x").arg(&deb).arg(&fresh))?;
    std::fs::remove_file(&deb)?;
    // Newer packages have their modules below /usr, which is the same on any machine.
    if !fresh.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", fresh.join("lib"))?;
    }
    let release = find(&fresh)?.release;
    // The package's hooks would do this at installation.
    run(Command::new(tool("depmod", "kmod")?).arg("-b").arg(&fresh).arg(&release))?;
    let _ = std::fs::remove_dir_all(&kept);
    std::fs::rename(&fresh, &kept).with_context(|| format!("keep {}", kept.display()))?;
    find(&kept)
}

/// Fetches the package into a folder; its path.
fn fetch(folder: &Path) -> Result<PathBuf> {
    let package = package()?;
    crate::tell(&format!("fetching {package}, once"));
    let apt_get = tool("apt-get", "apt (the machine's kernel is Debian's)")?;
    run(Command::new(apt_get).args(["download", "-qq", &package]).current_dir(folder))?;
    std::fs::read_dir(folder)?
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))
}

/// The package with the kernel, as apt resolves it.
fn package() -> Result<String> {
    let text =
        run(Command::new(tool("apt-cache", "apt")?).args(["depends", "--no-recommends", "--no-suggests", META]))?;
    depends(&text).with_context(|| format!("apt knows no package that {META} depends on: apt-get update"))
}

/// The first dependency that `apt-cache depends` prints.
fn depends(text: &str) -> Option<String> {
    let on = text.lines().find_map(|l| l.trim().strip_prefix("Depends: "))?.trim();
    // Virtual packages are in angle brackets.
    (!on.is_empty() && !on.starts_with('<')).then(|| on.to_owned())
}

fn find(root: &Path) -> Result<Kernel> {
    let all = root.join("lib/modules");
    let mut releases = std::fs::read_dir(&all).with_context(|| format!("list {}", all.display()))?;
    let release = releases.next().context("the package has no modules")??.file_name();
    let release = release.to_string_lossy().into_owned();
    let image = root.join(format!("boot/vmlinuz-{release}"));
    if !image.is_file() {
        bail!("the package has no {}", image.display());
    }
    Ok(Kernel { modules: all.join(&release), image, release })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_resolves() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(depends(text).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(depends("linux-image-cloud-amd64\n"), None);
        assert_eq!(depends("x\n  Depends: <virtual>\n"), None);
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let e = tool("no-such-tool", "some-package").unwrap_err().to_string();
        assert_eq!(e, "no-such-tool is missing: apt-get install --no-install-recommends some-package");
        assert!(tool("sh", "dash").unwrap().is_file());
    }
}
