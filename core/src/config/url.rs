//! Hosts and URLs of the configuration, parsed once so that nothing later has to guess at their parts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;
use http::uri::PathAndQuery;

use super::setting::{Text, choice};

choice! {
    /// How an HTTP server is spoken to.
    Scheme { Http = "http", Https = "https" }
}

impl Scheme {
    /// 80 or 443.
    pub const fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// A DNS name in lower case without a root dot, or an IP address without brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(String);

impl HostName {
    /// Reads a name (RFC 1123 §2.1; an underscore is let through, since container networks use it) or an address, with
    /// brackets around IPv6.
    pub fn parse(text: &str) -> Option<HostName> {
        if let Some(literal) = text.strip_prefix('[') {
            let address: Ipv6Addr = literal.strip_suffix(']')?.parse().ok()?;
            return Some(HostName(address.to_string()));
        }
        let labels: Vec<&str> = text.split('.').collect();
        // What ends in a number is read as an address by every resolver (WHATWG URL §3.5), so it must be one.
        if labels.last().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return text.parse::<Ipv4Addr>().ok().map(|address| HostName(address.to_string()));
        }
        let good = |label: &&str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        (text.len() <= 253 && labels.iter().all(good)).then(|| HostName(text.to_ascii_lowercase()))
    }

    /// Without brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn ip(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// Whether it names this very machine.
    pub fn is_loopback(&self) -> bool {
        self.0 == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for HostName {
    /// As in a URL: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(&self.0) }
    }
}

impl Text for HostName {
    fn allowed() -> String {
        "a host name or an IP address, without a port".to_owned()
    }

    fn parse(text: &str) -> Option<HostName> {
        HostName::parse(text)
    }
}

/// Where an origin listens: scheme, host and port, nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OriginUrl {
    pub scheme: Scheme,
    pub host: HostName,
    pub port: u16,
    /// As a `Host` header or `:authority` has it: without the scheme's own port.
    pub authority: String,
}

impl OriginUrl {
    /// Reads `http://host[:port]`, with or without a slash at the end; no user, path, query or fragment.
    pub fn parse(text: &str) -> Option<OriginUrl> {
        let (origin, rest) = split(text)?;
        (rest == "/").then_some(origin)
    }
}

impl OriginUrl {
    /// Stands in for a URL that could not be read, while the rest of the file is judged.
    pub(super) fn placeholder() -> OriginUrl {
        let host = HostName("localhost".to_owned());
        OriginUrl { scheme: Scheme::Http, host, port: 80, authority: "localhost".to_owned() }
    }
}

impl fmt::Display for OriginUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl Text for OriginUrl {
    fn allowed() -> String {
        "http://host[:port] | https://host[:port], without user, path and query".to_owned()
    }

    fn parse(text: &str) -> Option<OriginUrl> {
        OriginUrl::parse(text)
    }
}

/// A URL that Edgekeep itself calls. It carries no user; its path or query may be a secret, so errors never show it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebUrl {
    pub origin: OriginUrl,
    /// From its slash on, with the query.
    pub path: String,
}

impl WebUrl {
    pub fn parse(text: &str) -> Option<WebUrl> {
        let (origin, path) = split(text)?;
        Some(WebUrl { origin, path })
    }

    /// Whether a credential may be sent there: encrypted, or not leaving this machine.
    pub fn is_private(&self) -> bool {
        self.origin.scheme == Scheme::Https || self.origin.host.is_loopback()
    }
}

impl fmt::Display for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

impl Text for WebUrl {
    const QUIET: bool = true;

    fn allowed() -> String {
        "an http:// or https:// URL without user and fragment".to_owned()
    }

    fn parse(text: &str) -> Option<WebUrl> {
        WebUrl::parse(text)
    }
}

/// A web origin as browsers send it in `Origin` (RFC 6454 §6.2): `https://app.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebOrigin(String);

impl WebOrigin {
    pub fn parse(text: &str) -> Option<WebOrigin> {
        let origin = OriginUrl::parse(text).filter(|_| !text.ends_with('/'))?;
        Some(WebOrigin(origin.to_string()))
    }

    /// Lower case, without the scheme's own port: compares with an `Origin` header byte by byte.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Text for WebOrigin {
    fn allowed() -> String {
        "a web origin such as \"https://app.example\", without a slash at the end".to_owned()
    }

    fn parse(text: &str) -> Option<WebOrigin> {
        WebOrigin::parse(text)
    }
}

/// A Redis server's address. Credentials never stand in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RedisNode {
    /// `rediss://`
    pub tls: bool,
    pub host: HostName,
    /// 6379 when it is left out.
    pub port: u16,
}

impl RedisNode {
    pub fn parse(text: &str) -> Option<RedisNode> {
        let (tls, rest) = match text.strip_prefix("rediss://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("redis://")?),
        };
        let (host, port) = host_and_port(rest.strip_suffix('/').unwrap_or(rest))?;
        Some(RedisNode { tls, host, port: port.unwrap_or(6379) })
    }
}

