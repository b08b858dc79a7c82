//! The OAuth endpoints, for clients that already speak it: the refresh grant (RFC 6749 §6), revocation (RFC 7009) and
//! introspection (RFC 7662). Errors are RFC 6749 JSON; an answer never tells whether a token was ever good, and so never
//! why one is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::own::Stored;
use super::{Awaiting, Context, Decided, Exchange, Reply, Step};
use crate::SessionId;
use crate::http::{Problem, ProblemCode};
use crate::session::{RefreshToken, StoreOp, StoreOutcome};
use crate::token::AccessClaims;

/// A token being introspected.
#[derive(Debug)]
pub(super) enum Introspected {
    Access(Box<AccessClaims>),
    Refresh(RefreshToken),
}

/// A client that has shown itself (RFC 6749 §2.3). Edgekeep gives out no client secrets: clients are public and name
/// themselves, except one that presents the service credential as its secret.
#[derive(Debug, Default)]
struct OauthClient {
    id: Option<String>,
    is_service: bool,
}

impl Exchange {
    pub(super) fn oauth_token(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let form = form(bytes, cx)?;
        let (scope, token) = (value(&form, "scope")?, value(&form, "refresh_token")?);
        match value(&form, "grant_type")? {
            Some("refresh_token") => {}
            Some(_) => return Ok(refusal(400, "unsupported_grant_type", "only refresh_token is granted here")),
            None => return Err(Problem::new(ProblemCode::BadRequest, "grant_type is required")),
        }
        let client = self.oauth_client(&form, cx)?;
        // §6: none that was not granted before, and no session has one.
        if scope.is_some() {
            return Ok(refusal(400, "invalid_scope", "no scope was ever granted: leave it out"));
        }
        let Some(token) = token else {
            return Err(Problem::new(ProblemCode::BadRequest, "refresh_token is required"));
        };
        self.start_refresh(token, false, client.id, cx)
    }

    /// Ends the session of a token, of either kind; an unknown or bad one, and another client's, gets the same answer.
    pub(super) fn oauth_revoke(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let form = form(bytes, cx)?;
        let token = token_asked_about(&form)?;
        let client = self.oauth_client(&form, cx)?;
        let only_for = client.id.filter(|_| !client.is_service);
        let id = match RefreshToken::open(token, |id| self.rules.refresh_key(id)) {
            Ok(refresh) => match only_for {
                Some(client) => {
                    self.awaiting = Awaiting::Stored(Stored::OauthRevoking { id: refresh.session, client });
                    return Ok(Step::Store(Box::new(StoreOp::State(refresh.session))));
                }
                None => refresh.session,
            },
            Err(_) => match self.rules.verifier().verify(token, cx.now) {
                Ok(claims) if only_for.is_none_or(|client| *client == *claims.client_id) => claims.sid,
                _ => return Ok(revoked()),
            },
        };
        Ok(self.oauth_end(id, cx))
    }

    /// The session of a refresh token, whose client only the store knows.
    pub(super) fn oauth_revoking(
        &mut self,
        id: SessionId,
        client: &str,
        outcome: &StoreOutcome,
        cx: &Context<'_>,
    ) -> Step {
        match outcome {
            StoreOutcome::State(state, _) if *state.client_id == *client => self.oauth_end(id, cx),
            _ => revoked(),
        }
    }

    fn oauth_end(&mut self, id: SessionId, cx: &Context<'_>) -> Step {
        self.note_about(Some(id), None);
        self.awaiting = Awaiting::Stored(Stored::OauthRevoked);
        Step::Store(Box::new(StoreOp::Revoke { id, user: None, now: cx.now }))
    }

    /// RFC 7009 §2.2.1: what could be lost again is not called revoked. The client asks again.
    pub(super) fn oauth_revoked(&self, outcome: &StoreOutcome) -> Decided {
        match outcome {
            StoreOutcome::Revoked { replicated: false, .. } => Err(self.store_unavailable()),
            _ => Ok(revoked()),
        }
    }

    /// RFC 7662 §2.1: the service credential, as a bearer token or as a client's secret.
    pub(super) fn check_introspection(&mut self, cx: &Context<'_>) -> Result<(), Problem> {
        if !self.rules.secrets.has_service() {
            return self.check_service(cx);
        }
        match cx.head.header("authorization").and_then(Basic::read) {
            Some(basic) => self.basic_client(&basic).map(|_| ()),
            None => self.check_service(cx),
        }
    }

    /// Who asks. §6: a client that sends a secret is never taken for one that does not.
    fn oauth_client(&mut self, form: &Form, cx: &Context<'_>) -> Result<OauthClient, Problem> {
        let bad = |detail: &str| Problem::new(ProblemCode::BadRequest, detail);
        let (id, secret) = (value(form, "client_id")?, value(form, "client_secret")?);
        let Some(basic) = cx.head.header("authorization").and_then(Basic::read) else {
            let is_service = secret.map(|secret| self.is_client_secret(&[secret])).transpose()?.is_some();
            return Ok(OauthClient { id: id.map(str::to_owned), is_service });
        };
        if secret.is_some() {
            return Err(bad("the client authenticates in two ways at once"));
        }
        if id.is_some_and(|id| id != basic.id) {
            return Err(bad("client_id is not the client that authenticates"));
        }
        // A public client may send its name so, with an empty secret.
        let is_service = if basic.is_without_secret() { false } else { self.basic_client(&basic)? };
        Ok(OauthClient { id: Some(basic.id).filter(|id| !id.is_empty()), is_service })
    }

