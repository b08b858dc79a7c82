//! The session authority: the native region that this Worker asks (DESIGN §4). Every call is bounded in time, and none
//! is ever repeated here.

use edgekeep_core::exchange::SessionAnswer;
use edgekeep_core::session::LoadedSession;
use edgekeep_core::{Millis, SessionId, Timestamp, UserId};
use serde_json::{Value, json};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{AbortSignal, Headers, RequestCache, RequestInit, RequestRedirect, Response, WorkerGlobalScope};

use crate::log;

/// Where the authority is, and what opens its calls for a Worker.
#[derive(Clone)]
pub struct Authority {
    /// Scheme, host and the prefix of Edgekeep's own paths, without a slash at the end.
    pub base: String,
    pub credential: String,
    /// For a whole call.
    pub timeout: Millis,
}

impl Authority {
    /// Whether a session lives. `asked_at` is the time before this call.
    pub async fn validate(&self, id: SessionId, user: &UserId, generation: u32, asked_at: Timestamp) -> SessionAnswer {
        let question = json!({"sid": id.to_string(), "sub": user.as_str(), "gen": generation}).to_string();
        let answer = self.call("POST", "/v1/edge/validate", Some(&question)).await;
        answer.map_or(SessionAnswer::Unavailable, |text| validated(&text, user, generation, asked_at))
    }

    /// Tells it that a generation was seen. May be lost.
    pub async fn confirm(&self, id: SessionId, generation: u32) {
        let seen = json!({"sid": id.to_string(), "gen": generation}).to_string();
        self.call("POST", "/v1/edge/confirm", Some(&seen)).await;
    }

    /// The shard map as JSON.
    pub async fn shard_map(&self) -> Option<String> {
        self.call("GET", "/v1/edge/shard-map", None).await
    }

    /// Its public keys, as a JWK set.
    pub async fn jwks(&self) -> Option<String> {
        self.call("GET", "/.well-known/jwks.json", None).await
    }

    /// The text of a successful answer.
    async fn call(&self, method: &str, path: &str, body: Option<&str>) -> Option<String> {
        match self.fetch(method, path, body).await {
            Ok(Ok(text)) => Some(text),
            Ok(Err(status)) => {
                log::error(&format!("authority: {path} answered {status}"));
                None
            }
            Err(error) => {
                log::error(&format!("authority: {path}: {}", worker::Error::from(error)));
                None
            }
        }
    }

    async fn fetch(&self, method: &str, path: &str, body: Option<&str>) -> Result<Result<String, u16>, JsValue> {
        let headers = Headers::new()?;
        headers.set("x-edgekeep-edge", &self.credential)?;
        let init = RequestInit::new();
        init.set_method(method);
        init.set_redirect(RequestRedirect::Manual);
        init.set_cache(RequestCache::NoStore);
        // Covers the body too, unlike the limit for an origin's head.
        init.set_signal(Some(&AbortSignal::timeout_with_u32(self.timeout.0.try_into().unwrap_or(u32::MAX))));
        if let Some(body) = body {
            headers.set("content-type", "application/json")?;
            init.set_body(&JsValue::from_str(body));
        }
        init.set_headers(&headers);
        let scope: WorkerGlobalScope = js_sys::global().unchecked_into();
        let sent = scope.fetch_with_str_and_init(&format!("{}{path}", self.base), &init);
        let response: Response = JsFuture::from(sent).await?.dyn_into()?;
        if !response.ok() {
            // A body that nobody reads holds one of the few connections that a request may have open.
            if let Some(body) = response.body() {
                JsFuture::from(body.cancel()).await?;
            }
            return Ok(Err(response.status()));
        }
        Ok(Ok(JsFuture::from(response.text()?).await?.as_string().unwrap_or_default()))
    }
}

/// Reads `{live, epoch, expires_at}`. Only what plainly says so is a session; what cannot be read is no answer.
fn validated(text: &str, user: &UserId, generation: u32, asked_at: Timestamp) -> SessionAnswer {
    let Ok(answer) = serde_json::from_str::<Value>(text) else { return SessionAnswer::Unavailable };
    let number = |name: &str| answer.get(name).and_then(Value::as_u64);
    match (answer.get("live").and_then(Value::as_bool), number("epoch"), number("expires_at")) {
        (Some(false), ..) => SessionAnswer::Missing,
        (Some(true), Some(epoch), Some(expires_at)) => SessionAnswer::Loaded(LoadedSession {
            user: user.clone(),
            epoch,
            live: true,
            expires_at: Timestamp(expires_at),
            // What the authority has been told of now: a token of a higher generation asks again (DESIGN §10).
            generation,
            checked_at: asked_at,
        }),
        _ => SessionAnswer::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_answer_is_believed() {
        let user = UserId::new("42").unwrap();
        let read = |text: &str| validated(text, &user, 5, Timestamp(77));
        let SessionAnswer::Loaded(session) = read(r#"{"live":true,"epoch":2,"expires_at":1000,"gen":9}"#) else {
            panic!("not loaded");
        };
        assert_eq!((session.epoch, session.expires_at, session.checked_at), (2, Timestamp(1000), Timestamp(77)));
        assert_eq!((session.generation, session.user.as_str()), (5, "42"), "what was reported, not what it knows");
        assert!(matches!(read(r#"{"live":false}"#), SessionAnswer::Missing));
        for text in ["", "true", "{}", r#"{"live":"true"}"#, r#"{"live":true}"#, r#"{"live":true,"epoch":1}"#] {
            assert!(matches!(read(text), SessionAnswer::Unavailable), "{text}");
        }
    }
}
