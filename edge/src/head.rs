//! Heads as `entry.js` hands them over, in the form in which core asks about them.
//!
//! The platform joins the lines of one header by a comma, so a header has one value here; only `Set-Cookie`, which
//! cannot be joined, comes line by line.

use std::ops::Range;

use edgekeep_core::exchange::REQUEST_HEADERS;
use edgekeep_core::http::{AnswerHead, Head, Peer};

/// Cloudflare's word about the client; it replaces whatever the client sent under this name.
const CLIENT_IP: &str = "cf-connecting-ip";

/// The response headers that core asks about, `Set-Cookie` left out.
pub const RESPONSE_HEADERS: [&str; 1] = ["connection"];

/// The request headers, in the order in which their values come.
pub fn request_headers() -> impl Iterator<Item = &'static str> {
    REQUEST_HEADERS.iter().copied().chain([CLIENT_IP])
}

/// A request's head, owned: it is asked again when the origin has answered.
pub struct RequestHead {
    text: String,
    method: Range<usize>,
    scheme_is_https: bool,
    authority: Range<usize>,
    path: Range<usize>,
    query: Option<Range<usize>>,
    /// By place in [`request_headers`].
    values: Vec<Option<Range<usize>>>,
}

impl RequestHead {
    /// Reads `METHOD \n URL { \n VALUE }` (see `wire`). The URL is one that the platform has parsed.
    pub fn parse(text: String) -> RequestHead {
        let mut lines = lines(&text, 0);
        let method = lines.next().unwrap_or(0..0);
        let url = lines.next().unwrap_or(0..0);
        let values = lines.map(|line| value(&text, line)).collect();
        let whole = text.get(url.clone()).unwrap_or_default();
        let scheme_is_https = whole.starts_with("https://");
        let after_scheme = url.start + whole.find("://").map_or(0, |at| at + 3);
        let end = url.start + whole.find('#').unwrap_or(whole.len());
        let rest = text.get(after_scheme..end).unwrap_or_default();
        let question = rest.find('?').map_or(end, |at| after_scheme + at);
        let slash = rest.find('/').map_or(question, |at| (after_scheme + at).min(question));
        let query = (question < end).then(|| question + 1..end);
        RequestHead {
            method,
            scheme_is_https,
            authority: after_scheme..slash,
            path: slash..question,
            query,
            values,
            text,
        }
    }

    /// How long the text is that came.
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// The path and the query, as they go on.
    pub fn path_and_query(&self) -> &str {
        let end = self.query.as_ref().map_or(self.path.end, |query| query.end);
        self.at(self.path.start..end)
    }

    fn at(&self, range: Range<usize>) -> &str {
        self.text.get(range).unwrap_or_default()
    }

    fn value(&self, name: &str) -> Option<&str> {
        let place = request_headers().position(|known| known == name)?;
        self.values.get(place)?.clone().map(|range| self.at(range))
    }
}

impl Head for RequestHead {
    fn method(&self) -> &str {
        self.at(self.method.clone())
    }

    fn path(&self) -> &str {
        match self.at(self.path.clone()) {
            "" => "/",
            path => path,
        }
    }

    fn query(&self) -> Option<&str> {
        self.query.clone().map(|range| self.at(range))
    }

    fn authority(&self) -> Option<&str> {
        Some(self.at(self.authority.clone())).filter(|host| !host.is_empty())
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.value(name).map(str::as_bytes)
    }

    fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        if let Some(value) = self.header(name) {
            each(value);
        }
    }

    fn peer(&self) -> Peer {
        Peer { ip: self.value(CLIENT_IP).and_then(|ip| ip.parse().ok()), secure: self.scheme_is_https }
    }
}

/// An origin's response head.
pub struct ResponseHead<'a> {
    status: u16,
    /// By place in [`RESPONSE_HEADERS`].
    values: [Option<&'a str>; RESPONSE_HEADERS.len()],
    set_cookie: Vec<&'a str>,
}

