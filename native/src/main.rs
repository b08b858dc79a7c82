//! `edgekeep`: the native gateway. It admits sessions, sends each request to its user's shard and the least-loaded
//! origin there, and is the session authority of the Workers in front of it.

mod admin;
mod checks;
mod cli;
#[cfg(feature = "demo")]
mod demo;
mod gateway;
mod handover;
mod log;
mod notify;
mod reports;
mod resolve;
mod store;
mod tls;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
