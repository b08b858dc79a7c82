//! CORS for routes that ask for it: preflights are answered here, and answers say who may read them.

use super::{Reply, Step};
use crate::config::CorsConfig;
use crate::http::{Head, HeaderEdits, header_text};

/// How long a browser may remember a preflight.
const MAX_AGE_SECONDS: &str = "600";

/// The method that a preflight asks about, when the request is one.
pub(super) fn preflight_method(head: &dyn Head) -> Option<&str> {
    if head.method() != "OPTIONS" || head.header("origin").is_none() {
        return None;
    }
    header_text(head, "access-control-request-method")
}

/// 204, with permission when the origin is listed and without it otherwise: the browser then refuses.
pub(super) fn answer_preflight(rule: &CorsConfig, head: &dyn Head) -> Step {
    let mut reply = Reply::empty(204);
    if is_listed(rule, head)
        && let Some(method) = head.header("access-control-request-method")
    {
        reply.head.set("access-control-allow-methods", method);
        if let Some(headers) = head.header("access-control-request-headers") {
            reply.head.set("access-control-allow-headers", headers);
        }
        reply.head.set("access-control-max-age", MAX_AGE_SECONDS);
    }
    Step::Respond(Box::new(reply))
}

/// Adds to an answer on such a route, a refusal too, what lets a listed origin read it. The route's rule is the only one:
/// what an origin server allows by itself is taken out.
pub(super) fn allow(rule: &CorsConfig, head: &dyn Head, edits: &mut HeaderEdits) {
    edits.remove("access-control-allow-origin");
    edits.remove("access-control-allow-credentials");
    edits.add("vary", "origin");
    let Some(origin) = header_text(head, "origin").filter(|_| is_listed(rule, head)) else { return };
    edits.set("access-control-allow-origin", origin);
    if rule.credentials {
        edits.set("access-control-allow-credentials", "true");
    }
}

fn is_listed(rule: &CorsConfig, head: &dyn Head) -> bool {
    header_text(head, "origin").is_some_and(|origin| rule.origins.allow(origin))
}
