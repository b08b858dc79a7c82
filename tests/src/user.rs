//! A user's session, as an application holds it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::client::Request;
use crate::deployment::{Deployment, SERVICE_TOKEN};

/// What the login service was answered.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    pub access: String,
    pub refresh: String,
    pub expires_in: u64,
}

impl Session {
    pub fn from(answer: &Answer) -> Result<Session> {
        let document = answer.json()?;
        let text = |name: &str| {
            let value = document[name].as_str().map(str::to_owned);
            value.with_context(|| format!("no {name} in {answer}"))
        };
        ensure!(document["token_type"] == "Bearer", "{answer}");
        ensure!(answer.header("cache-control") == Some("no-store"), "a token that may be stored: {answer}");
        Ok(Session {
            id: text("session_id")?,
            access: text("access_token")?,
            refresh: text("refresh_token")?,
            expires_in: document["expires_in"].as_u64().with_context(|| format!("no expires_in in {answer}"))?,
        })
    }
}

impl Deployment {
    /// What the login service sends for a new session.
    pub fn create(&self, document: &Value) -> Request {
        self.post("/v1/sessions").bearer(SERVICE_TOKEN).json(document)
    }

    /// A new session of a user.
    pub fn login(&self, user: &str) -> Result<Session> {
        self.login_with(&json!({ "user_id": user }))
    }

    pub fn login_with(&self, document: &Value) -> Result<Session> {
        let answer = self.create(document).send()?.expect(201)?;
        self.note_secrets(&answer);
        Session::from(&answer)
    }

    /// A refresh that is answered, whatever the answer is. Each comes from an address of its own: failures are counted
    /// by address, and one scenario must not use up another's.
    pub fn refresh(&self, token: &str, user_agent: &str) -> Result<Answer> {
        let request = self.post("/v1/sessions/refresh").header("user-agent", user_agent).from(fresh_address());
        let answer = request.json(&json!({ "refresh_token": token })).send()?;
        self.note_secrets(&answer);
        Ok(answer)
    }

    /// Whether the user of a token gets in: by a strict route, which sees every revocation at once.
    pub fn is_let_in(&self, access: &str) -> Result<bool> {
        let answer = self.get("/echo/account/me").bearer(access).send()?;
        match answer.status {
            200 => Ok(true),
            401 => Ok(false),
            _ => anyhow::bail!("neither let in nor refused: {answer}"),
        }
    }

    /// A call of the login service about a user.
    pub fn service(&self, method: &str, target: &str) -> Request {
        self.request(method, target).bearer(SERVICE_TOKEN)
    }
}

/// A loopback address that no other call of this process has.
pub fn fresh_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 77, high, low)
}
