//! `edgekeep config edge`: writes what the Worker is built with, from the configuration of the region beside it.
//!
//! `config.json` is bundled and holds no secret; what only a native gateway uses is left out of it. The secrets are
//! bindings: `--dev` writes them to `.dev.vars`, which `wrangler dev` reads and git ignores, and without it this prints
//! which ones to put.

#![allow(clippy::print_stdout, reason = "what was written is said to the one who typed the command")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use edgekeep_core::config::{
    AlertsConfig, Authority, Config, HostPolicy, SecretSource, ServerConfig, StoreConfig, TraceConfig, WebUrl,
};
use edgekeep_core::token::{EdgeRole, KeyRing};

use super::settings::Settings;
use super::{Failure, files};

/// Where `edgekeep demo` keeps its data.
#[cfg(feature = "demo")]
const DEMO: &str = "data/demo";
/// Where a demo's gateway listens.
const DEMO_AUTHORITY: &str = "http://127.0.0.1:8080";

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

/// What goes to the Worker as bindings: name and value.
type Secrets = Vec<(String, String)>;

/// Writes `config.json`, and with `--dev` also `.dev.vars`.
pub fn run(options: &EdgeOptions) -> Result<(), Failure> {
    let authority = authority(options)?;
    let settings = Settings::read(&source(options)?)?;
    let refused = refusals(&settings.config, options.dev);
    if !refused.is_empty() {
        return Err(format!("the edge cannot do this:\n{}", refused.join("\n")).into());
    }
    let edge = for_edge(&settings.config, authority);
    // Everything is known before anything is written.
    let secrets = options.dev.then(|| dev_secrets(&settings, &edge, options.config.is_none())).transpose()?;

    fs::create_dir_all(&options.out).map_err(|e| format!("--out: cannot make {}: {e}", options.out.display()))?;
    let bundled = options.out.join("config.json");
    write(&bundled, &edge.to_json(), 0o644)?;
    println!("wrote {}", bundled.display());
    match secrets {
        Some(secrets) => {
            let vars = options.out.parent().unwrap_or(Path::new("")).join(".dev.vars");
            let lines: String = secrets.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
            write(&vars, &lines, 0o600)?;
            println!("wrote {}, which holds secrets", vars.display());
        }
        None => println!(
            "give the Worker its secrets with `wrangler secret put`: EDGEKEEP_KEYS (`edgekeep keys export --edge`), {}",
            bindings(&edge).join(", ")
        ),
    }
    Ok(())
}

/// The region's configuration file.
fn source(options: &EdgeOptions) -> Result<PathBuf, Failure> {
    match &options.config {
        Some(path) => Ok(path.clone()),
        #[cfg(feature = "demo")]
        None if options.dev => super::demo::configuration_file(Path::new(DEMO)),
        None => Err("--config: name the region's configuration".into()),
    }
}

fn authority(options: &EdgeOptions) -> Result<Authority, Failure> {
    let text = match &options.authority {
        Some(text) => text.as_str(),
        None if options.dev => DEMO_AUTHORITY,
        None => return Err("--authority: name the session authority, a region's URL".into()),
    };
    if text == "durable_object" {
        return Err("--authority: durable_object is not built yet; give the URL of a native region".into());
    }
    let url = WebUrl::parse(text).filter(|url| url.is_private() && url.path == "/");
    let allowed = "an https:// URL, or http:// to loopback, without path and query";
    url.map(Authority::Url).ok_or_else(|| format!("--authority: found {text:?}, allowed: {allowed}").into())
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

/// The Worker's bindings for this machine. Of the demo, what is missing is made as the demo makes it.
fn dev_secrets(settings: &Settings, edge: &Config, demo: bool) -> Result<Secrets, Failure> {
    let config = &settings.config;
    let path = settings.path(&config.session.keys);
    let keys = match demo {
        true => files::keys(&path, config.session.algorithm)?.0,
        false => {
            let text = files::read_private(&path, "session.keys")?;
            let text = text.ok_or_else(|| format!("session.keys: {} does not exist", path.display()))?;
            KeyRing::from_json(&text).map_err(|e| format!("session.keys: {}: {e}", path.display()))?
        }
    };
    // On one line, since that is what .dev.vars holds.
    let exported = keys.edge_export(EdgeRole::BesideRegion).to_json();
    let mut secrets = vec![("EDGEKEEP_KEYS".to_owned(), exported.lines().map(str::trim).collect())];
    let credential = files::configured(&config.edge.credential, "edge.credential", &settings.base)?;
    let credential = match credential {
        None if demo => Some(files::secret(&settings.path("edge-token"))?.0),
        given => given,
    };
    let origin_key = files::configured(&config.balance.origin_key, "balance.origin_key", &settings.base)?;
    for (key, name, value) in [
        ("edge.credential", &edge.edge.credential.env, credential),
        ("balance.origin_key", &edge.balance.origin_key.env, origin_key),
    ] {
        if let Some(name) = name {
            let value = value.ok_or_else(|| format!("{key}: is not set, and the Worker needs it as {name}"))?;
            // One of two credentials may be shown; the first is the newer.
            let value = value.split(',').next().unwrap_or_default().trim().to_owned();
            secrets.push((name.clone(), value));
        }
    }
    if secrets.iter().any(|(_, value)| value.contains('\'')) {
        return Err("a secret holds a single quote, which .dev.vars cannot".into());
    }
    Ok(secrets)
}

/// Replaces the file as a whole, so that a build beside this never reads half of it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let failed = |e| format!("cannot write {}: {e}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let _ = fs::remove_file(&new);
    let mut open = OpenOptions::new();
    let mut file = open.write(true).create_new(true).mode(mode).open(&new).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    fs::rename(&new, path).map_err(|e| failed(e).into())
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
        let refused = |text: &str| read(text).unwrap_err().to_string();
        assert!(refused("durable_object").contains("not built yet"));
        for text in ["local", "http://region.example", "https://region.example/api", "https://region.example/?x"] {
            assert!(refused(text).contains("allowed: an https:// URL"), "{text}");
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
