//! Names for one request across processes: `x-request-id`, and W3C `traceparent`. What the client sent is kept when it
//! is well formed, so that a trace is not cut; anything else is made anew.

use super::edits::HeaderEdits;
use super::head::{Head, header_text};
use crate::Entropy;

/// The longest request id taken from outside.
const MAX_REQUEST_ID: usize = 128;

/// `x-request-id`: the client's when it is 1–128 visible ASCII characters, else 32 hex digits.
pub fn request_id(head: &dyn Head, entropy: &mut Entropy, edits: &mut HeaderEdits) {
    edits.set_with("x-request-id", |value| match header_text(head, "x-request-id") {
        Some(id) if !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.bytes().all(|b| b.is_ascii_graphic()) => {
            value.extend_from_slice(id.as_bytes());
        }
        _ => push_hex(&entropy.bytes::<16>(), value),
    });
}

/// `traceparent` for the origin: the client's trace with a new parent, or a new trace (not sampled).
pub fn traceparent(head: &dyn Head, entropy: &mut Entropy, edits: &mut HeaderEdits) {
    let parent = entropy.bytes::<8>();
    let given = header_text(head, "traceparent").and_then(parse);
    edits.set_with("traceparent", |value| {
        value.extend_from_slice(b"00-");
        match given {
            Some((trace, _)) => value.extend_from_slice(trace.as_bytes()),
            None => push_hex(&entropy.bytes::<16>(), value),
        }
        value.push(b'-');
        push_hex(&parent, value);
        value.push(b'-');
        value.extend_from_slice(given.map_or("00", |(_, flags)| flags).as_bytes());
    });
}

/// Trace id and flags of a version 00 `traceparent` (W3C Trace Context §3.2).
fn parse(value: &str) -> Option<(&str, &str)> {
    let parts: Vec<&str> = value.split('-').collect();
    let [version, trace, parent, flags] = parts.as_slice() else { return None };
    let is_hex = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let some = |s: &str| s.bytes().any(|b| b != b'0');
    (*version == "00" && is_hex(trace, 32) && some(trace) && is_hex(parent, 16) && some(parent) && is_hex(flags, 2))
        .then_some((*trace, *flags))
}

fn push_hex(bytes: &[u8], text: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn only_a_well_formed_trace_is_continued() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(parse(good), Some(("0af7651916cd43dd8448eb211c80319c", "01")));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
