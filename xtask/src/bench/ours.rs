//! Our gateway, started as its users start it, with tokens it issued itself: as a peer, or as the region beside our
//! Worker.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, ensure};
use serde_json::json;

use super::machine::{LOAD_CORE, PROXY_CORE};
use super::peer::{Peer, Refused, agent};
use super::process::{self, Running, free_address};
use super::tokens::{self, Tokens};

/// The `auth` of the one route that is measured.
#[derive(Clone, Copy)]
pub enum Mode {
    Token,
    Session,
}

/// The built gateway.
pub struct Ours {
    pub binary: PathBuf,
    pub version: String,
}

impl Ours {
    /// Builds it for release.
    pub fn build() -> anyhow::Result<Ours> {
        let binary = super::install::build("edgekeep", &["edgekeep"])?.join("edgekeep");
        let said = process::run(Command::new(&binary).arg("--version"))?;
        let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        Ok(Ours { binary, version })
    }

    /// Starts a gateway in front of `origin` whose every route is of `mode`, and proves that it checks.
    pub fn start(&self, mode: Mode, origin: SocketAddr, body: &str, dir: &Path) -> anyhow::Result<Peer> {
        let (name, what) = match mode {
            Mode::Token => ("token", "ours, auth = \"token\", verified-token cache off"),
            Mode::Session => ("session", "ours, auth = \"session\", verified-token cache off, sessions near-cached"),
        };
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let address = free_address()?;
        let config = dir.join("edgekeep.toml");
        fs::write(&config, configuration(mode, address, free_address()?, origin))?;

        let service_token = tokens::random_text()?;
        let mut command = Command::new(&self.binary);
        command.arg("serve").arg("--config").arg(&config).env("EDGEKEEP_SERVICE_TOKEN", &service_token);
        let mut process = Running::start(name, &command, PROXY_CORE, &dir)?;
        process.wait_for(address)?;

        let tokens = create_sessions(address, &service_token)?;
        let peer = Peer {
            name,
            what,
            version: self.version.clone(),
            process: Rc::new(process),
            address,
            path: "/bench".to_owned(),
            headers: Vec::new(),
            tokens: tokens.write(dir.join("tokens"))?,
            body: Some(body.to_owned()),
        };
        let refused = [
            Refused { why: "no token", token: None },
            Refused { why: "a changed signature", token: Some(tokens::tampered(tokens.first()?)) },
        ];
        peer.prove(tokens.first()?, &refused)?;
        eprintln!("{name}: ready; its tokens have {} bytes", tokens.mean_length());
        Ok(peer)
    }

    /// Starts a region on the load's core, has it issue the tokens, and writes what a Worker beside it is given.
    pub fn start_region(&self, dir: &Path) -> anyhow::Result<Region> {
        let dir = dir.join("region");
        fs::create_dir_all(&dir)?;
        let address = free_address()?;
        let config = dir.join("region.toml");
        fs::write(&config, region(address, free_address()?, free_address()?))?;

        let service_token = tokens::random_text()?;
        let edge_token = tokens::random_text()?;
        let command = |verb: &[&str]| {
            let mut command = Command::new(&self.binary);
            command.args(verb).arg("--config").arg(&config);
            command.env("EDGEKEEP_SERVICE_TOKEN", &service_token).env("EDGEKEEP_EDGE_TOKEN", &edge_token);
            command
        };
        let mut process = Running::start("region", &command(&["serve"]), LOAD_CORE, &dir)?;
        process.wait_for(address)?;
        let tokens = create_sessions(address, &service_token)?;

        let out = dir.join("edge");
        let mut export = command(&["config", "edge", "--dev"]);
        process::run(export.args(["--authority", &format!("http://{address}")]).arg("--out").arg(&out))?;
        let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
        let mut bindings = parse_dev_vars(&read(&dir.join(".dev.vars"))?);
        bindings.insert("EDGEKEEP_CONFIG".to_owned(), read(&out.join("config.json"))?);
        Ok(Region { tokens, bindings, _process: process })
    }
}

