//! How the four operations are said: to Edgekeep with tokens and a service credential, to the session libraries with
//! a cookie. A session library has no service credential; its sessions come with a login.

use anyhow::Context;
use clap::ValueEnum;

use super::connection::Answer;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    Tokens,
    Cookies,
}

/// Where the operations are, each as `METHOD PATH`; `{user}` stands for a user.
#[derive(clap::Args)]
pub struct Paths {
    #[arg(long, default_value = "POST /v1/sessions")]
    create: String,
    #[arg(long, default_value = "GET /v1/authorize")]
    validate: String,
    #[arg(long, default_value = "POST /v1/sessions/refresh")]
    refresh: String,
    #[arg(long, default_value = "DELETE /v1/users/{user}/sessions")]
    revoke_all: String,
}

/// A session as its client keeps it.
pub struct Session {
    pub user: String,
    /// The header that shows it, with its line's end.
    credential: String,
    /// The refresh token, where there is one.
    refresh_token: String,
}

impl Session {
    /// The same with another character in the credential: for a token and a signed cookie that is their signature, for
    /// any other it is another session's.
    pub fn changed(&self) -> Session {
        // Twenty from the end: behind it are padding and bits that belong to nothing.
        let at = self.credential.len().saturating_sub(20);
        let other = if self.credential[at..].starts_with('x') { "y" } else { "x" };
        let credential = format!("{}{other}{}", &self.credential[..at], &self.credential[at + 1..]);
        Session { user: self.user.clone(), credential, refresh_token: self.refresh_token.clone() }
    }
}

impl Dialect {
    pub fn create(self, paths: &Paths, service_token: &str, user: &str) -> Vec<u8> {
        let body = format!("{{\"user_id\":\"{user}\"}}");
        request(&paths.create, &self.service(service_token), &body)
    }

    pub fn validate(self, paths: &Paths, session: &Session) -> Vec<u8> {
        request(&paths.validate, &session.credential, "")
    }

    pub fn refresh(self, paths: &Paths, session: &Session) -> Vec<u8> {
        match self {
            Dialect::Tokens => {
                request(&paths.refresh, "", &format!("{{\"refresh_token\":\"{}\"}}", session.refresh_token))
            }
            Dialect::Cookies => request(&paths.refresh, &session.credential, ""),
        }
    }

    pub fn revoke_all(self, paths: &Paths, service_token: &str, user: &str) -> Vec<u8> {
        request(&paths.revoke_all.replace("{user}", user), &self.service(service_token), "")
    }

    /// The session that an answer to a creation brings.
    pub fn session(self, answer: &Answer<'_>, user: String) -> anyhow::Result<Session> {
        let mut session = Session { user, credential: String::new(), refresh_token: String::new() };
        self.take(answer, &mut session).with_context(|| format!("no session in {answer}"))?;
        Ok(session)
    }

    /// What an answer to a refresh changes. A library may keep its cookie.
    pub fn refreshed(self, answer: &Answer<'_>, session: &mut Session) -> anyhow::Result<()> {
        let taken = self.take(answer, session);
        match self {
            Dialect::Tokens => taken.with_context(|| format!("no tokens in {answer}")),
            Dialect::Cookies => answer.names(&session.user),
        }
    }

    fn take(self, answer: &Answer<'_>, session: &mut Session) -> Option<()> {
        match self {
            Dialect::Tokens => {
                let access = answer.between("\"access_token\":\"", b"\"")?;
                session.credential = format!("authorization: Bearer {access}\r\n");
                session.refresh_token = answer.between("\"refresh_token\":\"", b"\"")?.to_owned();
            }
            Dialect::Cookies => {
                let cookie = answer.between("et-cookie: ", b";\r").or_else(|| answer.between("et-Cookie: ", b";\r"))?;
                session.credential = format!("cookie: {cookie}\r\n");
            }
        }
        Some(())
    }

    fn service(self, token: &str) -> String {
        match self {
            Dialect::Tokens => format!("authorization: Bearer {token}\r\n"),
            Dialect::Cookies => String::new(),
        }
    }
}

fn request(method_and_path: &str, headers: &str, body: &str) -> Vec<u8> {
    let content = match body {
        "" => String::new(),
        _ => format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()),
    };
    format!(
        "{method_and_path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: edgekeep-load\r\naccept: */*\r\n\
         {headers}{content}\r\n{body}"
    )
    .into_bytes()
}
