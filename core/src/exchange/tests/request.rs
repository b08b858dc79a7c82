//! What a test sends and what it gets to see: a request, its answer, and the head that reached an origin.

use super::*;
use crate::http::{AnswerHead, Head, HeaderEdits, Peer};
use crate::session::{StoreOp, Tombstone};

/// A client's request.
#[derive(Clone)]
pub(super) struct Request {
    method: String,
    path: String,
    query: Option<String>,
    host: String,
    pub headers: Vec<(String, String)>,
    /// Headers that are no text, after the others.
    bytes: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    peer: Peer,
    /// The body fits the retry buffer.
    pub replayable: bool,
    /// The client leaves before its body is complete.
    pub leaves: bool,
}

pub(super) fn request(method: &str, uri: &str) -> Request {
    let (path, query) = match uri.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (uri, None),
    };
    Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        host: "app.example".to_owned(),
        headers: Vec::new(),
        bytes: Vec::new(),
        body: Vec::new(),
        peer: Peer { ip: "192.0.2.9".parse().ok(), secure: true },
        replayable: true,
        leaves: false,
    }
}

pub(super) fn get(uri: &str) -> Request {
    request("GET", uri)
}

pub(super) fn post(uri: &str) -> Request {
    request("POST", uri)
}

pub(super) fn put(uri: &str) -> Request {
    request("PUT", uri)
}

pub(super) fn delete(uri: &str) -> Request {
    request("DELETE", uri)
}

impl Request {
    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn host(mut self, host: &str) -> Request {
        host.clone_into(&mut self.host);
        self
    }

    pub fn header_bytes(mut self, name: &str, value: &[u8]) -> Request {
        self.bytes.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn bearer(self, token: &str) -> Request {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn cookie(self, pair: &str) -> Request {
        self.header("cookie", pair)
    }

    /// With the cookie that holds the access token.
    pub fn access_cookie(self, token: &str) -> Request {
        self.cookie(&format!("__Host-edgekeep-at={token}"))
    }

    pub fn json(mut self, value: &Value) -> Request {
        self.body = value.to_string().into_bytes();
        self.header("content-type", "application/json")
    }

    pub fn form(mut self, body: &str) -> Request {
        self.body = body.as_bytes().to_vec();
        self.header("content-type", "application/x-www-form-urlencoded")
    }

    pub fn body(mut self, bytes: &[u8]) -> Request {
        self.body = bytes.to_vec();
        self
    }

    pub fn from(mut self, ip: &str) -> Request {
        self.peer.ip = Some(ip.parse().unwrap());
        self
    }

    pub fn asking_host(mut self, host: &str) -> Request {
        self.host = host.to_owned();
        self
    }

    /// The body is longer than the retry buffer.
    pub fn too_long_to_replay(mut self) -> Request {
        self.replayable = false;
        self
    }

    pub fn that_leaves(mut self) -> Request {
        self.leaves = true;
        self
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let text = self.headers.iter().map(|(name, value)| (name, value.as_bytes()));
        let bytes = self.bytes.iter().map(|(name, value)| (name, value.as_slice()));
        text.chain(bytes).filter(move |(n, _)| *n == name).map(|(_, value)| value)
    }
}

impl Head for Request {
    fn method(&self) -> &str {
        &self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }
    fn authority(&self) -> Option<&str> {
        Some(&self.host)
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.lines(name).next()
    }
    fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.lines(name).for_each(each);
    }
    fn peer(&self) -> Peer {
        self.peer
    }
}

/// An origin's response head.
#[derive(Debug)]
pub(super) struct OriginAnswer {
    status: u16,
    headers: Vec<(String, String)>,
}

impl OriginAnswer {
    pub fn new(status: u16, headers: &[(&str, &str)]) -> OriginAnswer {
        OriginAnswer { status, headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect() }
    }
}

impl AnswerHead for OriginAnswer {
    fn status(&self) -> u16 {
        self.status
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_bytes())
    }
    fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.headers.iter().filter(|(n, _)| n == name).for_each(|(_, v)| each(v.as_bytes()));
    }
}

/// A request as its origin saw it.
#[derive(Debug)]
pub(super) struct PlanSeen {
    /// The origin's id, or `authority`.
    pub to: String,
    headers: Vec<(String, String)>,
    pub host: Option<String>,
    pub response_timeout: Millis,
    pub upgrade: bool,
}

