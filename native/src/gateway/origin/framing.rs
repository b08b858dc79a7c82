//! Where an answer's body ends, and what of it is data.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::{EMPTY_HEADER, Status};

/// The longest line with a chunk's size and extensions, in bytes.
const LONGEST_SIZE: usize = 4 * 1024;
/// The largest trailers, in bytes, and the most lines of them.
const LARGEST_TRAILERS: usize = 16 * 1024;
const MOST_TRAILERS: usize = 64;

/// The rest of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none, or no more.
    None,
    /// So many bytes, at least one.
    Length(u64),
    Chunks(Chunks),
    UntilClose,
}

/// What of a chunked body comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunks {
    Size,
    /// So many bytes of a chunk, at least one.
    Data(u64),
    DataEnd,
    Trailers,
}

/// What was found in what was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// More is needed, at most so many bytes of data if that is known.
    More(usize),
}

/// Why a body cannot be read on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("a chunk's size is none")]
    Size,
    #[error("a chunk does not end where it said")]
    DataEnd,
    #[error("trailers that are none, or too many")]
    Trailers,
}

impl Framing {
    pub fn of_length(length: u64) -> Framing {
        if length == 0 { Framing::None } else { Framing::Length(length) }
    }

    pub fn chunked() -> Framing {
        Framing::Chunks(Chunks::Size)
    }

    pub fn is_over(&self) -> bool {
        *self == Framing::None
    }

    /// The end of the connection was to come: whether it is the end of the body too.
    pub fn ends_by_close(&mut self) -> bool {
        let ends = *self == Framing::UntilClose;
        if ends {
            *self = Framing::None;
        }
        ends
    }

    /// Bytes that are still to come, when that is known.
    pub fn rest(&self) -> Option<u64> {
        match self {
            Framing::None => Some(0),
            Framing::Length(rest) => Some(*rest),
            Framing::Chunks(_) | Framing::UntilClose => None,
        }
    }

    /// Takes the next piece out of what was read.
    pub fn next(&mut self, read: &mut BytesMut) -> Result<Next, FramingError> {
        match self {
            Framing::None => Ok(Next::End),
            Framing::UntilClose if read.is_empty() => Ok(Next::More(usize::MAX)),
            Framing::UntilClose => Ok(Next::Data(read.split().freeze())),
            Framing::Length(rest) => {
                let Some(data) = take(read, rest) else { return Ok(Next::More(known(*rest))) };
                if *rest == 0 {
                    *self = Framing::None;
                }
                Ok(Next::Data(data))
            }
            Framing::Chunks(chunks) => {
                let next = chunks.next(read)?;
                if matches!(next, Next::End | Next::Trailers(_)) {
                    *self = Framing::None;
                }
                Ok(next)
            }
        }
    }
}

impl Chunks {
    fn next(&mut self, read: &mut BytesMut) -> Result<Next, FramingError> {
        loop {
            match self {
                Chunks::Size => match httparse::parse_chunk_size(read) {
                    Ok(Status::Complete((length, size))) => {
                        read.advance(length);
                        *self = if size == 0 { Chunks::Trailers } else { Chunks::Data(size) };
                    }
                    Ok(Status::Partial) if read.len() < LONGEST_SIZE => return Ok(Next::More(usize::MAX)),
                    Ok(Status::Partial) | Err(_) => return Err(FramingError::Size),
                },
                Chunks::Data(rest) => {
                    let Some(data) = take(read, rest) else { return Ok(Next::More(usize::MAX)) };
                    if *rest == 0 {
                        *self = Chunks::DataEnd;
                    }
                    return Ok(Next::Data(data));
                }
                Chunks::DataEnd => match **read {
                    [b'\r', b'\n', ..] => {
                        read.advance(2);
                        *self = Chunks::Size;
                    }
                    [] | [b'\r'] => return Ok(Next::More(usize::MAX)),
                    _ => return Err(FramingError::DataEnd),
                },
                Chunks::Trailers => return trailers(read),
            }
        }
    }
}

/// As much of the data as was read, if any.
fn take(read: &mut BytesMut, rest: &mut u64) -> Option<Bytes> {
    let length = read.len().min(known(*rest));
    if length == 0 {
        return None;
    }
    *rest -= length as u64;
    Some(read.split_to(length).freeze())
}

fn known(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn trailers(read: &mut BytesMut) -> Result<Next, FramingError> {
    let mut lines = [EMPTY_HEADER; MOST_TRAILERS];
    let (length, lines) = match httparse::parse_headers(read, &mut lines) {
        Ok(Status::Complete(parsed)) => parsed,
        Ok(Status::Partial) if read.len() < LARGEST_TRAILERS => return Ok(Next::More(usize::MAX)),
        Ok(Status::Partial) | Err(_) => return Err(FramingError::Trailers),
    };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let (name, value) = (HeaderName::from_bytes(line.name.as_bytes()), HeaderValue::from_bytes(line.value));
        let (Ok(name), Ok(value)) = (name, value) else { return Err(FramingError::Trailers) };
        trailers.append(name, value);
    }
    read.advance(length);
    Ok(if trailers.is_empty() { Next::End } else { Next::Trailers(trailers) })
}
