//! `edgekeep demo`: the gateway with three origins over two shards that keep real data, and a walk to paste.

#![allow(clippy::print_stdout, reason = "the walk is printed for the one who typed the command")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use tokio::net::TcpListener;

use super::run::{Start, run};
use super::serve::generated_secrets;
use super::settings::Settings;
use super::{Failure, files};
use crate::demo::{SharedDb, serve};
use crate::gateway::listen::bind_one;

#[derive(Args)]
pub struct Options {
    /// The port for clients
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The port for metrics and health
    #[arg(long, default_value_t = 9090)]
    admin_port: u16,
    /// The first of the three origins' ports
    #[arg(long, default_value_t = 9001, value_parser = clap::value_parser!(u16).range(1..=65_533))]
    origin_port: u16,
    /// Where keys, sessions and the origins' data are kept
    #[arg(long, value_name = "DIR", default_value = "data/demo")]
    data: PathBuf,
}

#[derive(Args)]
pub struct OriginsOptions {
    /// Three addresses: a and b share shard_0, c has shard_1
    #[arg(long, value_name = "ADDRESS", num_args = 1, required = true)]
    listen: Vec<SocketAddr>,
    /// Where each shard's SQLite file is kept
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

/// Identity and shard of the three origins.
const ORIGINS: [(&str, usize); 3] = [("a", 0), ("b", 0), ("c", 1)];

/// The demo's configuration in a data folder, written with the usual ports when there is none yet.
pub fn configuration_file(data: &Path) -> Result<PathBuf, Failure> {
    let file = data.join("edgekeep.toml");
    if !file.exists() {
        write_configuration(data, 8080, 9090, [9001, 9002, 9003])?;
    }
    Ok(file)
}

fn write_configuration(data: &Path, port: u16, admin_port: u16, origins: [u16; 3]) -> Result<PathBuf, Failure> {
    let file = data.join("edgekeep.toml");
    std::fs::create_dir_all(data).map_err(|e| format!("--data: cannot make {}: {e}", data.display()))?;
    std::fs::write(&file, configuration(port, admin_port, origins))
        .map_err(|e| format!("--data: cannot write {}: {e}", file.display()))?;
    Ok(file)
}

pub fn demo(options: &Options) -> Result<(), Failure> {
    let ports = [0, 1, 2].map(|n| options.origin_port + n);
    let mut listeners = Vec::new();
    for port in ports {
        listeners.push(bind_one(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?);
    }
    let file = write_configuration(&options.data, options.port, options.admin_port, ports)?;
    let settings = Settings::read(&file)?;
    let (secrets, _) = generated_secrets(&settings, &options.data)?;
    let service =
        match files::configured(&settings.config.session.service_token, "session.service_token", &options.data)? {
            Some(given) => given.split(',').next().unwrap_or_default().trim().to_owned(),
            None => files::secret(&options.data.join("service-token"))?.0,
        };
    let origins = run_origins(listeners, &options.data)?;
    let data = options.data.clone();
    let walk = move |settings: &Settings| println!("{}", walk(settings, &service, ports, &data));
    // Its tokens are not in the file, so a reload would lose them.
    run(Start { settings, secrets, file: None, takeover: false }, walk, origins)
}

pub fn origins(options: &OriginsOptions) -> Result<(), Failure> {
    if options.listen.len() != ORIGINS.len() {
        return Err("--listen: give three addresses".into());
    }
    let listeners = options.listen.iter().map(|address| bind_one(*address)).collect::<Result<Vec<_>, _>>()?;
    std::fs::create_dir_all(&options.data)
        .map_err(|e| format!("--data: cannot make {}: {e}", options.data.display()))?;
    let origins = run_origins(listeners, &options.data)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            ended = origins => ended,
            _ = tokio::signal::ctrl_c() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    })
}

