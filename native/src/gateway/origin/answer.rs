//! The head of an origin's answer, and what it says of the body (RFC 9112 §6.3).

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use httparse::{ParserConfig, Response, Status};
use memchr::memchr;

use super::framing::Framing;

/// The largest head, in bytes, and the most lines of one: hyper's limits.
const LARGEST_HEAD: usize = 400 * 1024;
const MOST_LINES: usize = 100;
/// Room for what the gateway adds to an answer.
const OWN_LINES: usize = 8;

/// What of the request decides how its answer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// For the head alone.
    Head,
    /// For another protocol.
    Upgrade,
    Usual,
}

impl Asked {
    pub fn of(method: &Method, upgrade: bool) -> Asked {
        match method {
            &Method::HEAD => Asked::Head,
            _ if upgrade => Asked::Upgrade,
            _ => Asked::Usual,
        }
    }
}

#[derive(Debug)]
pub struct AnswerHead {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

#[derive(Debug)]
pub struct Answered {
    pub head: AnswerHead,
    pub framing: Framing,
    /// The origin keeps the connection open.
    pub persists: bool,
}

/// Why an answer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("the answer's head: {0}")]
    Syntax(#[from] httparse::Error),
    #[error("the answer's head is cut off")]
    Cut,
    #[error("the answer's head has more than {LARGEST_HEAD} bytes")]
    TooLarge,
    #[error("a status of {0}")]
    Status(u16),
    #[error("a header that is none: {0}")]
    Header(#[from] http::Error),
    #[error("lengths that differ or are none")]
    Length,
    #[error("a transfer coding other than chunked")]
    Coding,
    #[error("a transfer coding in HTTP/1.0")]
    OldCoding,
    #[error("an upgrade that nobody asked for")]
    Upgrade,
}

/// Takes the head of the final answer out of what was read; none: there is no whole one yet. Interim answers are left
/// out. `looked` is how far earlier calls have looked for the end of this head.
pub fn read(read: &mut BytesMut, looked: &mut usize, asked: Asked) -> Result<Option<Answered>, AnswerError> {
    loop {
        let Some(length) = head_length(read, *looked) else {
            // The last two bytes may begin its end.
            *looked = read.len().saturating_sub(2);
            return if read.len() > LARGEST_HEAD { Err(AnswerError::TooLarge) } else { Ok(None) };
        };
        *looked = 0;
        if length > LARGEST_HEAD {
            return Err(AnswerError::TooLarge);
        }
        let (head, is_old) = parse(&read.split_to(length).freeze())?;
        match head.status {
            StatusCode::SWITCHING_PROTOCOLS if asked == Asked::Upgrade => {}
            StatusCode::SWITCHING_PROTOCOLS => return Err(AnswerError::Upgrade),
            status if status.is_informational() => continue,
            _ => {}
        }
        return answered(head, is_old, asked).map(Some);
    }
}

/// Up to and with the empty line, whose line before does not end before `at`.
fn head_length(read: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr(b'\n', read.get(at..)?)? + 1;
        match read.get(at..)? {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
}

fn parse(bytes: &Bytes) -> Result<(AnswerHead, bool), AnswerError> {
    let mut lines = [const { MaybeUninit::uninit() }; MOST_LINES];
    let mut response = Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut lines)?;
    let (Status::Complete(_), Some(code), Some(version)) = (parsed, response.code, response.version) else {
        return Err(AnswerError::Cut);
    };
    let status = StatusCode::from_u16(code).map_err(|_| AnswerError::Status(code))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len() + OWN_LINES);
    for line in &*response.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(http::Error::from)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(line.value)).map_err(http::Error::from)?;
        headers.append(name, value);
    }
    Ok((AnswerHead { status, headers }, version == 0))
}

fn answered(mut head: AnswerHead, is_old: bool, asked: Asked) -> Result<Answered, AnswerError> {
    let says = |name: &str| {
        let lines = head.headers.get_all(CONNECTION).iter();
        lines
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
    };
    let persists = if is_old { says("keep-alive") } else { !says("close") };
    let has_coding = head.headers.contains_key(TRANSFER_ENCODING);
    let (framing, persists) = if head.status == StatusCode::SWITCHING_PROTOCOLS {
        (Framing::None, false)
    } else if asked == Asked::Head {
        // What a GET would be answered with: a client takes it for the answer's length.
        match has_coding {
            true => drop(head.headers.remove(CONTENT_LENGTH)),
            false => drop(length(&mut head.headers)?),
        }
        (Framing::None, persists)
    } else if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        (Framing::None, persists)
    } else if has_coding {
        if is_old {
            return Err(AnswerError::OldCoding);
        }
        if !is_chunked_alone(&head.headers) {
            return Err(AnswerError::Coding);
        }
        // With a length too, somebody before may have read another answer than this one: nothing follows on it.
        let is_sure = head.headers.remove(CONTENT_LENGTH).is_none();
        (Framing::chunked(), persists && is_sure)
    } else {
        match length(&mut head.headers)? {
            Some(length) => (Framing::of_length(length), persists),
            None => (Framing::UntilClose, false),
        }
    };
    Ok(Answered { head, framing, persists })
}