impl<'a> ResponseHead<'a> {
    /// Reads `{ \n VALUE } { \n SET-COOKIE }` (see `wire`).
    pub fn parse(status: u16, text: &'a str) -> ResponseHead<'a> {
        // The text begins with a line feed, so the first piece is always empty.
        let mut lines = text.split('\n').skip(1);
        let values = std::array::from_fn(|_| lines.next().and_then(|line| line.strip_prefix('=')));
        ResponseHead { status, values, set_cookie: lines.collect() }
    }

    pub fn set_cookie(&self) -> &[&'a str] {
        &self.set_cookie
    }
}

impl AnswerHead for ResponseHead<'_> {
    fn status(&self) -> u16 {
        self.status
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        if name == "set-cookie" {
            return self.set_cookie.first().map(|line| line.as_bytes());
        }
        let place = RESPONSE_HEADERS.iter().position(|known| *known == name)?;
        self.values.get(place).copied().flatten().map(str::as_bytes)
    }

    fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        if name == "set-cookie" {
            self.set_cookie.iter().for_each(|line| each(line.as_bytes()));
        } else if let Some(value) = self.header(name) {
            each(value);
        }
    }
}

/// The lines of a text, as ranges of it.
fn lines(text: &str, from: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = Some(from);
    std::iter::from_fn(move || {
        let at = start?;
        let end = text.get(at..)?.find('\n').map(|length| at + length);
        start = end.map(|end| end + 1);
        Some(at..end.unwrap_or(text.len()))
    })
}

/// `=` and the value; an empty line is a header that is not there.
fn value(text: &str, line: Range<usize>) -> Option<Range<usize>> {
    text.get(line.clone())?.starts_with('=').then(|| line.start + 1..line.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(url: &str) -> RequestHead {
        RequestHead::parse(format!("GET\n{url}"))
    }

    #[test]
    fn a_url_is_taken_apart_whatever_the_query_holds() {
        for (url, host, path, query, sent) in [
            ("https://a.example", "a.example", "/", None, ""),
            ("https://a.example/", "a.example", "/", None, "/"),
            (
                "https://a.example/?next=https://b.example/x",
                "a.example",
                "/",
                Some("next=https://b.example/x"),
                "/?next=https://b.example/x",
            ),
            ("http://a.example:8787/a/b#c", "a.example:8787", "/a/b", None, "/a/b"),
            ("http://a/%2e?", "a", "/%2e", Some(""), "/%2e?"),
            ("https://a?b/c", "a", "/", Some("b/c"), "?b/c"),
        ] {
            let head = head(url);
            assert_eq!(head.authority(), Some(host), "{url}");
            assert_eq!((head.path(), head.query()), (path, query), "{url}");
            assert_eq!(head.path_and_query(), sent, "{url}");
            assert_eq!(head.peer().secure, url.starts_with("https"), "{url}");
        }
    }

    #[test]
    fn a_missing_header_differs_from_an_empty_one() {
        let values: Vec<String> = request_headers()
            .map(|name| match name {
                "authorization" => "=Bearer x".into(),
                "cookie" => "=".into(),
                CLIENT_IP => "=2001:db8::1".into(),
                _ => String::new(),
            })
            .collect();
        let head = RequestHead::parse(format!("GET\nhttps://a.example/\n{}", values.join("\n")));
        assert_eq!(head.header("authorization"), Some(&b"Bearer x"[..]));
        assert_eq!(head.header("cookie"), Some(&b""[..]));
        assert_eq!(head.header("origin"), None);
        assert_eq!(head.header("not-asked-for"), None);
        assert_eq!(head.peer().ip, "2001:db8::1".parse().ok());
    }

    #[test]
    fn nothing_in_a_broken_text_is_believed() {
        for text in ["", "\n", "GET", "GET\n", "GET\nnonsense", "\n\n\n=\n"] {
            let head = RequestHead::parse(text.to_owned());
            assert!(head.path().starts_with(['/', 'n']), "{text:?}");
            assert_eq!(head.peer().ip, None);
        }
    }

    #[test]
    fn cookies_of_a_response_stay_apart() {
        let head = ResponseHead::parse(200, "\n=close\na=1, x; Path=/\nb=2");
        assert_eq!(head.header("connection"), Some(&b"close"[..]));
        assert_eq!(head.set_cookie(), ["a=1, x; Path=/", "b=2"]);
        assert_eq!(head.header("set-cookie"), Some(&b"a=1, x; Path=/"[..]));
        let none = ResponseHead::parse(204, "\n");
        assert_eq!((none.header("connection"), none.header("set-cookie")), (None, None));
    }
}
