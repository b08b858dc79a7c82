//! Edgekeep's own paths: exactly those that it answers itself, before any route.
//!
//! An own path has one spelling. In it `{id}` is split from the raw path first and then decoded once, so an identity
//! may hold a slash (`%2F`). Another spelling of an own path (percent-encoded letters, a trailing slash) is refused:
//! forwarding it would hand a service credential to an origin.

use super::path::{CanonicalPath, PathError, decode_once, is_dots};

/// One of Edgekeep's own paths, below `server.api_prefix`. Methods are checked by whoever answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnPath<'a> {
    /// `/v1/sessions`
    Sessions,
    /// `/v1/sessions/refresh`
    SessionsRefresh,
    /// `/v1/sessions/current`
    SessionsCurrent,
    /// `/v1/sessions/{id}`, decoded
    Session(String),
    /// `/v1/users/{id}/sessions`, decoded
    UserSessions(String),
    /// `/oauth/token`
    OauthToken,
    /// `/oauth/revoke`
    OauthRevoke,
    /// `/oauth/introspect`
    OauthIntrospect,
    /// `/.well-known/jwks.json`
    Jwks,
    /// `/openapi.json`
    OpenApi,
    /// `/v1/authorize`, and below it the raw path from its slash on (Envoy puts the original path there)
    Authorize { below: Option<&'a str> },
    /// `/v1/edge/validate`
    EdgeValidate,
    /// `/v1/edge/confirm`
    EdgeConfirm,
    /// `/v1/edge/shard-map`
    EdgeShardMap,
    /// `/v1/edge/tombstones`
    EdgeTombstones,
    /// `/v1/shards/users/{id}`, decoded
    ShardOfUser(String),
    /// `/v1/shards/photos`
    ShardsOfPhotos,
    /// Another spelling of an own path, or an `{id}` that cannot be decoded: 400, never forwarded.
    Refused(PathError),
}

/// Which own path a raw path (without its query) is. `None`: it is for the routes, by way of [`CanonicalPath::parse`].
/// Allocates only for an `{id}` and for paths in which something is encoded.
pub fn own_path<'a>(raw: &'a str, api_prefix: &str) -> Option<OwnPath<'a>> {
    if let Some(plain) = below_prefix(raw, api_prefix).and_then(plain) {
        return Some(plain);
    }
    if !raw.contains('%') && !raw.ends_with('/') {
        return None;
    }
    // What cannot be made canonical is refused on the way to the routes.
    let path = CanonicalPath::parse(raw).ok()?;
    below_prefix(path.without_trailing_slash(), api_prefix)
        .and_then(plain)
        .map(|_| OwnPath::Refused(PathError::OwnPathSpelling))
}

fn below_prefix<'a>(path: &'a str, api_prefix: &str) -> Option<&'a str> {
    path.strip_prefix(api_prefix)?.strip_prefix('/')
}

/// Reads a path below the prefix in its plain spelling; `{id}` is still encoded.
fn plain(path: &str) -> Option<OwnPath<'_>> {
    if let Some(below) = path.strip_prefix("v1/authorize")
        && (below.is_empty() || below.starts_with('/'))
    {
        return Some(OwnPath::Authorize { below: (!below.is_empty()).then_some(below) });
    }
    let mut segments = path.split('/');
    let four = [segments.next(), segments.next(), segments.next(), segments.next()];
    if segments.next().is_some() {
        return None;
    }
    Some(match four {
        [Some("v1"), Some("sessions"), None, None] => OwnPath::Sessions,
        [Some("v1"), Some("sessions"), Some("refresh"), None] => OwnPath::SessionsRefresh,
        [Some("v1"), Some("sessions"), Some("current"), None] => OwnPath::SessionsCurrent,
        [Some("v1"), Some("sessions"), Some(id), None] => match decoded(id) {
            // An encoded spelling of the two above, which must not pass for a session that does not exist.
            Ok(id) if id == "current" || id == "refresh" => OwnPath::Refused(PathError::OwnPathSpelling),
            id => with_id(id, OwnPath::Session),
        },
        [Some("v1"), Some("users"), Some(id), Some("sessions")] => with_id(decoded(id), OwnPath::UserSessions),
        [Some("oauth"), Some("token"), None, None] => OwnPath::OauthToken,
        [Some("oauth"), Some("revoke"), None, None] => OwnPath::OauthRevoke,
        [Some("oauth"), Some("introspect"), None, None] => OwnPath::OauthIntrospect,
        [Some(".well-known"), Some("jwks.json"), None, None] => OwnPath::Jwks,
        [Some("openapi.json"), None, None, None] => OwnPath::OpenApi,
        [Some("v1"), Some("edge"), Some("validate"), None] => OwnPath::EdgeValidate,
        [Some("v1"), Some("edge"), Some("confirm"), None] => OwnPath::EdgeConfirm,
        [Some("v1"), Some("edge"), Some("shard-map"), None] => OwnPath::EdgeShardMap,
        [Some("v1"), Some("edge"), Some("tombstones"), None] => OwnPath::EdgeTombstones,
        [Some("v1"), Some("shards"), Some("users"), Some(id)] => with_id(decoded(id), OwnPath::ShardOfUser),
        [Some("v1"), Some("shards"), Some("photos"), None] => OwnPath::ShardsOfPhotos,
        _ => return None,
    })
}

