//! What becomes of a request.
//!
//! Paths under `/async` show the asynchronous way (KV, then a fetch); `/healthz` is answered at once; everything else
//! goes to the one origin that the variable `ORIGIN` names.

use edgekeep_core::{Millis, Timestamp};
use worker::Env;

use crate::isolate::Isolate;
use crate::wire::{Edit, Plan, Reply, RequestHead, ResponseHead};

/// The request headers that a decision may rest on, in the order that `entry.js` hands them over.
pub const REQUEST_HEADERS: [&str; 2] = ["host", "x-request-id"];
const REQUEST_ID: usize = 1;

/// The same for an origin's response.
pub const RESPONSE_HEADERS: [&str; 1] = ["x-edgekeep-refused"];
const REFUSED: usize = 0;

const RESPONSE_TIMEOUT: Millis = Millis::from_secs(30);

/// What the bindings say.
pub struct Settings {
    pub origin: Option<String>,
}

impl Settings {
    pub fn from_env(env: &Env) -> Settings {
        let origin = env.var("ORIGIN").ok().map(|origin| origin.to_string().trim_end_matches('/').to_owned());
        Settings { origin }
    }
}

/// A request on its way.
pub struct Exchange {
    pub path_and_query: String,
    pub begun: Timestamp,
    pub origin: Option<String>,
    /// The origin's status and how long its head took, once it has answered.
    pub answer: Option<(u16, Millis)>,
}

pub enum Decision {
    Reply(Reply),
    Forward(Plan, Exchange),
    Proceed(Exchange),
}

pub fn begin(isolate: &mut Isolate, head: &RequestHead<'_>, now: Timestamp) -> Decision {
    let path = head.path();
    if path == "/healthz" && matches!(head.method, "GET" | "HEAD") {
        return Decision::Reply(text(200, "ok\n"));
    }
    let exchange = Exchange {
        path_and_query: head.path_and_query().to_owned(),
        begun: now,
        origin: isolate.settings.origin.clone(),
        answer: None,
    };
    if path == "/async" || path.starts_with("/async/") {
        return Decision::Proceed(exchange);
    }
    let Some(origin) = &exchange.origin else { return Decision::Reply(problem(503, "no_pool")) };
    let request_id = match head.header(REQUEST_ID) {
        Some(id) if !id.is_empty() && id.len() <= 128 => id.to_owned(),
        _ => format!("{:016x}", isolate.entropy.next_u64()),
    };
    let plan = Plan {
        url: format!("{origin}{}", exchange.path_and_query),
        timeout: RESPONSE_TIMEOUT.0,
        edits: vec![
            Edit::DeletePrefix("x-edgekeep-"),
            Edit::Delete("authorization".into()),
            // workerd passes `expect: 100-continue` on and then takes the origin's 100 for its answer.
            Edit::Delete("expect".into()),
            Edit::Set("x-request-id", request_id),
        ],
    };
    Decision::Forward(plan, exchange)
}

/// The edits to the response's head and whether something is due afterwards; nothing when a retry has to be considered.
pub fn answered(
    exchange: &mut Exchange,
    status: u16,
    head: &ResponseHead<'_>,
    now: Timestamp,
) -> Option<(Vec<Edit>, bool)> {
    if status == 421 || head.header(REFUSED).is_some() {
        return None;
    }
    let took = now.since(exchange.begun);
    exchange.answer = Some((status, took));
    let timing = Edit::Append("server-timing", format!("origin;dur={}", took.0));
    Some((vec![Edit::DeletePrefix("x-edgekeep-"), timing], true))
}

/// Too many exchanges wait in this isolate.
pub fn overloaded() -> Reply {
    let mut reply = problem(503, "overloaded");
    reply.headers.push(Edit::Set("retry-after", "1".into()));
    reply
}

/// A problem document (RFC 9457) with a code of ours.
pub fn problem(status: u16, code: &str) -> Reply {
    Reply {
        status,
        headers: vec![
            Edit::Set("content-type", "application/problem+json".into()),
            Edit::Set("cache-control", "no-store".into()),
        ],
        body: format!("{{\"type\":\"about:blank\",\"status\":{status},\"code\":\"{code}\"}}"),
    }
}

fn text(status: u16, body: &str) -> Reply {
    let headers = vec![
        Edit::Set("content-type", "text/plain; charset=utf-8".into()),
        Edit::Set("cache-control", "no-store".into()),
    ];
    Reply { status, headers, body: body.to_owned() }
}
