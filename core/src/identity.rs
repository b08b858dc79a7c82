//! Who a user is and which session is meant: DESIGN's *identity*.
//!
//! An identity is text. A JSON integer becomes its canonical decimal form and never passes through a float, so 42 and
//! "42" are one user in every key, header and shard.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;

/// The longest identity in bytes.
pub const MAX_USER_ID: usize = 128;
/// The most digits of an integer identity (any 128-bit number fits).
pub const MAX_USER_DIGITS: usize = 39;

/// A user's identity: 1–128 bytes of UTF-8 without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Arc<str>);

/// Which JSON type the identity was given as; the session record keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserIdKind {
    Integer,
    #[default]
    Text,
}

/// Why something is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UserIdError {
    #[error("must be an integer or a string")]
    Type,
    #[error("must be an integer of at most 39 digits, without fraction or exponent")]
    Number,
    #[error("must be 1 to 128 bytes long, found {0}")]
    Length(usize),
    #[error("must not contain control characters")]
    Control,
}

impl UserId {
    /// From text as it stands.
    pub fn new(text: &str) -> Result<UserId, UserIdError> {
        if text.is_empty() || text.len() > MAX_USER_ID {
            return Err(UserIdError::Length(text.len()));
        }
        if has_control(text) {
            return Err(UserIdError::Control);
        }
        Ok(UserId(text.into()))
    }

    /// From a JSON value: a string, or an integer in canonical decimal form.
    pub fn from_json(value: &Value) -> Result<(UserId, UserIdKind), UserIdError> {
        match value {
            Value::String(text) => Ok((UserId::new(text)?, UserIdKind::Text)),
            Value::Number(number) => {
                let text = number.to_string();
                let canonical = canonical_integer(&text).ok_or(UserIdError::Number)?;
                Ok((UserId(canonical.into()), UserIdKind::Integer))
            }
            _ => Err(UserIdError::Type),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `<U>` in storage keys: every byte outside `A-Za-z0-9._-` as `%XX`.
    pub fn key_form(&self) -> String {
        percent_encode(&self.0, |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    }

    /// For a header value: bytes outside visible ASCII (and `%`, so that it can be undone) as `%XX`.
    pub fn header_form(&self) -> Cow<'_, str> {
        if self.0.bytes().all(|b| b.is_ascii_graphic() && b != b'%') {
            return Cow::Borrowed(&self.0);
        }
        Cow::Owned(percent_encode(&self.0, |b| b.is_ascii_graphic() && b != b'%'))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether there is a control character; the usual ASCII text is looked at byte by byte.
pub(crate) fn has_control(text: &str) -> bool {
    if text.is_ascii() { text.bytes().any(|byte| byte.is_ascii_control()) } else { text.chars().any(char::is_control) }
}

/// An integer's canonical decimal form: no plus sign, no leading zeros, no `-0`; `None` for anything else.
fn canonical_integer(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    if digits.is_empty() || digits.len() > MAX_USER_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    Some(if digits.is_empty() { "0".to_owned() } else { format!("{sign}{digits}") })
}

fn percent_encode(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if keep(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Undoes `percent_encode`; `None` for what it never writes, and for what is not UTF-8 afterwards.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            out.push(*first);
            rest = after;
        }
    }
    String::from_utf8(out).ok()
}

/// A session's handle: a UUIDv4, steered so that its Redis slot is its user's. Never a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// The bytes of its text form.
    pub const TEXT: usize = 36;

    /// Its text form, written into `buffer`.
    pub fn write<'b>(&self, buffer: &'b mut [u8; SessionId::TEXT]) -> &'b str {
        uuid::Uuid::from_bytes_ref(&self.0).as_hyphenated().encode_lower(buffer)
    }

    /// Reads the hyphenated lower- or upper-case form only.
    pub fn parse(text: &str) -> Option<SessionId> {
        if text.len() != SessionId::TEXT {
            return None;
        }
        uuid::Uuid::try_parse(text).ok().map(|id| SessionId(id.into_bytes()))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(uuid::Uuid::from_bytes_ref(&self.0).as_hyphenated(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn forty_two_and_its_text_are_one_user() {
        let (number, kind) = UserId::from_json(&json!(42)).unwrap();
        let (text, text_kind) = UserId::from_json(&json!("42")).unwrap();
        assert_eq!(number, text);
        assert_eq!((kind, text_kind), (UserIdKind::Integer, UserIdKind::Text));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_integer_of_39_digits_is_kept_exactly_and_one_of_40_is_refused() {
        let nines = "9".repeat(39);
        let value: Value = serde_json::from_str(&nines).unwrap();
        assert_eq!(UserId::from_json(&value).unwrap().0.as_str(), nines);
        let value: Value = serde_json::from_str(&"9".repeat(40)).unwrap();
        assert_eq!(UserId::from_json(&value), Err(UserIdError::Number));
        assert_eq!(UserId::from_json(&serde_json::from_str("-0").unwrap()).unwrap().0.as_str(), "0");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn fractions_exponents_and_other_types_are_refused() {
        for text in ["1.0", "1e3", "1E3"] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(UserId::from_json(&value), Err(UserIdError::Number), "{text}");
        }
        for value in [json!(null), json!(true), json!([1]), json!({"id": 1})] {
            assert_eq!(UserId::from_json(&value), Err(UserIdError::Type));
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn length_and_control_characters_are_checked_at_their_edges() {
        assert!(UserId::new(&"a".repeat(128)).is_ok());
        assert_eq!(UserId::new(&"a".repeat(129)), Err(UserIdError::Length(129)));
        assert_eq!(UserId::new(""), Err(UserIdError::Length(0)));
        assert_eq!(UserId::new("a\nb"), Err(UserIdError::Control));
        assert_eq!(UserId::new("a\u{85}b"), Err(UserIdError::Control));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn keys_and_headers_percent_encode_what_they_cannot_carry() {
        let user = UserId::new("a b{ü}%").unwrap();
        assert_eq!(user.key_form(), "a%20b%7B%C3%BC%7D%25");
        assert_eq!(user.header_form(), "a%20b{%C3%BC}%25");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_session_id_reads_only_the_hyphenated_form() {
        let text = "0b8f5c1e-4a1b-4c3d-8e2f-000000012345";
        assert_eq!(SessionId::parse(text).unwrap().to_string(), text);
        assert_eq!(SessionId::parse(&text.replace('-', "")), None);
        assert_eq!(SessionId::parse("{0b8f5c1e-4a1b-4c3d-8e2f-00000001234}"), None);
    }
}
