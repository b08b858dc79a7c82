//! The OAuth endpoints, for clients that already speak it: the refresh grant (RFC 6749 §6), revocation (RFC 7009) and
//! introspection (RFC 7662). Errors are RFC 6749 JSON; an answer never tells whether a token was ever good.

use serde_json::{Value, json};

use super::own::Stored;
use super::{Awaiting, Context, Decided, Exchange, Reply, Step};
use crate::http::{Problem, ProblemCode};
use crate::session::{RefreshToken, StoreOp, StoreOutcome};
use crate::token::AccessClaims;

/// A token being introspected.
#[derive(Debug)]
pub(super) enum Introspected {
    Access(Box<AccessClaims>),
    Refresh(RefreshToken),
}

impl Exchange {
    pub(super) fn oauth_token(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let form = form(bytes, cx)?;
        match value(&form, "grant_type")? {
            Some("refresh_token") => {}
            Some(_) => return Ok(answer(400, &json!({"error": "unsupported_grant_type"}))),
            None => return Err(Problem::new(ProblemCode::BadRequest, "grant_type is required")),
        }
        let Some(token) = value(&form, "refresh_token")? else {
            return Err(Problem::new(ProblemCode::BadRequest, "refresh_token is required"));
        };
        let client_id = value(&form, "client_id")?.map(str::to_owned);
        self.start_refresh(token, false, client_id, cx)
    }

    /// Ends the session of a token, of either kind; an unknown or bad one gets the same answer.
    pub(super) fn oauth_revoke(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let form = form(bytes, cx)?;
        let Some(token) = value(&form, "token")? else {
            return Err(Problem::new(ProblemCode::BadRequest, "token is required"));
        };
        let session = match RefreshToken::open(token, |id| self.rules.refresh_key(id)) {
            Ok(refresh) => Some(refresh.session),
            Err(_) => self.rules.verifier().verify(token, cx.now).ok().map(|claims| claims.sid),
        };
        let Some(id) = session else { return Ok(revoked()) };
        self.note_about(Some(id), None);
        self.awaiting = Awaiting::Stored(Stored::OauthRevoked);
        Ok(Step::Store(Box::new(StoreOp::Revoke { id, user: None, now: cx.now })))
    }

    /// For a caller with the service credential.
    pub(super) fn oauth_introspect(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let form = form(bytes, cx)?;
        let Some(token) = value(&form, "token")? else {
            return Err(Problem::new(ProblemCode::BadRequest, "token is required"));
        };
        let asked = match RefreshToken::open(token, |id| self.rules.refresh_key(id)) {
            Ok(refresh) => Introspected::Refresh(refresh),
            Err(_) => match self.rules.verifier().verify(token, cx.now) {
                Ok(claims) => Introspected::Access(Box::new(claims)),
                Err(_) => return Ok(inactive()),
            },
        };
        let id = match &asked {
            Introspected::Access(claims) => claims.sid,
            Introspected::Refresh(refresh) => refresh.session,
        };
        self.awaiting = Awaiting::Stored(Stored::Introspected(asked));
        Ok(Step::Store(Box::new(StoreOp::State(id))))
    }

    pub(super) fn introspected(&self, asked: &Introspected, outcome: StoreOutcome, cx: &Context<'_>) -> Step {
        let StoreOutcome::State(state, epoch) = outcome else { return inactive() };
        if !state.is_live(epoch, cx.now) {
            return inactive();
        }
        let config = &self.rules.config.session;
        match asked {
            Introspected::Access(claims) if claims.sub == state.user => answer(
                200,
                &json!({
                    "active": true,
                    "token_type": "Bearer",
                    "iss": config.issuer,
                    "sub": claims.sub.as_str(),
                    "aud": config.audience,
                    "client_id": &*claims.client_id,
                    "iat": claims.iat.seconds(),
                    "exp": claims.exp.seconds(),
                    "jti": &*claims.jti,
                    "sid": claims.sid.to_string(),
                }),
            ),
            Introspected::Refresh(refresh) if refresh.counter == state.counter => answer(
                200,
                &json!({
                    "active": true,
                    "token_type": "refresh_token",
                    "iss": config.issuer,
                    "sub": state.user.as_str(),
                    "client_id": &*state.client_id,
                    "exp": state.idle.min(state.absolute).seconds(),
                    "sid": refresh.session.to_string(),
                }),
            ),
            _ => inactive(),
        }
    }
}

pub(super) fn token_answer(body: &Value) -> Step {
    answer(200, body)
}

/// RFC 7009 §2.2: 200, whatever the token was.
pub(super) fn revoked() -> Step {
    answer(200, &json!({}))
}

/// RFC 7662 §2.2: this and nothing else.
fn inactive() -> Step {
    answer(200, &json!({"active": false}))
}

fn answer(status: u16, body: &Value) -> Step {
    let mut reply = Reply::json(status, body);
    reply.head.set("cache-control", "no-store");
    reply.head.set("pragma", "no-cache");
    Step::Respond(Box::new(reply))
}

/// A refusal in RFC 6749's words.
pub(super) fn error(problem: &Problem) -> Step {
    let (status, code) = match problem.code {
        ProblemCode::InvalidRefreshToken => (400, "invalid_grant"),
        ProblemCode::MissingCredential | ProblemCode::InvalidToken => (401, "invalid_client"),
        ProblemCode::Forbidden => (403, "access_denied"),
        ProblemCode::StoreUnavailable | ProblemCode::AuthorityUnavailable => (503, "temporarily_unavailable"),
        ProblemCode::TooManyRequests => (429, "temporarily_unavailable"),
        ProblemCode::Internal => (500, "server_error"),
        _ => (problem.status(), "invalid_request"),
    };
    let mut reply = Reply::json(status, &json!({"error": code, "error_description": problem.detail}));
    reply.head.set("cache-control", "no-store");
    if let Some(seconds) = problem.retry_after {
        reply.head.set("retry-after", seconds.to_string());
    }
    if status == 401 {
        reply.head.set("www-authenticate", "Bearer realm=\"edgekeep\"");
    }
    Step::Respond(Box::new(reply))
}

type Form = Vec<(String, String)>;

fn form(bytes: &[u8], cx: &Context<'_>) -> Result<Form, Problem> {
    let media = cx.head.header("content-type").unwrap_or_default().split(|b| *b == b';').next().unwrap_or_default();
    if !media.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
        let detail = "the body must be application/x-www-form-urlencoded";
        return Err(Problem::new(ProblemCode::UnsupportedMediaType, detail));
    }
    Ok(form_urlencoded::parse(bytes).into_owned().collect())
}

/// A parameter, which must not be there twice (RFC 6749 §3.2).
fn value<'f>(form: &'f Form, name: &str) -> Result<Option<&'f str>, Problem> {
    let mut values = form.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let first = values.next().filter(|v| !v.is_empty());
    if values.next().is_some() {
        return Err(Problem::new(ProblemCode::BadRequest, format!("{name} is given twice")));
    }
    Ok(first)
}
