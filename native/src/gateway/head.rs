//! Heads as core asks them, a client's and an origin's, and core's edits of what a client is answered.

use bytes::Bytes;
use edgekeep_core::ByteSize;
use edgekeep_core::http::{
    Head, HeaderEdits, Peer, Problem, ProblemCode, drops_set_cookie, is_hop_by_hop, is_internal, may_trail,
};
use http::header::{HOST, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use http_body::Frame;

use super::origin::AnswerHead;

/// A request's head with its connection.
pub struct RequestHead<'a> {
    pub parts: &'a Parts,
    pub peer: Peer,
    pub names: Names,
}

/// A bit for each length and first letter of the names that are there: most that core asks for are not, and looking one
/// up costs ten times as much.
#[derive(Clone, Copy)]
pub struct Names(u64);

impl Names {
    pub fn of(parts: &Parts) -> Names {
        Names(parts.headers.keys().fold(0, |names, name| names | name_bit(name.as_str())))
    }
}

fn name_bit(name: &str) -> u64 {
    let first = name.as_bytes().first().copied().unwrap_or_default();
    1 << ((name.len() + usize::from(first) * 7) % 64)
}

impl RequestHead<'_> {
    fn may_have(&self, name: &str) -> bool {
        self.names.0 & name_bit(name) != 0
    }

    /// What the wire itself gives away: a head that is too large, a target that is none, or a `Host` that is missing or
    /// there twice (RFC 9112 §3.2), of which an origin might take the other one.
    pub fn fault(&self, most: ByteSize) -> Option<Problem> {
        if self.size() > most.0 {
            return Some(Problem::headers_too_large());
        }
        // RFC 3986 knows none, and origins read them as one encoding or another: another path than the one judged here.
        if self.parts.uri.path_and_query().is_some_and(|target| !target.as_str().is_ascii()) {
            return Some(Problem::new(ProblemCode::BadPath, "bytes above ASCII have to be percent-encoded"));
        }
        let mut hosts = self.parts.headers.get_all(HOST).iter();
        let (host, authority) = (hosts.next(), self.parts.uri.authority());
        let missing = host.is_none() && authority.is_none();
        // RFC 9113 §8.3.1. In HTTP/1.1 a target with a host stands before `Host` (RFC 9112 §3.2.2).
        if self.parts.version == Version::HTTP_2
            && let (Some(host), Some(authority)) = (host, authority)
            && !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
        {
            return Some(Problem::new(ProblemCode::BadRequest, "Host differs from :authority"));
        }
        if hosts.next().is_some() || (missing && self.parts.version >= Version::HTTP_11) {
            return Some(Problem::new(ProblemCode::BadRequest, "exactly one Host is needed"));
        }
        None
    }

    /// Bytes of target and headers, as `server.max_header_bytes` counts them. hyper's own limit is on its read buffer,
    /// which a head that arrives at once may pass.
    fn size(&self) -> u64 {
        let target = self.parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
        let headers: usize = self.parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        (target + headers) as u64
    }
}

impl Head for RequestHead<'_> {
    fn method(&self) -> &str {
        self.parts.method.as_str()
    }

    fn path(&self) -> &str {
        self.parts.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.parts.uri.query()
    }

    fn authority(&self) -> Option<&str> {
        match self.parts.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => self.parts.headers.get(HOST).and_then(|host| host.to_str().ok()),
        }
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        if !self.may_have(name) {
            return None;
        }
        self.parts.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        if self.may_have(name) {
            self.parts.headers.get_all(name).iter().for_each(|value| each(value.as_bytes()));
        }
    }

    fn peer(&self) -> Peer {
        self.peer
    }
}

impl edgekeep_core::http::AnswerHead for AnswerHead {
    fn status(&self) -> u16 {
        self.status.as_u16()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.headers.get_all(name).iter().for_each(|value| each(value.as_bytes()));
    }
}

/// Takes out what belongs to one connection, and the framing, which hyper writes anew; then core's edits.
pub fn edit(headers: &mut HeaderMap, edits: HeaderEdits, sticky_cookie: &str) {
    let dropped =
        |name: &HeaderName| is_hop_by_hop(name.as_str()) || (edits.remove_internal && is_internal(name.as_str()));
    let leaving: Vec<HeaderName> = headers.keys().filter(|name| dropped(name)).cloned().collect();
    for name in leaving {
        headers.remove(name);
    }
    for name in &edits.remove {
        headers.remove(name.as_ref());
    }
    if edits.filter_set_cookie {
        filter_set_cookie(headers, sticky_cookie);
    }
    apply(headers, edits);
}

/// Leaves in a body's trailers what core lets pass.
pub fn strip_trailers<D>(frame: &mut Frame<D>) {
    let Some(trailers) = frame.trailers_mut() else { return };
    let leaving: Vec<HeaderName> = trailers.keys().filter(|name| !may_trail(name.as_str())).cloned().collect();
    for name in leaving {
        trailers.remove(name);
    }
}

/// Sets and adds, for a head of our own.
pub fn apply(headers: &mut HeaderMap, edits: HeaderEdits) {
    let (lines, values) = edits.into_lines();
    let values = Bytes::from(values);
    headers.reserve(lines.len());
    for line in lines {
        // Core's ranges lie within its values.
        let Ok(value) = HeaderValue::from_maybe_shared(values.slice(line.value)) else { continue };
        let name = HeaderName::from_static(line.name);
        if line.adds {
            headers.append(name, value);
        } else {
            headers.insert(name, value);
        }
    }
}

fn filter_set_cookie(headers: &mut HeaderMap, sticky_cookie: &str) {
    if !headers.get_all(SET_COOKIE).iter().any(|line| drops_set_cookie(line.as_bytes(), sticky_cookie)) {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(SET_COOKIE)
        .iter()
        .filter(|line| !drops_set_cookie(line.as_bytes(), sticky_cookie))
        .cloned()
        .collect();
    headers.remove(SET_COOKIE);
    for line in kept {
        headers.append(SET_COOKIE, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn hop_by_hop_and_internal_headers_go_and_edits_apply_in_order() {
        let mut map = headers(&[
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("x-edgekeep-user", "spoofed"),
            ("x-edgekeep-other", "spoofed"),
            ("x-named", "1"),
            ("keep", "me"),
        ]);
        let mut edits = HeaderEdits::default();
        edits.remove_internal = true;
        edits.remove("x-named");
        edits.set("x-edgekeep-user", "42");
        edit(&mut map, edits, "DAB_ROUTE");
        assert_eq!(map, headers(&[("keep", "me"), ("x-edgekeep-user", "42")]));
    }

    #[test]
    fn only_our_set_cookie_lines_are_dropped() {
        let mut map = headers(&[("set-cookie", "a=1"), ("set-cookie", "DAB_ROUTE=x"), ("set-cookie", "b=2")]);
        let mut edits = HeaderEdits::default();
        edits.filter_set_cookie = true;
        edit(&mut map, edits, "DAB_ROUTE");
        let lines: Vec<_> = map.get_all("set-cookie").iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(lines, ["a=1", "b=2"]);
    }
}
