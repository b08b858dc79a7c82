//! Building and running the Worker.
//!
//! `cargo build` makes the wasm, wasm-bindgen its JavaScript side, wasm-opt makes it smaller and faster, and esbuild
//! joins `edge/entry.js` with that side into one module. What stands in `edge/dist` is what wrangler ships.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::process::{Running, cargo, command, root, run, target_folder};
use crate::tools::{WASM_TARGET, WasmBindgen, modified, npm_program, wasm_target};

/// The profile that ships.
const SHIPPED: &str = "edge";

/// Where `edgekeep demo` listens.
const DEMO_AUTHORITY: &str = "http://127.0.0.1:8080";

/// What rustc and wasm-bindgen use today, by name: with `--all-features` a newer binaryen also uses encodings that
/// workerd does not read yet.
const WASM_FEATURES: [&str; 7] = [
    "mutable-globals",
    "sign-ext",
    "nontrapping-float-to-int",
    "bulk-memory",
    "multivalue",
    "reference-types",
    "exception-handling",
];

/// Build and run the Worker.
#[derive(Subcommand)]
pub enum Task {
    /// Build edge/dist, which is what wrangler runs and deploys.
    Build(Build),
    /// Run the Worker under workerd on this machine, by `wrangler dev`.
    Dev(Dev),
}

#[derive(Args)]
pub struct Build {
    /// Cargo's profile. Only the default is optimised by wasm-opt.
    #[arg(long, value_name = "NAME", default_value = SHIPPED)]
    profile: String,
}

#[derive(Args)]
pub struct Dev {
    /// The port to listen on.
    #[arg(long, default_value_t = 8787)]
    port: u16,
    /// Passed to `wrangler dev` as they are.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Task {
    pub fn run(&self) -> Result<()> {
        match self {
            Task::Build(options) => build(&options.profile).map(|_| ()),
            Task::Dev(options) => dev(options),
        }
    }
}

/// Builds the Worker that ships. Returns its module.
pub fn build_shipped() -> Result<PathBuf> {
    build(SHIPPED)
}

fn build(profile: &str) -> Result<PathBuf> {
    configured()?;
    wasm_target()?;
    let bindgen = WasmBindgen::ready()?;
    run_cargo_build(profile)?;

    let root = root();
    let target = target_folder();
    fs::create_dir_all(target.join("edge"))?;
    // wrangler may start a build while another one runs; cargo's own lock covers only cargo.
    let turn = File::create(target.join("edge/.lock"))?;
    turn.lock()?;

    let made = target.join(WASM_TARGET).join(folder_of(profile)).join("edgekeep_edge.wasm");
    let entry = root.join("edge/entry.js");
    let dist = root.join("edge/dist");
    let module = dist.join("worker.js");
    let stamp = dist.join(".profile");
    // Cargo leaves its file alone when nothing changed; this task's own recipe is part of this program.
    let config = root.join("edge/config.json");
    let sources = [made.clone(), entry.clone(), config, root.join("package-lock.json"), std::env::current_exe()?];
    if fs::read_to_string(&stamp).is_ok_and(|built| built == profile) && newer_than_all(&stamp, &sources) {
        println!("edge/dist is up to date ({profile})");
        return Ok(module);
    }
    let _ = fs::remove_file(&stamp);

    let bindings = target.join("edge").join(profile);
    let _ = fs::remove_dir_all(&bindings);
    run(command(bindgen.program())
        // A module that makes its own instance, and makes another one after a trap (see edge/src/lib.rs).
        .args(["--target", "module", "--force-enable-abort-handler"])
        .args(["--no-typescript", "--remove-name-section", "--out-name", "edgekeep", "--out-dir"])
        .args([&bindings, &made]))?;
    import_plainly(&bindings.join("edgekeep.js"))?;

    fs::create_dir_all(&dist)?;
    let wasm = bindings.join("edgekeep_bg.wasm");
    let shipped = dist.join("edgekeep_bg.wasm");
    if profile == SHIPPED {
        let mut optimise = npm_program("wasm-opt")?;
        optimise.arg("-O3").args(WASM_FEATURES.map(|feature| format!("--enable-{feature}")));
        run(optimise.arg(&wasm).arg("-o").arg(&shipped))?;
    } else {
        fs::copy(&wasm, &shipped)?;
    }

    let mut bundle = npm_program("esbuild")?;
    bundle.arg(&entry).args(["--bundle", "--format=esm", "--target=es2024", "--log-level=warning"]);
    // The wasm stays a module of its own, and workerd has the others.
    bundle.args(["--external:*.wasm", "--external:cloudflare:*", "--loader:.json=text"]);
    bundle.arg(format!("--alias:edgekeep={}", bindings.join("edgekeep.js").display()));
    run(bundle.arg(format!("--outfile={}", module.display())))?;

    fs::write(&stamp, profile)?;
    println!("edge/dist: {} KiB of wasm, {} KiB of JavaScript", kib(&shipped)?, kib(&module)?);
    Ok(module)
}