/// The one coding that is undone here. Any other would reach the client as a body in a coding that nobody tells it of.
fn is_chunked_alone(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(TRANSFER_ENCODING).iter();
    let codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    // A list may have empty places (RFC 9110 §5.6.1).
    let mut codings = codings.filter(|coding| !coding.is_empty());
    codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// The one length that all lines give, which then stands in one line (RFC 9112 §6.3): hyper writes the first as it is.
fn length(headers: &mut HeaderMap) -> Result<Option<u64>, AnswerError> {
    let (mut length, mut times) = (None, 0);
    for line in headers.get_all(CONTENT_LENGTH) {
        for text in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
            let said = std::str::from_utf8(text).ok().filter(|_| is_number).and_then(|text| text.parse().ok());
            match (said, length) {
                (None, _) => return Err(AnswerError::Length),
                (Some(said), Some(before)) if said != before => return Err(AnswerError::Length),
                (said, _) => length = said,
            }
            times += 1;
        }
    }
    if let Some(length) = length.filter(|_| times > 1) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str, asked: Asked) -> Result<(Answered, usize), AnswerError> {
        let mut bytes = BytesMut::from(text);
        read(&mut bytes, &mut 0, asked).map(|answered| (answered.unwrap(), bytes.len()))
    }

    #[test]
    fn a_body_ends_as_rfc_9112_says() {
        let chunked = Framing::chunked;
        for (head, asked, framing, persists) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", Asked::Usual, Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\ncontent-length: 5", Asked::Usual, Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0", Asked::Usual, Framing::None, true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: x, Close", Asked::Usual, Framing::Length(5), false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5", Asked::Usual, Framing::Length(5), false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive", Asked::Usual, Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: , Chunked", Asked::Usual, chunked(), true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5", Asked::Usual, chunked(), false),
            ("HTTP/1.1 200 OK\r\nx: y", Asked::Usual, Framing::UntilClose, false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5", Asked::Head, Framing::None, true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", Asked::Head, Framing::None, true),
            ("HTTP/1.1 204 No\r\ncontent-length: 5", Asked::Usual, Framing::None, true),
            ("HTTP/1.1 304 Not\r\ncontent-length: 5", Asked::Usual, Framing::None, true),
            ("HTTP/1.1 101 Ws\r\nupgrade: websocket", Asked::Upgrade, Framing::None, false),
            (
                "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nlink: x\r\n\r\nHTTP/1.1 200\r\ncontent-length: 1",
                Asked::Usual,
                Framing::Length(1),
                true,
            ),
            ("HTTP/1.1 200 OK\ncontent-length: 5", Asked::Usual, Framing::Length(5), true),
        ] {
            let (answered, left) = whole(&format!("{head}\r\n\r\nrest"), asked).unwrap();
            assert_eq!((answered.framing, answered.persists, left), (framing, persists, 4), "{head}");
            let both = answered.head.headers.contains_key(CONTENT_LENGTH)
                && answered.head.headers.contains_key(TRANSFER_ENCODING);
            assert!(!both, "{head}");
        }
    }

    #[test]
    fn a_length_that_was_said_more_than_once_is_said_once() {
        for (said, asked, passes) in [
            ("content-length: 5, 5\r\ncontent-length: 5", Asked::Usual, &["5"][..]),
            ("content-length: 5\r\ncontent-length: 5", Asked::Head, &["5"]),
            ("content-length: 5\r\ntransfer-encoding: chunked", Asked::Usual, &[]),
            ("content-length: 5\r\ntransfer-encoding: chunked", Asked::Head, &[]),
            ("content-length: 005", Asked::Usual, &["005"]),
        ] {
            let (answered, _) = whole(&format!("HTTP/1.1 200 OK\r\n{said}\r\n\r\n"), asked).unwrap();
            let lengths: Vec<_> = answered.head.headers.get_all(CONTENT_LENGTH).iter().collect();
            assert_eq!(lengths, passes, "{said}");
        }
        for status in ["200 OK", "304 Not Modified"] {
            let differ = format!("HTTP/1.1 {status}\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n");
            assert!(whole(&differ, Asked::Head).is_err(), "{status}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MOST_LINES + 1));
        let large = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(LARGEST_HEAD));
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5,\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked;q=1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: \r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname : value\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\u{0}\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 101 Switching\r\nupgrade: websocket\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "\r\n\r\n",
            &many,
            &large,
            &"x".repeat(LARGEST_HEAD + 1),
        ] {
            let refused = whole(text, Asked::Usual);
            assert!(refused.is_err(), "{}: {refused:?}", text.chars().take(60).collect::<String>());
        }
    }

    #[test]
    fn a_head_is_waited_for_until_its_last_byte() {
        let text = "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 2\r\n\r\n";
        for text in [text.to_owned(), text.replace('\r', ""), format!("HTTP/1.1 103 E\r\nlink: x\r\n\r\n{text}")] {
            let (mut bytes, mut looked) = (BytesMut::new(), 0);
            for byte in text.bytes() {
                assert!(read(&mut bytes, &mut looked, Asked::Usual).unwrap().is_none());
                // However slowly it comes, each byte is looked at a few times at most.
                assert!(looked + 2 >= bytes.len());
                bytes.extend_from_slice(&[byte]);
            }
            let answered = read(&mut bytes, &mut looked, Asked::Usual).unwrap().unwrap();
            assert_eq!((answered.head.status, answered.head.headers["a"].as_bytes()), (StatusCode::OK, &b"b"[..]));
            assert_eq!(looked, 0);
        }
    }
}
