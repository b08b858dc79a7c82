//! `edgekeep config edge`: writes what the Worker is built with, from the configuration of the region beside it.
//!
//! `config.json` is bundled and holds no secret; what only a native gateway uses is left out of it. The secrets are
//! bindings: `--dev` writes them to `.dev.vars`, which `wrangler dev` reads and git ignores, and without it this prints
//! which ones to put.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use edgekeep_core::config::{
    AlertsConfig, Authority, Config, HostPolicy, SecretSource, ServerConfig, StoreConfig, TraceConfig, WebUrl,
};
use edgekeep_core::token::{EdgeRole, KeyRing};

use super::data::{DataError, demo_files};

/// Where `edgekeep demo` keeps its data.
const DEMO: &str = "data/demo";
/// Where a demo's gateway listens.
const DEMO_AUTHORITY: &str = "http://127.0.0.1:8080";

/// Write what the Worker is built with
#[derive(Args)]
pub struct EdgeOptions {
    /// The region's configuration; with --dev, the demo's when it is left out
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The region's URL as the Worker reaches it: https://, or http:// to this machine
    #[arg(long, value_name = "URL")]
    authority: Option<String>,
    /// For `wrangler dev` on this machine: any origin, and the secrets in .dev.vars
    #[arg(long)]
    dev: bool,
    /// The Worker's folder; .dev.vars goes beside it
    #[arg(long, value_name = "DIR", default_value = "edge")]
    out: PathBuf,
}

