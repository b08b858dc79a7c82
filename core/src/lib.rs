//! Edgekeep's decisions. No IO, no clock, no randomness, no async: shells hand in `now` and [`Entropy`], feed events
//! and perform the effects they are asked for.
//!
//! Dependencies, each for what it is best at: `serde_json` and `toml` read, `jsonwebtoken` frames JWTs (with the
//! signatures of `hmac`, `sha2` and `ed25519-dalek`), `matchit` matches paths, `quick_cache` evicts, `siphasher`
//! places, `rand_chacha` draws, `chrono` knows the calendar, `http` parses origin URLs, `uuid` prints ids, `subtle`
//! compares in constant time.

mod config;
mod entropy;
mod identity;
mod route;
mod units;

pub use config::{
    AdminConfig, AlertsConfig, Algorithm, ApiPrefix, AuthMode, Authority, BalanceAlgorithm, BalanceConfig, CacheConfig,
    CacheType, Config, ConfigError, ConfigErrors, CorsConfig, CorsOrigins, EdgeConfig, HealthConfig, HealthType,
    HostName, HostPolicy, LimitsConfig, LogConfig, LogFormat, LogLevel, MAX_USER_SHARDS, Network, Objectives, OnMax,
    OnNoHealthy, OnStoreDown, OriginConfig, OriginUrl, PhotoShards, PoolConfig, PoolShard, PoolTls, RateLimit,
    RedisNode, RouteConfig, Scheme, SecretSource, ServerConfig, ServerTls, SessionConfig, ShardHash, ShardName,
    ShardRule, ShardsConfig, StickyConfig, StoreConfig, StoreKind, Strategy, Thresholds, TraceConfig, UserShards,
    WebOrigin, WebUrl, WhenFull, WriteBehindConfig, YearMonth,
};
pub use entropy::Entropy;
pub use identity::{MAX_USER_DIGITS, MAX_USER_ID, SessionId, UserId, UserIdError, UserIdKind};
pub use route::{
    AmbiguousRoutes, CanonicalPath, MAX_PARAMETERS, MAX_SEGMENTS, OwnPath, PathError, Pattern, PatternError,
    RouteMatch, Router, Segment, ambiguous_routes, own_path,
};
pub use units::{ByteSize, Millis, Percent, Ratio, Timestamp};
