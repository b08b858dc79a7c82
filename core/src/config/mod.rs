//! One typed configuration, read from TOML natively and from JSON at the edge (DESIGN §3).
//!
//! Both come through one reader over JSON values, which collects every mistake before it gives up. A [`Config`] that
//! exists has been checked whole: nothing that uses it validates again.

mod check;
mod error;
mod gaps;
mod lists;
mod sections;
mod setting;
mod shards;
#[cfg(test)]
#[cfg(feature = "toml")]
mod tests;
mod url;
mod values;

use serde_json::Value;

use error::Errors;
use setting::{Setting, table};

pub use error::{ConfigError, ConfigErrors};
pub use lists::{
    AuthMode, CacheType, CorsConfig, CorsOrigins, HostPolicy, OnNoHealthy, OriginConfig, PoolConfig, PoolTls,
    RouteConfig, ShardRule, Strategy,
};
pub use sections::{
    AdminConfig, AlertsConfig, Algorithm, Authority, BalanceAlgorithm, BalanceConfig, CacheConfig, EdgeConfig,
    HealthConfig, HealthType, LimitsConfig, LogConfig, LogFormat, LogLevel, Objectives, OnMax, OnStoreDown,
    PhotoShards, ServerConfig, ServerTls, SessionConfig, ShardHash, ShardsConfig, StickyConfig, StoreConfig, StoreKind,
    Thresholds, TraceConfig, UserShards, WhenFull, WriteBehindConfig,
};
pub use shards::{MAX_USER_SHARDS, PoolShard, ShardName};
pub use url::{HostName, OriginUrl, RedisNode, Scheme, WebOrigin, WebUrl};
pub use values::{ApiPrefix, Network, RateLimit, SecretSource, YearMonth};

table! {
    /// The whole configuration, checked.
    Config {
        server: ServerConfig = ServerConfig::default();
        admin: AdminConfig = AdminConfig::default();
        session: SessionConfig = SessionConfig::default();
        store: StoreConfig = StoreConfig::default();
        shards: ShardsConfig = ShardsConfig::default();
        pools: Vec<PoolConfig> = Vec::new();
        balance: BalanceConfig = BalanceConfig::default();
        health: HealthConfig = HealthConfig::default();
        limits: LimitsConfig = LimitsConfig::default();
        cache: CacheConfig = CacheConfig::default();
        /// Never empty: without routes it is `RouteConfig::everything`.
        routes: Vec<RouteConfig> = Vec::new();
        alerts: AlertsConfig = AlertsConfig::default();
        trace: TraceConfig = TraceConfig::default();
        edge: EdgeConfig = EdgeConfig::default();
        log: LogConfig = LogConfig::default();
    }
}

impl Config {
    /// Reads `edgekeep.toml`. A text that is no TOML is one error, with its line and column.
    #[cfg(feature = "toml")]
    pub fn from_toml(text: &str) -> Result<Config, ConfigErrors> {
        match text.parse::<toml::Table>() {
            Ok(table) => Config::from_value(&json_table(table)),
            Err(error) => {
                let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or(text);
                let line = before.matches('\n').count() + 1;
                let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
                Err(unreadable(line, column, error.message(), "TOML"))
            }
        }
    }

    /// Reads what [`Config::to_json`] wrote.
    pub fn from_json(text: &str) -> Result<Config, ConfigErrors> {
        match serde_json::from_str(text) {
            Ok(value) => Config::from_value(&value),
            Err(error) => Err(unreadable(error.line(), error.column(), &error.to_string(), "JSON")),
        }
    }

    /// The configuration of `serve --origin URL`: one shard, one pool, the origin `origin`.
    pub fn minimal(origin_url: &str) -> Result<Config, ConfigErrors> {
        Config::from_value(&serde_json::json!({
            "pools": [{ "shard": "shard_0", "origins": [{ "id": "origin", "url": origin_url }] }]
        }))
    }

    /// The canonical JSON: every key that has a value, whether it is the default or not.
    pub fn to_json(&self) -> String {
        self.write().to_string()
    }

    /// The place in `pools` of the pool that serves a shard, the closest fit first. Walks all pools: not for requests.
    pub fn pool_of(&self, shard: ShardName) -> Option<usize> {
        shard.served_by().find_map(|served| self.pools.iter().position(|pool| pool.shard == Some(served)))
    }

    fn from_value(value: &Value) -> Result<Config, ConfigErrors> {
        let mut errors = Errors::default();
        let read = Config::read(value, "", &mut errors).map(|mut config| {
            if config.routes.is_empty() && !errors.below("routes") {
                config.routes.push(RouteConfig::everything());
            }
            check::check(&config, &mut errors);
            config
        });
        match read {
            Some(config) if errors.0.is_empty() => Ok(config),
            _ => Err(ConfigErrors(errors.0)),
        }
    }
}

fn unreadable(line: usize, column: usize, reason: &str, form: &str) -> ConfigErrors {
    let path = format!("line {line}, column {column}");
    let found = reason.lines().collect::<Vec<_>>().join(", ");
    ConfigErrors(vec![ConfigError { path, found, allowed: form.to_owned() }])
}

#[cfg(feature = "toml")]
fn json_table(table: toml::Table) -> Value {
    Value::Object(table.into_iter().map(|(key, value)| (key, json(value))).collect())
}

/// TOML in JSON's terms. Dates, infinities and NaN, which JSON lacks, become texts: no key takes one as such.
#[cfg(feature = "toml")]
fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => {
            serde_json::Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number)
        }
        toml::Value::Boolean(bool) => Value::Bool(bool),
        toml::Value::Datetime(instant) => Value::String(instant.to_string()),
        toml::Value::Array(values) => Value::Array(values.into_iter().map(json).collect()),
        toml::Value::Table(table) => json_table(table),
    }
}
