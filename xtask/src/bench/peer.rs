//! A peer: something that runs, answers requests, and has shown that it checks what it is said to check.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::process::Running;

/// How long a freshly started peer may answer with anything but what is expected.
const SETTLE: Duration = Duration::from_secs(10);

pub struct Peer {
    pub name: &'static str,
    /// What it is and does, in a few words.
    pub what: &'static str,
    /// The version it states itself.
    pub version: String,
    /// The process whose CPU time is counted. Workers share one.
    pub process: Rc<Running>,
    pub address: SocketAddr,
    pub path: String,
    /// Sent with every request: what a deployment's front would have set. Name and value.
    pub headers: Vec<(String, String)>,
    /// The file of tokens sent in turn.
    pub tokens: PathBuf,
    /// The body that every answer must have; `None`: any.
    pub body: Option<String>,
}

/// A credential that a checking peer must refuse with 401.
pub struct Refused {
    pub why: &'static str,
    pub token: Option<String>,
}

impl Peer {
    /// Proves that it answers a good token as expected and, in `refused` order, the others with 401.
    pub fn prove(&self, good: &str, refused: &[Refused]) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let answer = self.ask(&self.path, Some(good), None)?;
            if answer.status == 200 && self.body.as_ref().is_none_or(|expected| *expected == answer.body) {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "{} answers a good token with {} {:?}\n{}",
                self.name,
                answer.status,
                answer.body,
                self.process.log_tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        for Refused { why, token } in refused {
            let status = self.ask(&self.path, token.as_deref(), None)?.status;
            if status != 401 {
                bail!("{} answers {status} where 401 is due: {why}", self.name);
            }
        }
        Ok(())
    }

    /// Asks once, over a connection of its own.
    pub fn ask(&self, path: &str, token: Option<&str>, cookie: Option<&str>) -> anyhow::Result<Answer> {
        let mut request = agent().get(format!("http://{}{path}", self.address));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        let mut answer = request.call().with_context(|| format!("{} gives no answer", self.name))?;
        let header = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
        let set_cookie = header("set-cookie");
        Ok(Answer {
            status: answer.status().as_u16(),
            cookie: set_cookie.and_then(|cookie| Some(cookie.split(';').next()?.to_owned())),
            origin: header("x-bench-origin"),
            body: answer.body_mut().read_to_string()?,
        })
    }
}

/// What a proof looks at.
pub struct Answer {
    pub status: u16,
    /// The cookie that it sets, as it is sent back.
    pub cookie: Option<String>,
    /// The origin that answered, where there are several.
    pub origin: Option<String>,
    pub body: String,
}

/// A client for which every status is an answer.
pub fn agent() -> ureq::Agent {
    let timeout = Some(Duration::from_secs(5));
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(timeout).build().new_agent()
}
