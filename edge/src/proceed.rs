//! The asynchronous way: whatever of an exchange waits for KV, for another fetch or for an object.

use js_sys::JsString;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use worker::{AnalyticsEngineDataPointBuilder, Context, Env, Fetch, Headers, Response, Url, console_error};

use crate::decision::{self, Exchange};
use crate::wire::{Edit, Reply};

/// How an attempt made by `entry.js` ended.
pub enum Outcome {
    /// Nothing was sent yet.
    NotSent,
    /// The origin's response, its body still unread.
    Answered(web_sys::Response),
    /// No response's head came in time.
    TimedOut,
    /// The fetch failed, and why: workerd tells no connection that was refused from one that was cut.
    Failed(String),
}

impl Outcome {
    pub fn from_js(outcome: JsValue) -> Outcome {
        match outcome.dyn_into::<web_sys::Response>() {
            Ok(response) => Outcome::Answered(response),
            Err(other) if other.is_undefined() => Outcome::NotSent,
            Err(other) if other.dyn_ref::<JsString>().is_some_and(|name| *name == "timeout") => Outcome::TimedOut,
            Err(other) => Outcome::Failed(worker::Error::from(other).to_string()),
        }
    }
}

/// Carries an exchange to its response. `exchange` is nothing when the instance that began it is gone.
pub async fn proceed(
    exchange: Option<Exchange>,
    _request: web_sys::Request,
    env: Env,
    ctx: Context,
    outcome: Outcome,
) -> Result<web_sys::Response, worker::Error> {
    let Some(exchange) = exchange else { return respond(&decision::problem(500, "interrupted")) };
    match outcome {
        Outcome::NotSent => count(&exchange, &env, &ctx).await,
        Outcome::Answered(response) => {
            // A body that nobody reads holds one of the few connections that a request may have open.
            if let Some(body) = response.body() {
                JsFuture::from(body.cancel()).await?;
            }
            respond(&decision::problem(503, "moved"))
        }
        Outcome::TimedOut => respond(&decision::problem(504, "response_timeout")),
        Outcome::Failed(reason) => {
            console_error!("origin: {reason}");
            respond(&decision::problem(502, "origin_failed"))
        }
    }
}

/// Reads a counter from KV, raises it after the answer, and passes on what the origin says when there is one.
async fn count(exchange: &Exchange, env: &Env, ctx: &Context) -> Result<web_sys::Response, worker::Error> {
    let kv = env.kv("KV")?;
    let seen: u64 = kv.get("skeleton").cache_ttl(30).text().await?.and_then(|text| text.parse().ok()).unwrap_or(0);
    let put = kv.put_bytes("skeleton", (seen + 1).to_string().as_bytes())?.expiration_ttl(60);
    ctx.wait_until(async move {
        if let Err(error) = put.execute().await {
            console_error!("KV: {error}");
        }
    });
    let Some(origin) = &exchange.origin else {
        return respond(&Reply { status: 200, headers: Vec::new(), body: format!("seen {seen}\n") });
    };
    let response = Fetch::Url(Url::parse(origin)?).send().await?;
    let headers = Headers::new();
    headers.set("x-seen", &seen.to_string())?;
    Ok(response.with_headers(headers).into())
}

/// One metric point for an exchange that was answered.
pub fn afterwards(exchange: &Exchange, env: &Env) -> Result<(), worker::Error> {
    let Some((status, took)) = exchange.answer else { return Ok(()) };
    AnalyticsEngineDataPointBuilder::new()
        .indexes([exchange.origin.as_deref().unwrap_or_default()])
        .add_double(f64::from(status))
        .add_double(took.0 as f64)
        .write_to(&env.analytics_engine("POINTS")?)
}

/// A reply made here, as the platform's response.
pub fn respond(reply: &Reply) -> Result<web_sys::Response, worker::Error> {
    let headers = Headers::new();
    for edit in &reply.headers {
        match edit {
            Edit::Set(name, value) => headers.set(name, value)?,
            Edit::Append(name, value) => headers.append(name, value)?,
            Edit::Delete(_) | Edit::DeletePrefix(_) => {}
        }
    }
    let response = if reply.body.is_empty() { Response::empty()? } else { Response::ok(reply.body.as_str())? };
    // `ok` names a content type of its own; the reply's headers replace it.
    Ok(response.with_status(reply.status).with_headers(headers).into())
}