/// Why there is nothing that the Worker could be built with.
#[derive(Debug, thiserror::Error)]
enum EdgeError {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0} is missing: start `edgekeep demo` once, or name a configuration with --config")]
    NoDemo(PathBuf),
    #[error("name the region's configuration with --config, or its demo with --dev")]
    NoConfig,
    #[error("name the session authority with --authority, a region's URL")]
    NoAuthority,
    #[error("--authority durable_object is not built yet: give the URL of a native region")]
    DurableObject,
    #[error("--authority: found {0:?}, allowed: an https:// URL, or http:// to loopback, without path and query")]
    BadAuthority(String),
    #[error("the edge cannot do this:\n{}", .0.join("\n"))]
    Refused(Vec<String>),
    #[error("{0}: {1}")]
    Invalid(PathBuf, String),
    #[error("{key}: the environment variable {name} is not set")]
    Unset { key: &'static str, name: String },
    #[error(transparent)]
    Data(#[from] DataError),
}

/// What goes to the Worker as bindings: name and value.
type Secrets = Vec<(String, String)>;

/// Writes `config.json`, and with `--dev` also `.dev.vars`.
pub fn run(options: &EdgeOptions) -> Result<(), Box<dyn std::error::Error>> {
    let path = match &options.config {
        Some(path) => path.clone(),
        None if options.dev => PathBuf::from(DEMO).join("edgekeep.toml"),
        None => return Err(EdgeError::NoConfig.into()),
    };
    let text = fs::read_to_string(&path).map_err(|error| match options.config {
        None if error.kind() == io::ErrorKind::NotFound => EdgeError::NoDemo(path.clone()),
        _ => EdgeError::Io(path.clone(), error),
    })?;
    let config = Config::from_toml(&text).map_err(|errors| EdgeError::Invalid(path.clone(), errors.to_string()))?;
    let authority = authority(options)?;
    let refused = refusals(&config, options.dev);
    if !refused.is_empty() {
        return Err(EdgeError::Refused(refused).into());
    }
    let edge = for_edge(&config, authority);
    let secrets = match (options.dev, &options.config) {
        (false, _) => None,
        (true, None) => {
            let files = demo_files(Path::new(DEMO))?;
            Some(dev_secrets(&config, &edge, &files.keys, Some(files.edge_token), Path::new("."))?)
        }
        (true, Some(path)) => {
            let folder = path.parent().unwrap_or(Path::new("."));
            let keys = read_keys(&folder.join(&config.session.keys))?;
            Some(dev_secrets(&config, &edge, &keys, None, folder)?)
        }
    };

    fs::create_dir_all(&options.out).map_err(|error| EdgeError::Io(options.out.clone(), error))?;
    write(&options.out.join("config.json"), &edge.to_json(), 0o644)?;
    let mut out = io::stdout().lock();
    writeln!(out, "wrote {}", options.out.join("config.json").display())?;
    if let Some(secrets) = secrets {
        let vars = options.out.parent().unwrap_or(Path::new("")).join(".dev.vars");
        let lines: String = secrets.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
        write(&vars, &lines, 0o600)?;
        writeln!(out, "wrote {}, which holds secrets", vars.display())?;
    } else {
        let keys = format!("EDGEKEEP_KEYS (edgekeep keys export --edge), {}", bindings(&edge).join(", "));
        writeln!(out, "give the Worker its secrets with `wrangler secret put`: {keys}")?;
    }
    Ok(())
}

fn authority(options: &EdgeOptions) -> Result<Authority, EdgeError> {
    let text = match &options.authority {
        Some(text) => text.as_str(),
        None if options.dev => DEMO_AUTHORITY,
        None => return Err(EdgeError::NoAuthority),
    };
    if text == "durable_object" {
        return Err(EdgeError::DurableObject);
    }
    let url = WebUrl::parse(text).filter(|url| url.is_private() && url.path == "/");
    url.map(Authority::Url).ok_or_else(|| EdgeError::BadAuthority(text.to_owned()))
}

/// What a Worker cannot do, one line each. On this machine, workerd reaches any origin.
fn refusals(config: &Config, dev: bool) -> Vec<String> {
    let mut refused = Vec::new();
    for (at, pool) in config.pools.iter().enumerate() {
        if pool.tls.is_some() {
            refused.push(format!("pools[{at}].tls: a Worker trusts the public certificates, and shows none"));
        }
        if pool.host != HostPolicy::Preserve {
            refused.push(format!("pools[{at}].host: a Worker sends the host of the origin's URL"));
        }
        for (index, origin) in pool.origins.iter().enumerate().filter(|_| !dev) {
            let path = format!("pools[{at}].origins[{index}].url");
            if origin.url.host.ip().is_some() {
                refused.push(format!("{path}: a Worker reaches origins by name, not by IP address"));
            }
            if !matches!(origin.url.port, 80 | 443) {
                refused.push(format!("{path}: a Worker reaches ports 80 and 443, found {}", origin.url.port));
            }
        }
    }
    refused
}

/// The configuration as the Worker uses it: secrets are bindings, and what may be one stays out of the bundle.
fn for_edge(config: &Config, authority: Authority) -> Config {
    let mut edge = config.clone();
    edge.session.authority = authority;
    edge.session.service_token = binding("EDGEKEEP_SERVICE_TOKEN");
    if edge.edge.credential.env.is_none() {
        edge.edge.credential = binding("EDGEKEEP_EDGE_TOKEN");
    }
    if edge.balance.origin_key.file.is_some() {
        edge.balance.origin_key = binding("EDGEKEEP_ORIGIN_KEY");
    }
    // The map comes from the authority, key and all.
    edge.shards.users.key = SecretSource::default();
    edge.edge.notify = Vec::new();
    edge.server = ServerConfig { api_prefix: config.server.api_prefix.clone(), ..ServerConfig::default() };
    edge.server.trusted_proxies.clone_from(&config.server.trusted_proxies);
    edge.store = StoreConfig { timeout: config.store.timeout, ..StoreConfig::default() };
    edge.trace = TraceConfig { otlp: None, ..config.trace.clone() };
    edge.alerts = AlertsConfig {
        webhook: None,
        webhook_secret: SecretSource::default(),
        alertmanager: None,
        ..config.alerts.clone()
    };
    edge
}

fn binding(name: &str) -> SecretSource {
    SecretSource { env: Some(name.to_owned()), file: None }
}

/// The names of the bindings that the Worker reads besides its keys.
fn bindings(edge: &Config) -> Vec<&str> {
    [&edge.edge.credential, &edge.balance.origin_key].into_iter().filter_map(|source| source.env.as_deref()).collect()
}

fn dev_secrets(
    config: &Config,
    edge: &Config,
    keys: &KeyRing,
    edge_token: Option<String>,
    folder: &Path,
) -> Result<Secrets, EdgeError> {
    let exported = keys.edge_export(EdgeRole::BesideRegion).to_json();
    // On one line, since that is what .dev.vars holds.
    let keys: String = exported.lines().map(str::trim).collect();
    let mut secrets = vec![("EDGEKEEP_KEYS".to_owned(), keys)];
    let token = match edge_token {
        Some(token) => token,
        None => secret("edge.credential", &config.edge.credential, folder)?,
    };
    secrets.extend(edge.edge.credential.env.clone().map(|name| (name, token)));
    if let Some(name) = edge.balance.origin_key.env.clone() {
        secrets.push((name, secret("balance.origin_key", &config.balance.origin_key, folder)?));
    }
    Ok(secrets)
}

fn secret(key: &'static str, source: &SecretSource, folder: &Path) -> Result<String, EdgeError> {
    if let Some(file) = &source.file {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).map_err(|error| EdgeError::Io(path, error))?;
        return Ok(text.trim().to_owned());
    }
    let name = source.env.clone().unwrap_or_default();
    env::var(&name).ok().filter(|value| !value.is_empty()).ok_or(EdgeError::Unset { key, name })
}

