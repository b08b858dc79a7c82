//! The data that the demo keeps: `/users/{id}/profile`, `/photos/{month}/{photo_id}`, `/vectors/{id}`.
//!
//! A PUT answers with what it stored, its ETag and a `Content-Location` that is the target, so that a write-through
//! cache may keep the answer (RFC 9110 §8.7). A DELETE of nothing is a success, so a delivery may be repeated.

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LOCATION, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::Value;

use super::answer::{Answer, Refusal, empty, read_whole, text};
use super::store::{Key, SharedDb, Stored};

/// The longest decoded path segment that names something, in bytes.
const MAX_SEGMENT: usize = 128;

/// The methods of everything that is kept; a profile takes PATCH too.
const ALLOWED: &str = "GET, HEAD, PUT, DELETE";
const ALLOWED_PROFILE: &str = "GET, HEAD, PUT, PATCH, DELETE";

/// Answers for one resource.
pub async fn resource(db: &SharedDb, key: Key, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    match *request.method() {
        Method::GET | Method::HEAD => {
            let stored = db.read(key).await?.ok_or(Refusal::NotFound)?;
            if none_match_fails(request.headers(), stored.revision) {
                return Ok(with_etag(empty(StatusCode::NOT_MODIFIED), stored.revision));
            }
            Ok(representation(StatusCode::OK, stored))
        }
        Method::PUT => {
            let body = json_text(&key, read_whole(request.body_mut()).await?)?;
            let written = db.put(key, body.clone()).await?;
            let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
            let answer = representation(status, Stored { body, revision: written.revision });
            Ok(with_location(answer, request.uri()))
        }
        Method::PATCH if matches!(key, Key::Profile(_)) => {
            let patch = json_text(&key, read_whole(request.body_mut()).await?)?;
            let merged = db.merge(key, patch).await?.ok_or(Refusal::NotFound)?;
            Ok(with_location(representation(StatusCode::OK, merged), request.uri()))
        }
        Method::DELETE => {
            db.delete(key).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Refusal::Method(if matches!(key, Key::Profile(_)) { ALLOWED_PROFILE } else { ALLOWED })),
    }
}

/// A path segment that names something, percent-decoded once.
pub fn name(segment: &str) -> Result<String, Refusal> {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(Refusal::Segment);
        decoded.push((digit()? << 4 | digit()?) as u8);
    }
    let name = String::from_utf8(decoded).map_err(|_| Refusal::Segment)?;
    if name.is_empty() || name.len() > MAX_SEGMENT || name.chars().any(char::is_control) {
        return Err(Refusal::Segment);
    }
    Ok(name)
}

/// The body as it came, once it is known to be JSON of the shape that this resource has.
fn json_text(key: &Key, body: Vec<u8>) -> Result<String, Refusal> {
    let value: Value = serde_json::from_slice(&body).map_err(Refusal::Json)?;
    let numbers = |value: &Value| value.as_array().is_some_and(|items| items.iter().all(Value::is_number));
    match key {
        Key::Vector(_) if !value.is_object() && !numbers(&value) => {
            return Err(Refusal::Shape("an array of numbers or an object"));
        }
        Key::Profile(_) | Key::Photo { .. } if !value.is_object() => return Err(Refusal::Shape("an object")),
        _ => {}
    }
    String::from_utf8(body).map_err(|_| Refusal::Shape("UTF-8"))
}

/// Whether `If-None-Match` names what stands (RFC 9110 §13.1.2, weak comparison). Our tags hold no comma.
fn none_match_fails(headers: &HeaderMap, revision: i64) -> bool {
    let ours = etag(revision);
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag == ours
    })
}

fn representation(status: StatusCode, stored: Stored) -> Answer {
    with_etag(text(status, "application/json", Bytes::from(stored.body)), stored.revision)
}

fn etag(revision: i64) -> String {
    format!("\"r{revision}\"")
}

fn with_etag(mut answer: Answer, revision: i64) -> Answer {
    if let Ok(value) = HeaderValue::try_from(etag(revision)) {
        answer.headers_mut().insert(ETAG, value);
    }
    answer
}

fn with_location(mut answer: Answer, target: &Uri) -> Answer {
    let location = target.path_and_query().map_or("/", |target| target.as_str());
    if let Ok(value) = HeaderValue::from_str(location) {
        answer.headers_mut().insert(CONTENT_LOCATION, value);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_decoded_once_and_only_once() {
        assert_eq!(name("a%2Fb%20c").unwrap(), "a/b c");
        assert_eq!(name("%2541").unwrap(), "%41");
        assert_eq!(name("J%C3%BCrgen+1").unwrap(), "Jürgen+1");
        assert_eq!(name(&"%61".repeat(128)).unwrap().len(), 128);
        for wrong in ["", "%", "%4", "%4g", "%+1", "%FF", "%00", "a%0Ab", &"a".repeat(129)] {
            assert!(matches!(name(wrong), Err(Refusal::Segment)), "{wrong:?}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly_over_lists_and_lines() {
        let fails = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IF_NONE_MATCH, HeaderValue::from_static(value));
            }
            none_match_fails(&headers, 7)
        };
        assert!(fails(&["\"r7\""]) && fails(&["W/\"r7\""]) && fails(&["*"]));
        assert!(fails(&["\"r1\", \"r7\""]) && fails(&["\"r1\"", "\"r7\""]));
        assert!(!fails(&[]) && !fails(&["\"r77\""]) && !fails(&["r7"]));
    }
}
