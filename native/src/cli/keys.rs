//! `edgekeep keys`: make a key file, list what is in one, export what a Worker needs.

#![allow(clippy::print_stdout, reason = "the answer of these commands is their output")]

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use edgekeep_core::config::Algorithm;
use edgekeep_core::token::{EdgeRole, KeyRing};

use super::{Failure, files};

#[derive(Subcommand)]
pub enum Keys {
    /// Make a new key file, mode 0600; an existing one is never overwritten
    Generate {
        #[command(flatten)]
        file: KeyFile,
        #[arg(long, value_enum, default_value = "eddsa")]
        algorithm: Signing,
    },
    /// List the keys of a file: kind, id, algorithm, state
    List {
        #[command(flatten)]
        file: KeyFile,
    },
    /// Print the keys that a Worker beside a region needs: public access keys, sticky and log keys
    Export {
        #[command(flatten)]
        file: KeyFile,
        /// For the edge: without refresh keys and, with EdDSA, without anything that signs
        #[arg(long, required = true)]
        edge: bool,
    },
}

#[derive(Args)]
pub struct KeyFile {
    #[arg(long, value_name = "FILE", default_value = "data/keys.json")]
    file: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Signing {
    Eddsa,
    Hs256,
}

pub fn run(keys: &Keys) -> Result<(), Failure> {
    match keys {
        Keys::Generate { file, algorithm } => {
            let algorithm = match algorithm {
                Signing::Eddsa => Algorithm::EdDSA,
                Signing::Hs256 => Algorithm::HS256,
            };
            let shown = file.file.display();
            if !files::keys(&file.file, algorithm)?.1 {
                return Err(format!("{shown} exists: keys are never overwritten").into());
            }
            println!("made {shown}");
        }
        Keys::List { file } => {
            for row in read(file)?.list() {
                println!("{:8} {:44} {:6} {}", row.kind.name(), row.id, row.algorithm.name(), row.state.name());
            }
        }
        Keys::Export { file, edge: _ } => println!("{}", read(file)?.edge_export(EdgeRole::BesideRegion).to_json()),
    }
    Ok(())
}

fn read(file: &KeyFile) -> Result<KeyRing, Failure> {
    let shown = file.file.display();
    let text = files::read_private(&file.file, "--file")?.ok_or_else(|| format!("{shown} does not exist"))?;
    Ok(KeyRing::from_json(&text).map_err(|e| format!("{shown}: {e}"))?)
}
