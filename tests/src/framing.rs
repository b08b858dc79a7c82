//! Two readers of what an origin was sent: one to the letter of RFC 9112, and one as careless as an old origin may be.
//! Where both find the same requests, nobody can be made to see another one.

/// One request as a reader finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// From the first byte of its head to the last of its body.
    pub bytes: Vec<u8>,
}

impl Message {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// What was found, and why reading ended before the end of the bytes.
#[derive(Clone, Debug, Default)]
pub struct Read {
    pub messages: Vec<Message>,
    /// None where the bytes end with the last message, or in the middle of one.
    pub fault: Option<String>,
}

/// To the letter: what could be read in two ways is a fault. A message whose end has not come yet is none.
pub fn strict(bytes: &[u8]) -> Read {
    let mut read = Read::default();
    let mut at = 0;
    while at < bytes.len() {
        match strict_message(&bytes[at..]) {
            Ok(Some(message)) => {
                at += message.bytes.len();
                read.messages.push(message);
            }
            Ok(None) => break,
            Err(fault) => {
                read.fault = Some(fault);
                break;
            }
        }
    }
    read
}

fn strict_message(bytes: &[u8]) -> Result<Option<Message>, String> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    // Bytes above ASCII may stand in values (obs-text).
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = first[..] else { return Err(format!("the first line {first:?}")) };
    if !is_token(method) || target.is_empty() || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("the first line {first:?}"));
    }
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("the line {line:?}"))?;
        if !is_token(name) || value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f) {
            return Err(format!("the line {line:?}"));
        }
        headers.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
    }
    let of = |name: &str| headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    if of("host").len() != 1 {
        return Err(format!("{} Host lines", of("host").len()));
    }
    let after = &bytes[end + 4..];
    let framed = match (&of("content-length")[..], &of("transfer-encoding")[..]) {
        ([], []) => Some((Vec::new(), 0)),
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| format!("the length {length}"))?;
            after.get(..length).map(|body| (body.to_vec(), length))
        }
        ([], ["chunked"]) => strict_chunks(after)?,
        other => return Err(format!("the framing {other:?}")),
    };
    let Some((body, length)) = framed else { return Ok(None) };
    let (method, target) = (method.to_owned(), target.to_owned());
    Ok(Some(Message { method, target, headers, body, bytes: bytes[..end + 4 + length].to_vec() }))
}

type Chunks = Option<(Vec<u8>, usize)>;

fn strict_chunks(bytes: &[u8]) -> Result<Chunks, String> {
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let Some(line) = memchr::memmem::find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("the chunk size {size:?}"));
        }
        let size = usize::from_str_radix(&size, 16).map_err(|_| format!("the chunk size {size:?}"))?;
        at += line + 2;
        if size == 0 {
            break;
        }
        let Some(chunk) = bytes.get(at..at + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk without its end".to_owned());
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
    loop {
        let Some(line) = memchr::memmem::find(&bytes[at..], b"\r\n") else { return Ok(None) };
        at += line + 2;
        if line == 0 {
            return Ok(Some((body, at)));
        }
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// What a careless reader prefers where a message has two lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefers {
    Length,
    Chunks,
}

/// Carelessly: lines may end with a line feed alone, names may be followed by spaces, folded lines go on, the last of
/// several lengths counts, anything that names `chunked` is, and sizes are read as far as they are digits.
pub fn lenient(bytes: &[u8], prefers: Prefers) -> Vec<Message> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(message) = bytes.get(at..).and_then(|rest| lenient_message(rest, prefers)) {
        at += message.bytes.len();
        found.push(message);
    }
    found
}

