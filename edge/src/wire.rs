//! The text that crosses between `entry.js` and this crate: one string a call, its first character says what it is.
//!
//! ```text
//! request head    METHOD \n URL { \n VALUE }          one VALUE for each name that `start` returned
//! response head   { \n VALUE }                        VALUE is `=` and the header's value, or empty: no such header
//!
//! reply           R STATUS { \n EDIT } \n\n BODY
//! forward         F NUMBER SP TIMEOUT \n URL { \n EDIT }   TIMEOUT in milliseconds until the response's head, 0: none
//! proceed         P NUMBER
//! edits           E DUE { \n EDIT }                   DUE is 1 when `afterwards` is to be called, else 0
//!
//! EDIT            = NAME : VALUE   set      + NAME : VALUE   append
//!                 - NAME           delete   * PREFIX         delete every name that begins so
//! ```
//!
//! A header's value and a parsed URL can hold no line feed, so nothing needs escaping on the way in; on the way out
//! [`Edit`] drops what would break a line.

use std::fmt::Write;

/// A request's head as `entry.js` hands it over.
pub struct RequestHead<'a> {
    pub method: &'a str,
    /// Absolute, as the client sent it: `https://host/path?query`.
    pub url: &'a str,
    headers: Headers<'a>,
}

impl<'a> RequestHead<'a> {
    pub fn parse(head: &'a str) -> RequestHead<'a> {
        let mut lines = head.split('\n');
        let method = lines.next().unwrap_or_default();
        let url = lines.next().unwrap_or_default();
        RequestHead { method, url, headers: Headers::parse(lines) }
    }

    /// The path, without the query; `/` when the URL has none.
    pub fn path(&self) -> &'a str {
        let after_scheme = self.url.find("://").map_or(0, |at| at + 3);
        let rest = self.url.get(after_scheme..).unwrap_or_default();
        let path = rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/");
        path.split(['?', '#']).next().unwrap_or(path)
    }

    /// The path and the query, as they go to an origin.
    pub fn path_and_query(&self) -> &'a str {
        let after_scheme = self.url.find("://").map_or(0, |at| at + 3);
        let rest = self.url.get(after_scheme..).unwrap_or_default();
        let path = rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/");
        path.split('#').next().unwrap_or(path)
    }

    /// The value of the header at this place in the list that `start` returned.
    pub fn header(&self, place: usize) -> Option<&'a str> {
        self.headers.get(place)
    }
}

/// A response's named headers.
pub struct ResponseHead<'a>(Headers<'a>);

impl<'a> ResponseHead<'a> {
    pub fn parse(head: &'a str) -> ResponseHead<'a> {
        // The text begins with a line feed when there is any value, so the first piece is always empty.
        let mut lines = head.split('\n');
        lines.next();
        ResponseHead(Headers::parse(lines))
    }

    /// The value of the header at this place in the list that `start` returned.
    pub fn header(&self, place: usize) -> Option<&'a str> {
        self.0.get(place)
    }
}

struct Headers<'a>(Vec<Option<&'a str>>);

impl<'a> Headers<'a> {
    fn parse(lines: impl Iterator<Item = &'a str>) -> Headers<'a> {
        Headers(lines.map(|line| line.strip_prefix('=')).collect())
    }

    fn get(&self, place: usize) -> Option<&'a str> {
        self.0.get(place).copied().flatten()
    }
}

/// One change to a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    Set(&'static str, String),
    Append(&'static str, String),
    Delete(String),
    DeletePrefix(&'static str),
}

impl Edit {
    fn encode(&self, out: &mut String) {
        out.push('\n');
        match self {
            Edit::Set(name, value) => pair(out, '=', name, value),
            Edit::Append(name, value) => pair(out, '+', name, value),
            Edit::Delete(name) => {
                out.push('-');
                one_line(out, name);
            }
            Edit::DeletePrefix(prefix) => {
                out.push('*');
                out.push_str(prefix);
            }
        }
    }
}

fn pair(out: &mut String, kind: char, name: &str, value: &str) {
    out.push(kind);
    out.push_str(name);
    out.push(':');
    one_line(out, value);
}

/// What a header may never hold is left out: it would forge another line here and another header on the wire.
fn one_line(out: &mut String, text: &str) {
    if text.bytes().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        out.extend(text.chars().filter(|c| !matches!(c, '\n' | '\r' | '\0')));
    } else {
        out.push_str(text);
    }
}

