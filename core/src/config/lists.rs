//! The lists of the configuration: pools and their origins, data types, routes. Inside an entry nothing is inherited:
//! an optional key left out is off or unlimited.

use std::fmt;

use http::Method;
use serde_json::{Map, Value};

use super::error::{Errors, found};
use super::setting::{Setting, Table, Text, choice, table};
use super::shards::{PoolShard, ShardName};
use super::url::{HostName, OriginUrl, WebOrigin};
use crate::Millis;
use crate::route::Pattern;

table! {
    /// The origins of a shard, or of a fallback.
    PoolConfig {
        /// What the pool serves; none for a fallback.
        shard: Option<PoolShard> = None;
        /// A fallback's name; none for a shard's pool.
        name: Option<String> = None;
        /// At least one.
        origins: Vec<OriginConfig> => Vec::new();
        /// The `Host` that origins see.
        host: HostPolicy = HostPolicy::Preserve;
        tls: Option<PoolTls> = None;
    }
}

table! {
    OriginConfig {
        /// One origin only, over all pools.
        id: String => String::new();
        url: OriginUrl => OriginUrl::placeholder();
        weight: u32 = 1, within 1..=65_535;
        /// Requests and connections in flight, from each gateway; none: unlimited.
        max_connections: Option<u32> = None;
    }
}

table! {
    /// TLS towards the origins of a pool. Files are relative to the configuration's.
    PoolTls {
        /// Certificates to trust instead of the system's, PEM.
        ca: Option<String> = None;
        /// The gateway's own certificate and key, PEM, in one file.
        client_cert: Option<String> = None;
        /// The name that the origin's certificate must have; none: the URL's host.
        server_name: Option<HostName> = None;
    }
}

/// Which `Host` an origin sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// The client's.
    Preserve,
    Name(HostName),
}

impl fmt::Display for HostPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPolicy::Preserve => f.write_str("preserve"),
            HostPolicy::Name(name) => name.fmt(f),
        }
    }
}

impl Text for HostPolicy {
    fn allowed() -> String {
        format!("preserve | {}", <HostName as Text>::allowed())
    }

    fn parse(text: &str) -> Option<HostPolicy> {
        match text {
            "preserve" => Some(HostPolicy::Preserve),
            _ => HostName::parse(text).map(HostPolicy::Name),
        }
    }
}

table! {
    /// A data type that routes and the library cache by.
    CacheType {
        name: String => String::new();
        ttl: Millis => Millis::from_secs(1);
        strategy: Strategy => Strategy::LazyLoading;
        /// How long after its end an entry still answers while it is fetched again; none: not at all.
        stale_while_revalidate: Option<Millis> = None;
        /// How long after its end an entry still answers when its origin fails; none: not at all.
        stale_if_error: Option<Millis> = None;
    }
}

choice! {
    Strategy {
        LazyLoading = "lazy_loading",
        WriteThrough = "write_through",
        WriteBehind = "write_behind",
    }
}

table! {
    /// Which requests are treated how.
    RouteConfig {
        path: Pattern => Pattern::everything();
        /// Only requests for this host; none: all.
        host: Option<HostName> = None;
        /// Only these methods; empty: all.
        methods: Vec<Method> = Vec::new();
        auth: AuthMode = AuthMode::Session;
        shard: ShardRule = ShardRule::User;
        /// A data type's name; none: nothing is cached.
        cache: Option<String> = None;
        /// One entry for all users.
        shared: bool = false;
        /// Until the origin's response head; none: `balance.response_timeout`.
        timeout: Option<Millis> = None;
        /// None: a preflight goes to the origin.
        cors: Option<CorsConfig> = None;
        /// The origin also gets the access token.
        pass_token: bool = false;
    }
}

impl RouteConfig {
    /// The route of a configuration without routes: every path, for sessions, by the session's user.
    pub fn everything() -> RouteConfig {
        RouteConfig {
            path: Pattern::everything(),
            host: None,
            methods: Vec::new(),
            auth: AuthMode::Session,
            shard: ShardRule::User,
            cache: None,
            shared: false,
            timeout: None,
            cors: None,
            pass_token: false,
        }
    }
}

choice! {
    /// Who may pass, from open to strict.
    AuthMode {
        /// Everyone; no credential is looked at.
        None = "none",
        /// Guests too; a bad token is refused.
        Optional = "optional",
        /// A valid access token; revocation is seen when it expires.
        Token = "token",
        /// And a live session, by way of the near cache.
        Session = "session",
        /// And a live session, asked at the store each time.
        Strict = "strict",
    }
}

