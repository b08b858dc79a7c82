//! What is taken out of a message and what is put in. Core orders edits; a shell applies them to its own header type.

use super::head::{AnswerHead, Head};

/// Headers that start with this are Edgekeep's own and never pass in from outside. An underscore counts as a hyphen:
/// origins that speak CGI, WSGI or PHP read both as one name.
pub const INTERNAL_PREFIX: &str = "x-edgekeep-";

/// Whether a header's name, in lower case, is Edgekeep's own.
pub fn is_internal(name: &str) -> bool {
    let hyphens = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
    hyphens.take(INTERNAL_PREFIX.len()).eq(INTERNAL_PREFIX.bytes())
}

/// Orders for a head: take out first, then set (each `set` replaces), then add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    pub remove: Vec<String>,
    /// Remove every header that [`is_internal`].
    pub remove_internal: bool,
    /// Drop the `Set-Cookie` lines that [`drops_set_cookie`] names.
    pub filter_set_cookie: bool,
    pub set: Vec<(&'static str, Vec<u8>)>,
    pub add: Vec<(&'static str, Vec<u8>)>,
}

impl HeaderEdits {
    pub fn set(&mut self, name: &'static str, value: impl Into<Vec<u8>>) {
        self.set.push((name, value.into()));
    }

    pub fn add(&mut self, name: &'static str, value: impl Into<Vec<u8>>) {
        self.add.push((name, value.into()));
    }

    pub fn remove(&mut self, name: &str) {
        self.remove.push(name.to_owned());
    }
}

/// RFC 9110 §7.6.1 and what is like it.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header belongs to one connection only. Framing (`transfer-encoding`) is the shell's to write anew.
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Whether a trailer of this name, in lower case, may pass. An origin may take trailers for headers, so none may say who
/// the client is or hold what Edgekeep takes out of a head; nor may an origin's set a cookie.
pub fn may_trail(name: &str) -> bool {
    let told = matches!(
        name,
        "authorization"
            | "cookie"
            | "set-cookie"
            | "host"
            | "content-length"
            | "x-request-id"
            | "traceparent"
            | "x-real-ip"
    );
    let starts = |prefix: &str| {
        let hyphens = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
        hyphens.take(prefix.len()).eq(prefix.bytes())
    };
    !told
        && !is_hop_by_hop(name)
        && !is_internal(name)
        && !["forwarded", "x-forwarded", "x-original-"].into_iter().any(starts)
}

/// Takes out of a request what never reaches an origin: hop-by-hop headers, those named in `Connection`, and
/// Edgekeep's own.
pub fn strip_request(head: &dyn Head, edits: &mut HeaderEdits) {
    edits.remove_internal = true;
    let mut named = Vec::new();
    head.each_header("connection", &mut |line| name_tokens(line, &mut named));
    strip(named, edits);
}

/// Takes out of a response what belongs to the origin's connection.
pub fn strip_response(head: &dyn AnswerHead, edits: &mut HeaderEdits) {
    edits.remove_internal = true;
    let mut named = Vec::new();
    head.each_header("connection", &mut |line| name_tokens(line, &mut named));
    strip(named, edits);
}

/// The shells always leave out the hop-by-hop list itself; only what a peer named is an order.
fn strip(named: Vec<String>, edits: &mut HeaderEdits) {
    edits.remove.extend(named.into_iter().filter(|name| !is_hop_by_hop(name) && !is_protected(name)));
}

/// Headers that `Connection` cannot take away: naming them would strip identity or framing of its meaning.
fn is_protected(name: &str) -> bool {
    matches!(name, "host" | "content-length" | "content-type" | "cookie" | "authorization" | "close")
}

fn name_tokens(line: &[u8], into: &mut Vec<String>) {
    for token in line.split(|b| *b == b',') {
        if let Ok(token) = std::str::from_utf8(token.trim_ascii())
            && !token.is_empty()
        {
            into.push(token.to_ascii_lowercase());
        }
    }
}

/// Whether an origin's `Set-Cookie` line would set one of Edgekeep's cookies. Names compare without regard to case, as
/// browsers guard the `__Host-` prefix.
pub fn drops_set_cookie(line: &[u8], sticky: &str) -> bool {
    // A cookie without a name comes back as what its value says.
    let named = line.iter().position(|byte| *byte != b'=' && !byte.is_ascii_whitespace()).unwrap_or(0);
    let line = line.get(named..).unwrap_or_default();
    let name = line.split(|b| *b == b'=' || *b == b';').next().unwrap_or_default().trim_ascii();
    [super::cookie::ACCESS_COOKIE, super::cookie::REFRESH_COOKIE, sticky]
        .iter()
        .any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    struct Answer(&'static str);

    impl AnswerHead for Answer {
        fn status(&self) -> u16 {
            200
        }
        fn header(&self, _: &str) -> Option<&[u8]> {
            Some(self.0.as_bytes())
        }
        fn each_header(&self, _: &str, each: &mut dyn FnMut(&[u8])) {
            each(self.0.as_bytes());
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_connection_names_is_removed_but_never_identity_or_framing() {
        let mut edits = HeaderEdits::default();
        strip_response(&Answer("close, X-Custom , content-length,Host, , keep-alive"), &mut edits);
        assert_eq!(edits.remove, ["x-custom"]);
        assert!(edits.remove_internal);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn our_own_headers_are_known_with_underscores_too() {
        for name in ["x-edgekeep-user", "x_edgekeep_user", "x-edgekeep_user", "x_edgekeep-", "x-edgekeep-anything"] {
            assert!(is_internal(name), "{name}");
        }
        for name in ["x-edgekeep", "x-edgekeeper-user", "edgekeep-user", "x-forwarded-for", ""] {
            assert!(!is_internal(name), "{name}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn trailers_say_nothing_of_the_client() {
        for name in ["x-edgekeep-user", "x_edgekeep_user", "x-forwarded-for", "x_forwarded_for", "forwarded", "cookie"]
        {
            assert!(!may_trail(name), "{name}");
        }
        for name in
            ["authorization", "set-cookie", "transfer-encoding", "content-length", "x-original-uri", "x-request-id"]
        {
            assert!(!may_trail(name), "{name}");
        }
        for name in ["grpc-status", "x-sum", "server-timing", "digest", "x-forward", "cookies"] {
            assert!(may_trail(name), "{name}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_origin_cannot_set_our_cookies() {
        for line in [
            "__Host-edgekeep-at=x; Path=/",
            "__host-EDGEKEEP-rt=x",
            " DAB_ROUTE =x",
            "=__Host-edgekeep-at=x",
            " = __Host-edgekeep-rt=x",
        ] {
            assert!(drops_set_cookie(line.as_bytes(), "DAB_ROUTE"), "{line}");
        }
        assert!(!drops_set_cookie(b"theirs=__Host-edgekeep-at", "DAB_ROUTE"));
    }
}
