//! What no single key can tell: values that contradict each other, names that nothing has, entries that clash.
//!
//! A rule is skipped when a key that it needs has an error already: one mistake is reported once.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use super::error::{Errors, quoted};
use super::lists::{CorsOrigins, OnNoHealthy, RouteConfig, ShardRule};
use super::sections::{HealthType, StoreKind};
use super::shards::{PoolShard, ShardName};
use super::{Config, ShardHash};
use crate::route::{Segment, ambiguous_routes, own_path};
use crate::token::MAX_TEXT;

/// With everything else at its longest, an access token is half as long as one may be.
const MAX_ISSUER: usize = 1024;

/// Adds an error for everything that cannot be.
pub(super) fn check(config: &Config, errors: &mut Errors) {
    let mut check = Check { config, errors };
    check.server();
    check.session();
    check.store();
    check.user_shards();
    check.pools();
    check.balance();
    check.health();
    check.cache();
    check.routes();
    check.alerts();
    check.edge();
}

struct Check<'c> {
    config: &'c Config,
    errors: &'c mut Errors,
}

impl Check<'_> {
    /// Adds an error at the first path, if none of the paths has one.
    fn rule(&mut self, paths: &[&str], holds: bool, found: &dyn fmt::Display, allowed: impl Into<String>) {
        let known = paths.iter().any(|path| self.errors.has(path));
        if let Some(path) = paths.first().filter(|_| !holds && !known) {
            self.errors.add(*path, found.to_string(), allowed);
        }
    }

    /// Adds an error for every entry that has the same key as an earlier one.
    fn distinct<K: Eq + Hash>(&mut self, entries: impl Iterator<Item = (String, K, String)>, what: &str) {
        let mut first: HashMap<K, String> = HashMap::new();
        for (path, key, found) in entries.filter(|(path, ..)| !self.errors.has(path)).collect::<Vec<_>>() {
            match first.get(&key) {
                Some(earlier) => self.errors.add(path, format!("{found}, as in {earlier}"), what),
                None => {
                    first.insert(key, path);
                }
            }
        }
    }

    fn server(&mut self) {
        let server = &self.config.server;
        self.rule(&["server.listen"], !server.listen.is_empty(), &"an empty list", "at least one address");
        // Port 0 is a new port each time.
        let listen = server.listen.iter().enumerate().map(|(i, address)| (format!("server.listen[{i}]"), *address));
        let admin = ("admin.listen".to_owned(), self.config.admin.listen);
        let all = listen.chain([admin]).filter(|(_, address)| address.port() != 0);
        let skip = self.errors.below("server.listen");
        let all: Vec<_> = all.filter(|_| !skip).map(|(path, a)| (path, a, quoted(&a.to_string()))).collect();
        self.distinct(all.into_iter(), "an address of its own");
        let believed = !server.proxy_protocol || !server.trusted_proxies.is_empty();
        let allowed = "with server.trusted_proxies only: nobody else's PROXY header is believed";
        self.rule(&["server.proxy_protocol", "server.trusted_proxies"], believed, &true, allowed);
    }

    fn session(&mut self) {
        let s = &self.config.session;
        for (path, text, most) in
            [("session.issuer", &s.issuer, MAX_ISSUER), ("session.audience", &s.audience, MAX_TEXT)]
        {
            let allowed = format!("at most {most} bytes: it stands in every access token");
            self.rule(&[path], text.len() <= most, &format!("{} bytes", text.len()), allowed);
        }
        let jitter = s.access_ttl_jitter.0;
        self.rule(&["session.access_ttl_jitter"], jitter < 1.0, &jitter, "a number from 0 to below 1");
        let allowed = format!("at most refresh_ttl ({})", s.refresh_ttl);
        self.rule(
            &["session.access_ttl", "session.refresh_ttl"],
            s.access_ttl <= s.refresh_ttl,
            &s.access_ttl,
            allowed,
        );
        let allowed = format!("at least access_ttl ({})", s.access_ttl);
        self.rule(&["session.idle_ttl", "session.access_ttl"], s.idle_ttl >= s.access_ttl, &s.idle_ttl, allowed);
        let allowed = format!("below access_ttl ({})", s.access_ttl);
        self.rule(&["session.leeway", "session.access_ttl"], s.leeway < s.access_ttl, &s.leeway, allowed);
    }

    fn store(&mut self) {
        let store = &self.config.store;
        if store.kind != StoreKind::Redis || self.errors.below("store.nodes") {
            return;
        }
        self.rule(&["store.nodes"], !store.nodes.is_empty(), &"no nodes", "at least one, since kind is \"redis\"");
        let tls = store.nodes.iter().filter(|node| node.tls).count();
        let alike = tls == 0 || tls == store.nodes.len();
        self.rule(&["store.nodes"], alike, &"redis:// beside rediss://", "one of them for all nodes");
        if store.cluster || self.errors.has("store.cluster") {
            return;
        }
        let count = store.nodes.len();
        self.rule(&["store.nodes"], count <= 1, &format!("{count} nodes"), "one, since cluster is false");
        let alone = !store.read_from_replicas;
        self.rule(&["store.read_from_replicas"], alone, &"true", "false, since cluster is false");
    }

    fn user_shards(&mut self) {
        let users = &self.config.shards.users;
        for (user, shard) in &users.pins {
            let path = super::setting::join("shards.users.pins", user.as_str());
            let exists = matches!(shard, ShardName::User(n) if *n < users.count);
            let allowed = format!("shard_0 to shard_{}", users.count.saturating_sub(1));
            self.rule(&[&path, "shards.users.count"], exists, &quoted(&shard.to_string()), allowed);
            let hashed = users.hash != ShardHash::Python || is_canonical_integer(user.as_str());
            let allowed = "a canonical decimal integer, since hash is \"python\"";
            self.rule(&[&path, "shards.users.hash"], hashed, &quoted(user.as_str()), allowed);
        }
        let unknown = self.errors.has("pools")
            || (0..self.config.pools.len()).any(|i| self.errors.has(&format!("pools[{i}].shard")))
            || self.config.pools.iter().any(|pool| pool.shard.is_none() && pool.name.is_none())
            || self.config.pools.is_empty() && self.errors.below("pools");
        let mut served = vec![false; users.count as usize];
        for shard in self.config.pools.iter().filter_map(|pool| pool.shard?.user_shard()) {
            if let Some(place) = served.get_mut(shard as usize) {
                *place = true;
            }
        }
        let missing: Vec<usize> = served.iter().enumerate().filter(|(_, has)| !**has).map(|(n, _)| n).collect();
        let named: Vec<String> = missing.iter().take(5).map(|n| format!("shard_{n}")).collect();
        let more = match missing.len().saturating_sub(5) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let found = format!("no pool for {}{more}", named.join(", "));
        let allowed = format!("a pool for each of the {} user shards (shards.users.count)", users.count);
        self.rule(&["pools", "shards.users.count"], missing.is_empty() || unknown, &found, allowed);
    }

    fn pools(&mut self) {
        for (i, pool) in self.config.pools.iter().enumerate() {
            let path = format!("pools[{i}].shard");
            let name = format!("pools[{i}].name");
            let allowed = "a shard, or a name for a fallback";
            self.rule(&[&path, &name], pool.shard.is_some() || pool.name.is_some(), &"neither shard nor name", allowed);
            self.rule(&[&name, &path], pool.shard.is_none() || pool.name.is_none(), &"a name beside shard", allowed);
            let origins = format!("pools[{i}].origins");
            let skip = self.errors.below(&origins);
            self.rule(&[&origins], skip || !pool.origins.is_empty(), &"an empty list", "at least one origin");
            for (j, origin) in pool.origins.iter().enumerate() {
                let path = format!("{origins}[{j}].id");
                self.rule(&[&path], is_name(&origin.id), &quoted(&origin.id), NAME);
                let path = format!("{origins}[{j}].max_connections");
                self.rule(&[&path], origin.max_connections != Some(0), &0, "1 or more; leave it out for no limit");
            }
            if let Some(text) = &pool.name {
                self.rule(&[&name], is_name(text), &quoted(text), NAME);
                // Pools are counted by their names, shards' pools by their shards.
                let own = text != "any" && ShardName::parse(text).is_none();
                self.rule(&[&name], own, &quoted(text), "a name that is neither a shard's nor \"any\"");
            }
        }
        let pools = || self.config.pools.iter().enumerate();
        let shards = pools().filter_map(|(i, p)| Some((format!("pools[{i}].shard"), p.shard?)));
        let shards = shards.map(|(path, shard): (String, PoolShard)| (path, shard, quoted(&shard.to_string())));
        self.distinct(shards.collect::<Vec<_>>().into_iter(), "one pool for a shard");
        let names = pools().filter_map(|(i, p)| Some((format!("pools[{i}].name"), p.name.clone()?)));
        let names = names.map(|(path, name)| (path, name.clone(), quoted(&name)));
        self.distinct(names.collect::<Vec<_>>().into_iter(), "a name of its own");
        let origins = pools().flat_map(|(i, p)| p.origins.iter().enumerate().map(move |(j, origin)| (i, j, origin)));
        let ids = origins.map(|(i, j, o)| (format!("pools[{i}].origins[{j}].id"), o.id.clone(), quoted(&o.id)));
        self.distinct(ids.collect::<Vec<_>>().into_iter(), "an id of its own, over all pools");
    }

    fn balance(&mut self) {
        let balance = &self.config.balance;
        if let OnNoHealthy::Pool(name) = &balance.on_no_healthy {
            let fallback = |pool: &super::PoolConfig| pool.shard.is_none() && pool.name.as_deref() == Some(name);
            let known = self.config.pools.iter().any(fallback) || self.errors.below("pools");
            let allowed = "the name of a pool without a shard";
            let paths = ["balance.on_no_healthy.pool", "balance.on_no_healthy"];
            self.rule(&paths, known, &quoted(name), allowed);
        }
        let name = &balance.sticky.cookie_name;
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let path = ["balance.sticky.cookie_name"];
        self.rule(&path, name.bytes().all(token), &quoted(name), "a cookie's name (RFC 6265): letters, digits, -_.");
        let own = ["__Host-edgekeep-at", "__Host-edgekeep-rt"].iter().any(|own| own.eq_ignore_ascii_case(name));
        self.rule(&path, !own, &quoted(name), "another name than the session cookies'");
    }

    fn health(&mut self) {
        let h = &self.config.health;
        let allowed = format!("below interval ({})", h.interval);
        self.rule(&["health.timeout", "health.interval"], h.timeout < h.interval, &h.timeout, allowed);
        let allowed = format!("at most interval ({})", h.interval);
        self.rule(
            &["health.fast_interval", "health.interval"],
            h.fast_interval <= h.interval,
            &h.fast_interval,
            allowed,
        );
        let rate = h.max_error_rate.0;
        self.rule(&["health.max_error_rate"], rate > 0.0, &rate, "above 0, to 1: healthy is strictly below");
        let plain = h.path.starts_with('/') && h.path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        self.rule(
            &["health.path"],
            plain,
            &quoted(&h.path),
            "a path such as \"/health\", encoded, with or without a query",
        );
        let read = h.body_contains.is_none() || h.r#type == HealthType::Http;
        self.rule(&["health.body_contains", "health.type"], read, &"a text", "nothing, since type is \"tcp\"");
    }

    fn cache(&mut self) {
        let cache = &self.config.cache;
        let allowed = format!("at most memory ({})", cache.memory);
        self.rule(&["cache.max_entry", "cache.memory"], cache.max_entry <= cache.memory, &cache.max_entry, allowed);
        for (i, kind) in cache.types.iter().enumerate() {
            let path = format!("cache.types[{i}]");
            self.rule(&[&format!("{path}.name")], is_name(&kind.name), &quoted(&kind.name), NAME);
            self.rule(&[&format!("{path}.ttl")], kind.ttl.0 > 0, &kind.ttl, "more than 0s");
        }
        let types = cache.types.iter().enumerate();
        let names = types.map(|(i, t)| (format!("cache.types[{i}].name"), t.name.clone(), quoted(&t.name)));
        self.distinct(names, "a name of its own");
    }

    fn routes(&mut self) {
        for (i, route) in self.config.routes.iter().enumerate() {
            self.route(&format!("routes[{i}]"), route);
        }
        let clear = |i: usize| {
            let path = format!("routes[{i}]");
            !["path", "host", "methods"].iter().any(|key| self.errors.below(&format!("{path}.{key}")))
        };
        let readable = self.config.routes.iter().enumerate().filter(|(i, _)| clear(*i));
        for pair in ambiguous_routes(readable.collect::<Vec<_>>().into_iter()) {
            let path = self.config.routes.get(pair.second).map(|route| route.path.as_str()).unwrap_or_default();
            let found = format!("{}, which routes[{}] matches with equal rank", quoted(path), pair.first);
            self.errors.add(format!("routes[{}]", pair.second), found, "another path, host or methods");
        }
    }

    fn route(&mut self, path: &str, route: &RouteConfig) {
        let at = |key: &str| format!("{path}.{key}");
        let pattern = &route.path;
        // With `x` for every parameter: an own path only if all that the pattern matches are own paths.
        let filled = pattern.segments().iter().fold(String::new(), |text, segment| match segment {
            Segment::Literal(literal) => text + "/" + literal,
            Segment::Parameter(_) => text + "/x",
            // Deeper than any own path but `/v1/authorize`.
            Segment::Rest(_) => text + "/x/x/x/x/x",
        });
        let reachable = own_path(&filled, self.config.server.api_prefix.as_str()).is_none();
        let paths = [&*at("path"), "server.api_prefix"];
        self.rule(&paths, reachable, &quoted(pattern.as_str()), "a path that Edgekeep does not answer itself");
        match &route.shard {
            ShardRule::Path(name) => {
                let allowed = format!("a {{name}} of {pattern}");
                self.rule(&[&at("shard"), &at("path")], pattern.has_parameter(name), &quoted(name), allowed);
            }
            ShardRule::Photo(name) => {
                let one = pattern.rest() != Some(name);
                self.rule(&[&at("shard"), &at("path")], one, &quoted(name), "one segment, or a query parameter");
            }
            ShardRule::Named(shard) => {
                let known = self.config.pool_of(*shard).is_some() || self.errors.below("pools");
                self.rule(&[&at("shard")], known, &quoted(&shard.to_string()), "a shard that a pool serves");
            }
            ShardRule::User | ShardRule::Any => {}
        }
        if let Some(name) = &route.cache {
            let types = &self.config.cache.types;
            let known = types.iter().any(|kind| kind.name == *name) || self.errors.below("cache.types");
            let names: Vec<&str> = types.iter().map(|kind| kind.name.as_str()).collect();
            let allowed =
                if names.is_empty() { "a type of cache.types (there is none)".into() } else { names.join(" | ") };
            self.rule(&[&at("cache")], known, &quoted(name), allowed);
        }
        self.rule(
            &[&at("shared"), &at("cache")],
            !route.shared || route.cache.is_some(),
            &"true",
            "false without cache",
        );
        self.rule(&[&at("timeout")], route.timeout.is_none_or(|t| t.0 > 0), &"0s", "more than 0s");
        if let Some(cors) = &route.cors {
            let safe = !cors.credentials || cors.origins != CorsOrigins::Any;
            let paths = [&*at("cors.credentials"), &at("cors.origins")];
            self.rule(&paths, safe, &"true", "false, since origins is [\"*\"]");
        }
    }

    fn alerts(&mut self) {
        let alerts = &self.config.alerts;
        let auth = &alerts.auth_success_rate;
        let paths = ["alerts.auth_success_rate.critical", "alerts.auth_success_rate.warning"];
        let allowed = format!("at most warning ({}): lower is worse", auth.warning.0);
        self.rule(&paths, auth.critical <= auth.warning, &auth.critical.0, allowed);
        let latency = &alerts.api_latency;
        let paths = ["alerts.api_latency.critical", "alerts.api_latency.warning"];
        let allowed = format!("at least warning ({}): higher is worse", latency.warning);
        self.rule(&paths, latency.critical >= latency.warning, &latency.critical, allowed);
        self.rule(&["alerts.api_latency.warning"], latency.warning.0 > 0, &latency.warning, "more than 0s");
        let errors = &alerts.error_rate;
        let paths = ["alerts.error_rate.critical", "alerts.error_rate.warning"];
        let allowed = format!("at least warning ({}): higher is worse", errors.warning.0);
        self.rule(&paths, errors.critical >= errors.warning, &errors.critical.0, allowed);
        self.rule(&["alerts.error_rate.warning"], errors.warning.0 > 0.0, &errors.warning.0, "above 0, to 100");
        if let Some(objective) = alerts.objectives.as_ref().and_then(|objectives| objectives.error_rate) {
            let possible = objective.0 > 0.0 && objective.0 < 100.0;
            let allowed = "above 0 and below 100: 100 leaves no budget to burn";
            self.rule(&["alerts.objectives.error_rate"], possible, &objective.0, allowed);
        }
    }

    fn edge(&mut self) {
        for (i, url) in self.config.edge.notify.iter().enumerate() {
            let path = format!("edge.notify[{i}]");
            let allowed = "https://, or http:// to loopback: the edge credential is sent there";
            self.rule(&[&path], url.is_private(), &"an http:// URL elsewhere", allowed);
            self.rule(&[&path], !url.path.contains('?'), &"a query", "a URL without one");
        }
    }
}

const NAME: &str = "1 to 64 letters, digits and -_.";

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_canonical_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').filter(|digits| *digits != "0").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain && digits.len() <= crate::MAX_USER_DIGITS && (digits == "0" || !digits.starts_with('0'))
}
