//! What a demo origin says: a small JSON or text body, or a stream; and every reason why it refuses, as a problem
//! document (RFC 9457).

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, UPGRADE};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use thiserror::Error;

use super::probes::{Events, Pattern};
use super::store::{MAX_BODY, StoreError};

/// A response of a demo origin.
pub type Answer = Response<Either<Full<Bytes>, Either<Pattern, Events>>>;

/// Why a demo origin does not do as asked.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error("nothing is here")]
    NotFound,
    #[error("allowed here: {0}")]
    Method(&'static str),
    #[error("a path segment must be 1 to 128 bytes of percent-encoded UTF-8 without control characters")]
    Segment,
    #[error("the last path segment must be {0}")]
    Number(&'static str),
    #[error("the body is not JSON: {0}")]
    Json(serde_json::Error),
    #[error("the body must be {0}")]
    Shape(&'static str),
    #[error("the body is larger than {MAX_BODY} bytes")]
    TooLarge,
    #[error("the body did not arrive: {0}")]
    Body(hyper::Error),
    #[error("this answers `Upgrade: echo` only")]
    NoUpgrade,
    #[error("the store failed: {0}")]
    Store(StoreError),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Refusal::NotFound => StatusCode::NOT_FOUND,
            Refusal::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::Segment | Refusal::Number(_) | Refusal::Json(_) | Refusal::Body(_) => StatusCode::BAD_REQUEST,
            Refusal::Shape(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::NoUpgrade => StatusCode::UPGRADE_REQUIRED,
            Refusal::Store(StoreError::Busy) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub fn answer(&self) -> Answer {
        let mut answer = problem(self.status(), Some(&self.to_string()));
        let headers = answer.headers_mut();
        match self {
            Refusal::Method(allowed) => drop(headers.insert(ALLOW, HeaderValue::from_static(allowed))),
            Refusal::NoUpgrade => drop(headers.insert(UPGRADE, HeaderValue::from_static("echo"))),
            Refusal::Store(StoreError::Busy) => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1"))),
            _ => {}
        }
        answer
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        match error {
            StoreError::TooLarge => Refusal::TooLarge,
            error => {
                tracing::warn!(%error, "demo origin: the store failed");
                Refusal::Store(error)
            }
        }
    }
}

/// A problem document; its `type` is left out, which means `about:blank`.
pub fn problem(status: StatusCode, detail: Option<&str>) -> Answer {
    let mut document = json!({ "title": status.canonical_reason().unwrap_or("Error"), "status": status.as_u16() });
    if let (Some(detail), Some(members)) = (detail, document.as_object_mut()) {
        members.insert("detail".into(), detail.into());
    }
    text(status, "application/problem+json", document.to_string())
}

pub fn json(status: StatusCode, body: &Value) -> Answer {
    text(status, "application/json", body.to_string())
}

pub fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = empty(status);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    *answer.body_mut() = Either::Left(Full::new(body.into()));
    answer
}

pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Either::Left(Full::default()));
    *answer.status_mut() = status;
    answer
}

/// A whole body of at most [`MAX_BODY`] bytes.
pub async fn read_whole(body: &mut Incoming) -> Result<Vec<u8>, Refusal> {
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Refusal::Body)?.into_data() else { continue };
        if data.len() > MAX_BODY - kept.len() {
            return Err(Refusal::TooLarge);
        }
        kept.extend_from_slice(&data);
    }
    Ok(kept)
}
