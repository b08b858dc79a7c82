//! A request's path, decoded once and refused when it could mean two things.
//!
//! Proxies and origins disagree about dot segments, empty segments, encoded slashes and double encoding; each of these
//! has let requests past an access rule somewhere. None of them is needed by an honest client, so all are refused.

use std::borrow::Cow;

use thiserror::Error;

/// Why a path is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PathError {
    #[error("the path must start with a slash")]
    NotAbsolute,
    #[error("the path must not contain a raw ? or #")]
    Delimiter,
    #[error("the path must not contain an empty segment")]
    EmptySegment,
    #[error("the path must not contain a . or .. segment")]
    DotSegment,
    #[error("the path must not contain an encoded slash")]
    EncodedSlash,
    #[error("the path must not contain a backslash, encoded or not")]
    Backslash,
    #[error("the path must not contain an encoded NUL")]
    Nul,
    #[error("the path must not contain control characters")]
    Control,
    #[error("a percent sign in the path must be followed by two hex digits")]
    BadEscape,
    #[error("the decoded path must be UTF-8")]
    NotUtf8,
    #[error("the path must not be encoded twice")]
    DoubleEncoding,
    #[error("this is not the plain spelling of one of Edgekeep's own paths")]
    OwnPathSpelling,
}

/// A path decoded once: absolute, without empty and dot segments, never ambiguous.
///
/// One trailing slash is kept in the text and ignored by the router: many origins answer `/account/` as `/account`, so
/// both must fall under the same route. What only some origins would understand (`..;x`, a path parameter behind
/// dots) is refused with the dots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'a>(Cow<'a, str>);

impl<'a> CanonicalPath<'a> {
    /// Reads the path of a request target, without its query. Allocates only when something is encoded.
    pub fn parse(raw: &'a str) -> Result<CanonicalPath<'a>, PathError> {
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        let mut encoded = false;
        let mut ascii = true;
        for byte in raw.bytes() {
            match byte {
                b'%' => encoded = true,
                b'?' | b'#' => return Err(PathError::Delimiter),
                b'\\' => return Err(PathError::Backslash),
                0..=0x1F | 0x7F => return Err(PathError::Control),
                0x80.. => ascii = false,
                _ => {}
            }
        }
        let text = if encoded { Cow::Owned(decode_path(raw)?) } else { Cow::Borrowed(raw) };
        if (encoded || !ascii) && text.chars().any(char::is_control) {
            return Err(PathError::Control);
        }
        check_segments(&text)?;
        Ok(CanonicalPath(text))
    }

    /// The decoded path as it came, with its trailing slash if it had one.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form that routes match: without the one trailing slash, except for `/` itself.
    pub fn without_trailing_slash(&self) -> &str {
        match self.0.strip_suffix('/') {
            Some(rest) if !rest.is_empty() => rest,
            _ => &self.0,
        }
    }
}

/// Undoes one layer of percent-encoding in a whole path.
fn decode_path(raw: &str) -> Result<String, PathError> {
    let text = decode_once(raw, |byte| match byte {
        b'/' => Err(PathError::EncodedSlash),
        b'\\' => Err(PathError::Backslash),
        0 => Err(PathError::Nul),
        _ => Ok(()),
    })?;
    // Every percent sign that is still here was encoded itself.
    let bytes = text.as_bytes();
    if bytes.windows(3).any(|w| matches!(w, [b'%', a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())) {
        return Err(PathError::DoubleEncoding);
    }
    Ok(text)
}

/// Undoes one layer of percent-encoding; `allow` judges each byte that was encoded.
pub(super) fn decode_once(raw: &str, allow: impl Fn(u8) -> Result<(), PathError>) -> Result<String, PathError> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (rest.next().and_then(hex), rest.next().and_then(hex)) else {
            return Err(PathError::BadEscape);
        };
        let decoded = high << 4 | low;
        allow(decoded)?;
        out.push(decoded);
    }
    String::from_utf8(out).map_err(|_| PathError::NotUtf8)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn check_segments(path: &str) -> Result<(), PathError> {
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err(PathError::EmptySegment);
        }
        if is_dots(segment) {
            return Err(PathError::DotSegment);
        }
    }
    Ok(())
}

