//! What core may ask of a message head, so that neither shell copies headers to be asked.

use std::net::IpAddr;

/// Who is at the other end of the connection, before any header is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub ip: Option<IpAddr>,
    /// The connection itself is TLS.
    pub secure: bool,
}

/// A request's head. Header names are lower case.
pub trait Head {
    fn method(&self) -> &str;
    /// The path as it was sent, undecoded, without the query.
    fn path(&self) -> &str;
    fn query(&self) -> Option<&str>;
    /// `Host`, or HTTP/2's `:authority`.
    fn authority(&self) -> Option<&str>;
    /// The first value of a header.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// Every value of a header, in order.
    fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8]));
    fn peer(&self) -> Peer;
}

/// An origin's response head. Header names are lower case.
pub trait AnswerHead {
    /// 100–599.
    fn status(&self) -> u16;
    fn header(&self, name: &str) -> Option<&[u8]>;
    fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8]));
}

/// How many lines of a header there are.
pub fn lines_of(head: &dyn Head, name: &str) -> usize {
    let mut lines = 0;
    head.each_header(name, &mut |_| lines += 1);
    lines
}

/// A header as text, when it is text.
pub fn header_text<'a>(head: &'a dyn Head, name: &str) -> Option<&'a str> {
    head.header(name).and_then(|value| std::str::from_utf8(value).ok())
}
