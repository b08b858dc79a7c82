//! The text that crosses between `entry.js` and this crate: one string a call, its first character says what it is.
//!
//! ```text
//! request head    METHOD \n URL { \n VALUE }          one VALUE for each request header that `start` named
//! response head   { \n VALUE } { \n SET-COOKIE }      one VALUE for each response header that it named
//!                                                     VALUE is `=` and the header's value, or empty: no such header
//!
//! forward         F NUMBER SP TIMEOUT SP BUFFER \n URL { \n EDIT }
//!                                   TIMEOUT in milliseconds until the response's head; a body of at most BUFFER bytes
//!                                   is kept, so that it can be sent again
//! body            B NUMBER SP LIMIT               read the request's body, at most LIMIT bytes
//! proceed         P NUMBER                        something has to be awaited
//! complete        C NUMBER                        the same, and it goes on when the client leaves: others wait for it
//! reply           R STATUS SP DUE \n POINT { \n EDIT } \n\n BODY
//! edits           E DUE \n POINT { \n EDIT }      of the head of the origin's response, which is the answer
//!                                   DUE is the number for `afterwards`, or `-`: nothing is left to do
//!
//! POINT           MILLISECONDS SP ROUTE           a metric point: how long the answer took, and its route's pattern
//! EDIT            = NAME : VALUE   set            + NAME : VALUE   append
//!                 - NAME           delete         * PREFIX         delete every name that begins so, `_` read as `-`
//! ```
//!
//! A header's value and a parsed URL can hold no line feed, so nothing needs escaping on the way in; on the way out
//! what would break a line is dropped.

use std::fmt::Write;

use edgekeep_core::http::{HeaderEdits, INTERNAL_PREFIX, drops_set_cookie};

/// Where a request goes, and how its head changes on the way.
pub struct Forward<'a> {
    pub number: u64,
    /// Milliseconds until the response's head must have come.
    pub timeout: u64,
    pub buffer: u64,
    pub url: &'a str,
    pub edits: &'a HeaderEdits,
}

/// What workerd would pass on, unlike the other headers of one connection. It takes the origin's 100 for its answer when
/// `expect` went there.
const NEVER_SENT: [&str; 4] = ["expect", "proxy-authenticate", "proxy-authorization", "proxy-connection"];

impl Forward<'_> {
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(512);
        // Writing to a String never fails.
        let _ = writeln!(out, "F{} {} {}", self.number, self.timeout, self.buffer);
        one_line(&mut out, self.url);
        for name in NEVER_SENT {
            line(&mut out, '-', name);
        }
        edits(&mut out, self.edits, &[], "");
        out
    }
}

/// What every final answer says besides itself.
pub struct Ending<'a> {
    /// The number under which something is left to do.
    pub due: Option<u64>,
    pub took_ms: u64,
    pub route: &'a str,
}

impl Ending<'_> {
    fn encode(&self, out: &mut String) {
        match self.due {
            Some(number) => _ = write!(out, "{number}"),
            None => out.push('-'),
        }
        let _ = write!(out, "\n{} ", self.took_ms);
        let end = (0..=POINT_INDEX.min(self.route.len())).rev().find(|at| self.route.is_char_boundary(*at));
        one_line(out, self.route.get(..end.unwrap_or(0)).unwrap_or_default());
    }
}

/// The most bytes of a data point's index.
const POINT_INDEX: usize = 96;

/// An answer made here, with nothing fetched.
pub fn reply(status: u16, head: &HeaderEdits, body: &[u8], ending: &Ending<'_>) -> String {
    let mut out = String::with_capacity(body.len() + 256);
    let _ = write!(out, "R{status} ");
    ending.encode(&mut out);
    edits(&mut out, head, &[], "");
    out.push_str("\n\n");
    out.push_str(&String::from_utf8_lossy(body));
    out
}

/// Changes to the head of an origin's response, which sent these `Set-Cookie` lines; `sticky` is the name of the
/// sticky cookie.
pub fn response_edits(head: &HeaderEdits, set_cookie: &[&str], sticky: &str, ending: &Ending<'_>) -> String {
    let mut out = String::with_capacity(128);
    out.push('E');
    ending.encode(&mut out);
    // The one header of the origin's connection that workerd passes on.
    line(&mut out, '-', "proxy-authenticate");
    edits(&mut out, head, set_cookie, sticky);
    out
}

