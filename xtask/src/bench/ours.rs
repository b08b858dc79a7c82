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

use super::machine::{Cores, LOAD_CORE};
use super::peer::{Peer, agent};
use super::process::{self, Running, free_address};
use super::tokens::{self, Tokens};

/// What our gateway is to do for the one route that is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All of it: the token, the session, the user's shard out of two, the sticky cookie.
    Full,
    /// The same without the session.
    Token,
    /// Neither token, nor shards, nor cookie.
    None,
    /// As `Full`, as one of many: [`POOLS`] pools of [`POOL`] origins each and [`ROUTES`] routes.
    FullAtScale,
    /// As `None`, the choice of `shard = "any"` over all their origins.
    AnyAtScale,
}

/// What stands in a large configuration.
const POOLS: usize = 1000;
const POOL: usize = 20;
const ROUTES: usize = 5000;

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

    /// Starts a gateway in front of `origins` whose every route is of `mode`, and returns it with tokens of its own.
    pub fn start(&self, mode: Mode, front: &Front<'_>, dir: &Path) -> anyhow::Result<(Peer, Tokens)> {
        let (name, what) = match mode {
            Mode::Full => ("full", "ours: auth = \"session\", near-cached; verified-token cache off, 2 shards, sticky"),
            Mode::Token => ("token", "ours: auth = \"token\", verified-token cache off, 2 shards, sticky"),
            Mode::None => ("none", "ours: auth = \"none\", one pool, not sticky"),
            Mode::FullAtScale => ("full-at-scale", "as full, with 1,000 pools of 20 origins and 5,000 routes"),
            Mode::AnyAtScale => ("any-at-scale", "as none, over the 20,000 origins of 1,000 pools, with 5,000 routes"),
        };
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let address = free_address()?;
        let config = dir.join("edgekeep.toml");
        let service_token = tokens::random_text()?;
        let serve = |front: &Front<'_>| {
            fs::write(&config, configuration(mode, address, free_address()?, front))?;
            let mut command = Command::new(&self.binary);
            command.arg("serve").arg("--config").arg(&config).env("EDGEKEEP_SERVICE_TOKEN", &service_token);
            let mut process = Running::start(name, &command, front.cores, &dir)?;
            process.wait_for(address)?;
            anyhow::Ok(process)
        };
        // Sessions are created without TLS: they are the same afterwards.
        let plain = serve(&Front { certificates: None, ..*front })?;
        let tokens = create_sessions(address, &service_token)?;
        let process = match front.certificates {
            None => plain,
            Some(_) => {
                drop(plain);
                serve(front)?
            }
        };
        let peer = Peer {
            name,
            what,
            version: self.version.clone(),
            process: Rc::new(process),
            address,
            path: "/bench".to_owned(),
            headers: Vec::new(),
            tokens: tokens.write(dir.join("tokens"))?,
            body: None,
        };
        Ok((peer, tokens))
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

/// What stands before and behind our gateway.
#[derive(Clone, Copy)]
pub struct Front<'a> {
    pub origins: &'a [SocketAddr],
    pub threads: usize,
    pub cores: Cores,
    /// The folder of `server.pem` and `server.key`: clients come over TLS.
    pub certificates: Option<&'a Path>,
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
fn configuration(mode: Mode, listen: SocketAddr, admin: SocketAddr, front: &Front<'_>) -> String {
    let (auth, shard, shards) = match mode {
        Mode::Full => ("session", "user", 2),
        Mode::Token => ("token", "user", 2),
        Mode::None => ("none", "any", 1),
        Mode::FullAtScale => ("session", "user", POOLS),
        Mode::AnyAtScale => ("none", "any", POOLS),
    };
    let sticky = !matches!(mode, Mode::None | Mode::AnyAtScale);
    let at_scale = matches!(mode, Mode::FullAtScale | Mode::AnyAtScale);
    let threads = front.threads;
    let tls = front.certificates.map_or_else(String::new, |folder| {
        format!("tls = {{ cert = '{0}/server.pem', key = '{0}/server.key' }}\n", folder.display())
    });
    let pool = |shard: usize| {
        let origin = |(at, address)| format!("{{ id = \"{shard}-{at}\", url = \"http://{address}\" }}");
        let count = if at_scale { POOL } else { front.origins.len() };
        let origins: Vec<String> = front.origins.iter().cycle().take(count).enumerate().map(origin).collect();
        format!("[[pools]]\nshard = \"shard_{shard}\"\norigins = [{}]\n", origins.join(", "))
    };
    let pools: String = (0..shards).map(pool).collect();
    let route = |number| format!("[[routes]]\npath = \"/r{number}/{{id}}/{{rest..}}\"\n");
    let routes: String = (1..if at_scale { ROUTES } else { 1 }).map(route).collect();
    // What is measured is a request: 20,000 origins are checked 670 times a second otherwise.
    let health = if at_scale { "[health]\ninterval = \"1h\"\n" } else { "" };
    format!(
        r#"[server]
listen = ["{listen}"]
threads = {threads}
{tls}
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
count = {shards}

{pools}
[balance.sticky]
enabled = {sticky}

{health}
{routes}
[[routes]]
path = "/{{rest..}}"
auth = "{auth}"
shard = "{shard}"

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