fn read_keys(path: &Path) -> Result<KeyRing, EdgeError> {
    let text = fs::read_to_string(path).map_err(|error| EdgeError::Io(path.to_owned(), error))?;
    KeyRing::from_json(&text).map_err(|error| DataError::Keys(path.to_owned(), error).into())
}

/// Replaces the file as a whole, so that a build beside this never reads half of it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), EdgeError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |error| EdgeError::Io(path.to_owned(), error);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.persist(path).map(|_| ()).map_err(|error| failed(error.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(origin: &str, more: &str) -> Config {
        let text = format!("[[pools]]\nshard = \"shard_0\"\n{more}\norigins = [{{ id = \"a\", url = \"{origin}\" }}]");
        Config::from_toml(&text).unwrap()
    }

    fn options(authority: &str) -> EdgeOptions {
        EdgeOptions { config: None, authority: Some(authority.to_owned()), dev: false, out: "edge".into() }
    }

    #[test]
    fn what_a_worker_cannot_do_is_refused_by_name() {
        assert!(refusals(&config("https://origin.example", ""), false).is_empty());
        let refused = refusals(&config("http://127.0.0.1:9001", "host = \"x.example\"\ntls = {}"), false);
        let keys: Vec<&str> = refused.iter().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(
            keys,
            ["pools[0].tls", "pools[0].host", "pools[0].origins[0].url", "pools[0].origins[0].url"],
            "{refused:?}"
        );
        assert!(refusals(&config("http://127.0.0.1:9001", ""), true).is_empty());
    }

    #[test]
    fn an_authority_is_a_region_that_may_be_told_a_secret() {
        let read = |text: &str| authority(&options(text)).map(|authority| authority.to_string());
        assert_eq!(read("https://region.example").unwrap(), "https://region.example/");
        assert_eq!(read("http://127.0.0.1:8080/").unwrap(), "http://127.0.0.1:8080/");
        assert!(matches!(read("durable_object"), Err(EdgeError::DurableObject)));
        for text in ["local", "http://region.example", "https://region.example/api", "https://region.example/?x"] {
            assert!(matches!(read(text), Err(EdgeError::BadAuthority(_))), "{text}");
        }
    }

    #[test]
    fn the_bundle_reads_back_and_holds_nothing_that_may_be_secret() {
        let mut native = config("https://origin.example", "");
        native.alerts.webhook = WebUrl::parse("https://hooks.example/token-in-path");
        native.edge.notify = WebUrl::parse("https://edge.example/").into_iter().collect();
        native.edge.credential = SecretSource { env: None, file: Some("secrets/edge".into()) };
        native.balance.origin_key = SecretSource { env: None, file: Some("secrets/origin".into()) };
        let edge = for_edge(&native, Authority::Url(WebUrl::parse("https://region.example").unwrap()));
        let text = edge.to_json();
        for secret in ["token-in-path", "secrets/", "edge.example"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert_eq!(bindings(&edge), ["EDGEKEEP_EDGE_TOKEN", "EDGEKEEP_ORIGIN_KEY"]);
        assert_eq!(Config::from_json(&text).unwrap(), edge);
    }
}
