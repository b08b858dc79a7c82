//! `cargo xtask …`: every task of the project, on any machine with Rust and Node. A task brings the tools that it needs
//! and says plainly what it could not bring.

#![allow(clippy::print_stdout, reason = "a command line talks to its user")]

mod bench;
mod edge;
mod process;
mod suites;
mod test;
mod tools;

use std::process::ExitCode;

use clap::Parser;

/// Edgekeep's tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Set up everything: the wasm target, wasm-bindgen, npm's packages, Redis and a browser.
    Tools,
    /// Build and run the Worker.
    #[command(subcommand)]
    Edge(edge::Task),
    /// Measure beside the peers a team would choose instead, in one run.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Run the tests; with no suite named, all of them.
    Test(test::Options),
}

fn main() -> ExitCode {
    perform().unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn perform() -> anyhow::Result<ExitCode> {
    process::stop_everything_on_a_signal()?;
    match Task::parse() {
        Task::Tools => tools::everything()?,
        Task::Edge(task) => task.run()?,
        Task::Bench(bench) => bench.run()?,
        Task::Test(options) => return Ok(options.run()),
    }
    Ok(ExitCode::SUCCESS)
}
