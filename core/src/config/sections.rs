//! The sections of the configuration, key by key as in `edgekeep.example.toml`, with the value that each key has when it
//! is left out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::Value;

use super::error::{Errors, found};
use super::lists::{CacheType, OnNoHealthy};
use super::setting::{Setting, Table, Text, choice, section, table};
use super::shards::{MAX_USER_SHARDS, ShardName};
use super::url::{RedisNode, WebOrigin, WebUrl};
use super::values::{ApiPrefix, MAX_DURATION, MAX_SIZE, Network, RateLimit, SecretSource, YearMonth};
use crate::{ByteSize, Millis, Percent, Ratio, UserId};

/// The shortest span of a timer that must not run at once.
const TICK: Millis = Millis(1);
const SECOND: Millis = Millis::from_secs(1);
const MINUTE: Millis = Millis::from_secs(60);
const HOUR: Millis = Millis::from_secs(3600);
const DAY: Millis = Millis::from_secs(86_400);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const fn seconds(count: u64) -> Millis {
    Millis::from_secs(count)
}

section! {
    ServerConfig {
        /// At least one.
        listen: Vec<SocketAddr> = vec![loopback(8080)];
        /// 0: one for each core.
        threads: u32 = 0, within 0..=1024;
        api_prefix: ApiPrefix = ApiPrefix::default();
        /// A request's head. hyper's buffer is never smaller than 8 KiB.
        max_header_bytes: ByteSize = ByteSize(64 * KIB), within ByteSize(8 * KIB)..=ByteSize(16 * MIB);
        header_timeout: Millis = seconds(10), within TICK..=HOUR;
        idle_timeout: Millis = seconds(75), within TICK..=DAY;
        drain_timeout: Millis = seconds(30), within Millis::ZERO..=DAY;
        trusted_proxies: Vec<Network> = Vec::new();
        proxy_protocol: bool = false;
        tls: Option<ServerTls> = None;
    }
}

table! {
    /// The listeners' certificate chain and key, PEM files.
    ServerTls {
        cert: String => String::new();
        key: String => String::new();
    }
}

section! {
    AdminConfig {
        listen: SocketAddr = loopback(9090);
        token: SecretSource = SecretSource::from_env("EDGEKEEP_ADMIN_TOKEN");
    }
}

section! {
    SessionConfig {
        issuer: String = "edgekeep".to_owned();
        audience: String = "app".to_owned();
        /// For keys that are generated from now on.
        algorithm: Algorithm = Algorithm::EdDSA;
        leeway: Millis = Millis::ZERO, within Millis::ZERO..=Millis::from_secs(300);
        access_ttl: Millis = seconds(900), within SECOND..=MAX_DURATION;
        /// Shortens only; below 1.
        access_ttl_jitter: Ratio = Ratio(0.05);
        refresh_ttl: Millis = Millis(30 * DAY.0), within SECOND..=MAX_DURATION;
        idle_ttl: Millis = Millis(14 * DAY.0), within SECOND..=MAX_DURATION;
        refresh_grace: Millis = seconds(30), within Millis::ZERO..=Millis::from_secs(300);
        max_per_user: u32 = 50, within 1..=1000;
        on_max: OnMax = OnMax::EvictOldest;
        on_store_down: OnStoreDown = OnStoreDown::Refuse;
        /// Sessions.
        near_cache: u64 = 100_000, within 1..=100_000_000;
        /// Verified tokens; 0: off.
        token_cache: u64 = 10_000, within 0..=100_000_000;
        authority: Authority = Authority::Local;
        cookies: bool = false;
        csrf_origins: Vec<WebOrigin> = Vec::new();
        service_token: SecretSource = SecretSource::from_env("EDGEKEEP_SERVICE_TOKEN");
        keys: String = "data/keys.json".to_owned();
    }
}

choice! {
    /// How new access keys sign.
    Algorithm { EdDSA = "EdDSA", HS256 = "HS256" }
}

choice! {
    /// What happens to a session beyond `max_per_user`.
    OnMax { EvictOldest = "evict_oldest", Refuse = "refuse" }
}

choice! {
    /// Whether an unverified near-cache entry may answer while the store is down.
    OnStoreDown { Refuse = "refuse", AllowCached = "allow_cached" }
}

/// Who is asked about sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    Local,
    DurableObject,
    /// A native region, encrypted or on this machine.
    Url(WebUrl),
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authority::Local => f.write_str("local"),
            Authority::DurableObject => f.write_str("durable_object"),
            Authority::Url(url) => url.fmt(f),
        }
    }
}

