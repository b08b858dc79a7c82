//! The command line. Each command is a file; what several need stands in `files` (keys and secrets on disk), `settings`
//! (from a configuration to a running gateway's parts) and `ask` (what the running gateways say).

mod ask;
#[cfg(feature = "bench")]
mod bench;
mod check;
#[cfg(feature = "demo")]
mod demo;
mod edge;
mod files;
mod keys;
mod origin;
mod rotate;
mod run;
mod serve;
mod settings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What ends a command: a message for the one who typed it.
pub type Failure = Box<dyn std::error::Error>;

/// Session gateway: issues and validates sessions, and sends each request to its user's shard and the least-loaded
/// healthy origin there.
#[derive(Parser)]
#[command(name = "edgekeep", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try it: the gateway with three demo origins over two shards, and a walk to paste
    #[cfg(feature = "demo")]
    Demo(demo::Options),
    /// Run the gateway
    Serve(serve::Options),
    /// Say everything that is wrong with a configuration, and change nothing
    Check(check::Options),
    /// Write the configuration of another deployment
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make, list, rotate, retire and export keys
    #[command(subcommand)]
    Keys(keys::Keys),
    /// List a running gateway's origins; drain one, take it out, let it in again
    ///
    /// What is said of an origin counts for the one gateway that is asked, until the next word or its restart: reloads
    /// keep it, a new process begins with every origin ready. Where several gateways run, tell each. To take an origin
    /// out for good, take it out of the file.
    #[command(subcommand)]
    Origin(origin::Origin),
    /// Run the demo's origins alone
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    Origins(demo::OriginsOptions),
    /// Measure the store without HTTP, or the floor beside it
    #[cfg(feature = "bench")]
    #[command(hide = true, subcommand)]
    Bench(bench::Bench),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Write what the Worker is built with, from the configuration of the region beside it
    Edge(edge::EdgeOptions),
}

/// Runs the command that was typed. 0: it did what was asked; 1: it could not, and said why; 2: bad usage; 3: the time
/// that it may wait was over.
pub fn run() -> ExitCode {
    let done = match Cli::parse().command {
        #[cfg(feature = "demo")]
        Command::Demo(options) => demo::demo(&options),
        Command::Serve(options) => serve::serve(&options),
        Command::Check(options) => check::check(&options),
        Command::Config(ConfigCommand::Edge(options)) => edge::run(&options),
        Command::Keys(keys) => keys::run(&keys),
        Command::Origin(origin) => origin::run(&origin),
        #[cfg(feature = "demo")]
        Command::Origins(options) => demo::origins(&options),
        #[cfg(feature = "bench")]
        Command::Bench(bench) => bench::run(&bench),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("edgekeep: {failure}");
            if failure.is::<origin::StillBusy>() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}