/// `.` or `..`, alone or before what some origin cuts off: a path parameter (Tomcat reads `..;x` as `..`), or a query or
/// fragment where a decoded path is read as a URL once more.
pub(super) fn is_dots(segment: &str) -> bool {
    let name = segment.split([';', '?', '#']).next().unwrap_or_default();
    name == "." || name == ".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entropy;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn parse(raw: &str) -> Result<String, PathError> {
        CanonicalPath::parse(raw).map(|path| path.as_str().to_owned())
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_plain_path_is_borrowed_and_an_encoded_one_is_decoded_once() {
        assert!(matches!(CanonicalPath::parse("/account/x").unwrap().0, Cow::Borrowed("/account/x")));
        assert_eq!(parse("/%61ccount/x").unwrap(), "/account/x");
        assert_eq!(parse("/caf%C3%A9/ü").unwrap(), "/café/ü");
        assert_eq!(parse("/100%25/a%20b%3Fc%23").unwrap(), "/100%/a b?c#");
        assert_eq!(parse("/").unwrap(), "/");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn every_ambiguous_spelling_is_refused_with_its_reason() {
        for (raw, reason) in [
            ("", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("account", PathError::NotAbsolute),
            ("http://other/account", PathError::NotAbsolute),
            ("/a?b", PathError::Delimiter),
            ("/a#b", PathError::Delimiter),
            ("//", PathError::EmptySegment),
            ("//account", PathError::EmptySegment),
            ("/public//account", PathError::EmptySegment),
            ("/account//", PathError::EmptySegment),
            ("/.", PathError::DotSegment),
            ("/./account", PathError::DotSegment),
            ("/a/../account", PathError::DotSegment),
            ("/a/..", PathError::DotSegment),
            ("/a/../", PathError::DotSegment),
            ("/a/%2e%2E/account", PathError::DotSegment),
            ("/a/.%2e/account", PathError::DotSegment),
            ("/a/..;x=1/account", PathError::DotSegment),
            ("/a/..%3bx/account", PathError::DotSegment),
            ("/a/..%3f", PathError::DotSegment),
            ("/a/..%3fx/account", PathError::DotSegment),
            ("/a/.%23", PathError::DotSegment),
            ("/account%2fx", PathError::EncodedSlash),
            ("/account%2Fx", PathError::EncodedSlash),
            ("/account%5cx", PathError::Backslash),
            ("/account\\x", PathError::Backslash),
            ("/account%00", PathError::Nul),
            ("/account%0a", PathError::Control),
            ("/account%7f", PathError::Control),
            ("/account%C2%85", PathError::Control),
            ("/account\u{85}", PathError::Control),
            ("/account\t", PathError::Control),
            ("/account%", PathError::BadEscape),
            ("/account%4", PathError::BadEscape),
            ("/account%zz", PathError::BadEscape),
            ("/account%u0041", PathError::BadEscape),
            ("/account%+1", PathError::BadEscape),
            ("/%ff", PathError::NotUtf8),
            ("/%c0%af", PathError::NotUtf8),
            ("/%ed%a0%80", PathError::NotUtf8),
            ("/%2561ccount", PathError::DoubleEncoding),
            ("/%25%36%31ccount", PathError::DoubleEncoding),
            ("/%252e%252e/account", PathError::DoubleEncoding),
            ("/a%252faccount", PathError::DoubleEncoding),
        ] {
            assert_eq!(parse(raw), Err(reason), "{raw}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn dots_inside_a_name_are_a_name() {
        for raw in ["/...", "/.well-known/jwks.json", "/a..b", "/..a", "/a;..", "/~user/."] {
            assert_eq!(parse(raw).is_ok(), raw != "/~user/.", "{raw}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn one_trailing_slash_is_kept_and_not_matched() {
        let path = CanonicalPath::parse("/account/").unwrap();
        assert_eq!((path.as_str(), path.without_trailing_slash()), ("/account/", "/account"));
        assert_eq!(CanonicalPath::parse("/").unwrap().without_trailing_slash(), "/");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn whatever_is_accepted_has_the_same_meaning_when_read_again() {
        let alphabet =
            ["/", "/", "a", "é", ".", "..", "%2e", "%2F", "%25", "61", "%61", "\\", ";", "%", "%C3", "%A9", "\n"];
        let mut entropy = Entropy::for_tests(11);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut raw = String::from("/");
            for _ in 0..entropy.below(7) {
                raw.push_str(alphabet[entropy.below(alphabet.len() as u64) as usize]);
            }
            let Ok(path) = CanonicalPath::parse(&raw) else { continue };
            accepted += 1;
            let text = path.as_str();
            assert!(text.starts_with('/') && !text.contains("//") && !text.contains('\\'), "{raw}");
            assert!(text.split('/').all(|s| s != "." && s != ".."), "{raw}");
            // Encoding it again and reading that gives the same text.
            let again: String =
                text.bytes().map(|b| if b == b'/' { "/".into() } else { format!("%{b:02x}") }).collect();
            assert_eq!(CanonicalPath::parse(&again).unwrap().as_str(), text, "{raw}");
        }
        assert!(accepted > 1000);
    }
}
