//! What all peers of a row share: the origins, the tokens, the certificates, the folder; and how each is started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::super::machine::{BOTH_CORES, Cores, LOAD_CORE, PROXY_CORE};
use super::super::ours::{Front, Mode, Ours};
use super::super::peer::{Peer, Refused};
use super::super::process::{self, Running, free_address};
use super::super::tokens::{self, Signer, Tokens};
use super::super::{install, root};
use super::proof::{self, Job};
use super::rows::{REFERENCE, Row, Transport};

/// The origin's answer: about what a small API call returns.
const BODY: &str =
    r#"{"id":"42","name":"A user of the origin","email":"user@example.org","roles":["reader","writer"],"active":true}"#;

/// Seconds for which the load shows that a peer answers over TLS as it should.
const SHOWN: &str = "0.2";

/// What is the same in every row.
pub struct Programs {
    pub binaries: PathBuf,
    pub ours: Option<Ours>,
}

pub struct Field<'a> {
    row: &'a Row,
    programs: &'a Programs,
    dir: PathBuf,
    origins: [SocketAddr; 2],
    pub origins_process: Running,
    signer: Signer,
    tokens: Tokens,
}

impl<'a> Field<'a> {
    pub fn prepare(row: &'a Row, programs: &'a Programs, dir: &Path) -> anyhow::Result<Field<'a>> {
        let dir = dir.join(row.name);
        fs::create_dir_all(&dir)?;
        let origins = [free_address()?, free_address()?];
        let mut command = Command::new(programs.binaries.join("bench_origin"));
        command.args(["--body", BODY]);
        for origin in &origins {
            command.args(["--listen", &origin.to_string()]);
        }
        if let Some(length) = row.answer {
            command.args(["--length", &length.to_string()]);
        }
        let cores = if row.threads > 1 { BOTH_CORES } else { LOAD_CORE };
        let mut origins_process = Running::start("origins", &command, cores, &dir)?;
        for origin in origins {
            origins_process.wait_for(origin)?;
        }
        if row.transport != Transport::Plain {
            process::run(Command::new(programs.binaries.join("bench_certificates")).arg("--folder").arg(&dir))?;
        }
        let signer = Signer::generate()?;
        let tokens = signer.sign_all()?;
        Ok(Field { row, programs, dir, origins, origins_process, signer, tokens })
    }

    /// How the load asks every peer of this row.
    pub fn way_of_asking(&self, connections: usize) -> Vec<String> {
        self.row.way_of_asking(connections, &self.dir.join("authority.pem").display().to_string())
    }

    /// Starts a peer, installed before if need be, and has it prove what it does.
    pub fn start(&self, name: &'static str) -> anyhow::Result<Peer> {
        let (mut peer, own_tokens) = match (name, &self.programs.ours) {
            ("full", Some(ours)) => self.start_ours(ours, Mode::Full)?,
            ("token", Some(ours)) => self.start_ours(ours, Mode::Token)?,
            ("none", Some(ours)) => self.start_ours(ours, Mode::None)?,
            ("full-at-scale", Some(ours)) => self.start_ours(ours, Mode::FullAtScale)?,
            ("any-at-scale", Some(ours)) => self.start_ours(ours, Mode::AnyAtScale)?,
            _ => (self.start_other(name)?, None),
        };
        peer.body = self.row.answer.is_none().then(|| BODY.to_owned());
        let job = match name {
            "full" | "token" | "full-at-scale" => {
                Job { checks: true, user: Some("x-edgekeep-user"), shard: Some("x-edgekeep-shard"), sticky: true }
            }
            REFERENCE => Job { checks: true, user: Some("x-user"), shard: Some("x-shard"), sticky: true },
            "envoy" => Job { checks: true, user: Some("x-user"), ..Job::default() },
            _ => Job::default(),
        };
        let tokens = own_tokens.as_ref().unwrap_or(&self.tokens);
        let refused = self.refused(tokens, own_tokens.is_some())?;
        let sent = match self.row.transport {
            Transport::Plain => proof::prove(&peer, job, tokens, &refused)?,
            // What asks over TLS is the load. The cookies and headers were proven without.
            Transport::Tls | Transport::Http2 => {
                self.show(&peer, Some(tokens), "200")?;
                for Refused { why, token } in refused.into_iter().filter(|_| job.checks) {
                    let token = token.map(|token| Tokens(vec![token]));
                    self.show(&peer, token.as_ref(), "401").context(why)?;
                }
                Tokens(tokens.0.clone())
            }
        };
        peer.tokens = sent.write(self.dir.join(format!("{name}.tokens")))?;
        Ok(peer)
    }

    fn cores(&self) -> Cores {
        if self.row.threads > 1 { BOTH_CORES } else { PROXY_CORE }
    }

    fn start_ours(&self, ours: &Ours, mode: Mode) -> anyhow::Result<(Peer, Option<Tokens>)> {
        let front = Front {
            origins: &self.origins,
            threads: self.row.threads,
            cores: self.cores(),
            certificates: (self.row.transport != Transport::Plain).then_some(self.dir.as_path()),
        };
        let (peer, tokens) = ours.start(mode, &front, &self.dir)?;
        Ok((peer, Some(tokens)))
    }

    fn start_other(&self, name: &'static str) -> anyhow::Result<Peer> {
        let listen = free_address()?;
        let (command, what, version) = match name {
            REFERENCE => {
                let version = install::debian("haproxy")?;
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f"]).arg(self.configuration("haproxy.cfg", listen)?);
                (command, "jwt_verify, alg, iss and exp, backend by the user's hash, leastconn, cookie", version)
            }
            "envoy" => {
                let (binary, version) = install::envoy()?;
                let mut command = Command::new(binary);
                command.args(["--concurrency", &self.row.threads.to_string(), "--disable-hot-restart"]);
                command.args(["--log-level", "warn", "--config-path"]);
                command.arg(self.configuration("envoy.yaml", listen)?);
                (command, "jwt_authn with iss, aud and exp, LEAST_REQUEST; no cookie", version)
            }
            "nginx" => {
                let version = install::debian("nginx")?;
                let mut command = Command::new("nginx");
                command.arg("-p").arg(&self.dir).arg("-c").arg(self.configuration("nginx.conf", listen)?);
                (command, "no check, least_conn: a floor", version)
            }
            _ => {
                let mut command = Command::new(self.programs.binaries.join("bare_proxy"));
                command.args(["--listen", &listen.to_string()]);
                for origin in &self.origins {
                    command.args(["--origin", &origin.to_string()]);
                }
                (command, "hyper in our gateway's shape, origins in turn: our floor", "tests/src/bin".to_owned())
            }
        };
        let mut process = Running::start(name, &command, self.cores(), &self.dir)?;
        process.wait_for(listen)?;
        Ok(Peer {
            name,
            what,
            version,
            process: Rc::new(process),
            address: listen,
            path: "/bench".to_owned(),
            headers: Vec::new(),
            tokens: PathBuf::new(),
            body: None,
        })
    }

    /// What every checking peer must answer with 401. Of our own keys nobody here can make an expired token.
    fn refused(&self, tokens: &Tokens, ours: bool) -> anyhow::Result<Vec<Refused>> {
        let stranger = Signer::generate()?;
        let mut refused = vec![
            Refused { why: "no token", token: None },
            Refused { why: "a changed signature", token: Some(tokens::tampered(tokens.first()?)) },
            Refused { why: "another key's signature", token: Some(stranger.sign(0, 60)?) },
        ];
        if !ours {
            refused.push(Refused { why: "an expired token", token: Some(self.signer.sign_expired()?) });
        }
        Ok(refused)
    }

    /// Has the load ask a peer for a moment: every answer must have this status, and the origin's body if it is 200.
    fn show(&self, peer: &Peer, tokens: Option<&Tokens>, status: &str) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.binaries.join("load"));
        command.args(["--address", &peer.address.to_string(), "--path", &peer.path, "--expect-status", status]);
        command.args(["--warmup", "0", "--seconds", SHOWN]).args(self.way_of_asking(2));
        if let Some(tokens) = tokens {
            command.arg("--tokens").arg(tokens.write(self.dir.join("shown.tokens"))?);
        }
        if status == "200" {
            command.args(self.row.expected_length());
            command.args(peer.body.iter().flat_map(|body| ["--expect-body", body]));
        }
        process::run(&mut command).with_context(|| peer.process.log_tail())?;
        Ok(())
    }

    /// A peer's configuration from `tests/peers/gateway`, its `{{placeholders}}` filled in.
    fn configuration(&self, template: &str, listen: SocketAddr) -> anyhow::Result<PathBuf> {
        let source = root().join("tests/peers/gateway").join(template);
        let mut text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        let dir = self.dir.display().to_string();
        let [first, second] = self.origins;
        let (haproxy_tls, envoy_tls) = match self.row.transport {
            Transport::Plain => (String::new(), "name: plain".to_owned()),
            Transport::Tls | Transport::Http2 => {
                let alpn = if self.row.transport == Transport::Http2 { "h2" } else { "http/1.1" };
                (format!(" ssl crt {dir}/server.both.pem alpn {alpn}"), envoy_tls(&dir, alpn))
            }
        };
        for (name, value) in [
            ("listen", listen.to_string()),
            ("listen_port", listen.port().to_string()),
            ("origin_0", first.to_string()),
            ("origin_1", second.to_string()),
            ("origin_0_port", first.port().to_string()),
            ("origin_1_port", second.port().to_string()),
            ("haproxy_tls", haproxy_tls),
            ("envoy_tls", envoy_tls),
            ("threads", self.row.threads.to_string()),
            ("issuer", tokens::ISSUER.to_owned()),
            ("audience", tokens::AUDIENCE.to_owned()),
            ("kid", self.signer.kid.clone()),
            ("secret", self.signer.secret.clone()),
            ("secret_base64url", URL_SAFE_NO_PAD.encode(&self.signer.secret)),
            ("dir", dir.clone()),
        ] {
            text = text.replace(&format!("{{{{{name}}}}}"), &value);
        }
        let path = self.dir.join(template);
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// What makes an Envoy listener speak TLS, as one line of YAML.
fn envoy_tls(dir: &str, alpn: &str) -> String {
    const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let certificate = format!(
        "{{ certificate_chain: {{ filename: {dir}/server.pem }}, private_key: {{ filename: {dir}/server.key }} }}"
    );
    format!(
        "transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \"@type\": {TYPE}, \
         common_tls_context: {{ alpn_protocols: [{alpn}], tls_certificates: [{certificate}] }} }} }}"
    )
}