impl PlanSeen {
    pub fn new(to: String, request: &Request, plan: &Plan) -> PlanSeen {
        let mut headers = request.headers.clone();
        apply(&plan.head, &mut headers);
        PlanSeen {
            to,
            headers,
            host: plan.host.as_deref().map(str::to_owned),
            response_timeout: plan.response_timeout,
            upgrade: plan.upgrade,
        }
    }

    /// The one value of a header; two are a fault.
    pub fn header(&self, name: &str) -> Option<&str> {
        one(&self.headers, name)
    }
}

/// Edits as both shells perform them: hop-by-hop headers out, then remove, set, add.
fn apply(edits: &HeaderEdits, headers: &mut Vec<(String, String)>) {
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    headers.retain(|(name, value)| {
        let internal = edits.remove_internal && crate::http::is_internal(name);
        let filtered =
            edits.filter_set_cookie && name == "set-cookie" && drops_set_cookie(value.as_bytes(), "DAB_ROUTE");
        !(is_hop_by_hop(name) || internal || filtered || edits.remove.iter().any(|removed| removed == name))
    });
    for (name, value, adds) in edits.lines() {
        headers.retain(|(n, _)| adds || n != name);
        headers.push((name.to_owned(), text(value)));
    }
}

fn one<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    let mut values = headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let first = values.next();
    assert_eq!(values.next(), None, "{name} stands twice");
    first
}

/// What the client saw, and what happened on the way.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    pub forwarded: Vec<PlanSeen>,
    pub steps: Vec<&'static str>,
    /// How fresh the sessions that were loaded had to be.
    pub loads: Vec<Freshness>,
    pub store_ops: Vec<StoreOp>,
    /// The pools whose queue the request stood in.
    pub queued_for: Vec<usize>,
    /// What came out of `finished`.
    pub confirmed: Option<(SessionId, u32)>,
    pub tombstones: Vec<Tombstone>,
    /// What the answer rests on if it goes on.
    pub stay: Option<Stay>,
    pub event: Option<SessionEvent>,
    pub origin: Option<OriginAnswer>,
    pub fill: bool,
    pub upgraded: bool,
}

impl Answer {
    pub fn show(&mut self, reply: &Reply) {
        self.status = reply.status;
        self.fill = reply.fill.is_some();
        self.upgraded = matches!(reply.body, ReplyBody::Upgrade);
        match (&reply.body, &self.origin) {
            (ReplyBody::Origin | ReplyBody::Upgrade, Some(origin)) => self.headers = origin.headers.clone(),
            (ReplyBody::Origin | ReplyBody::Upgrade, None) => panic!("no origin answered"),
            (ReplyBody::Bytes(bytes), _) => self.body = bytes.clone(),
            (ReplyBody::Cached(hit), _) => self.body = hit.body.to_vec(),
        }
        apply(&reply.head, &mut self.headers);
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        one(&self.headers, name)
    }

    /// All values of a header.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    pub fn cookies_set(&self) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == "set-cookie").map(|(_, v)| v.as_str()).collect()
    }

    /// The client is asked to forget both session cookies, in every partition.
    pub fn clears_cookies(&self) -> bool {
        let cleared = |name: &str, end: &str| {
            let cookie = format!("{name}=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Lax{end}");
            self.cookies_set().contains(&cookie.as_str())
        };
        ["__Host-edgekeep-at", "__Host-edgekeep-rt"]
            .iter()
            .all(|name| cleared(name, "") && cleared(name, "; Partitioned"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON in {self:?}"))
    }

    /// Status and code of a problem document.
    pub fn problem(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let document = self.json();
        assert_eq!(document["status"].as_u64(), Some(u64::from(self.status)));
        (self.status, document["code"].as_str().unwrap_or_default().to_owned())
    }

    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> &Answer {
        assert_eq!(self.problem(), (status, code.to_owned()), "{}", self.text());
        self
    }

    /// The ids of the origins that were asked, in order.
    pub fn asked(&self) -> Vec<&str> {
        self.forwarded.iter().map(|seen| seen.to.as_str()).collect()
    }

    /// What the last origin that was asked saw.
    pub fn seen(&self) -> &PlanSeen {
        self.forwarded.last().unwrap_or_else(|| panic!("nothing was forwarded: {self:?}"))
    }
}
