//! `edgekeep check`: everything that is wrong with a configuration, not only the first; also what only `serve` would
//! notice, as far as that is seen without opening, making or asking anything.

#![allow(clippy::print_stdout, reason = "the answer of this command is its output")]

use std::path::PathBuf;

use clap::Args;
use edgekeep_core::config::StoreKind;
use edgekeep_core::shard::Month;

use super::settings::Settings;
use super::{Failure, files};
use crate::gateway::clock::now;

#[derive(Args)]
pub struct Options {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn check(options: &Options) -> Result<(), Failure> {
    let settings = Settings::read(&options.config)?;
    let shown = options.config.display();
    let refused = settings.refused();
    if !refused.is_empty() {
        return Err(format!("{shown} asks for what is not built yet:\n{}", refused.join("\n")).into());
    }
    let missing = would_fail(&settings);
    if !missing.is_empty() {
        return Err(format!("{shown} cannot be served:\n{}", missing.join("\n")).into());
    }
    for warning in settings.warnings(&settings.secrets()?).into_iter().chain(photo_gaps(&settings)) {
        println!("warning: {warning}");
    }
    println!("{shown} is good");
    Ok(())
}

/// Why a start would fail, in the order in which it would.
fn would_fail(settings: &Settings) -> Vec<String> {
    let config = &settings.config;
    let mut found = Vec::new();
    let mut note = |outcome: Result<(), Failure>| found.extend(outcome.err().map(|error| error.to_string()));
    note(settings.admin_token().map(drop));
    note(settings.certificates().map(drop));
    note(settings.secrets().map(drop));
    note(settings.first_shard_map().map(drop));
    let keys = settings.path(&config.session.keys);
    if keys.exists() {
        note(files::existing_keys(&keys).map(drop));
    } else if config.store.kind == StoreKind::Redis {
        note(settings.keys().map(drop));
    }
    if config.store.kind == StoreKind::Redis {
        note(files::configured(&config.store.password, "store.password", &settings.base).map(drop));
    }
    found
}

fn photo_gaps(settings: &Settings) -> Vec<String> {
    let gaps = settings.config.photo_gaps(now());
    let said = |(first, last): &(Month, Month)| match first == last {
        true => format!("photos of {first} have no pool: 503"),
        false => format!("photos of {first} to {last} have no pool: 503"),
    };
    gaps.iter().map(said).collect()
}

#[cfg(test)]
mod tests {
    use edgekeep_core::config::Config;

    use super::*;

    const POOL: &str = "[[pools]]\nshard = \"shard_0\"\norigins = [{ id = \"a\", url = \"http://127.0.0.1:9001\" }]\n";

    fn settings(text: &str) -> (Settings, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::from_toml(&format!("{text}\n{POOL}")).unwrap();
        (Settings { config, base: folder.path().to_owned() }, folder)
    }

    #[test]
    fn every_file_that_a_start_would_miss_is_named_and_none_is_made() {
        let (settings, folder) = settings(
            "[admin]\ntoken_file = \"no-token\"\n\
             [session]\nservice_token_file = \"no-service\"\n\
             [store]\nkind = \"redis\"\nnodes = [\"redis://127.0.0.1:1\"]\npassword_file = \"no-password\"\n\
             [shards.users]\nkey_file = \"no-key\"",
        );
        let found = would_fail(&settings);
        let keys = [
            "admin.token_file: ",
            "session.service_token_file: ",
            "shards.users.key_file: ",
            "session.keys: ",
            "store.password_file: ",
        ];
        assert_eq!(found.len(), keys.len(), "{found:?}");
        for (found, key) in found.iter().zip(keys) {
            assert!(found.starts_with(key), "{found}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was made");
    }

    #[test]
    fn a_file_that_others_may_read_is_found_before_the_start() {
        let (settings, folder) = settings("[session]\nkeys = \"keys.json\"");
        assert_eq!(would_fail(&settings), [""; 0]);
        std::fs::write(folder.path().join("keys.json"), "{}").unwrap();
        let found = would_fail(&settings);
        assert!(found.len() == 1 && found[0].contains("can be read by others"), "{found:?}");
    }

    #[test]
    fn months_without_a_pool_are_warned_of() {
        let (settings, _folder) = settings("[[routes]]\npath = \"/{month}\"\nshard = \"photo:month\"");
        let warned = photo_gaps(&settings);
        assert!(warned.len() == 1 && warned[0].starts_with("photos of 2020-01 to "), "{warned:?}");
    }
}