impl Text for Authority {
    fn allowed() -> String {
        "local | durable_object | an https:// URL, or http:// to loopback".to_owned()
    }

    fn parse(text: &str) -> Option<Authority> {
        match text {
            "local" => Some(Authority::Local),
            "durable_object" => Some(Authority::DurableObject),
            _ => WebUrl::parse(text).filter(WebUrl::is_private).map(Authority::Url),
        }
    }
}

section! {
    StoreConfig {
        kind: StoreKind = StoreKind::Embedded;
        path: String = "data/edgekeep.redb".to_owned();
        nodes: Vec<RedisNode> = Vec::new();
        cluster: bool = true;
        /// Of Redis' ACL; none: the default user.
        username: Option<String> = None;
        password: SecretSource = SecretSource::default();
        read_from_replicas: bool = false;
        /// 0 where there are none.
        wait_replicas: u32 = 1, within 0..=16;
        timeout: Millis = Millis(500), within TICK..=Millis::from_secs(60);
    }
}

choice! {
    StoreKind { Embedded = "embedded", Redis = "redis" }
}

section! {
    ShardsConfig {
        users: UserShards = UserShards::default();
        photos: PhotoShards = PhotoShards::default();
    }
}

section! {
    /// Epoch 1 of the shard map; a stored map rules from then on.
    UserShards {
        hash: ShardHash = ShardHash::Siphash24;
        /// `shard_0` to `shard_{count-1}`.
        count: u32 = 1, within 1..=MAX_USER_SHARDS;
        /// 32 hex digits; none: generated with the map.
        key: SecretSource = SecretSource::default();
        pins: BTreeMap<UserId, ShardName> = BTreeMap::new();
    }
}

choice! {
    ShardHash {
        Siphash24 = "siphash24",
        /// The original's `hash(user_id) % count`.
        Python = "python",
    }
}

section! {
    PhotoShards {
        /// Earlier instants are refused.
        from: YearMonth = YearMonth { year: 2020, month: 1 };
        /// How far beyond now an instant may lie.
        max_future: Millis = HOUR;
    }
}

section! {
    BalanceConfig {
        algorithm: BalanceAlgorithm = BalanceAlgorithm::LeastConnections;
        slow_start: Millis = Millis::ZERO, within Millis::ZERO..=DAY;
        /// Available origins over all.
        panic_threshold: Ratio = Ratio(0.5);
        on_no_healthy: OnNoHealthy = OnNoHealthy::FailOpen;
        queue_timeout: Millis = SECOND, within Millis::ZERO..=HOUR;
        /// Waiting requests, for each origin.
        queue_max: u32 = 1024, within 0..=1_000_000;
        ejection: bool = true;
        retry_budget: Ratio = Ratio(0.2);
        retry_buffer: ByteSize = ByteSize(64 * KIB), within ByteSize(0)..=ByteSize(64 * MIB);
        connect_timeout: Millis = SECOND, within TICK..=HOUR;
        response_timeout: Millis = seconds(30), within TICK..=DAY;
        resolve_interval: Millis = seconds(30), within SECOND..=DAY;
        /// The server that is asked for origins' names; none: the system's resolver.
        resolver: Option<SocketAddr> = None;
        origin_key: SecretSource = SecretSource::default();
        sticky: StickyConfig = StickyConfig::default();
    }
}

choice! {
    BalanceAlgorithm { LeastConnections = "least_connections" }
}

section! {
    StickyConfig {
        enabled: bool = true;
        cookie_name: String = "DAB_ROUTE".to_owned();
        max_age: Millis = DAY, within SECOND..=MAX_DURATION;
    }
}

section! {
    HealthConfig {
        r#type: HealthType = HealthType::Http;
        path: String = "/health".to_owned();
        expect_status: u16 = 200, within 200..=599;
        body_contains: Option<String> = None;
        interval: Millis = seconds(30), within TICK..=DAY;
        /// Below `interval`.
        timeout: Millis = seconds(5), within TICK..=DAY;
        /// While a state is changing; at most `interval`.
        fast_interval: Millis = seconds(5), within TICK..=DAY;
        healthy_threshold: u32 = 2, within 1..=100;
        unhealthy_threshold: u32 = 3, within 1..=100;
        /// Healthy is strictly below, so above 0.
        max_error_rate: Ratio = Ratio(0.01);
        /// Healthy is strictly below.
        max_latency_p95: Millis = Millis(500), within TICK..=HOUR;
        min_samples: u32 = 100, within 1..=1_000_000;
    }
}