/// The region beside our Worker. Dropping it ends it.
pub struct Region {
    /// Issued by it, so that the Worker knows their key.
    pub tokens: Tokens,
    /// The Worker's text bindings: its configuration, its keys and its credential.
    pub bindings: BTreeMap<String, String>,
    _process: Running,
}

/// Keys and store are made in the configuration's folder on the first start.
fn configuration(mode: Mode, listen: SocketAddr, admin: SocketAddr, origin: SocketAddr) -> String {
    let auth = match mode {
        Mode::Token => "token",
        Mode::Session => "session",
    };
    format!(
        r#"[server]
listen = ["{listen}"]
threads = 1

[admin]
listen = "{admin}"

[session]
algorithm = "HS256"
token_cache = 0
access_ttl = "4h"
keys = "keys.json"

[store]
kind = "embedded"
path = "edgekeep.redb"

[limits]
creates = "1000000/1s"

[shards.users]
count = 1

[[pools]]
shard = "shard_0"
origins = [{{ id = "origin", url = "http://{origin}" }}]

[[routes]]
path = "/{{rest..}}"
auth = "{auth}"
shard = "any"

[log]
level = "warn"
access = false
"#
    )
}

/// Its Worker answers for `/bench` alone, and believes the proxy in front of it, which is this machine. Nothing is ever
/// forwarded to `origin`.
fn region(listen: SocketAddr, admin: SocketAddr, origin: SocketAddr) -> String {
    format!(
        r#"[server]
listen = ["{listen}"]
threads = 1
trusted_proxies = ["127.0.0.0/8"]

[admin]
listen = "{admin}"

[session]
algorithm = "HS256"
token_cache = 0
access_ttl = "4h"
keys = "keys.json"

[store]
kind = "embedded"
path = "edgekeep.redb"

[limits]
creates = "1000000/1s"

[shards.users]
count = 1

[[pools]]
shard = "shard_0"
origins = [{{ id = "origin", url = "http://{origin}" }}]

[[routes]]
path = "/bench"
auth = "token"
shard = "any"

[[routes]]
path = "/{{rest..}}"
auth = "session"
shard = "any"

[log]
level = "warn"
access = false
"#
    )
}

/// `NAME=value` lines as wrangler reads them: a value may stand in quotes; `#` starts a comment line.
fn parse_dev_vars(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (name, value) = line.trim().split_once('=').filter(|(name, _)| !name.starts_with('#'))?;
        let value = value.trim();
        let unquoted = ['\'', '"', '`'].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        Some((name.trim().to_owned(), unquoted.unwrap_or(value).to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

/// One session each for [`tokens::COUNT`] users, through the API that a login service uses.
fn create_sessions(address: SocketAddr, service_token: &str) -> anyhow::Result<Tokens> {
    let agent = agent();
    let create = |user: usize| -> anyhow::Result<String> {
        let mut answer = agent
            .post(format!("http://{address}/v1/sessions"))
            .header("authorization", format!("Bearer {service_token}"))
            .header("content-type", "application/json")
            .send(json!({ "user_id": tokens::user_id(user) }).to_string())?;
        let status = answer.status();
        let body = answer.body_mut().read_to_string()?;
        ensure!(status == 201, "POST /v1/sessions answers {status}: {body}");
        let session: serde_json::Value = serde_json::from_str(&body)?;
        let token = session.get("access_token").and_then(|token| token.as_str());
        Ok(token.with_context(|| format!("no access_token in {body}"))?.to_owned())
    };
    Ok(Tokens((0..tokens::COUNT).map(create).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_with_and_without_quotes() {
        let vars = parse_dev_vars("# made by build\nA=plain\nB='{\"k\": 1}'\nC=\"x=y\"\n\n");
        assert_eq!(vars.len(), 3);
        assert_eq!(vars["A"], "plain");
        assert_eq!(vars["B"], "{\"k\": 1}");
        assert_eq!(vars["C"], "x=y");
    }
}