fn lenient_message(bytes: &[u8], prefers: Prefers) -> Option<Message> {
    let mut lines: Vec<String> = Vec::new();
    let mut at = 0;
    loop {
        let end = at + memchr::memchr(b'\n', bytes.get(at..)?)?;
        let line = String::from_utf8_lossy(&bytes[at..end]).trim_end_matches('\r').to_owned();
        at = end + 1;
        match lines.last_mut() {
            // Empty lines before a request are skipped.
            None if line.is_empty() => {}
            _ if line.is_empty() => break,
            Some(folded) if line.starts_with([' ', '\t']) => *folded += &line,
            _ => lines.push(line),
        }
    }
    let first = lines.first()?.clone();
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let named = |line: &String| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers: Vec<(String, String)> = lines.iter().skip(1).filter_map(named).collect();
    let last = |name: &str| headers.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let length = last("content-length").map(|value| number(value.trim_start_matches('+'), 10));
    let chunked = headers.iter().any(|(n, v)| n == "transfer-encoding" && v.to_ascii_lowercase().contains("chunked"));
    let after = &bytes[at..];
    let (body, taken) = match (length, chunked) {
        (Some(length), true) if prefers == Prefers::Length => plain(after, length),
        (_, true) => lenient_chunks(after),
        (Some(length), false) => plain(after, length),
        (None, false) => (Vec::new(), 0),
    };
    Some(Message { method, target, headers, body, bytes: bytes[..at + taken].to_vec() })
}

fn plain(bytes: &[u8], length: usize) -> (Vec<u8>, usize) {
    let taken = length.min(bytes.len());
    (bytes[..taken].to_vec(), taken)
}

fn lenient_chunks(bytes: &[u8]) -> (Vec<u8>, usize) {
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let Some(end) = bytes.get(at..).and_then(|rest| memchr::memchr(b'\n', rest)) else {
            return (body, bytes.len());
        };
        let line = String::from_utf8_lossy(&bytes[at..at + end]).into_owned();
        at += end + 1;
        let size = number(line.trim().trim_start_matches("0x"), 16);
        if size == 0 {
            break;
        }
        let taken = size.min(bytes.len() - at);
        body.extend_from_slice(&bytes[at..at + taken]);
        at += taken;
        at += bytes[at..].iter().take(2).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    }
    while let Some(end) = bytes.get(at..).and_then(|rest| memchr::memchr(b'\n', rest)) {
        let is_empty = bytes[at..at + end].iter().all(|byte| *byte == b'\r');
        at += end + 1;
        if is_empty {
            break;
        }
    }
    (body, at)
}

/// As far as there are digits; nothing is 0.
fn number(text: &str, radix: u32) -> usize {
    let digits: String = text.chars().take_while(|c| c.is_digit(radix)).take(9).collect();
    usize::from_str_radix(&digits, radix).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[u8] = b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length: 40\r\ntransfer-encoding: chunked\r\n\r\n\
        0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: o\r\n\r\n";

    #[test]
    fn the_strict_reader_refuses_what_has_two_readings() {
        assert!(strict(BOTH).fault.is_some());
        for bad in [
            "GET / HTTP/1.1\nhost: o\r\n\r\n",
            "GET / HTTP/1.1\r\nhost : o\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: o\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: o\r\nhost: p\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: o\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: o\r\ncontent-length: +1\r\n\r\nx",
            "POST / HTTP/1.1\r\nhost: o\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        ] {
            assert!(strict(bad.as_bytes()).fault.is_some(), "{bad:?}");
        }
    }

    #[test]
    fn the_careless_readers_are_led_astray_by_what_the_strict_one_refuses() {
        let targets = |prefers| lenient(BOTH, prefers).into_iter().map(|m| m.target).collect::<Vec<_>>();
        assert_eq!(targets(Prefers::Chunks), ["/", "/smuggled"]);
        assert_eq!(targets(Prefers::Length), ["/"]);
    }

    #[test]
    fn all_readers_agree_on_plain_requests() {
        let bytes = b"POST /a HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n\
            POST /b HTTP/1.1\r\nhost: o\r\ncontent-length: 2\r\n\r\nhiGET /c HTTP/1.1\r\nhost: o\r\n\r\n";
        let read = strict(bytes);
        assert!(read.fault.is_none());
        assert_eq!(read.messages.iter().map(|m| m.body.as_slice()).collect::<Vec<_>>(), [&b"abc"[..], b"hi", b""]);
        assert_eq!(read.messages, lenient(bytes, Prefers::Length));
        assert_eq!(read.messages, lenient(bytes, Prefers::Chunks));
    }
}
