//! The suites: what each one needs and how it runs. All of the gateway's code is built with one profile, `ci`.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::process::{capture, cargo, command, free_port, root, run, target_folder};
use crate::test::{Outcome, counted};
use crate::tools::{
    WASM_TARGET, WasmBindgen, cargo_tool, npm_packages, npm_program, proxies as proxy_programs, redis_server,
    schemathesis, system_packages, tools_folder, wasm_target,
};
use crate::{bench, edge};

const PROFILE: [&str; 2] = ["--profile", "ci"];

/// In the names of core's seeded simulations, and of no other test.
const SIMULATIONS: &str = "::simulation::";

/// A part of the proof that can be run by itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// rustfmt
    Fmt,
    /// clippy, with warnings as errors
    Clippy,
    /// core's tests
    Core,
    /// core's tests again, under wasm: fails when one is missing there
    CoreWasm,
    /// the Worker's pure parts
    Edge,
    /// the native gateway's own tests
    Native,
    /// these tasks
    Xtask,
    /// the black-box scenarios, over every deployment
    Scenarios,
    /// forward-auth behind nginx, HAProxy and Envoy, as `examples/` configures them
    Proxies,
    /// running deployments beside their OpenAPI document, by a generator of requests
    Openapi,
    /// cookies mode in a real Chromium
    Browser,
    /// `wrangler dev`, as typed, until the Worker answers
    WranglerDev,
    /// what `wrangler deploy` would upload
    WranglerDryRun,
    /// licences and advisories of the dependencies (long)
    Deny,
    /// core's tests as `wasm-pack test --node core` runs them (long)
    WasmPack,
    /// 5 million operations on sessions in a cluster, after which nothing may have grown (long)
    SessionsSoak,
    /// ten minutes of every kind of traffic and reloads, after which nothing may have grown (long; alone half a minute)
    GatewaySoak,
}

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Suite::Fmt => "fmt",
            Suite::Clippy => "clippy",
            Suite::Core => "core",
            Suite::CoreWasm => "core-wasm",
            Suite::Edge => "edge",
            Suite::Native => "native",
            Suite::Xtask => "xtask",
            Suite::Scenarios => "scenarios",
            Suite::Proxies => "proxies",
            Suite::Openapi => "openapi",
            Suite::Browser => "browser",
            Suite::WranglerDev => "wrangler-dev",
            Suite::WranglerDryRun => "wrangler-dry-run",
            Suite::Deny => "deny",
            Suite::WasmPack => "wasm-pack",
            Suite::SessionsSoak => "sessions-soak",
            Suite::GatewaySoak => "gateway-soak",
        }
    }

    /// Whether it runs only with `--long` or when it is named.
    pub fn only_long(self) -> bool {
        matches!(self, Suite::Deny | Suite::WasmPack | Suite::SessionsSoak | Suite::GatewaySoak)
    }

    pub fn run(self, long: bool) -> Result<Outcome> {
        match self {
            Suite::Fmt => checked(cargo().args(["fmt", "--all", "--check"])),
            Suite::Clippy => {
                let mut clippy = cargo();
                clippy.args(["clippy", "--workspace", "--all-targets", "--features", "edgekeep/bench"]).args(PROFILE);
                checked(clippy.args(["--", "-D", "warnings"]))
            }
            Suite::Core => core(long),
            Suite::CoreWasm => core_under_wasm(long),
            Suite::Edge => counted(test("edgekeep-edge", long).args(PROFILE)),
            Suite::Native => {
                redis_server()?;
                counted(test("edgekeep", long).args(PROFILE))
            }
            // With the profile that built the running task.
            Suite::Xtask => counted(test("xtask", long).args(["--profile", "xtask"])),
            Suite::Scenarios => scenarios(long),
            Suite::Proxies => proxies(long),
            Suite::Openapi => openapi(long),
            Suite::Browser => browser(long),
            Suite::WranglerDev => wrangler_dev(),
            Suite::WranglerDryRun => {
                let mut wrangler = npm_program("wrangler")?;
                edge::quiet(&mut wrangler);
                wrangler.args(["deploy", "--dry-run", "--outdir"]);
                checked(wrangler.arg(target_folder().join("wrangler-dry-run")))
            }
            Suite::Deny => deny(),
            Suite::WasmPack => wasm_pack(),
            Suite::SessionsSoak => {
                bench::sessions::soak()?;
                Ok(Outcome { passed: 1, ..Outcome::default() })
            }
            Suite::GatewaySoak => gateway_soak(long),
        }
    }
}

/// A check that has no tests to count: it is one.
fn checked(command: &mut Command) -> Result<Outcome> {
    run(command)?;
    Ok(Outcome { passed: 1, ..Outcome::default() })
}

fn test(package: &str, long: bool) -> Command {
    let mut cargo = cargo();
    cargo.args(["test", "--package", package]);
    if long {
        cargo.env("EDGEKEEP_LONG", "1");
    }
    cargo
}

