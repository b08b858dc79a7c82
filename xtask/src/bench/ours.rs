//! Our gateway as a peer: started as its users start it, with tokens it issued itself.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, ensure};
use serde_json::json;

use super::machine::PROXY_CORE;
use super::peer::{Peer, Refused, agent};
use super::process::{Running, free_address};
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
        let said = super::process::run(Command::new(&binary).arg("--version"))?;
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

/// One session each for [`tokens::COUNT`] users, through the API that a login service uses.
pub fn create_sessions(address: SocketAddr, service_token: &str) -> anyhow::Result<Tokens> {
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
