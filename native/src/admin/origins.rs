//! The origins as this gateway uses them, and what the operator may do to one: drain it, take it out, let it in again.

use bytes::Bytes;
use edgekeep_core::Timestamp;
use edgekeep_core::balance::{Admin as Wanted, Check, Origin, OriginId, Standing};
use edgekeep_core::health::Checks;
use http::header::{ALLOW, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{Admin, text, unauthorized};
use crate::gateway::clock;

/// As many ids are named to whoever asks for one that does not exist.
const NAMED: usize = 20;

/// `GET /origins`.
pub fn list(admin: &Admin) -> String {
    let (rules, checks, now) = (admin.shared.rules.load(), admin.checker.checks(), clock::now());
    let rows: Vec<Value> = rules.origins().map(|(pool, origin)| row(pool, origin, &checks, now)).collect();
    json!({ "origins": rows }).to_string()
}

/// `POST /origins/{id}/drain`, `/maintenance` and `/ready`. `below` is the path after `/origins/`. The id is one that the
/// configuration gives, and means every address of that origin, or one of these: `<id>@<address>`.
pub fn change(admin: &Admin, request: &Request<Incoming>, below: &str) -> Response<Full<Bytes>> {
    let refuse = |status, why: String| text(status, "text/plain", why + "\n");
    let wanted = below.split_once('/').and_then(|(id, what)| {
        let wanted = match what {
            "drain" => Wanted::Drain,
            "maintenance" => Wanted::Maintenance,
            "ready" => Wanted::Ready,
            _ => return None,
        };
        Some((id, what, wanted))
    });
    let Some((id, what, wanted)) = wanted else {
        let why = "POST /origins/{id}/drain, /origins/{id}/maintenance or /origins/{id}/ready";
        return refuse(StatusCode::NOT_FOUND, why.to_owned());
    };
    if request.method() != Method::POST {
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "only POST here".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    if admin.token.is_none() {
        let why = "the admin side is read-only: admin.token is not set";
        return refuse(StatusCode::FORBIDDEN, why.to_owned());
    }
    if !admin.admits(request) {
        return unauthorized();
    }
    let (rules, now) = (admin.shared.rules.load(), clock::now());
    let is_meant = |origin: &Origin| [origin.id.as_str(), origin.id.configured()].contains(&id);
    let meant: Vec<(&str, &Origin)> = rules.origins().filter(|(_, origin)| is_meant(origin)).collect();
    if meant.is_empty() {
        let mut known: Vec<&str> = rules.origins().map(|(_, origin)| origin.id.configured()).collect();
        known.dedup();
        if known.len() > NAMED {
            known.truncate(NAMED);
            known.push("…");
        }
        return refuse(StatusCode::NOT_FOUND, format!("no origin has the id {id:?}; there are {}", known.join(", ")));
    }
    if meant.iter().any(|(_, origin)| origin.state.admin() != wanted) {
        tracing::info!("origin {id} is set to {what} by the operator");
    }
    admin.shared.live.set_admin(&OriginId::new(id), wanted, now);
    let checks = admin.checker.checks();
    let rows: Vec<Value> = meant.into_iter().map(|(pool, origin)| row(pool, origin, &checks, now)).collect();
    text(StatusCode::OK, "application/json", json!({ "origins": rows }).to_string())
}

fn row(pool: &str, origin: &Origin, checks: &Checks, now: Timestamp) -> Value {
    let state = &origin.state;
    let (standing, traffic, counts) = (state.standing(now), state.traffic(now), checks.counts(&origin.id));
    json!({
        "pool": pool,
        "id": origin.id.as_str(),
        "url": origin.url,
        "weight": origin.weight,
        "max_connections": origin.max_connections,
        "state": standing.name(),
        "reason": reason(origin, standing, checks, now),
        "set_to": match state.admin() {
            Wanted::Ready => "ready",
            Wanted::Drain => "drain",
            Wanted::Maintenance => "maintenance",
        },
        "check": match state.check() {
            Check::Unknown => "unknown",
            Check::Up => "up",
            Check::Down => "down",
        },
        "checks": { "passed": counts.passed, "failed": counts.failed },
        "in_flight": state.in_flight(),
        "last_five_minutes": { "requests": traffic.requests, "errors": traffic.errors, "slow": traffic.slow },
        "ejections": state.ejections(),
    })
}

/// Why it is not simply up: what its last check met, or what live traffic did.
fn reason(origin: &Origin, standing: Standing, checks: &Checks, now: Timestamp) -> Option<String> {
    let failure = checks.failure(&origin.id).map(ToString::to_string);
    match standing {
        Standing::Ejected => {
            let until = origin.state.ejected_until(now)?;
            Some(format!("it failed live traffic; until {}", until.to_rfc3339()))
        }
        Standing::Degraded => Some(origin.state.traffic(now).to_string()),
        Standing::Refused => failure.or_else(|| Some("it refused a request's connection".to_owned())),
        Standing::Available | Standing::Drain | Standing::Maintenance | Standing::Down => failure,
    }
}