/// Something has to be awaited.
pub fn proceed(number: u64) -> String {
    format!("P{number}")
}

/// Something has to be awaited, and done although the client leaves.
pub fn complete(number: u64) -> String {
    format!("C{number}")
}

/// The body is wanted.
pub fn body(number: u64, limit: u64) -> String {
    format!("B{number} {limit}")
}

/// In the order that core gives them: take out, set, add.
fn edits(out: &mut String, head: &HeaderEdits, set_cookie: &[&str], sticky: &str) {
    for name in &head.remove {
        line(out, '-', name);
    }
    if head.remove_internal {
        line(out, '*', INTERNAL_PREFIX);
    }
    if head.filter_set_cookie && set_cookie.iter().any(|cookie| drops_set_cookie(cookie.as_bytes(), sticky)) {
        line(out, '-', "set-cookie");
        for kept in set_cookie.iter().filter(|cookie| !drops_set_cookie(cookie.as_bytes(), sticky)) {
            pair(out, '+', "set-cookie", kept.as_bytes());
        }
    }
    for (name, value, adds) in head.lines() {
        pair(out, if adds { '+' } else { '=' }, name, value);
    }
}

fn line(out: &mut String, kind: char, name: &str) {
    out.push('\n');
    out.push(kind);
    one_line(out, name);
}

fn pair(out: &mut String, kind: char, name: &str, value: &[u8]) {
    line(out, kind, name);
    out.push(':');
    one_line(out, &String::from_utf8_lossy(value));
}

/// What a header may never hold is left out: it would forge another line here and another header on the wire.
fn one_line(out: &mut String, text: &str) {
    if text.bytes().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        out.extend(text.chars().filter(|c| !matches!(c, '\n' | '\r' | '\0')));
    } else {
        out.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending() -> Ending<'static> {
        Ending { due: None, took_ms: 3, route: "/{rest..}" }
    }

    #[test]
    fn a_value_cannot_forge_a_line() {
        let mut head = HeaderEdits::default();
        head.remove_internal = true;
        head.remove("te\nam");
        head.set("x-edgekeep-user", "42\r\n=x-admin:1");
        let plan = Forward { number: 7, timeout: 500, buffer: 10, url: "https://o.example/a\n-b", edits: &head };
        assert_eq!(
            plan.encode(),
            "F7 500 10\nhttps://o.example/a-b\n-expect\n-proxy-authenticate\n-proxy-authorization\n-proxy-connection\n-team\n*x-edgekeep-\n=x-edgekeep-user:42=x-admin:1"
        );
    }

    #[test]
    fn a_reply_keeps_every_cookie_and_the_whole_body() {
        let mut head = HeaderEdits::default();
        head.add("set-cookie", "a=1");
        head.add("set-cookie", "b=2");
        assert_eq!(
            reply(200, &head, b"one\n\ntwo", &ending()),
            "R200 -\n3 /{rest..}\n+set-cookie:a=1\n+set-cookie:b=2\n\none\n\ntwo"
        );
        let due = Ending { due: Some(9), ..ending() };
        assert_eq!(reply(204, &HeaderEdits::default(), b"", &due), "R204 9\n3 /{rest..}\n\n");
    }

    #[test]
    fn an_origin_keeps_its_cookies_and_loses_ours() {
        let mut head = HeaderEdits::default();
        head.filter_set_cookie = true;
        head.add("set-cookie", "DAB_ROUTE=new");
        let lines = ["theirs=1; Path=/", "dab_route=forged", "__Host-edgekeep-at=forged"];
        assert_eq!(
            response_edits(&head, &lines, "DAB_ROUTE", &ending()),
            "E-\n3 /{rest..}\n-proxy-authenticate\n-set-cookie\n+set-cookie:theirs=1; Path=/\n+set-cookie:DAB_ROUTE=new"
        );
        assert_eq!(
            response_edits(&head, &lines[..1], "DAB_ROUTE", &ending()),
            "E-\n3 /{rest..}\n-proxy-authenticate\n+set-cookie:DAB_ROUTE=new"
        );
    }
}
