//! A route's path pattern: `/users/{user_id}/profile`, `/public/{rest..}`.
//!
//! A segment is a literal, `{name}` (one segment) or, last only, `{name..}` (zero or more segments).

use std::fmt;

use thiserror::Error;

use super::path::{CanonicalPath, PathError};

/// The most segments of a pattern: a lookup asks one table per depth at which a `{rest..}` stands.
pub const MAX_SEGMENTS: usize = 32;
/// The most parameters of a pattern (matchit names them `a` to `z`).
pub const MAX_PARAMETERS: usize = 16;

/// A parsed pattern. Literals are compared with the decoded path, byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    segments: Vec<Segment>,
}

/// One part of a pattern, most specific first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Literal(String),
    Parameter(String),
    Rest(String),
}

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PatternError {
    #[error("no request can have this path: {0}")]
    Path(PathError),
    #[error("leave the trailing slash out: a path with one matches as the path without")]
    TrailingSlash,
    #[error("write it decoded, without percent signs")]
    Encoded,
    #[error("braces enclose a whole segment: {{name}}, or {{name..}} at the end")]
    Braces,
    #[error("a parameter's name consists of letters, digits and _, and does not start with a digit")]
    Name,
    #[error("two parameters have one name")]
    DuplicateName,
    #[error("{{name..}} must be the last segment")]
    RestNotLast,
    #[error("at most 32 segments and 16 parameters")]
    TooLong,
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        if text.contains('%') {
            return Err(PatternError::Encoded);
        }
        // `{rest..}` holds no slash and is no dot segment, so the path's own rules apply to the whole text.
        CanonicalPath::parse(text).map_err(PatternError::Path)?;
        let segments = match text {
            "/" => Vec::new(),
            _ if text.ends_with('/') => return Err(PatternError::TrailingSlash),
            _ => text.split('/').skip(1).map(segment).collect::<Result<Vec<_>, _>>()?,
        };
        if segments.iter().rev().skip(1).any(|s| matches!(s, Segment::Rest(_))) {
            return Err(PatternError::RestNotLast);
        }
        let pattern = Pattern { text: text.to_owned(), segments };
        let names: Vec<_> = pattern.names().collect();
        if names.iter().enumerate().any(|(i, name)| names.iter().take(i).any(|earlier| earlier == name)) {
            return Err(PatternError::DuplicateName);
        }
        if pattern.segments.len() > MAX_SEGMENTS || names.len() > MAX_PARAMETERS {
            return Err(PatternError::TooLong);
        }
        Ok(pattern)
    }

    /// `/{rest..}`: every path.
    pub fn everything() -> Pattern {
        Pattern { text: "/{rest..}".to_owned(), segments: vec![Segment::Rest("rest".to_owned())] }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether `{name}` (one segment) is in the pattern.
    pub fn has_parameter(&self, name: &str) -> bool {
        self.segments.iter().any(|s| matches!(s, Segment::Parameter(n) if n == name))
    }

    /// The name in `{name..}`, when the pattern ends in one.
    pub fn rest(&self) -> Option<&str> {
        match self.segments.last() {
            Some(Segment::Rest(name)) => Some(name),
            _ => None,
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|s| match s {
            Segment::Literal(_) => None,
            Segment::Parameter(name) | Segment::Rest(name) => Some(name.as_str()),
        })
    }

    /// Two patterns of one shape match the same paths: parameters without their names.
    pub(super) fn shape(&self) -> String {
        self.segments.iter().fold(String::new(), |shape, s| match s {
            Segment::Literal(text) => shape + "/" + text,
            Segment::Parameter(_) => shape + "/{}",
            Segment::Rest(_) => shape + "/{..}",
        })
    }

    /// Smaller is more specific: literal before parameter before rest, segment by segment; the end before a rest.
    /// Two patterns of one rank that match one path have one shape.
    pub(super) fn rank(&self) -> Vec<u8> {
        let kind = |s: &Segment| match s {
            Segment::Literal(_) => 0,
            Segment::Parameter(_) => 1,
            Segment::Rest(_) => 2,
        };
        self.segments.iter().map(kind).collect()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn segment(text: &str) -> Result<Segment, PatternError> {
    if !text.contains(['{', '}']) {
        return Ok(Segment::Literal(text.to_owned()));
    }
    let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or(PatternError::Braces)?;
    if inner.contains(['{', '}']) {
        return Err(PatternError::Braces);
    }
    let (name, rest) = match inner.strip_suffix("..") {
        Some(name) => (name, true),
        None => (inner, false),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(PatternError::Name);
    }
    Ok(if rest { Segment::Rest(name.to_owned()) } else { Segment::Parameter(name.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn a_pattern_is_read_segment_by_segment() {
        let pattern = Pattern::parse("/users/{user_id}/files/{rest..}").unwrap();
        assert_eq!(
            pattern.segments(),
            [
                Segment::Literal("users".into()),
                Segment::Parameter("user_id".into()),
                Segment::Literal("files".into()),
                Segment::Rest("rest".into())
            ]
        );
        assert!(pattern.has_parameter("user_id") && !pattern.has_parameter("rest"));
        assert_eq!(pattern.rest(), Some("rest"));
        assert_eq!(Pattern::parse("/").unwrap().segments(), []);
        assert_eq!(Pattern::parse("/{rest..}").unwrap(), Pattern::everything());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_no_request_could_match_is_refused() {
        let long = "/a".repeat(33);
        let many: String = (0..17).map(|i| format!("/{{p{i}}}")).collect();
        for (text, reason) in [
            ("", PatternError::Path(PathError::NotAbsolute)),
            ("users", PatternError::Path(PathError::NotAbsolute)),
            ("/a//b", PatternError::Path(PathError::EmptySegment)),
            ("/a/../b", PatternError::Path(PathError::DotSegment)),
            ("/a\\b", PatternError::Path(PathError::Backslash)),
            ("/a?b", PatternError::Path(PathError::Delimiter)),
            ("/users/", PatternError::TrailingSlash),
            ("/%61", PatternError::Encoded),
            ("/img-{id}.png", PatternError::Braces),
            ("/{a}{b}", PatternError::Braces),
            ("/{a", PatternError::Braces),
            ("/{}", PatternError::Name),
            ("/{..}", PatternError::Name),
            ("/{1a}", PatternError::Name),
            ("/{*rest}", PatternError::Name),
            ("/{a b}", PatternError::Name),
            ("/{a}/{a}", PatternError::DuplicateName),
            ("/{a}/{a..}", PatternError::DuplicateName),
            ("/{rest..}/x", PatternError::RestNotLast),
            (&long, PatternError::TooLong),
            (&many, PatternError::TooLong),
        ] {
            assert_eq!(Pattern::parse(text), Err(reason), "{text}");
        }
    }
}