choice! {
    HealthType { Http = "http", Tcp = "tcp" }
}

section! {
    LimitsConfig {
        body: ByteSize = ByteSize(100 * MIB), within ByteSize(1)..=MAX_SIZE;
        /// Large enough for the 4 KiB of `device_info`.
        json_body: ByteSize = ByteSize(64 * KIB), within ByteSize(8 * KIB)..=ByteSize(16 * MIB);
        /// For each client address.
        refresh_failures: RateLimit = RateLimit { count: 100, per: MINUTE };
        /// For each service credential.
        creates: RateLimit = RateLimit { count: 1000, per: SECOND };
    }
}

section! {
    CacheConfig {
        memory: ByteSize = ByteSize(64 * MIB), within ByteSize(1)..=MAX_SIZE;
        /// At most `memory`.
        max_entry: ByteSize = ByteSize(MIB), within ByteSize(1)..=MAX_SIZE;
        negative_ttl: Millis = seconds(5);
        jitter: Ratio = Ratio(0.1);
        write_behind: WriteBehindConfig = WriteBehindConfig::default();
        types: Vec<CacheType> = Vec::new();
    }
}

section! {
    WriteBehindConfig {
        max_items: u64 = 100_000, within 1..=100_000_000;
        /// An older unsent write raises an alert and counts as full.
        max_age: Millis = seconds(900), within SECOND..=MAX_DURATION;
        when_full: WhenFull = WhenFull::Refuse;
    }
}

choice! {
    WhenFull { Refuse = "refuse", Block = "block", WriteThrough = "write_through" }
}

section! {
    AlertsConfig {
        interval: Millis = MINUTE, within SECOND..=DAY;
        /// Lower is worse.
        auth_success_rate: Thresholds<Percent> = Thresholds { warning: Percent(95.0), critical: Percent(90.0) };
        /// The 95th percentile; higher is worse.
        api_latency: Thresholds<Millis> = Thresholds { warning: Millis(500), critical: Millis(1000) };
        /// Higher is worse.
        error_rate: Thresholds<Percent> = Thresholds { warning: Percent(1.0), critical: Percent(5.0) };
        r#for: Millis = Millis::ZERO;
        objectives: Option<Objectives> = None;
        webhook: Option<WebUrl> = None;
        webhook_secret: SecretSource = SecretSource::default();
        alertmanager: Option<WebUrl> = None;
    }
}

/// Where an alert warns and where it is critical. A member left out has its key's default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds<T> {
    pub warning: T,
    pub critical: T,
}

impl<T: Setting + Copy> Setting for Thresholds<T> {
    fn allowed() -> String {
        format!("{{ warning, critical }}, each {}", T::allowed())
    }

    /// Both members, since only the key knows their defaults; see `take`.
    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<Thresholds<T>> {
        errors.add(path, found(value), Self::allowed());
        None
    }

    fn write(&self) -> Value {
        let mut map = serde_json::Map::new();
        self.warning.put("warning", &mut map);
        self.critical.put("critical", &mut map);
        Value::Object(map)
    }

    fn take(table: &mut Table<'_>, key: &str, default: Thresholds<T>) -> Thresholds<T> {
        let path = table.path(key);
        let Some(value) = table.value(key) else { return default };
        let Some(mut inner) = Table::open(value, &path, table.errors) else { return default };
        let warning = T::take(&mut inner, "warning", default.warning);
        let critical = T::take(&mut inner, "critical", default.critical);
        inner.close();
        Thresholds { warning, critical }
    }
}

table! {
    /// Service objectives; each adds burn-rate alerts.
    Objectives {
        /// The share of requests that must not fail; above 0 and below 100.
        error_rate: Option<Percent> = None;
    }
}

section! {
    TraceConfig {
        otlp: Option<WebUrl> = None;
        ratio: Ratio = Ratio(0.01);
    }
}

section! {
    EdgeConfig {
        /// Workers that are told of revocations.
        notify: Vec<WebUrl> = Vec::new();
        credential: SecretSource = SecretSource::from_env("EDGEKEEP_EDGE_TOKEN");
    }
}

section! {
    LogConfig {
        format: LogFormat = LogFormat::Text;
        level: LogLevel = LogLevel::Info;
        access: bool = true;
    }
}

choice! {
    LogFormat { Text = "text", Json = "json" }
}

choice! {
    LogLevel { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }
}