    fn basic_client(&mut self, basic: &Basic) -> Result<bool, Problem> {
        self.is_client_secret(&[&basic.secret, &basic.secret_as_sent]).map(|()| true)
    }

    fn is_client_secret(&mut self, spellings: &[&str]) -> Result<(), Problem> {
        let good = spellings.iter().fold(false, |good, secret| good | self.rules.secrets.is_service(secret));
        self.attempt = Some(good);
        if good { Ok(()) } else { Err(Problem::new(ProblemCode::InvalidToken, "the client is not authenticated")) }
    }

    /// For a caller with the service credential.
    pub(super) fn oauth_introspect(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let form = form(bytes, cx)?;
        let token = token_asked_about(&form)?;
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
                    "token_use": "access_token",
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
                    // No `token_type`: that is an access token's (RFC 6749 §7.1). Nobody may take this one for one.
                    "token_use": "refresh_token",
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

/// A refusal in RFC 6749's words (§5.2). `asked_by_resource` is introspection, which also takes a bearer token.
pub(super) fn error(problem: &Problem, asked_by_resource: bool) -> Step {
    let (status, code) = match problem.code {
        ProblemCode::InvalidRefreshToken => (400, "invalid_grant"),
        ProblemCode::MissingCredential | ProblemCode::InvalidToken => (401, "invalid_client"),
        ProblemCode::Forbidden => (403, "unauthorized_client"),
        ProblemCode::StoreUnavailable | ProblemCode::AuthorityUnavailable => (503, "temporarily_unavailable"),
        ProblemCode::TooManyRequests => (429, "temporarily_unavailable"),
        ProblemCode::Internal => (500, "server_error"),
        _ if problem.status() >= 500 => (problem.status(), "temporarily_unavailable"),
        _ => (problem.status(), "invalid_request"),
    };
    // One description for all of them: why would tell whether the token was ever good.
    let why = if code == "invalid_grant" { "the refresh token is not valid" } else { problem.detail.as_str() };
    let mut step = refusal(status, code, why);
    if let Step::Respond(reply) = &mut step {
        if let Some(seconds) = problem.retry_after {
            reply.head.set("retry-after", seconds.to_string());
        }
        if let Some(methods) = problem.allow {
            reply.head.set("allow", methods);
        }
        if status == 401 {
            let bearer = if asked_by_resource { ", Bearer realm=\"edgekeep\"" } else { "" };
            reply.head.set("www-authenticate", format!("Basic realm=\"edgekeep\"{bearer}"));
        }
    }
    step
}

fn refusal(status: u16, code: &str, description: &str) -> Step {
    let mut body = json!({"error": code});
    // §5.2 leaves out quotation marks, backslashes and all beyond ASCII; an empty one is none.
    let description: String = description.chars().filter(|c| matches!(c, ' '..='~') && !"\"\\".contains(*c)).collect();
    if !description.is_empty() {
        body["error_description"] = Value::from(description);
    }
    answer(status, &body)
}

/// `Authorization: Basic`, in which each half is written as in a form (RFC 6749 §2.3.1).
struct Basic {
    id: String,
    secret: String,
    /// Many clients leave the form's encoding out.
    secret_as_sent: String,
}

impl Basic {
    /// `None` for another scheme; what cannot be read is nobody's name and no secret of ours.
    fn read(header: &[u8]) -> Option<Basic> {
        let text = std::str::from_utf8(header).ok()?;
        let (scheme, encoded) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let both = STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let both = both.unwrap_or_else(|| ":\u{fffd}".to_owned());
        let (id, secret) = both.split_once(':').unwrap_or((&both, "\u{fffd}"));
        Some(Basic { id: from_form(id), secret: from_form(secret), secret_as_sent: secret.to_owned() })
    }

    fn is_without_secret(&self) -> bool {
        self.secret_as_sent.is_empty()
    }
}

fn from_form(text: &str) -> String {
    let pair = format!("={text}");
    form_urlencoded::parse(pair.as_bytes()).next().map(|(_, text)| text.into_owned()).unwrap_or_default()
}

type Form = Vec<(String, String)>;

fn form(bytes: &[u8], cx: &Context<'_>) -> Result<Form, Problem> {
    let media = cx.head.header("content-type").unwrap_or_default().split(|b| *b == b';').next().unwrap_or_default();
    if !media.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
        let detail = "the body must be application/x-www-form-urlencoded";
        // RFC 6749 §5.2 knows no other status for a malformed request.
        return Err(Problem::new(ProblemCode::BadRequest, detail));
    }
    Ok(form_urlencoded::parse(bytes).into_owned().collect())
}

/// The token that a revocation or an introspection is about. Its hint only says where to look first, and here that is
/// the same for all.
fn token_asked_about(form: &Form) -> Result<&str, Problem> {
    value(form, "token_type_hint")?;
    value(form, "token")?.ok_or_else(|| Problem::new(ProblemCode::BadRequest, "token is required"))
}

/// A parameter, which must not be there twice; an empty one is not there (RFC 6749 §3.2).
fn value<'f>(form: &'f Form, name: &str) -> Result<Option<&'f str>, Problem> {
    let mut values = form.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let first = values.next().filter(|v| !v.is_empty());
    if values.next().is_some() {
        return Err(Problem::new(ProblemCode::BadRequest, format!("{name} is given twice")));
    }
    Ok(first)
}
