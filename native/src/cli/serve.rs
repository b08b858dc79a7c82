//! `edgekeep serve`: from a file, or with nothing but an origin.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use edgekeep_core::config::{Config, HealthType};
use edgekeep_core::exchange::Secrets;

use super::run::{Start, run};
use super::settings::Settings;
use super::{Failure, files};

#[derive(Args)]
#[command(group(ArgGroup::new("what").required(true).args(["config", "origin"])))]
pub struct Options {
    /// The configuration file; its paths are relative to it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run before this one origin, with everything else at its default
    #[arg(long, value_name = "URL")]
    origin: Option<String>,
    /// Take the place of the running gateway of this configuration, if one runs: its listening sockets are passed on, it
    /// finishes what is in flight, and no connection is refused
    #[arg(long)]
    takeover: bool,
    /// With --origin: where clients connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// With --origin: where metrics and health are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    admin: SocketAddr,
    /// With --origin: where keys and sessions are kept
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
}

pub fn serve(options: &Options) -> Result<(), Failure> {
    if let Some(file) = &options.config {
        let settings = Settings::read(file)?;
        let secrets = settings.secrets()?;
        let start = Start { settings, secrets, file: Some(file.clone()), takeover: options.takeover };
        return run(start, |_| {}, std::future::pending());
    }
    let Some(origin) = &options.origin else { return Err("give --config FILE or --origin URL".into()) };
    let mut config = Config::minimal(origin).map_err(|errors| format!("--origin:\n{errors}"))?;
    // Of an application that nobody has described it is not known what it answers to /health.
    config.health.r#type = HealthType::Tcp;
    config.server.listen = vec![options.listen];
    config.admin.listen = options.admin;
    let data = &options.data;
    config.session.keys = data.join("keys.json").display().to_string();
    config.store.path = data.join("edgekeep.redb").display().to_string();
    let settings = Settings { config, base: PathBuf::new() };
    let (secrets, notes) = generated_secrets(&settings, data)?;
    run(
        Start { settings, secrets, file: None, takeover: options.takeover },
        |settings| {
            for address in &settings.config.server.listen {
                eprintln!("edgekeep: http://{address} before {origin}");
            }
            notes.iter().for_each(|note| eprintln!("edgekeep: {note}"));
        },
        std::future::pending(),
    )
}

/// The service token and edge credential of the environment, or generated ones below `data`; a new one is shown once.
pub fn generated_secrets(settings: &Settings, data: &Path) -> Result<(Secrets, Vec<String>), Failure> {
    let config = &settings.config;
    let mut notes = Vec::new();
    let mut one = |source, key: &str, file: &str, what: &str| -> Result<String, Failure> {
        if let Some(given) = files::configured(source, key, &settings.base)? {
            return Ok(given);
        }
        let path = data.join(file);
        let (secret, fresh) = files::secret(&path)?;
        notes.push(match fresh {
            true => format!("new {what}, shown this once: {secret}  (kept in {})", path.display()),
            false => format!("{what}: see {}", path.display()),
        });
        Ok(secret)
    };
    let service = one(&config.session.service_token, "session.service_token", "service-token", "service token")?;
    let edge = one(&config.edge.credential, "edge.credential", "edge-token", "edge credential")?;
    let origin = files::configured(&config.balance.origin_key, "balance.origin_key", &settings.base)?;
    Ok((Secrets::new(Some(&service), Some(&edge), origin.as_deref()), notes))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn an_origin_can_be_served_with_other_addresses_and_not_beside_a_file() {
        let typed = |line: &str| Line::try_parse_from(std::iter::once("serve").chain(line.split(' ')));
        let line = "--origin http://127.0.0.1:3000 --listen 127.0.0.1:1 --admin 127.0.0.1:2 --data elsewhere";
        assert_eq!(typed(line).unwrap().options.data, PathBuf::from("elsewhere"));
        assert!(typed("--config a.toml").is_ok());
        assert!(typed("--config a.toml --origin http://127.0.0.1:3000").is_err());
        assert!(typed("--data elsewhere").is_err());
    }
}
