//! Where an HTTP/1.1 answer ends, read from bytes: the loads of `cargo xtask bench` can't afford a client for that.

use anyhow::Context;

/// More header fields than this in an answer is an error here.
const MAX_HEADERS: usize = 64;

/// The end of a chunked body without trailers.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// The part of an answer's head that a load needs.
pub struct Head {
    /// Bytes up to the body.
    pub len: usize,
    pub status: u16,
    pub body: Body,
    /// The server closes the connection after this answer.
    pub close: bool,
}

/// How the body's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Length(usize),
    Chunked,
}

impl Head {
    /// `None`: more bytes are needed.
    pub fn parse(buffer: &[u8]) -> anyhow::Result<Option<Head>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(len) = response.parse(buffer).context("not an HTTP answer")? else {
            return Ok(None);
        };
        let mut head = Head { len, status: response.code.unwrap_or(0), body: Body::Length(0), close: false };
        for header in response.headers.iter() {
            if header.name.eq_ignore_ascii_case("content-length") {
                head.body = Body::Length(std::str::from_utf8(header.value)?.trim().parse().context("content-length")?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                head.body = Body::Chunked;
            } else if header.name.eq_ignore_ascii_case("connection") {
                head.close = header.value.eq_ignore_ascii_case(b"close");
            }
        }
        Ok(Some(head))
    }

    /// Where the answer that `buffer` begins with ends; `None`: more bytes are needed.
    pub fn end(&self, buffer: &[u8]) -> Option<usize> {
        match self.body {
            Body::Length(length) => (buffer.len() >= self.len + length).then_some(self.len + length),
            // An empty chunked body has no CRLF of a chunk before its last one: the head's own stands there.
            Body::Chunked => {
                let at = memchr::memmem::find(buffer.get(self.len - 2..)?, LAST_CHUNK)?;
                Some(self.len - 2 + at + LAST_CHUNK.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(answer: &[u8]) -> Option<usize> {
        Head::parse(answer).unwrap()?.end(answer)
    }

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and more";
        assert_eq!(end_of(answer), Some(answer.len() - " and more".len()));
        assert_eq!(end_of(&answer[..answer.len() - 10]), None);
        assert_eq!(end_of(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(27));
    }

    #[test]
    fn a_chunked_answer_ends_after_its_last_chunk() {
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        assert_eq!(end_of(answer), Some(answer.len()));
        assert_eq!(end_of(&answer[..answer.len() - 1]), None);
        let empty = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(end_of(empty), Some(empty.len()));
    }
}
