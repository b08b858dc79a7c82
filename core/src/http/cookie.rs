//! Request cookies: finding ours and taking them out before an origin sees them.
//!
//! Cookies may come in several header lines and several pairs of one name; two different values of one of ours are
//! never a matter of order but of refusal (DESIGN §4).

use super::Head;

/// What the request says under one cookie name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cookie {
    #[default]
    Absent,
    Value(String),
    /// Two different values: someone planted one.
    Conflict,
}

/// Edgekeep's own cookies of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cookies {
    pub access: Cookie,
    pub refresh: Cookie,
    pub sticky: Cookie,
    /// At least one of them is there and has to be taken out.
    pub any: bool,
}

pub const ACCESS_COOKIE: &str = "__Host-edgekeep-at";
pub const REFRESH_COOKIE: &str = "__Host-edgekeep-rt";

/// Reads Edgekeep's own cookies; `sticky` is the configured name of the sticky cookie.
pub fn read_cookies(head: &dyn Head, sticky: &str) -> Cookies {
    let mut cookies = Cookies::default();
    head.each_header("cookie", &mut |line| {
        cookies.any |= line.split(|b| *b == b';').any(|part| before_joined(part, sticky).len() < part.len());
        for (name, value) in pairs(line) {
            let slot = match name {
                n if n == ACCESS_COOKIE.as_bytes() => &mut cookies.access,
                n if n == REFRESH_COOKIE.as_bytes() => &mut cookies.refresh,
                n if n == sticky.as_bytes() => &mut cookies.sticky,
                _ => continue,
            };
            cookies.any = true;
            let value = String::from_utf8_lossy(value);
            *slot = match std::mem::take(slot) {
                Cookie::Absent => Cookie::Value(value.into_owned()),
                Cookie::Value(first) if first == value => Cookie::Value(first),
                Cookie::Value(_) | Cookie::Conflict => Cookie::Conflict,
            };
        }
    });
    cookies
}

/// The `Cookie` header without Edgekeep's own cookies: `None` when nothing is left.
pub fn without_cookies(head: &dyn Head, sticky: &str) -> Option<Vec<u8>> {
    let mut rest: Vec<u8> = Vec::new();
    head.each_header("cookie", &mut |line| {
        for part in line.split(|b| *b == b';') {
            let part = before_joined(part, sticky).trim_ascii();
            let name = part.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
            if part.is_empty()
                || [ACCESS_COOKIE.as_bytes(), REFRESH_COOKIE.as_bytes(), sticky.as_bytes()].contains(&name)
            {
                continue;
            }
            if !rest.is_empty() {
                rest.extend_from_slice(b"; ");
            }
            rest.extend_from_slice(part);
        }
    });
    (!rest.is_empty()).then_some(rest)
}

/// A pair up to where one of our cookies follows a comma. A Worker's platform joins the lines of a header so; what comes
/// behind is then cut off before an origin, and never read: any site of the domain can plant a value with a comma.
fn before_joined<'p>(part: &'p [u8], sticky: &str) -> &'p [u8] {
    let names = [ACCESS_COOKIE.as_bytes(), REFRESH_COOKIE.as_bytes(), sticky.as_bytes()];
    let is_ours = |rest: &[u8]| {
        let rest = rest.trim_ascii_start();
        names.iter().any(|name| rest.strip_prefix(*name).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"=")))
    };
    let commas = part.iter().enumerate().filter(|(_, byte)| **byte == b',');
    let joined = commas.map(|(at, _)| at).find(|at| part.get(at + 1..).is_some_and(is_ours));
    joined.and_then(|at| part.get(..at)).unwrap_or(part)
}

fn pairs(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    line.split(|b| *b == b';').filter_map(|part| {
        let at = part.iter().position(|b| *b == b'=')?;
        Some((part[..at].trim_ascii(), unquoted(part[at + 1..].trim_ascii())))
    })
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::super::head::Peer;
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    struct Lines(Vec<&'static str>);

    impl Head for Lines {
        fn method(&self) -> &str {
            "GET"
        }
        fn path(&self) -> &str {
            "/"
        }
        fn query(&self) -> Option<&str> {
            None
        }
        fn authority(&self) -> Option<&str> {
            None
        }
        fn header(&self, _: &str) -> Option<&[u8]> {
            self.0.first().map(|line| line.as_bytes())
        }
        fn each_header(&self, _: &str, each: &mut dyn FnMut(&[u8])) {
            self.0.iter().for_each(|line| each(line.as_bytes()));
        }
        fn peer(&self) -> Peer {
            Peer::default()
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn cookies_are_found_over_several_lines() {
        let head = Lines(vec!["a=1; __Host-edgekeep-at=x.y.z", "DAB_ROUTE=\"v\"; b=2"]);
        let cookies = read_cookies(&head, "DAB_ROUTE");
        assert_eq!(cookies.access, Cookie::Value("x.y.z".into()));
        assert_eq!(cookies.sticky, Cookie::Value("v".into()));
        assert_eq!(cookies.refresh, Cookie::Absent);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn two_different_values_are_a_conflict_and_two_equal_ones_are_not() {
        let head = Lines(vec!["__Host-edgekeep-at=a; __Host-edgekeep-at=a", "__Host-edgekeep-rt=a"]);
        assert_eq!(read_cookies(&head, "s").access, Cookie::Value("a".into()));
        let head = Lines(vec!["__Host-edgekeep-at=a", "__Host-edgekeep-at=b"]);
        assert_eq!(read_cookies(&head, "s").access, Cookie::Conflict);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_origin_sees_every_cookie_but_ours() {
        let head = Lines(vec!["a=1; __Host-edgekeep-at=x; b=\"2\"", "DAB_ROUTE=v; c"]);
        assert_eq!(without_cookies(&head, "DAB_ROUTE").unwrap(), b"a=1; b=\"2\"; c");
        assert_eq!(without_cookies(&Lines(vec!["DAB_ROUTE=v"]), "DAB_ROUTE"), None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn ours_behind_a_comma_never_reach_an_origin_and_are_never_read() {
        let head = Lines(vec!["a=1, __Host-edgekeep-at=x,DAB_ROUTE=v; b=2, 3"]);
        let cookies = read_cookies(&head, "DAB_ROUTE");
        assert_eq!((cookies.access, cookies.sticky), (Cookie::Absent, Cookie::Absent));
        assert!(cookies.any);
        assert_eq!(without_cookies(&head, "DAB_ROUTE").unwrap(), b"a=1; b=2, 3");
        assert!(!read_cookies(&Lines(vec!["b=2, 3, __Host-edgekeep-atx=1"]), "DAB_ROUTE").any);
    }
}
