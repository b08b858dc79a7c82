//! Cross-site requests, when a cookie authenticated: Fetch metadata first, `Origin` where a browser sends none of it
//! (OWASP's cheat sheet). A bearer token cannot be sent by another site, so those requests are not asked.

use super::head::{Head, header_text, lines_of};
use crate::config::WebOrigin;

/// What a cookie-authenticated request has to show.
#[derive(Clone, Copy, Debug)]
pub struct Csrf<'a> {
    /// `session.csrf_origins`.
    pub allowed: &'a [WebOrigin],
    /// The request's own scheme and host, as the client sees them.
    pub scheme: &'a str,
    pub host: &'a str,
    /// The method that counts: the original one, behind a proxy; `None` when it is unknown and so unsafe.
    pub method: Option<&'a str>,
    pub upgrade: bool,
}

/// Whether the request may go on.
pub fn check_csrf(head: &dyn Head, rules: &Csrf<'_>) -> bool {
    // A WebSocket's handshake is known by this header too: a proxy may leave `Upgrade` out when it asks about a request.
    let upgrade = rules.upgrade || head.header("sec-websocket-version").is_some();
    if !upgrade && matches!(rules.method, Some("GET" | "HEAD" | "OPTIONS")) {
        return true;
    }
    // Of two lines one may not be the browser's.
    if ["sec-fetch-site", "origin"].iter().any(|name| lines_of(head, name) > 1) {
        return false;
    }
    if let Some(site) = head.header("sec-fetch-site")
        && (site == b"same-origin" || site == b"none")
    {
        return true;
    }
    let Some(origin) = header_text(head, "origin") else { return false };
    let listed = rules.allowed.iter().any(|allowed| allowed.as_str() == origin);
    // Fetch metadata, where it is sent, is the stronger witness: only a listed origin may speak against it.
    if head.header("sec-fetch-site").is_some() {
        return listed;
    }
    listed || is_same_origin(origin, rules.scheme, rules.host)
}

fn is_same_origin(origin: &str, scheme: &str, host: &str) -> bool {
    let Some((origin_scheme, origin_host)) = origin.split_once("://") else { return false };
    let without_default = |host: &str| {
        let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
        host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase()
    };
    !host.is_empty()
        && origin_scheme.eq_ignore_ascii_case(scheme)
        && without_default(origin_host) == without_default(host)
}

#[cfg(test)]
mod tests {
    use super::super::head::Peer;
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    struct Sent {
        site: Option<&'static str>,
        origin: Option<&'static str>,
    }

    impl Head for Sent {
        fn method(&self) -> &str {
            "POST"
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
        fn header(&self, name: &str) -> Option<&[u8]> {
            match name {
                "sec-fetch-site" => self.site.map(str::as_bytes),
                "origin" => self.origin.map(str::as_bytes),
                _ => None,
            }
        }
        fn each_header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
            self.header(name).into_iter().for_each(each);
        }
        fn peer(&self) -> Peer {
            Peer::default()
        }
    }

    fn allowed(method: Option<&str>, upgrade: bool, site: Option<&'static str>, origin: Option<&'static str>) -> bool {
        let listed = [WebOrigin::parse("https://app.example").unwrap()];
        let rules = Csrf { allowed: &listed, scheme: "https", host: "api.example", method, upgrade };
        check_csrf(&Sent { site, origin }, &rules)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn safe_methods_pass_but_an_upgrade_is_asked() {
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert!(allowed(Some(method), false, Some("cross-site"), None));
            assert!(!allowed(Some(method), true, Some("cross-site"), None));
        }
        assert!(!allowed(None, false, None, None), "an unknown method is unsafe");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn fetch_metadata_decides_where_it_is_sent() {
        assert!(allowed(Some("POST"), false, Some("same-origin"), None));
        assert!(allowed(Some("POST"), false, Some("none"), None));
        assert!(!allowed(Some("POST"), false, Some("same-site"), Some("https://other.example")));
        assert!(!allowed(Some("POST"), false, Some("cross-site"), Some("https://api.example")));
        assert!(allowed(Some("POST"), false, Some("cross-site"), Some("https://app.example")), "listed");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn without_it_the_origin_must_be_ours_or_listed() {
        assert!(allowed(Some("POST"), false, None, Some("https://api.example")));
        assert!(allowed(Some("POST"), false, None, Some("https://API.example:443")));
        assert!(allowed(Some("POST"), false, None, Some("https://app.example")));
        for origin in ["http://api.example", "https://api.example.evil", "https://api.example:444", "null"] {
            assert!(!allowed(Some("POST"), false, None, Some(origin)), "{origin}");
        }
        assert!(!allowed(Some("POST"), false, None, None), "neither header");
    }
}