/// An answer made here, with nothing fetched.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<Edit>,
    /// Text; empty means no body at all (as 204 and 304 need).
    pub body: String,
}

impl Reply {
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(self.body.len() + 128);
        // Writing to a String never fails.
        let _ = write!(out, "R{}", self.status);
        for edit in &self.headers {
            edit.encode(&mut out);
        }
        out.push_str("\n\n");
        out.push_str(&self.body);
        out
    }
}

/// Where a request goes, and how its head changes on the way.
#[derive(Debug)]
pub struct Plan {
    pub url: String,
    /// Milliseconds until the response's head must have come; 0 is no limit.
    pub timeout: u64,
    pub edits: Vec<Edit>,
}

impl Plan {
    pub fn encode(&self, number: u64) -> String {
        let mut out = String::with_capacity(256);
        let _ = writeln!(out, "F{number} {}", self.timeout);
        one_line(&mut out, &self.url);
        for edit in &self.edits {
            edit.encode(&mut out);
        }
        out
    }
}

/// The exchange goes on asynchronously.
pub fn proceed(number: u64) -> String {
    format!("P{number}")
}

/// Changes to the head of an origin's response.
pub fn edits(edits: &[Edit], due: bool) -> String {
    let mut out = String::with_capacity(64);
    out.push_str(if due { "E1" } else { "E0" });
    for edit in edits {
        edit.encode(&mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_header_differs_from_an_empty_one() {
        let head = RequestHead::parse("GET\nhttps://a.example/p?q=1\n\n=\n=value");
        assert_eq!((head.method, head.path(), head.path_and_query()), ("GET", "/p", "/p?q=1"));
        assert_eq!((head.header(0), head.header(1), head.header(2)), (None, Some(""), Some("value")));
        assert_eq!(head.header(3), None);
        assert_eq!(ResponseHead::parse("\n=a\n").header(0), Some("a"));
        assert_eq!(ResponseHead::parse("").header(0), None);
    }

    #[test]
    fn a_path_is_found_whatever_the_query_holds() {
        for (url, path, sent) in [
            ("https://a.example", "/", "/"),
            ("https://a.example/?next=https://b.example/x", "/", "/?next=https://b.example/x"),
            ("http://a.example:8787/a/b#c", "/a/b", "/a/b"),
        ] {
            let text = format!("GET\n{url}");
            let head = RequestHead::parse(&text);
            assert_eq!((head.path(), head.path_and_query()), (path, sent));
        }
    }

    #[test]
    fn a_value_cannot_forge_a_line() {
        let plan = Plan {
            url: "https://o.example/a".into(),
            timeout: 500,
            edits: vec![
                Edit::Set("x-user", "42\r\n=x-admin:1".into()),
                Edit::Delete("te\nam".into()),
                Edit::DeletePrefix("x-edgekeep-"),
            ],
        };
        assert_eq!(plan.encode(7), "F7 500\nhttps://o.example/a\n=x-user:42=x-admin:1\n-team\n*x-edgekeep-");
    }

    #[test]
    fn a_reply_keeps_every_cookie_and_the_whole_body() {
        let reply = Reply {
            status: 200,
            headers: vec![Edit::Append("set-cookie", "a=1".into()), Edit::Append("set-cookie", "b=2".into())],
            body: "one\n\ntwo".into(),
        };
        assert_eq!(reply.encode(), "R200\n+set-cookie:a=1\n+set-cookie:b=2\n\none\n\ntwo");
        assert_eq!(edits(&[], true), "E1");
        assert_eq!(proceed(9), "P9");
    }
}