/// The simulations by themselves: libtest keeps to itself what a passing test prints, and how often they found a thief or
/// logged out an honest user is meant to be read.
fn core(long: bool) -> Result<Outcome> {
    let mut others = counted(test("edgekeep-core", long).args(PROFILE).args(["--", "--skip", SIMULATIONS]))?;
    let mut simulations = test("edgekeep-core", long);
    simulations.arg("--lib").args(PROFILE).args(["--", SIMULATIONS, "--show-output"]);
    let simulated = counted(&mut simulations)?;
    if simulated.passed + simulated.failed == 0 {
        others.failed += 1;
        others.note = "no simulation ran".into();
    }
    Ok(others.and(simulated))
}

fn core_under_wasm(long: bool) -> Result<Outcome> {
    wasm_target()?;
    let bindgen = WasmBindgen::ready()?;
    let mut runner = test("edgekeep-core", long);
    runner.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER", bindgen.test_runner());
    // Documentation tests are native programs.
    let mut outcome = counted(runner.args(["--lib", "--tests", "--target", WASM_TARGET]).args(PROFILE))?;

    let mut list = test("edgekeep-core", long);
    list.args(["--lib", "--tests", "--quiet"]).args(PROFILE).args(["--", "--list", "--format", "terse"]);
    let native = capture(&mut list).context("list core's native tests")?;
    let native: BTreeSet<&str> = native.lines().filter_map(|line| line.strip_suffix(": test")).collect();

    let missing: Vec<&&str> = native.iter().filter(|name| !outcome.names.contains(**name)).collect();
    if !missing.is_empty() {
        println!("These run natively and not under wasm (write them `#[wasm_bindgen_test(unsupported = test)]`):");
        for name in &missing {
            println!("  {name}");
        }
        outcome.failed += 1;
    }
    outcome.note = format!("{} natively, {} under wasm", native.len(), outcome.names.len());
    Ok(outcome)
}

fn scenarios(long: bool) -> Result<Outcome> {
    counted(over_deployments(long)?.args(["--lib", "--bins", "--test", "scenarios"]))
}

fn proxies(long: bool) -> Result<Outcome> {
    let envoy = proxy_programs().context("bring nginx, HAProxy and Envoy")?;
    counted(over_deployments(long)?.args(["--test", "proxies"]).env("EDGEKEEP_ENVOY", envoy))
}

fn openapi(long: bool) -> Result<Outcome> {
    let schemathesis = schemathesis()?;
    counted(over_deployments(long)?.args(["--test", "openapi"]).env("EDGEKEEP_SCHEMATHESIS", schemathesis))
}

fn browser(long: bool) -> Result<Outcome> {
    system_packages()?;
    counted(over_deployments(long)?.args(["--test", "browser"]))
}

/// One deployment after the other: each is to have the machine for itself.
fn gateway_soak(long: bool) -> Result<Outcome> {
    let mut soak = over_deployments(long)?;
    counted(soak.args(["--test", "soak", "--", "--test-threads", "1", "--nocapture"]))
}

/// Tests that start deployments, with what those are made of.
fn over_deployments(long: bool) -> Result<Command> {
    npm_packages()?;
    redis_server()?;
    let worker = edge::build_shipped()?;
    run(cargo().args(["build", "--package", "edgekeep"]).args(PROFILE))?;
    let mut tests = test("edgekeep-tests", long);
    tests.env("EDGEKEEP_BIN", target_folder().join("ci/edgekeep")).env("EDGEKEEP_WORKER", worker);
    tests.args(PROFILE);
    Ok(tests)
}

fn wrangler_dev() -> Result<Outcome> {
    // Built first, so that the wait below is for workerd and not for the compiler.
    edge::build_shipped()?;
    let port = free_port()?;
    let mut worker = edge::start_dev(port, &[])?;
    worker.wait_for_url(port, "/healthz", Duration::from_secs(60))?;
    worker.stop();
    Ok(Outcome { passed: 1, ..Outcome::default() })
}

/// Two checks, so that the one which needs no network says its part without it.
fn deny() -> Result<Outcome> {
    let deny = cargo_tool("cargo-deny")?;
    let mut outcome = Outcome::default();
    for checks in [["bans", "licenses", "sources"].as_slice(), &["advisories"]] {
        match checked(command(&deny).args(["--workspace", "check"]).args(checks)) {
            Ok(_) => outcome.passed += 1,
            Err(error) => {
                println!("{error:#}");
                outcome.failed += 1;
                outcome.note = format!("{} failed", checks.join(", "));
            }
        }
    }
    Ok(outcome)
}

fn wasm_pack() -> Result<Outcome> {
    wasm_target()?;
    WasmBindgen::ready()?;
    let wasm_pack = cargo_tool("wasm-pack")?;
    // It takes wasm-bindgen from PATH when its version is the locked one.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(tools_folder().join("bin")).chain(std::env::split_paths(&path));
    let mut command = command(wasm_pack);
    command.current_dir(root()).env("PATH", std::env::join_paths(folders)?);
    counted(command.args(["test", "--node", "core"]))
}
