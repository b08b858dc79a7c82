//! RFC 9457 problem documents: one list of everything that Edgekeep itself answers when it says no.
//!
//! `type` is a URN with the code, `detail` helps the one who reads it, and neither ever carries a secret or what the
//! client sent, except the name of a field.

use serde_json::{Value, json};

/// Why Edgekeep answers for itself. The name is the `code` member and the end of `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemCode {
    BadRequest,
    BadPath,
    BadIdentity,
    BadInstant,
    MissingCredential,
    InvalidToken,
    ExpiredToken,
    SessionEnded,
    InvalidRefreshToken,
    Forbidden,
    CrossSite,
    NotFound,
    NoRoute,
    MethodNotAllowed,
    BodyTooLarge,
    HeadersTooLarge,
    TooManyRequests,
    TooManySessions,
    OriginFailed,
    OriginTimeout,
    NoOrigin,
    NoPool,
    StoreUnavailable,
    AuthorityUnavailable,
    ShardMoving,
    Reloaded,
    QueueFull,
    Internal,
}

impl ProblemCode {
    /// Status, code and title.
    pub const fn facts(self) -> (u16, &'static str, &'static str) {
        use ProblemCode as P;
        match self {
            P::BadRequest => (400, "bad_request", "The request is not valid"),
            P::BadPath => (400, "bad_path", "The path is ambiguous"),
            P::BadIdentity => (400, "bad_identity", "The user id is not valid"),
            P::BadInstant => (400, "bad_instant", "The instant is not valid"),
            P::MissingCredential => (401, "missing_credential", "A credential is required"),
            P::InvalidToken => (401, "invalid_token", "The access token is not valid"),
            P::ExpiredToken => (401, "expired_token", "The access token has expired"),
            P::SessionEnded => (401, "session_ended", "The session has ended"),
            P::InvalidRefreshToken => (401, "invalid_refresh_token", "The refresh token is not valid"),
            P::Forbidden => (403, "forbidden", "Not allowed"),
            P::CrossSite => (403, "cross_site", "Cross-site request refused"),
            P::NotFound => (404, "not_found", "Not found"),
            P::NoRoute => (404, "no_route", "No route matches"),
            P::MethodNotAllowed => (405, "method_not_allowed", "Method not allowed"),
            P::BodyTooLarge => (413, "body_too_large", "The body is too large"),
            P::TooManyRequests => (429, "too_many_requests", "Too many requests"),
            P::HeadersTooLarge => (431, "headers_too_large", "The headers are too large"),
            P::TooManySessions => (409, "too_many_sessions", "The user has too many sessions"),
            P::Internal => (500, "internal", "Internal error"),
            P::OriginFailed => (502, "origin_failed", "The origin failed"),
            P::NoOrigin => (503, "no_origin", "No origin is available"),
            P::NoPool => (503, "no_pool", "The shard has no pool"),
            P::StoreUnavailable => (503, "store_unavailable", "The session store is unavailable"),
            P::AuthorityUnavailable => (503, "authority_unavailable", "The session authority is unavailable"),
            P::ShardMoving => (503, "shard_moving", "The shard is being moved"),
            P::Reloaded => (503, "reloaded", "The configuration was reloaded"),
            P::QueueFull => (503, "queue_full", "Too many requests are waiting for the origin"),
            P::OriginTimeout => (504, "origin_timeout", "The origin did not answer in time"),
        }
    }
}

/// A refusal on its way to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: ProblemCode,
    pub detail: String,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u64>,
    /// Ask the client to forget both session cookies.
    pub clear_cookies: bool,
    /// With 405: what applies instead (RFC 9110 §15.5.6).
    pub allow: Option<&'static str>,
}

impl Problem {
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Problem {
        Problem { code, detail: detail.into(), retry_after: None, clear_cookies: false, allow: None }
    }

    /// More than `server.max_header_bytes`.
    pub fn headers_too_large() -> Problem {
        Problem::new(ProblemCode::HeadersTooLarge, "target and headers are larger than server.max_header_bytes")
    }

    pub fn retry_after(mut self, seconds: u64) -> Problem {
        self.retry_after = Some(seconds.max(1));
        self
    }

    pub fn status(&self) -> u16 {
        self.code.facts().0
    }

    pub fn body(&self) -> String {
        let (status, code, title) = self.code.facts();
        let mut document = json!({
            "type": format!("urn:edgekeep:problem:{code}"), "title": title, "status": status, "code": code,
        });
        if !self.detail.is_empty() {
            document["detail"] = Value::from(self.detail.as_str());
        }
        document.to_string()
    }

    /// RFC 6750 §3: a missing credential gets the bare challenge, a refused one says why.
    pub fn challenge(&self) -> Option<String> {
        let (status, _, title) = self.code.facts();
        match (status, self.code) {
            (401, ProblemCode::MissingCredential) => Some("Bearer realm=\"edgekeep\"".to_owned()),
            (401, _) => {
                Some(format!("Bearer realm=\"edgekeep\", error=\"invalid_token\", error_description=\"{title}\""))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn a_problem_is_a_document_with_type_title_status_and_detail() {
        let problem = Problem::new(ProblemCode::BadPath, "the path has an empty segment");
        let document: Value = serde_json::from_str(&problem.body()).unwrap();
        assert_eq!(document["type"], "urn:edgekeep:problem:bad_path");
        assert_eq!(document["status"].as_u64(), Some(400));
        assert_eq!(document["detail"], "the path has an empty segment");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn only_a_401_carries_a_challenge_and_a_missing_credential_gets_the_bare_one() {
        assert_eq!(Problem::new(ProblemCode::MissingCredential, "").challenge().unwrap(), "Bearer realm=\"edgekeep\"");
        assert!(Problem::new(ProblemCode::InvalidToken, "").challenge().unwrap().contains("error=\"invalid_token\""));
        assert_eq!(Problem::new(ProblemCode::Forbidden, "").challenge(), None);
    }
}
