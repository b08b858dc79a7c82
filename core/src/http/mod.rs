//! HTTP as core sees it: heads it may ask, header edits it orders, problem documents it answers with. The shells own
//! the wire; the rules of what passes, who the client is and what a cookie means stand here.

mod client;
mod cookie;
mod csrf;
mod edits;
mod head;
mod problem;
mod trace;

pub use client::{Client, forwarded_headers, is_host, resolve_client};
pub use cookie::{ACCESS_COOKIE, Cookie, Cookies, REFRESH_COOKIE, read_cookies, without_cookies};
pub use csrf::{Csrf, check_csrf};
pub(crate) use edits::push_decimal;
pub use edits::{
    HeaderEdits, HeaderLine, INTERNAL_PREFIX, drops_set_cookie, is_hop_by_hop, is_internal, may_trail, strip_request,
    strip_response,
};
pub use head::{AnswerHead, Head, Peer, header_text, lines_of};
pub use problem::{Problem, ProblemCode};
pub use trace::{request_id, traceparent};
