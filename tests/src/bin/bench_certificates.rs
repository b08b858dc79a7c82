//! Makes the certificates with which `cargo xtask bench gateway` measures TLS: `server.pem` and `server.key`, both in
//! `server.both.pem` as HAProxy reads them, and `authority.pem`, who signed them.

use std::path::PathBuf;

use clap::Parser;
use edgekeep_tests::Certificates;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let folder = Options::parse().folder;
    let made = Certificates::make(&folder)?;
    let both =
        [made.server(), made.server_key()].map(std::fs::read_to_string).into_iter().collect::<Result<String, _>>()?;
    std::fs::write(folder.join("server.both.pem"), both)?;
    Ok(())
}
