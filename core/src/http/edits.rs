//! What is taken out of a message and what is put in. Core orders edits; a shell applies them to its own header type.

use std::borrow::Cow;
use std::ops::Range;

use super::head::{AnswerHead, Head};

/// Headers that start with this are Edgekeep's own and never pass in from outside. An underscore counts as a hyphen:
/// origins that speak CGI, WSGI or PHP read both as one name.
pub const INTERNAL_PREFIX: &str = "x-edgekeep-";

/// Whether a header's name, in lower case, is Edgekeep's own.
pub fn is_internal(name: &str) -> bool {
    // Most names end here.
    name.starts_with('x') && {
        let hyphens = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
        hyphens.take(INTERNAL_PREFIX.len()).eq(INTERNAL_PREFIX.bytes())
    }
}

/// Orders for a head: take out first, then set (each `set` replaces), then add.
///
/// All values stand in one buffer, which a shell may share among them: a request gets about ten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    pub remove: Vec<Cow<'static, str>>,
    /// Remove every header that [`is_internal`].
    pub remove_internal: bool,
    /// Drop the `Set-Cookie` lines that [`drops_set_cookie`] names.
    pub filter_set_cookie: bool,
    lines: Vec<HeaderLine>,
    values: Vec<u8>,
}

/// One header to set or to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderLine {
    pub name: &'static str,
    /// Where its value stands among all values.
    pub value: Range<usize>,
    /// Besides what is there; otherwise instead of it.
    pub adds: bool,
}

/// Room for what a request gets without growing on the way.
const USUAL_LINES: usize = 12;
const USUAL_BYTES: usize = 512;

impl HeaderEdits {
    /// With room for what a request to an origin gets.
    pub fn roomy() -> HeaderEdits {
        HeaderEdits {
            lines: Vec::with_capacity(USUAL_LINES),
            values: Vec::with_capacity(USUAL_BYTES),
            ..HeaderEdits::default()
        }
    }

    pub fn set(&mut self, name: &'static str, value: impl AsRef<[u8]>) {
        self.set_with(name, |values| values.extend_from_slice(value.as_ref()));
    }

    /// Sets what `write` appends.
    pub fn set_with(&mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) {
        self.line(name, false, write);
    }

    /// Sets a header in the place of what was ordered for it before.
    pub fn set_instead(&mut self, name: &'static str, value: impl AsRef<[u8]>) {
        self.lines.retain(|line| line.adds || line.name != name);
        self.set(name, value);
    }

    pub fn add(&mut self, name: &'static str, value: impl AsRef<[u8]>) {
        self.line(name, true, |values| values.extend_from_slice(value.as_ref()));
    }

    fn line(&mut self, name: &'static str, adds: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.values.len();
        write(&mut self.values);
        self.lines.push(HeaderLine { name, value: start..self.values.len(), adds });
    }

    pub fn remove(&mut self, name: &'static str) {
        self.remove.push(Cow::Borrowed(name));
    }

    pub fn sets(&self, name: &str) -> bool {
        self.lines.iter().any(|line| !line.adds && line.name == name)
    }

    /// Whether a request's header of this name, in lower case, goes on as it came.
    pub fn keeps(&self, name: &str) -> bool {
        let leaves = is_hop_by_hop(name) || (self.remove_internal && is_internal(name));
        let ordered = || self.remove.iter().any(|removed| removed == name) || self.sets(name);
        !leaves && !ordered()
    }

    /// What to set and then what to add, each in its order.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, &[u8], bool)> {
        let value = |line: &HeaderLine| self.values.get(line.value.clone()).unwrap_or_default();
        let of = move |adds: bool| self.lines.iter().filter(move |line| line.adds == adds);
        of(false).chain(of(true)).map(move |line| (line.name, value(line), line.adds))
    }

    /// The same for a shell that shares the buffer of all values.
    pub fn into_lines(mut self) -> (Vec<HeaderLine>, Vec<u8>) {
        self.lines.sort_by_key(|line| line.adds);
        (self.lines, self.values)
    }
}

/// RFC 9110 §7.6.1 and what is like it. `Trailer` goes on to whom it announces fields (§6.6.2).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
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
    let orders = named.into_iter().filter(|name| !is_hop_by_hop(name) && !is_protected(name));
    edits.remove.extend(orders.map(Cow::Owned));
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

/// A number's decimal digits.
pub(crate) fn push_decimal(mut number: u64, text: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
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
    fn what_is_set_comes_before_what_is_added() {
        let mut edits = HeaderEdits::default();
        edits.add("set-cookie", "a=1");
        edits.set("x-one", "1");
        edits.set_instead("x-one", "2");
        edits.set_with("x-two", |value| push_decimal(u64::MAX, value));
        let lines = [("x-one", "2", false), ("x-two", "18446744073709551615", false), ("set-cookie", "a=1", true)];
        assert!(edits.lines().eq(lines.map(|(name, value, adds)| (name, value.as_bytes(), adds))));
        let (shared, values) = edits.into_lines();
        let of = |line: &HeaderLine| (line.name, std::str::from_utf8(&values[line.value.clone()]).unwrap(), line.adds);
        assert!(shared.iter().map(of).eq(lines));
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