impl fmt::Display for RedisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis{}://{}:{}", if self.tls { "s" } else { "" }, self.host, self.port)
    }
}

impl Text for RedisNode {
    const QUIET: bool = true;

    fn allowed() -> String {
        "redis://host[:port] | rediss://host[:port], without user, password and database".to_owned()
    }

    fn parse(text: &str) -> Option<RedisNode> {
        RedisNode::parse(text)
    }
}

/// The origin of a URL, and its path with the query.
fn split(text: &str) -> Option<(OriginUrl, String)> {
    if text.contains(['#', '@', '\\']) {
        return None;
    }
    let uri: Uri = text.parse().ok()?;
    let scheme = <Scheme as Text>::parse(uri.scheme_str()?)?;
    let (host, port) = host_and_port(uri.authority()?.as_str())?;
    let port = port.unwrap_or(scheme.default_port());
    let authority = if port == scheme.default_port() { host.to_string() } else { format!("{host}:{port}") };
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
    // `http://host?query` has no slash.
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    Some((OriginUrl { scheme, host, port, authority }, path))
}

fn host_and_port(authority: &str) -> Option<(HostName, Option<u16>)> {
    let after_literal = authority.rfind(']').map_or(0, |end| end + 1);
    match authority.get(after_literal..)?.rfind(':') {
        None => Some((HostName::parse(authority)?, None)),
        Some(at) => {
            let (host, port) = authority.split_at_checked(after_literal + at)?;
            let digits = port.strip_prefix(':').filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?;
            let port = digits.parse().ok().filter(|port| *port > 0)?;
            Some((HostName::parse(host)?, Some(port)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn an_origin_url_is_taken_apart() {
        let origin = OriginUrl::parse("http://127.0.0.1:9001").unwrap();
        assert_eq!((origin.scheme, origin.host.as_str(), origin.port), (Scheme::Http, "127.0.0.1", 9001));
        assert_eq!(origin.authority, "127.0.0.1:9001");
        let origin = OriginUrl::parse("HTTPS://Origin.Internal/").unwrap();
        assert_eq!((origin.port, origin.authority.as_str()), (443, "origin.internal"));
        let origin = OriginUrl::parse("http://[::1]:80").unwrap();
        assert_eq!((origin.host.as_str(), origin.authority.as_str()), ("::1", "[::1]"));
        for text in ["http://127.0.0.1:9001", "https://origin.internal", "http://[::1]:8080", "http://a_b-1.c"] {
            assert_eq!(OriginUrl::parse(text).unwrap().to_string(), text);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_more_or_less_than_an_origin_is_refused() {
        for text in [
            "",
            "/",
            "127.0.0.1:9001",
            "ftp://a",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:65536",
            "http://a:",
            "http://a:+1",
            "http://a/b",
            "http://a?b",
            "http://a/?b",
            "http://a#b",
            "http://u@a",
            "http://u:p@a",
            "http://127.0.0.256",
            "http://1.2.3",
            "http://a..b",
            "http://-a",
            "http://a b",
            "http://[::1",
            "http://::1",
            "http://[::g]",
            "http://é.example",
            "http://a\\b",
        ] {
            assert_eq!(OriginUrl::parse(text), None, "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_web_url_keeps_its_path_and_query() {
        for text in ["http://127.0.0.1:9099/hook?a=b", "https://edge.example/", "http://localhost:8787/x"] {
            assert_eq!(WebUrl::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(WebUrl::parse("http://a?b=c").unwrap().path, "/?b=c");
        assert!(WebUrl::parse("http://[::1]:1").unwrap().is_private());
        assert!(!WebUrl::parse("http://region.example").unwrap().is_private());
        assert_eq!(WebUrl::parse("http://u:p@a/"), None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_web_origin_is_what_a_browser_sends() {
        assert_eq!(WebOrigin::parse("https://App.Example:443").unwrap().as_str(), "https://app.example");
        for text in ["*", "null", "app.example", "https://app.example/", "https://app.example/x"] {
            assert_eq!(WebOrigin::parse(text), None, "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_redis_node_has_a_host_and_a_port_and_no_password() {
        assert_eq!(RedisNode::parse("redis://127.0.0.1:7000").unwrap().to_string(), "redis://127.0.0.1:7000");
        assert_eq!(RedisNode::parse("rediss://r").unwrap().to_string(), "rediss://r:6379");
        assert_eq!(RedisNode::parse("redis://[::1]:7/").unwrap().to_string(), "redis://[::1]:7");
        for text in ["redis://:pw@h", "redis://h/1", "http://h", "h:1", "redis://", "redis://h:0", "redis://h?x"] {
            assert_eq!(RedisNode::parse(text), None, "{text}");
        }
    }
}