/// The Worker's configuration is bundled with it: for this machine's demo, unless another one was written. A deployment
/// has no secrets beside it, so its configuration is never replaced.
fn configured() -> Result<()> {
    let root = root();
    let config = root.join("edge/config.json");
    let for_this_machine = match fs::read_to_string(&config) {
        Ok(text) => text.contains("\"authority\":\"http://"),
        Err(_) => true,
    };
    // wrangler says for which of its commands it builds.
    if for_this_machine && std::env::var("WRANGLER_COMMAND").is_ok_and(|command| command != "dev") {
        // Only a warning: the build cannot tell a deployment from its dry run.
        eprintln!(
            "WARNING: this Worker would ask a region on its own machine. Before you deploy it, name the region:\n  \
             cargo run -- config edge --config FILE --authority https://…"
        );
    }
    if config.is_file() && (root.join(".dev.vars").is_file() || !for_this_machine) {
        return Ok(());
    }
    println!("edge: no configuration yet: making the one of `edgekeep demo`");
    run(cargo()
        .args(["run", "--quiet", "--package", "edgekeep", "--", "config", "edge", "--dev"])
        .args(["--authority", DEMO_AUTHORITY]))
}

fn run_cargo_build(profile: &str) -> Result<()> {
    run(cargo().args(["build", "--package", "edgekeep-edge", "--target", WASM_TARGET, "--profile", profile]))
}

/// wasm-bindgen writes `import source`, which neither esbuild nor workerd read; a plain import of a wasm file gives the
/// same compiled module there.
fn import_plainly(bindings: &Path) -> Result<()> {
    let text = fs::read_to_string(bindings).context("read wasm-bindgen's output")?;
    let plain = text.replacen("import source wasmModule from", "import wasmModule from", 1);
    if plain == text {
        bail!("wasm-bindgen no longer writes `import source wasmModule`: look at {}", bindings.display());
    }
    fs::write(bindings, plain)?;
    Ok(())
}

fn dev(options: &Dev) -> Result<()> {
    let status = start_dev(options.port, &options.arguments)?.wait()?;
    if !status.success() {
        bail!("wrangler ended with {status}");
    }
    Ok(())
}

/// Starts `wrangler dev`, which builds by `cargo xtask edge build` as wrangler.toml says.
pub fn start_dev(port: u16, arguments: &[String]) -> Result<Running> {
    let mut wrangler = npm_program("wrangler")?;
    quiet(&mut wrangler);
    Running::start(wrangler.args(["dev", "--port", &port.to_string()]).args(arguments))
}

/// Nothing is asked of or told to anyone: no sample of Cloudflare's request data, no telemetry, no look for a newer
/// version.
pub fn quiet(wrangler: &mut Command) {
    for (name, value) in
        [("CLOUDFLARE_CF_FETCH_ENABLED", "false"), ("WRANGLER_SEND_METRICS", "false"), ("WRANGLER_HIDE_BANNER", "true")]
    {
        wrangler.env(name, value);
    }
}

/// Cargo keeps the dev profile in a folder of another name.
fn folder_of(profile: &str) -> &str {
    if profile == "dev" { "debug" } else { profile }
}

fn newer_than_all(made: &Path, sources: &[PathBuf]) -> bool {
    let Some(made) = modified(made) else { return false };
    sources.iter().all(|source| modified(source).is_some_and(|source| source <= made))
}

fn kib(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file)?.len().div_ceil(1024))
}
