//! `cargo xtask …`: every task of this repository is a command here.

mod bench;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Edgekeep's tasks")]
enum Task {
    /// Measure beside the peers a team would choose instead, in one run
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Bench(bench) => bench.run(),
    }
}
