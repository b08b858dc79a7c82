//! What is wrong with a configuration: every mistake at once, each with its place, what was found and what is allowed.
//!
//! An error never repeats what may be a secret: values of unknown keys, of secrets' names and of URLs that may carry a
//! credential are described and not shown.

use std::fmt;

use serde_json::Value;
use thiserror::Error;

/// The most characters of a found text that an error repeats.
const MAX_FOUND: usize = 80;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The key, as `routes[3].auth`; `line 3, column 5` when the text itself cannot be read.
    pub path: String,
    pub found: String,
    pub allowed: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, allowed: {}", self.path, self.found, self.allowed)
    }
}

/// All mistakes of a configuration, never none. Prints one line each.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

/// The mistakes collected so far.
#[derive(Default)]
pub(super) struct Errors(pub(super) Vec<ConfigError>);

impl Errors {
    pub(super) fn add(&mut self, path: impl Into<String>, found: impl Into<String>, allowed: impl Into<String>) {
        self.0.push(ConfigError { path: path.into(), found: found.into(), allowed: allowed.into() });
    }

    /// Whether a key already has an error, so that what depends on its value need not be judged.
    pub(super) fn has(&self, path: &str) -> bool {
        self.0.iter().any(|error| error.path == path)
    }

    /// Whether a key, or anything below it, already has an error.
    pub(super) fn below(&self, path: &str) -> bool {
        let inside = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.0.iter().any(|error| error.path.strip_prefix(path).is_some_and(inside))
    }
}

/// A value as an error shows it.
pub(super) fn found(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Number(number) => number.to_string(),
        Value::Bool(bool) => bool.to_string(),
        _ => kind(value).to_owned(),
    }
}

/// A value that may be a secret.
pub(super) fn found_quietly(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        _ => format!("{} (not shown)", kind(value)),
    }
}

/// A text in quotes, shortened, without what may be a password before an `@`.
pub(super) fn quoted(text: &str) -> String {
    let (hidden, shown) = match text.rsplit_once('@') {
        Some((_, host)) => ("…@", host),
        None => ("", text),
    };
    let short: String = shown.chars().take(MAX_FOUND).flat_map(char::escape_debug).collect();
    let more = if shown.chars().count() > MAX_FOUND { "…" } else { "" };
    format!("\"{hidden}{short}{more}\"")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

/// The known key that an unknown one was probably meant to be.
pub(super) fn nearest<'k>(unknown: &str, known: &'k [String]) -> Option<&'k str> {
    let limit = unknown.len().div_ceil(3).min(3);
    let near = known.iter().map(|key| (distance(unknown, key), key.as_str())).min();
    near.filter(|(distance, _)| *distance <= limit).map(|(_, key)| key)
}

/// Levenshtein's distance, over bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut next = vec![i + 1];
        for ((y, cost), after) in b.bytes().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().map_or(0, |cost| cost + 1);
            next.push(left.min(after + 1).min(cost + usize::from(x != y)));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn the_nearest_key_is_named_only_when_it_is_near() {
        let keys = ["access_ttl", "access_ttl_jitter", "audience"].map(str::to_owned);
        assert_eq!(nearest("acces_ttl", &keys), Some("access_ttl"));
        assert_eq!(nearest("audiance", &keys), Some("audience"));
        assert_eq!(nearest("colour", &keys), None);
        assert_eq!(nearest("x", &[]), None);
        assert_eq!((distance("", "abc"), distance("kitten", "sitting"), distance("a", "a")), (3, 3, 0));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_found_text_is_short_printable_and_without_a_password() {
        assert_eq!(quoted("redis://u:p@ss@host:1"), "\"…@host:1\"");
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert_eq!(quoted(&"x".repeat(200)).chars().count(), 83);
    }
}
