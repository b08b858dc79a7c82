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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
                // httparse takes no digit at all for a size of 0.
                Chunks::Size if read.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) => {
                    return Err(FramingError::Size);
                }
                Chunks::Size => match httparse::parse_chunk_size(read) {
                    Ok(Status::Complete((length, size))) if length <= LONGEST_SIZE => {
                        read.advance(length);
                        *self = if size == 0 { Chunks::Trailers } else { Chunks::Data(size) };
                    }
                    Ok(Status::Partial) if read.len() < LONGEST_SIZE => return Ok(Next::More(usize::MAX)),
                    Ok(_) | Err(_) => return Err(FramingError::Size),
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
        Ok(Status::Complete(parsed)) if parsed.0 <= LARGEST_TRAILERS => parsed,
        Ok(Status::Partial) if read.len() < LARGEST_TRAILERS => return Ok(Next::More(usize::MAX)),
        Ok(_) | Err(_) => return Err(FramingError::Trailers),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Data and trailers of a body that comes in pieces of this size, and what is left behind it.
    fn read(mut framing: Framing, bytes: &[u8], size: usize) -> Result<(Vec<u8>, HeaderMap, Vec<u8>), FramingError> {
        let (mut data, mut trailers, mut read) = (Vec::new(), HeaderMap::new(), BytesMut::new());
        let mut pieces = bytes.chunks(size);
        loop {
            match framing.next(&mut read)? {
                Next::Data(piece) => {
                    assert!(!piece.is_empty());
                    data.extend_from_slice(&piece);
                }
                Next::Trailers(found) => trailers = found,
                Next::End => break,
                Next::More(most) => match pieces.next() {
                    _ if most == 0 => panic!("nothing is needed"),
                    Some(piece) => read.extend_from_slice(piece),
                    None if framing.ends_by_close() => {}
                    None => panic!("{framing:?} is not over after {}", bytes[..bytes.len().min(99)].escape_ascii()),
                },
            }
        }
        assert!(framing.is_over());
        read.extend_from_slice(&pieces.collect::<Vec<_>>().concat());
        Ok((data, trailers, read.to_vec()))
    }

    #[test]
    fn bodies_end_where_they_say_however_they_come() {
        let chunked = b"3\r\nabc\r\n00A;ext=\"1\"\r\n0123456789\r\n0\r\n\r\nnext";
        let trailed = b"1\r\nx\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\nnext";
        for size in 1..=chunked.len() {
            let (data, trailers, rest) = read(Framing::chunked(), chunked, size).unwrap();
            assert_eq!((&data[..], trailers.len(), &rest[..]), (&b"abc0123456789"[..], 0, &b"next"[..]), "by {size}");
            let (data, trailers, rest) = read(Framing::chunked(), trailed, size).unwrap();
            let sums: Vec<_> = trailers.get_all("x-sum").iter().map(|sum| sum.to_str().unwrap()).collect();
            assert_eq!((&data[..], &sums[..], &rest[..]), (&b"x"[..], &["1", "2"][..], &b"next"[..]), "by {size}");
            let (data, _, rest) = read(Framing::of_length(5), b"12345next", size).unwrap();
            assert_eq!((&data[..], &rest[..]), (&b"12345"[..], &b"next"[..]), "by {size}");
            let (data, _, rest) = read(Framing::UntilClose, b"12345next", size).unwrap();
            assert_eq!((&data[..], rest.len()), (&b"12345next"[..], 0), "by {size}");
        }
        assert_eq!(read(Framing::of_length(0), b"next", 4).unwrap().2, b"next");
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        let long = [b"1;".to_vec(), vec![b'x'; LONGEST_SIZE], b"\r\nx\r\n0\r\n\r\n".to_vec()].concat();
        let trailers = [b"0\r\n".to_vec(), b"a: b\r\n".repeat(MOST_TRAILERS + 1), b"\r\n".to_vec()].concat();
        let large = [b"0\r\na: ".to_vec(), vec![b'x'; LARGEST_TRAILERS], b"\r\n\r\n".to_vec()].concat();
        for (bytes, error) in [
            (&b"x\r\n"[..], FramingError::Size),
            (b"-1\r\n", FramingError::Size),
            (b"\r\n", FramingError::Size),
            (b"1\nx\r\n0\r\n\r\n", FramingError::Size),
            (b"10000000000000000\r\n", FramingError::Size),
            (&long, FramingError::Size),
            (b"1\r\nxx\r\n", FramingError::DataEnd),
            (b"1\r\nx\n\n", FramingError::DataEnd),
            (b"0\r\nno colon\r\n\r\n", FramingError::Trailers),
            (b"0\r\nspace : 1\r\n\r\n", FramingError::Trailers),
            (&trailers, FramingError::Trailers),
            (&large, FramingError::Trailers),
        ] {
            let start = &bytes[..bytes.len().min(60)];
            for size in [1, 2, 5, 1024] {
                assert_eq!(read(Framing::chunked(), bytes, size), Err(error.clone()), "{}", start.escape_ascii());
            }
        }
    }
}