fn with_id<'a>(id: Result<String, PathError>, own: fn(String) -> OwnPath<'a>) -> OwnPath<'a> {
    id.map_or_else(OwnPath::Refused, own)
}

/// An `{id}` segment, decoded once. A slash may be encoded in it, and so may a percent sign: it is a name, not a path.
fn decoded(segment: &str) -> Result<String, PathError> {
    if segment.is_empty() {
        return Err(PathError::EmptySegment);
    }
    if is_dots(segment) {
        return Err(PathError::DotSegment);
    }
    let id = decode_once(segment, |_| Ok(()))?;
    if id.chars().any(char::is_control) { Err(PathError::Control) } else { Ok(id) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entropy;
    use wasm_bindgen_test::wasm_bindgen_test;

    const SPELLING: Option<OwnPath<'_>> = Some(OwnPath::Refused(PathError::OwnPathSpelling));

    #[wasm_bindgen_test(unsupported = test)]
    fn every_own_path_is_known_and_nothing_else_below_v1_is() {
        for (raw, own) in [
            ("/v1/sessions", OwnPath::Sessions),
            ("/v1/sessions/refresh", OwnPath::SessionsRefresh),
            ("/v1/sessions/current", OwnPath::SessionsCurrent),
            ("/v1/sessions/0b8f", OwnPath::Session("0b8f".into())),
            ("/v1/users/42/sessions", OwnPath::UserSessions("42".into())),
            ("/oauth/token", OwnPath::OauthToken),
            ("/oauth/revoke", OwnPath::OauthRevoke),
            ("/oauth/introspect", OwnPath::OauthIntrospect),
            ("/.well-known/jwks.json", OwnPath::Jwks),
            ("/openapi.json", OwnPath::OpenApi),
            ("/v1/authorize", OwnPath::Authorize { below: None }),
            ("/v1/authorize/", OwnPath::Authorize { below: Some("/") }),
            ("/v1/authorize/a%2Fb/", OwnPath::Authorize { below: Some("/a%2Fb/") }),
            ("/v1/edge/validate", OwnPath::EdgeValidate),
            ("/v1/edge/confirm", OwnPath::EdgeConfirm),
            ("/v1/edge/shard-map", OwnPath::EdgeShardMap),
            ("/v1/edge/tombstones", OwnPath::EdgeTombstones),
            ("/v1/shards/users/42", OwnPath::ShardOfUser("42".into())),
            ("/v1/shards/photos", OwnPath::ShardsOfPhotos),
        ] {
            assert_eq!(own_path(raw, ""), Some(own), "{raw}");
        }
        for raw in [
            "/",
            "/v1",
            "/v1/",
            "/v1/sessionsx",
            "/v1/sessions/a/b",
            "/v1/users",
            "/v1/users/42",
            "/v1/authorizer",
            "/v1/edge",
            "/v1/edge/other",
            "/v1/shards",
            "/v1/shards/users",
            "/oauth",
            "/openapi",
            "/openapi.json/x",
            "/V1/sessions",
            "/a/v1/sessions",
            "/v1/users/42/sessions/x",
            "/v2/sessions",
            "v1/sessions",
            "*",
            "",
            "//v1/sessions",
            "/caf%C3%A9/",
        ] {
            assert_eq!(own_path(raw, ""), None, "{raw}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_id_is_split_first_and_decoded_once() {
        assert_eq!(own_path("/v1/users/a%2Fb/sessions", ""), Some(OwnPath::UserSessions("a/b".into())));
        assert_eq!(own_path("/v1/users/%2541/sessions", ""), Some(OwnPath::UserSessions("%41".into())));
        assert_eq!(own_path("/v1/shards/users/%C3%BC", ""), Some(OwnPath::ShardOfUser("ü".into())));
        for (raw, reason) in [
            ("/v1/users/%zz/sessions", PathError::BadEscape),
            ("/v1/users/%ff/sessions", PathError::NotUtf8),
            ("/v1/users/%00/sessions", PathError::Control),
            ("/v1/users/../sessions", PathError::DotSegment),
            ("/v1/users//sessions", PathError::EmptySegment),
            ("/v1/sessions/", PathError::EmptySegment),
            ("/v1/shards/users/", PathError::EmptySegment),
        ] {
            assert_eq!(own_path(raw, ""), Some(OwnPath::Refused(reason)), "{raw}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn another_spelling_of_an_own_path_is_refused_and_never_forwarded() {
        for raw in [
            "/v1/%73essions",
            "/%761/sessions",
            "/v1/%73essions/0b8f",
            "/v1/sessions/%63urrent",
            "/v1/sessions/r%65fresh",
            "/v1/%61uthorize",
            "/v1/%61uthorize/x",
            "/v1/authoriz%65/x/",
            "/v1/us%65rs/42/sessions",
            "/v1/users/42/s%65ssions",
            "/oauth/token/",
            "/openapi%2ejson",
            "/v1/sessions/current/",
            "/v1/users/42/sessions/",
            "/%2ewell-known/jwks.json",
        ] {
            assert_eq!(own_path(raw, ""), SPELLING, "{raw}");
        }
        // These fail as paths, so the routes never see them either.
        for raw in ["/v1%2Fsessions", "//v1/sessions", "/x/../v1/sessions", "/v1/%2573essions", "/v1/%73essions/a%2Fb"]
        {
            assert_eq!(own_path(raw, ""), None, "{raw}");
            assert!(CanonicalPath::parse(raw).is_err(), "{raw}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_prefix_moves_all_own_paths() {
        assert_eq!(own_path("/auth/v1/sessions", "/auth"), Some(OwnPath::Sessions));
        assert_eq!(own_path("/v1/sessions", "/auth"), None);
        assert_eq!(own_path("/authv1/sessions", "/auth"), None);
        assert_eq!(own_path("/%61uth/v1/sessions", "/auth"), SPELLING);
        assert_eq!(own_path("/auth/v1/authorize/x", "/auth"), Some(OwnPath::Authorize { below: Some("/x") }));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn however_an_own_path_is_encoded_the_routes_never_see_it() {
        const OWN: [&str; 7] = [
            "/v1/sessions",
            "/v1/sessions/refresh",
            "/v1/sessions/0b8f",
            "/v1/users/42/sessions",
            "/oauth/token",
            "/v1/authorize/x",
            "/v1/edge/shard-map",
        ];
        let mut entropy = Entropy::for_tests(5);
        for _ in 0..5000 {
            let plain = OWN[entropy.below(OWN.len() as u64) as usize];
            let mut raw = String::new();
            for byte in plain.bytes() {
                match entropy.below(12) {
                    0 => raw.push_str(&format!("%{byte:02x}")),
                    1 => raw.push_str(&format!("%{byte:02X}")),
                    _ => raw.push(char::from(byte)),
                }
            }
            if entropy.below(4) == 0 {
                raw.push('/');
            }
            assert!(own_path(&raw, "").is_some() || CanonicalPath::parse(&raw).is_err(), "{raw}");
        }
    }
}