/// All three, until one fails.
fn run_origins(
    listeners: Vec<std::net::TcpListener>,
    data: &Path,
) -> Result<impl Future<Output = Result<(), Failure>> + use<>, Failure> {
    let mut shards = Vec::new();
    for shard in 0..2 {
        let path = data.join(format!("shard_{shard}.sqlite"));
        shards.push(SharedDb::open(&path).map_err(|e| format!("--data: cannot open {}: {e}", path.display()))?);
    }
    Ok(async move {
        let mut serving = Vec::new();
        for (listener, (id, shard)) in listeners.into_iter().zip(ORIGINS) {
            let (listener, shard) = (TcpListener::from_std(listener)?, shards[shard].clone());
            let origin = serve(listener, id.to_owned(), shard, std::future::pending());
            serving.push(tokio::task::spawn_local(origin));
        }
        for origin in serving {
            origin.await??;
        }
        Ok(())
    })
}

fn configuration(port: u16, admin_port: u16, [a, b, c]: [u16; 3]) -> String {
    format!(
        r#"# Written by `edgekeep demo` at each start. Copy it to begin a configuration of your own.

[server]
listen = ["127.0.0.1:{port}"]

[admin]
listen = "127.0.0.1:{admin_port}"

[session]
keys = "keys.json"

[store]
path = "edgekeep.redb"

[shards.users]
count = 2

[[pools]]
shard = "shard_0"
origins = [{{ id = "a", url = "http://127.0.0.1:{a}" }}, {{ id = "b", url = "http://127.0.0.1:{b}" }}]

[[pools]]
shard = "shard_1"
origins = [{{ id = "c", url = "http://127.0.0.1:{c}" }}]

[[pools]]
shard = "shard_*"
origins = [{{ id = "photos", url = "http://127.0.0.1:{a}" }}]

[log]
access = false

[[routes]]
path = "/health"
auth = "none"
shard = "any"

[[routes]]
path = "/public/{{rest..}}"
methods = ["GET", "HEAD"]
auth = "optional"
shard = "any"

[[routes]]
path = "/users/{{user_id}}/profile"
auth = "session"
shard = "path:user_id"

[[routes]]
path = "/photos/{{month}}/{{photo_id}}"
auth = "session"
shard = "photo:month"

[[routes]]
path = "/{{rest..}}"
auth = "session"
shard = "user"
"#
    )
}

fn walk(settings: &Settings, service: &str, ports: [u16; 3], data: &Path) -> String {
    let at = settings.config.server.listen.first().map(ToString::to_string).unwrap_or_default();
    let admin = settings.config.admin.listen;
    let [a, b, c] = ports;
    let data = data.display();
    format!(
        r#"Edgekeep is running.

  gateway   http://{at}
  admin     http://{admin}   (/healthz /readyz /metrics)
  origins   a http://127.0.0.1:{a} and b http://127.0.0.1:{b} on shard_0, c http://127.0.0.1:{c} on shard_1
  data      {data}
  service token   {service}

A walk, to paste into another terminal:

# your login service creates a session
SESSION=$(curl -sS http://{at}/v1/sessions -H 'Authorization: Bearer {service}' -d '{{"user_id": 42, "device_info": {{"name": "laptop"}}}}'); echo "$SESSION"
ACCESS=$(echo "$SESSION" | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
REFRESH=$(echo "$SESSION" | sed 's/.*"refresh_token":"\([^"]*\)".*/\1/')
# write and read a profile: the origin of user 42's shard answers
curl -sS -X PUT http://{at}/users/42/profile -H "Authorization: Bearer $ACCESS" -H 'Content-Type: application/json' -d '{{"name": "Ada"}}'; echo
curl -sS -i http://{at}/users/42/profile -H "Authorization: Bearer $ACCESS"; echo
# refresh: both tokens are new
SESSION=$(curl -sS http://{at}/v1/sessions/refresh -d "{{\"refresh_token\": \"$REFRESH\"}}"); echo "$SESSION"
ACCESS=$(echo "$SESSION" | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
# list the user's devices
curl -sS http://{at}/v1/sessions -H "Authorization: Bearer $ACCESS"; echo
# log out, and be refused
curl -sS -i -X DELETE http://{at}/v1/sessions/current -H "Authorization: Bearer $ACCESS"
curl -sS -i http://{at}/users/42/profile -H "Authorization: Bearer $ACCESS"; echo

Ctrl-C stops it."#
    )
}
