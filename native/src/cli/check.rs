//! `edgekeep check`: everything that is wrong with a configuration, not only the first.

#![allow(clippy::print_stdout, reason = "the answer of this command is its output")]

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use super::settings::Settings;

#[derive(Args)]
pub struct Options {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn check(options: &Options) -> Result<(), Failure> {
    let settings = Settings::read(&options.config)?;
    let refused = settings.refused();
    if !refused.is_empty() {
        return Err(
            format!("{} asks for what is not built yet:\n{}", options.config.display(), refused.join("\n")).into()
        );
    }
    if let Err(errors) = settings.certificates() {
        return Err(format!("{} cannot be used:\n{errors}", options.config.display()).into());
    }
    for warning in settings.not_in_force() {
        println!("warning: {warning}");
    }
    println!("{} is good", options.config.display());
    Ok(())
}