/// How a route's requests find their shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardRule {
    /// By the session's user; without one as `Any`.
    User,
    /// By the user id in this path parameter.
    Path(String),
    /// By the instant or month in this path or query parameter.
    Photo(String),
    Named(ShardName),
    /// The best origin of all user shards' pools.
    Any,
}

impl fmt::Display for ShardRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShardRule::User => f.write_str("user"),
            ShardRule::Path(name) => write!(f, "path:{name}"),
            ShardRule::Photo(name) => write!(f, "photo:{name}"),
            ShardRule::Named(shard) => shard.fmt(f),
            ShardRule::Any => f.write_str("any"),
        }
    }
}

impl Text for ShardRule {
    fn allowed() -> String {
        "user | path:<name> | photo:<name> | any | a shard's name".to_owned()
    }

    fn parse(text: &str) -> Option<ShardRule> {
        let name = |name: &str| {
            let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            good.then(|| name.to_owned())
        };
        match text.split_once(':') {
            Some(("path", parameter)) => name(parameter).map(ShardRule::Path),
            Some(("photo", parameter)) => name(parameter).map(ShardRule::Photo),
            Some(_) => None,
            None => match text {
                "user" => Some(ShardRule::User),
                "any" => Some(ShardRule::Any),
                _ => ShardName::parse(text).map(ShardRule::Named),
            },
        }
    }
}

table! {
    /// Cross-origin access to a route.
    CorsConfig {
        origins: CorsOrigins => CorsOrigins::These(Vec::new());
        /// Whether cookies and `Authorization` may come along.
        credentials: bool = false;
    }
}

/// Who may read a route's answers from another origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    /// `["*"]`
    Any,
    /// At least one.
    These(Vec<WebOrigin>),
}

impl CorsOrigins {
    /// Whether an `Origin` header's value is allowed.
    pub fn allow(&self, origin: &str) -> bool {
        match self {
            CorsOrigins::Any => true,
            CorsOrigins::These(origins) => origins.iter().any(|allowed| allowed.as_str() == origin),
        }
    }
}

impl Setting for CorsOrigins {
    fn allowed() -> String {
        "[\"*\"], or a list of web origins such as [\"https://app.example\"], not empty".to_owned()
    }

    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<CorsOrigins> {
        let list = value.as_array().filter(|list| !list.is_empty());
        let Some(list) = list else {
            let empty = value.as_array().map(|_| "an empty list".to_owned());
            errors.add(path, empty.unwrap_or_else(|| found(value)), Self::allowed());
            return None;
        };
        if list.len() == 1 && list.first().and_then(Value::as_str) == Some("*") {
            return Some(CorsOrigins::Any);
        }
        <Vec<WebOrigin> as Setting>::read(value, path, errors).map(CorsOrigins::These)
    }

    fn write(&self) -> Value {
        match self {
            CorsOrigins::Any => Value::Array(vec![Value::String("*".to_owned())]),
            CorsOrigins::These(origins) => origins.write(),
        }
    }
}

/// What happens when too few origins of a pool are healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnNoHealthy {
    /// All of the pool's origins are tried.
    FailOpen,
    /// 503.
    FailClosed,
    /// A fallback pool's name.
    Pool(String),
}

impl Setting for OnNoHealthy {
    fn allowed() -> String {
        "fail_open | fail_closed | { pool = \"<name of a fallback pool>\" }".to_owned()
    }

    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<OnNoHealthy> {
        match value {
            Value::String(text) if text == "fail_open" => Some(OnNoHealthy::FailOpen),
            Value::String(text) if text == "fail_closed" => Some(OnNoHealthy::FailClosed),
            Value::Object(_) => {
                let mut table = Table::open(value, path, errors)?;
                let name = table.required("pool", String::new());
                table.close();
                Some(OnNoHealthy::Pool(name))
            }
            _ => {
                errors.add(path, found(value), Self::allowed());
                None
            }
        }
    }

    fn write(&self) -> Value {
        match self {
            OnNoHealthy::FailOpen => Value::String("fail_open".to_owned()),
            OnNoHealthy::FailClosed => Value::String("fail_closed".to_owned()),
            OnNoHealthy::Pool(name) => {
                let mut map = Map::new();
                name.put("pool", &mut map);
                Value::Object(map)
            }
        }
    }
}
