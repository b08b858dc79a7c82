//! Forward-auth: another proxy asks whether a request may pass, and takes the identity headers from the answer.
//!
//! The original method and URI are believed only from `server.trusted_proxies`. A path below `/v1/authorize` is Envoy's
//! word, and then the headers are not: Envoy sets none of them, so they are the client's. Every answer carries all
//! identity headers, empty where nothing is known, so that none that a client sent survives the proxy's copy.

use super::own::ANY_METHOD;
use super::{Context, Decided, Exchange, Purpose, Reply, Step};
use crate::config::AuthMode;
use crate::http::{Head, HeaderEdits, Problem, ProblemCode, lines_of};
use crate::route::CanonicalPath;

/// Everything that an origin believes of Edgekeep.
const IDENTITY: [&str; 7] = [
    "x-edgekeep-user",
    "x-edgekeep-session",
    "x-edgekeep-shard",
    "x-edgekeep-shard-epoch",
    "x-edgekeep-shard-next",
    "x-edgekeep-shard-previous",
    "x-edgekeep-signature",
];

/// The request that the proxy asks about.
#[derive(Debug)]
pub(super) struct Original {
    pub mode: AuthMode,
    /// `None`: unknown, and so unsafe.
    pub method: Option<String>,
}

impl Exchange {
    pub(super) fn authorize(&mut self, below: Option<&str>, cx: &mut Context<'_>) -> Decided {
        // From here on every answer, a refusal too, carries the identity headers.
        self.purpose = Purpose::Authorize(Original { mode: AuthMode::Session, method: None });
        let (uri, method) = match below.filter(|_| self.client.trusted) {
            Some(below) => (Some(below), Some(cx.head.method())),
            None if self.client.trusted => original_in_headers(cx.head)?,
            None => (None, None),
        };
        let method = method.map(str::to_owned);
        self.purpose = Purpose::Authorize(Original { mode: AuthMode::Session, method: method.clone() });
        let Some(uri) = uri else { return self.admit(AuthMode::Session, cx) };
        let path = CanonicalPath::parse(uri).map_err(|e| Problem::new(ProblemCode::BadPath, e.to_string()))?;
        let host = Some(self.client.host.clone()).filter(|host| !host.is_empty());
        let mode_for = |method: &str| {
            let found = self.rules.router.find(method, host.as_deref(), &path)?;
            self.rules.config.routes.get(found.index).map(|route| route.auth)
        };
        // Without a method the strictest of all that it may have been counts.
        let mode = match method.as_deref() {
            Some(method) => mode_for(method),
            None => ANY_METHOD.split(", ").filter_map(mode_for).max_by_key(|mode| strictness(*mode)),
        };
        let Some(mode) = mode else {
            return Err(Problem::new(ProblemCode::Forbidden, "no route matches the original request"));
        };
        self.purpose = Purpose::Authorize(Original { mode, method });
        self.admit(mode, cx)
    }

    /// 200, with who it is.
    pub(super) fn authorized(&mut self) -> Step {
        let mut reply = Reply::empty(200);
        blank_identity(&mut reply.head);
        reply.head.set("cache-control", "no-store");
        if let Some(identity) = &self.identity {
            let claims = &identity.claims;
            reply.head.set_instead("x-edgekeep-user", &*claims.sub.header_form());
            reply.head.set_instead("x-edgekeep-session", claims.sid.to_string());
            if let Some(map) = &self.rules.map
                && let Ok(placement) = map.place(&claims.sub)
            {
                reply.head.set_instead("x-edgekeep-shard", placement.shard.to_string());
                reply.head.set_instead("x-edgekeep-shard-epoch", map.epoch().to_string());
                if let Some(next) = placement.next {
                    reply.head.set_instead("x-edgekeep-shard-next", next.to_string());
                }
                if let Some(previous) = placement.previous {
                    reply.head.set_instead("x-edgekeep-shard-previous", previous.to_string());
                }
            }
        }
        Step::Respond(Box::new(reply))
    }
}

/// All identity headers, empty.
pub(super) fn blank_identity(head: &mut HeaderEdits) {
    for name in IDENTITY {
        if !head.sets(name) {
            head.set(name, "");
        }
    }
}

fn strictness(mode: AuthMode) -> u8 {
    match mode {
        AuthMode::None => 0,
        AuthMode::Optional => 1,
        AuthMode::Token => 2,
        AuthMode::Session => 3,
        AuthMode::Strict => 4,
    }
}

/// URI and method from the headers of a trusted proxy. A proxy that sets one family of them passes the client's other
/// one on: where both are there and say different things, nobody knows which is the proxy's.
fn original_in_headers(head: &dyn Head) -> Result<(Option<&str>, Option<&str>), Problem> {
    let forwarded = (said(head, "x-forwarded-uri")?, said(head, "x-forwarded-method")?);
    let original = (said(head, "x-original-uri")?, said(head, "x-original-method")?);
    let (uri, method) = match (forwarded, original) {
        ((None, None), original) => original,
        (forwarded, (None, None)) => forwarded,
        (forwarded, original) if forwarded == original => forwarded,
        _ => {
            let detail =
                "X-Forwarded-Uri/-Method and X-Original-URI/-Method disagree: the proxy must set or remove all four";
            return Err(Problem::new(ProblemCode::Forbidden, detail));
        }
    };
    Ok((uri.map(path_of), method))
}

/// What a proxy says under one name. A second line is the client's, and bytes that are no text are a path that nobody
/// can judge: either must not pass for a header that is not there, whose route would be a milder one.
fn said<'h>(head: &'h dyn Head, name: &str) -> Result<Option<&'h str>, Problem> {
    let lines = lines_of(head, name);
    if lines > 1 {
        let detail = format!("{name} is there {lines} times: the proxy must replace the client's");
        return Err(Problem::new(ProblemCode::Forbidden, detail));
    }
    let Some(value) = head.header(name) else { return Ok(None) };
    let text = std::str::from_utf8(value);
    text.map(Some).map_err(|_| Problem::new(ProblemCode::BadPath, format!("{name} must be UTF-8")))
}

/// The path of a URI in origin or absolute form, without its query. The query goes first: what stands in it is the
/// client's to choose and must not pass for another URI. A `#` stays, and is refused: nginx passes on what follows it,
/// and not every origin takes that for a fragment.
fn path_of(uri: &str) -> &str {
    let uri = uri.split('?').next().unwrap_or_default();
    match uri.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => uri,
    }
}
