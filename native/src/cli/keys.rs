//! `edgekeep keys`: make a key file, list what is in one, rotate and retire keys, export what a Worker needs.

#![allow(clippy::print_stdout, reason = "the answer of these commands is their output")]

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use edgekeep_core::config::Algorithm;
use edgekeep_core::token::{EdgeRole, KeyAlgorithm, KeyState, Retention};

use super::settings::Settings;
use super::{Failure, files, rotate};

#[derive(Subcommand)]
pub enum Keys {
    /// Make a new key file, mode 0600; an existing one is never overwritten
    Generate {
        #[command(flatten)]
        file: KeyFile,
        #[arg(long, value_enum, default_value = "eddsa")]
        algorithm: Signing,
    },
    /// List the keys of a file: kind, id, algorithm, state and since when; with --config, until when retired ones stay
    List {
        #[command(flatten)]
        file: KeyFile,
        /// The gateways' configuration, which names the file
        #[arg(long, value_name = "FILE", conflicts_with = "file")]
        config: Option<PathBuf>,
    },
    /// Take the next step to new keys: publish them; run again, and once every live gateway knows them they sign
    Rotate(rotate::Rotate),
    /// Remove the retired keys that nothing alive was signed with, and say how long the others stay
    Retire(rotate::Retire),
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

impl From<Signing> for KeyAlgorithm {
    fn from(signing: Signing) -> KeyAlgorithm {
        match signing {
            Signing::Eddsa => KeyAlgorithm::EdDsa,
            Signing::Hs256 => KeyAlgorithm::Hs256,
        }
    }
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
        Keys::List { file, config } => list(file, config.as_ref())?,
        Keys::Rotate(options) => rotate::rotate(options)?,
        Keys::Retire(options) => rotate::retire(options)?,
        Keys::Export { file, edge: _ } => {
            println!("{}", files::any_keys(&file.file, "--file")?.edge_export(EdgeRole::BesideRegion).to_json());
        }
    }
    Ok(())
}

fn list(file: &KeyFile, config: Option<&PathBuf>) -> Result<(), Failure> {
    let settings = config.map(|config| Settings::read(config)).transpose()?;
    let ring = match &settings {
        Some(settings) => files::any_keys(&settings.path(&settings.config.session.keys), "session.keys")?,
        None => files::any_keys(&file.file, "--file")?,
    };
    let retention = settings.map(|settings| Retention::new(&settings.config));
    for row in ring.list() {
        let (kind, algorithm, state) = (row.kind.name(), row.algorithm.name(), row.state.name());
        let since = row.since.to_rfc3339();
        let stays = match &retention {
            Some(retention) if row.state == KeyState::Retired => format!("  stays {}", rotate::stay(&row, retention)),
            _ => String::new(),
        };
        println!("{kind:8} {:44} {algorithm:6} {state:8} since {since}{stays}", row.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        keys: Keys,
    }

    fn typed(line: &[&str]) -> Result<(), String> {
        let parsed = Line::try_parse_from([&["keys"], line].concat()).map_err(|e| e.to_string())?;
        run(&parsed.keys).map_err(|e| e.to_string())
    }

    /// A folder with a configuration, and a key file of this mode.
    fn folder(mode: u32) -> (tempfile::TempDir, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let (config, file) = (folder.path().join("edgekeep.toml"), folder.path().join("data/keys.json"));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let text = format!(
            "[admin]\nlisten = \"{free}\"\ntoken_env = \"EDGEKEEP_TEST_UNSET\"\n[edge]\ncredential_env = \
             \"EDGEKEEP_TEST_UNSET\"\n[[pools]]\nshard = \"shard_0\"\norigins = [{{ id = \"a\", url = \
             \"http://127.0.0.1:9001\" }}]\n"
        );
        std::fs::write(&config, text).unwrap();
        files::keys(&file, Algorithm::EdDSA).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, config.display().to_string(), file.display().to_string())
    }

    fn rows(file: &str) -> Vec<KeyState> {
        files::any_keys(Path::new(file), "--file").unwrap().list().iter().map(|row| row.state).collect()
    }

    #[test]
    fn every_command_refuses_a_key_file_that_others_can_read() {
        for mode in [0o640, 0o604, 0o660, 0o666] {
            let (_folder, config, file) = folder(mode);
            let before = std::fs::read(&file).unwrap();
            for line in [
                vec!["generate", "--file", &file],
                vec!["list", "--file", &file],
                vec!["list", "--config", &config],
                vec!["rotate", "--file", &file],
                vec!["rotate", "--config", &config],
                vec!["retire", "--config", &config],
                vec!["export", "--edge", "--file", &file],
            ] {
                let refused = typed(&line).unwrap_err();
                assert!(refused.contains("can be read by others"), "{line:?}: {refused}");
                assert_eq!(std::fs::read(&file).unwrap(), before, "{line:?}");
            }
            let settings = Settings::read(Path::new(&config)).unwrap();
            assert!(settings.keys().unwrap_err().to_string().contains("can be read by others"), "serve");
        }
    }

    #[test]
    fn keys_rotate_step_by_step_where_no_gateway_runs() {
        use KeyState::{Current, Next, Retired};
        let (_folder, config, file) = folder(0o600);
        typed(&["rotate", "--config", &config]).unwrap();
        assert_eq!(rows(&file), [Current, Next].repeat(4));
        typed(&["rotate", "--config", &config]).unwrap();
        assert_eq!(rows(&file), [Retired, Current].repeat(4));
        typed(&["retire", "--config", &config]).unwrap();
        typed(&["list", "--config", &config]).unwrap();
        // Nobody runs, so nobody signs with the old ones; what they signed is still alive.
        assert_eq!(rows(&file), [Retired, Current].repeat(4));
        let ring = files::any_keys(Path::new(&file), "--file").unwrap();
        assert!(ring.list().iter().all(|row| row.settled.is_some() == (row.state == Retired)));
    }

    #[test]
    fn a_file_that_only_a_worker_has_signs_with_new_keys_after_a_word() {
        let (_folder, _, file) = folder(0o600);
        typed(&["rotate", "--file", &file, "--kind", "access", "--algorithm", "hs256"]).unwrap();
        assert!(typed(&["rotate", "--file", &file, "--kind", "access"]).unwrap_err().starts_with("--edge-deployed: "));
        typed(&["rotate", "--file", &file, "--kind", "access", "--edge-deployed"]).unwrap();
        let ring = files::any_keys(Path::new(&file), "--file").unwrap();
        assert_eq!(ring.current_access().unwrap().algorithm(), KeyAlgorithm::Hs256);
    }

    #[test]
    fn which_file_is_meant_must_be_said() {
        assert!(typed(&["rotate"]).unwrap_err().contains("--config <FILE>|--file <FILE>"));
        assert!(typed(&["rotate", "--config", "a", "--file", "b"]).unwrap_err().contains("cannot be used with"));
    }
}
