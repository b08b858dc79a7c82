//! `cargo xtask bench gateway`: what a proxied and checked request costs here and at the peers.
//!
//! Checking: ours in `token` and `session` mode, HAProxy with `jwt_verify` and an `exp` check, Envoy's `jwt_authn`.
//! Floors: nginx and HAProxy as plain proxies, and a bare hyper proxy of our own shape. All have the same origin and
//! the same load, and each runs alone on its core while the load and the origin share another.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::machine::{LOAD_CORE, PROXY_CORE};
use super::ours::{Mode, Ours};
use super::peer::{Peer, Refused};
use super::process::{Running, free_address};
use super::report::Report;
use super::rounds::{Load, interleave};
use super::tokens::{self, Signer, Tokens};
use super::{Options, install, root, run_dir};

const PEERS: [&str; 7] = ["token", "session", "haproxy-jwt", "envoy-jwt", "nginx-plain", "haproxy-plain", "bare"];

/// The origin's answer: about what a small API call returns.
const BODY: &str =
    r#"{"id":"42","name":"A user of the origin","email":"user@example.org","roles":["reader","writer"],"active":true}"#;

pub fn run(options: &Options) -> anyhow::Result<()> {
    let selection = options.selection(&PEERS)?;
    let binaries = install::build("edgekeep-tests", &["load", "bench_origin", "bare_proxy"])?;
    let field = Field::prepare(&binaries)?;
    let ours =
        if selection.iter().any(|name| matches!(*name, "token" | "session")) { Some(Ours::build()?) } else { None };

    let mut peers = Vec::new();
    let mut missing = Vec::new();
    for name in selection {
        let started = match (name, &ours) {
            ("token", Some(ours)) => Ok(ours.start(Mode::Token, field.origin, BODY, &field.dir)?),
            ("session", Some(ours)) => Ok(ours.start(Mode::Session, field.origin, BODY, &field.dir)?),
            _ => field.start(name),
        };
        match started {
            Ok(peer) => peers.push(peer),
            Err(error) if options.asked_by_name() => return Err(error.context(name)),
            Err(error) => missing.push(format!("{name}: {error:#}")),
        }
    }

    let samples =
        interleave(&peers, &Load { binary: binaries.join("load"), origin: Some(&field.origin_process) }, options)?;
    let mut report = Report::new("gateway", "token", options, &peers, samples)?;
    report.missing = missing;
    report.print(options.json)
}

/// What all peers share: the origin, the tokens, the folder of the run.
struct Field {
    dir: PathBuf,
    binaries: PathBuf,
    origin: SocketAddr,
    origin_process: Running,
    signer: Signer,
    tokens: Tokens,
    tokens_file: PathBuf,
}

impl Field {
    fn prepare(binaries: &Path) -> anyhow::Result<Field> {
        let dir = run_dir("gateway")?;
        let origin = free_address()?;
        let mut command = Command::new(binaries.join("bench_origin"));
        command.args(["--listen", &origin.to_string(), "--body", BODY]);
        let mut process = Running::start("origin", &command, LOAD_CORE, &dir)?;
        process.wait_for(origin)?;

        let signer = Signer::generate()?;
        let tokens = signer.sign_all()?;
        eprintln!("signed {} tokens of {} bytes for the peers", tokens::COUNT, tokens.mean_length());
        let tokens_file = tokens.write(dir.join("tokens"))?;
        Ok(Field { dir, binaries: binaries.to_owned(), origin, origin_process: process, signer, tokens, tokens_file })
    }

    /// Installs, starts and proves one of the peers that are not ours.
    fn start(&self, name: &'static str) -> anyhow::Result<Peer> {
        let listen = free_address()?;
        let (command, what, version) = match name {
            "haproxy-jwt" | "haproxy-plain" => {
                let version = install::debian("haproxy")?;
                let jwt = name == "haproxy-jwt";
                let template = if jwt { "haproxy-jwt.cfg" } else { "haproxy.cfg" };
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f"]).arg(self.configuration(template, listen)?);
                let what = if jwt { "jwt_verify, with checks of alg, iss and exp" } else { "plain proxy, a floor" };
                (command, what, version)
            }
            "envoy-jwt" => {
                let (binary, version) = install::envoy()?;
                let mut command = Command::new(binary);
                command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warn", "--config-path"]);
                command.arg(self.configuration("envoy.yaml", listen)?);
                (command, "jwt_authn, with checks of iss, aud and exp", version)
            }
            "nginx-plain" => {
                let version = install::debian("nginx")?;
                let mut command = Command::new("nginx");
                command.arg("-p").arg(&self.dir).arg("-c").arg(self.configuration("nginx.conf", listen)?);
                (command, "plain proxy, a floor", version)
            }
            _ => {
                let mut command = Command::new(self.binaries.join("bare_proxy"));
                command.args(["--listen", &listen.to_string(), "--origin", &self.origin.to_string()]);
                (command, "hyper in our gateway's shape, nothing decided: our floor", "tests/src/bin".to_owned())
            }
        };
        let mut process = Running::start(name, &command, PROXY_CORE, &self.dir)?;
        process.wait_for(listen)?;
        let peer = Peer {
            name,
            what,
            version,
            process: Rc::new(process),
            address: listen,
            path: "/bench".to_owned(),
            headers: Vec::new(),
            tokens: self.tokens_file.clone(),
            body: Some(BODY.to_owned()),
        };
        let refused = if name.ends_with("-jwt") { self.refused()? } else { Vec::new() };
        peer.prove(self.tokens.first()?, &refused)?;
        Ok(peer)
    }

    /// What every checking peer must answer with 401.
    fn refused(&self) -> anyhow::Result<Vec<Refused>> {
        let stranger = Signer::generate()?;
        Ok(vec![
            Refused { why: "no token", token: None },
            Refused { why: "a changed signature", token: Some(tokens::tampered(self.tokens.first()?)) },
            Refused { why: "another key's signature", token: Some(stranger.sign(0, 60)?) },
            Refused { why: "an expired token", token: Some(self.signer.sign_expired()?) },
        ])
    }

    /// A peer's configuration from `tests/peers/gateway`, its `{{placeholders}}` filled in.
    fn configuration(&self, template: &str, listen: SocketAddr) -> anyhow::Result<PathBuf> {
        let source = root().join("tests/peers/gateway").join(template);
        let mut text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        for (name, value) in [
            ("port", listen.port().to_string()),
            ("dir", self.dir.display().to_string()),
            ("origin", self.origin.to_string()),
            ("origin_host", self.origin.ip().to_string()),
            ("origin_port", self.origin.port().to_string()),
            ("issuer", tokens::ISSUER.to_owned()),
            ("audience", tokens::AUDIENCE.to_owned()),
            ("kid", self.signer.kid.clone()),
            ("secret", self.signer.secret.clone()),
            ("secret_base64url", URL_SAFE_NO_PAD.encode(&self.signer.secret)),
        ] {
            text = text.replace(&format!("{{{{{name}}}}}"), &value);
        }
        let path = self.dir.join(template);
        fs::write(&path, text)?;
        Ok(path)
    }
}
