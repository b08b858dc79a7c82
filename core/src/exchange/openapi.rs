//! `/openapi.json`: what Edgekeep's own paths take and answer, for people and for generators of clients and requests.
//!
//! The document is `openapi.json` beside this file, and nothing else. It cannot drift: a test compares its paths and
//! methods with those of `route::own`, every answer that a test of the exchange gets on an own path must stand in it,
//! and `cargo xtask test openapi` asks running deployments what it says.

use serde_json::Value;

use super::internal::published;
use super::{Context, Exchange, Step};

const SOURCE: &[u8] = include_str!("openapi.json").as_bytes();
/// Stands where `servers` needs `server.api_prefix`, quotation marks included.
const PREFIX: &[u8] = b"\"@api_prefix@\"";

/// Without what only people need: it is part of the Worker, whose size counts.
static COMPACT: [u8; compact_length(SOURCE)] = compact(SOURCE);
const PREFIX_AT: usize = position(&compact::<{ compact_length(SOURCE) }>(SOURCE), PREFIX);
/// Names this document in its `ETag`.
const DIGEST: u64 = fnv1a(FNV_OFFSET, SOURCE);

impl Exchange {
    pub(super) fn openapi(&self, cx: &Context<'_>) -> Step {
        let prefix = self.rules.config.server.api_prefix.as_str();
        let tag = format!("\"{:016x}\"", fnv1a(DIGEST, prefix.as_bytes()));
        published(cx, tag, "application/json", || document(prefix))
    }
}

/// The document of an API below this prefix.
pub(super) fn document(prefix: &str) -> Vec<u8> {
    let (before, rest) = COMPACT.split_at(PREFIX_AT);
    let after = rest.split_at(PREFIX.len()).1;
    let url = Value::from(if prefix.is_empty() { "/" } else { prefix }).to_string();
    [before, url.as_bytes(), after].concat()
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

const fn fnv1a(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

/// How many bytes [`compact`] leaves.
const fn compact_length(json: &[u8]) -> usize {
    let (mut at, mut length, mut text) = (0, 0, Text::Outside);
    while at < json.len() {
        text = text.after(json[at]);
        if !text.is_layout(json[at]) {
            length += 1;
        }
        at += 1;
    }
    length
}

/// JSON without the spaces and line ends between its tokens.
const fn compact<const N: usize>(json: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let (mut at, mut length, mut text) = (0, 0, Text::Outside);
    while at < json.len() {
        text = text.after(json[at]);
        if !text.is_layout(json[at]) {
            out[length] = json[at];
            length += 1;
        }
        at += 1;
    }
    out
}

/// Where in JSON a byte stands.
#[derive(Clone, Copy)]
enum Text {
    Outside,
    Inside,
    Escaped,
}

impl Text {
    const fn after(self, byte: u8) -> Text {
        match (self, byte) {
            (Text::Outside, b'"') | (Text::Escaped, _) => Text::Inside,
            (Text::Inside, b'"') => Text::Outside,
            (Text::Inside, b'\\') => Text::Escaped,
            (text, _) => text,
        }
    }

    const fn is_layout(self, byte: u8) -> bool {
        matches!(self, Text::Outside) && byte.is_ascii_whitespace()
    }
}

/// Where `needle` begins; a document without it is not built.
const fn position(hay: &[u8], needle: &[u8]) -> usize {
    let mut start = 0;
    loop {
        let mut at = 0;
        while at < needle.len() && hay[start + at] == needle[at] {
            at += 1;
        }
        if at == needle.len() {
            return start;
        }
        start += 1;
    }
}
