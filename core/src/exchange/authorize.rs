//! Forward-auth: another proxy asks whether a request may pass, and takes the identity headers from the answer.
//!
//! The original method and URI are believed only from `server.trusted_proxies`. Every answer carries all identity
//! headers, empty where nothing is known, so that none that a client sent survives the proxy's copy.

use super::{Context, Decided, Exchange, Purpose, Reply, Step};
use crate::config::AuthMode;
use crate::http::{HeaderEdits, Problem, ProblemCode, header_text};
use crate::route::CanonicalPath;

/// The identity headers of an answer.
const IDENTITY: [&str; 4] = ["x-edgekeep-user", "x-edgekeep-session", "x-edgekeep-shard", "x-edgekeep-shard-epoch"];

/// The request that the proxy asks about.
#[derive(Debug)]
pub(super) struct Original {
    pub mode: AuthMode,
    /// `None`: unknown, and so unsafe.
    pub method: Option<String>,
}

impl Exchange {
    pub(super) fn authorize(&mut self, below: Option<&str>, cx: &mut Context<'_>) -> Decided {
        let from_header = self
            .client
            .trusted
            .then(|| header_text(cx.head, "x-forwarded-uri").or_else(|| header_text(cx.head, "x-original-uri")))
            .flatten();
        let method_header = self
            .client
            .trusted
            .then(|| header_text(cx.head, "x-forwarded-method").or_else(|| header_text(cx.head, "x-original-method")))
            .flatten();
        let (uri, method) = match (from_header, below) {
            (Some(uri), _) => (Some(path_of(uri)), method_header.map(str::to_owned)),
            (None, Some(below)) => (Some(below), Some(method_header.unwrap_or(cx.head.method()).to_owned())),
            (None, None) => (None, method_header.map(str::to_owned)),
        };
        // The answer says nothing about a request until this is set: refusals from here on carry blank identities.
        self.purpose = Purpose::Authorize(Original { mode: AuthMode::Session, method: method.clone() });
        let Some(uri) = uri else { return self.admit(AuthMode::Session, cx) };
        let path = CanonicalPath::parse(uri).map_err(|e| Problem::new(ProblemCode::BadPath, e.to_string()))?;
        let host = Some(self.client.host.clone()).filter(|host| !host.is_empty());
        // Without a method the strictest reading counts: no route is narrowed to an unknown method.
        let found = self.rules.router.find(method.as_deref().unwrap_or("POST"), host.as_deref(), &path);
        let Some(mode) = found.and_then(|found| self.rules.config.routes.get(found.index)).map(|route| route.auth)
        else {
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
            put(&mut reply.head, "x-edgekeep-user", claims.sub.header_form());
            put(&mut reply.head, "x-edgekeep-session", claims.sid.to_string());
            if let Some(map) = &self.rules.map
                && let Ok(placement) = map.place(&claims.sub)
            {
                put(&mut reply.head, "x-edgekeep-shard", placement.shard.to_string());
                put(&mut reply.head, "x-edgekeep-shard-epoch", map.epoch().to_string());
            }
        }
        Step::Respond(Box::new(reply))
    }
}

/// All identity headers, empty.
pub(super) fn blank_identity(head: &mut HeaderEdits) {
    for name in IDENTITY {
        if !head.set.iter().any(|(set, _)| *set == name) {
            head.set(name, "");
        }
    }
}

fn put(head: &mut HeaderEdits, name: &'static str, value: String) {
    head.set.retain(|(set, _)| *set != name);
    head.set(name, value);
}

/// The path of a URI in origin or absolute form, without its query.
fn path_of(uri: &str) -> &str {
    let uri = match uri.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => uri,
    };
    uri.split(['?', '#']).next().unwrap_or("/")
}
