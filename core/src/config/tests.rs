//! The whole configuration: the example, its defaults, and every mistake.

use serde_json::{Value, json};
use wasm_bindgen_test::wasm_bindgen_test;

use super::*;
use crate::{ByteSize, Millis, Percent, Ratio, UserId};

const EXAMPLE: &str = include_str!("../../../edgekeep.example.toml");

fn example() -> Config {
    Config::from_toml(EXAMPLE).unwrap()
}

/// The example as JSON, with other values at some places; `null` takes a key away.
fn changed(changes: &[(&str, Value)]) -> Result<Config, ConfigErrors> {
    let mut value: Value = serde_json::from_str(&example().to_json()).unwrap();
    for (pointer, new) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match value.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}")) {
            Value::Object(map) if new.is_null() => drop(map.remove(key)),
            Value::Object(map) => drop(map.insert(key.to_owned(), new.clone())),
            Value::Array(list) if key == "-" => list.push(new.clone()),
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = new.clone(),
            other => panic!("{pointer} is in {other}"),
        }
    }
    Config::from_json(&value.to_string())
}

fn errors(changes: &[(&str, Value)]) -> Vec<ConfigError> {
    changed(changes).map_or_else(|errors| errors.0, |_| Vec::new())
}

/// One change that must give one error, at a path.
fn refused(pointer: &str, new: Value, path: &str) -> ConfigError {
    let change = format!("{pointer} = {new}");
    let mut errors = errors(&[(pointer, new)]);
    let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, [path], "{change}: {errors:?}");
    errors.remove(0)
}

#[wasm_bindgen_test(unsupported = test)]
fn the_example_loads_as_it_stands() {
    let config = example();
    assert_eq!(config.server.listen, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(config.session.access_ttl, Millis(900_000));
    assert_eq!(config.shards.users.count, 2);
    assert_eq!(config.shards.users.pins[&UserId::new("42").unwrap()], ShardName::User(1));
    assert_eq!(config.pools.len(), 4);
    assert_eq!(config.pools[0].origins[1].max_connections, Some(512));
    assert_eq!((config.pools[3].shard, config.pools[3].name.as_deref()), (None, Some("spare")));
    assert_eq!(config.cache.types[1].stale_if_error, Some(Millis(3_600_000)));
    assert_eq!(config.cache.types[2].strategy, Strategy::WriteBehind);
    assert_eq!(config.routes.len(), 7);
    assert_eq!(config.routes[1].shard, ShardRule::Path("user_id".into()));
    assert_eq!(config.routes[4].cors.as_ref().map(|cors| cors.credentials), Some(true));
    assert_eq!(config.routes[5].auth, AuthMode::Strict);
    assert_eq!(config.limits.refresh_failures, RateLimit { count: 100, per: Millis(60_000) });
    assert_eq!(config.alerts.auth_success_rate.critical, Percent(90.0));
    assert_eq!(config.edge.credential.env.as_deref(), Some("EDGEKEEP_EDGE_TOKEN"));
}

#[wasm_bindgen_test(unsupported = test)]
fn the_example_loads_with_every_optional_key_turned_on() {
    let is_key = |line: &str| {
        let key = line.split(" = ").next().unwrap_or_default();
        line.contains(" = ") && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let mut turned_on = 0;
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if is_key(key) => {
            turned_on += 1;
            key
        }
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let config = Config::from_toml(&text).unwrap();
    assert_eq!(turned_on, EXAMPLE.lines().filter(|line| line.starts_with("# ") && line.contains(" = ")).count() - 1);
    assert_eq!(config.server.tls.as_ref().map(|tls| tls.key.as_str()), Some("key.pem"));
    assert_eq!(config.store.nodes.len(), 3);
    assert_eq!(config.shards.users.key.env.as_deref(), Some("EDGEKEEP_SHARD_KEY"));
    assert_eq!(config.pools[1].host, HostPolicy::Preserve);
    assert_eq!(config.pools[1].tls.as_ref().and_then(|tls| tls.ca.as_deref()), Some("ca.pem"));
    assert_eq!(config.health.body_contains.as_deref(), Some("ok"));
    assert_eq!(config.alerts.objectives.as_ref().and_then(|o| o.error_rate), Some(Percent(99.0)));
    assert!(config.trace.otlp.is_some() && config.alerts.webhook.is_some() && config.alerts.alertmanager.is_some());
    assert_eq!(config.routes[5].host.as_ref().map(HostName::as_str), Some("app.example"));
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_key_left_out_has_the_value_that_the_example_shows() {
    let shown = example();
    let lists = Config::minimal("http://127.0.0.1:3000").unwrap();
    assert_eq!(lists.server, shown.server);
    assert_eq!(lists.admin, shown.admin);
    assert_eq!(lists.session, shown.session);
    assert_eq!(lists.store, shown.store);
    // Two keys of the example are not defaults: `count` is 1 and `pins` is empty when they are left out.
    let users = UserShards { count: 1, pins: Default::default(), ..shown.shards.users.clone() };
    assert_eq!(lists.shards, ShardsConfig { users, photos: shown.shards.photos.clone() });
    assert_eq!(lists.balance, shown.balance);
    assert_eq!(lists.health, shown.health);
    assert_eq!(lists.limits, shown.limits);
    assert_eq!(lists.cache, CacheConfig { types: Vec::new(), ..shown.cache.clone() });
    assert_eq!(lists.routes, [RouteConfig::everything()]);
    assert_eq!(lists.alerts, shown.alerts);
    assert_eq!(lists.trace, shown.trace);
    assert_eq!(lists.edge, shown.edge);
    assert_eq!(lists.log, shown.log);
}

#[wasm_bindgen_test(unsupported = test)]
fn inside_an_entry_nothing_is_inherited() {
    let text = r#"
        [[pools]]
        shard = "shard_0"
        origins = [{ id = "a", url = "http://a" }]
        [[cache.types]]
        name = "t"
        ttl = "1s"
        strategy = "lazy_loading"
        [[routes]]
        path = "/a"
        cors = { origins = ["*"] }
    "#;
    let config = Config::from_toml(text).unwrap();
    let pool = &config.pools[0];
    assert_eq!((&pool.host, &pool.tls, &pool.name), (&HostPolicy::Preserve, &None, &None));
    assert_eq!((pool.origins[0].weight, pool.origins[0].max_connections), (1, None));
    assert_eq!(config.cache.types[0].stale_while_revalidate, None);
    let cors = Some(CorsConfig { origins: CorsOrigins::Any, credentials: false });
    let path = crate::route::Pattern::parse("/a").unwrap();
    assert_eq!(config.routes, [RouteConfig { path, cors, ..RouteConfig::everything() }]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_member_left_out_of_an_alerts_thresholds_has_its_default() {
    let config = changed(&[("/alerts/auth_success_rate", json!({"warning": 99}))]).unwrap();
    assert_eq!(config.alerts.auth_success_rate, Thresholds { warning: Percent(99.0), critical: Percent(90.0) });
    let config = changed(&[("/alerts/api_latency", json!({"critical": "2s"}))]).unwrap();
    assert_eq!(config.alerts.api_latency, Thresholds { warning: Millis(500), critical: Millis(2000) });
}

#[wasm_bindgen_test(unsupported = test)]
fn the_canonical_json_reads_back_as_the_same_configuration() {
    let config = example();
    let json = config.to_json();
    let again = Config::from_json(&json).unwrap();
    assert_eq!(again, config);
    assert_eq!(again.to_json(), json);
    assert!(json.contains("\"access_ttl\":\"15m\"") && json.contains("\"for\":\"0s\"") && !json.contains("null"));
}

#[wasm_bindgen_test(unsupported = test)]
fn the_minimal_configuration_has_one_shard_one_pool_and_one_origin() {
    let config = Config::minimal("http://127.0.0.1:3000").unwrap();
    assert_eq!(config.pools[0].shard, Some(PoolShard::One(ShardName::User(0))));
    let origin = &config.pools[0].origins[0];
    assert_eq!((origin.id.as_str(), origin.url.port, config.pools.len()), ("origin", 3000, 1));
    let errors = Config::minimal("127.0.0.1:3000").unwrap_err();
    assert_eq!(errors.0.len(), 1);
    assert_eq!(errors.0[0].path, "pools[0].origins[0].url");
}

#[wasm_bindgen_test(unsupported = test)]
fn ten_different_mistakes_are_reported_at_once() {
    let mistakes = [
        ("header_timeout = \"10s\"", "header_timeout = \"10\""),
        ("access_ttl = \"15m\"", "acces_ttl = \"15m\""),
        ("max_per_user = 50", "max_per_user = 1001"),
        ("id = \"c\"", "id = \"a\""),
        ("timeout = \"5s\"\nfast_interval", "timeout = \"30s\"\nfast_interval"),
        ("body = \"100MiB\"", "body = 100"),
        ("\njitter = 0.1", "\njitter = 1.1"),
        ("auth = \"strict\"", "auth = \"sesion\""),
        ("shard = \"path:user_id\"", "shard = \"path:user\""),
        ("critical = 90.0", "critical = 96.0"),
    ];
    let text = mistakes.iter().fold(EXAMPLE.to_owned(), |text, (good, bad)| {
        assert_eq!(text.matches(good).count(), 1, "{good}");
        text.replace(good, bad)
    });
    let errors = Config::from_toml(&text).unwrap_err();
    assert_eq!(errors.0.len(), mistakes.len());
    assert_eq!(
        errors.to_string(),
        "server.header_timeout: found \"10\", allowed: 1ms to 1h\n\
         session.max_per_user: found 1001, allowed: 1 to 1000\n\
         session.acces_ttl: found an unknown key, allowed: access_ttl (the nearest key)\n\
         limits.body: found 100, allowed: 1B to 1024GiB\n\
         cache.jitter: found 1.1, allowed: a number from 0 to 1\n\
         routes[5].auth: found \"sesion\", allowed: none | optional | token | session | strict\n\
         pools[1].origins[0].id: found \"a\", as in pools[0].origins[0].id, allowed: an id of its own, over all pools\n\
         health.timeout: found 30s, allowed: below interval (30s)\n\
         routes[1].shard: found \"user\", allowed: a {name} of /users/{user_id}/profile\n\
         alerts.auth_success_rate.critical: found 96, allowed: at most warning (95): lower is worse"
    );
}

#[wasm_bindgen_test(unsupported = test)]
fn an_empty_file_lacks_only_a_pool() {
    let errors = Config::from_toml("").unwrap_err();
    assert_eq!(
        errors.to_string(),
        "pools: found no pool for shard_0, allowed: a pool for each of the 1 user shards (shards.users.count)"
    );
}

#[wasm_bindgen_test(unsupported = test)]
fn a_text_that_cannot_be_read_is_one_error_with_its_place() {
    let errors = Config::from_toml("[server]\nthreads = = 1\n").unwrap_err();
    assert_eq!((errors.0.len(), errors.0[0].path.as_str()), (1, "line 2, column 11"));
    let errors = Config::from_toml("[admin]\ntoken = hunter2\n").unwrap_err();
    assert!(errors.0[0].path.starts_with("line 2, column ") && !errors.to_string().contains("hunter2"), "{errors}");
    let errors = Config::from_json("{\n  \"server\": }").unwrap_err();
    assert_eq!((errors.0.len(), errors.0[0].path.as_str()), (1, "line 2, column 13"));
    assert_eq!(Config::from_json("[]").unwrap_err().0.len(), 1);
}

#[wasm_bindgen_test(unsupported = test)]
fn unknown_keys_are_refused_everywhere_and_the_nearest_is_named() {
    for (pointer, path) in [
        ("/colour", "colour"),
        ("/server/colour", "server.colour"),
        ("/shards/colour", "shards.colour"),
        ("/shards/users/colour", "shards.users.colour"),
        ("/balance/sticky/colour", "balance.sticky.colour"),
        ("/cache/write_behind/colour", "cache.write_behind.colour"),
        ("/cache/types/0/colour", "cache.types[0].colour"),
        ("/pools/0/colour", "pools[0].colour"),
        ("/pools/0/origins/1/colour", "pools[0].origins[1].colour"),
        ("/routes/4/colour", "routes[4].colour"),
        ("/routes/4/cors/colour", "routes[4].cors.colour"),
        ("/alerts/error_rate/colour", "alerts.error_rate.colour"),
        ("/log/a b", "log.\"a b\""),
    ] {
        assert_eq!(refused(pointer, json!(1), path).found, "an unknown key");
    }
    assert_eq!(refused("/session/tokencache", json!(1), "session.tokencache").allowed, "token_cache (the nearest key)");
    assert_eq!(refused("/log/colour", json!(1), "log.colour").allowed, "format | level | access");
    assert_eq!(refused("/sesion", json!({}), "sesion").allowed, "session (the nearest key)");
}

#[wasm_bindgen_test(unsupported = test)]
fn wrong_types_are_refused() {
    for (pointer, new, path) in [
        ("/server", json!(1), "server"),
        ("/server/listen", json!("127.0.0.1:8080"), "server.listen"),
        ("/server/listen/0", json!("localhost:8080"), "server.listen[0]"),
        ("/server/listen/0", json!("127.0.0.1"), "server.listen[0]"),
        ("/server/threads", json!("1"), "server.threads"),
        ("/server/threads", json!(-1), "server.threads"),
        ("/server/threads", json!(1.5), "server.threads"),
        ("/server/proxy_protocol", json!("true"), "server.proxy_protocol"),
        ("/server/trusted_proxies", json!(["10.0.0.1/8"]), "server.trusted_proxies[0]"),
        ("/server/tls", json!({"cert": "c"}), "server.tls.key"),
        ("/server/api_prefix", json!("/auth/"), "server.api_prefix"),
        ("/admin/listen", json!(["127.0.0.1:9090"]), "admin.listen"),
        ("/session/issuer", json!(""), "session.issuer"),
        ("/session/issuer", json!("i".repeat(1025)), "session.issuer"),
        ("/session/audience", json!("a".repeat(129)), "session.audience"),
        ("/session/algorithm", json!("RS256"), "session.algorithm"),
        ("/session/leeway", json!(0), "session.leeway"),
        ("/session/authority", json!("http://region.example"), "session.authority"),
        ("/session/csrf_origins", json!(["https://a.example/"]), "session.csrf_origins[0]"),
        ("/session/on_max", json!("drop"), "session.on_max"),
        ("/session/on_store_down", json!("allow"), "session.on_store_down"),
        ("/store/kind", json!("sqlite"), "store.kind"),
        ("/shards/users/hash", json!("md5"), "shards.users.hash"),
        ("/shards/users/pins", json!([]), "shards.users.pins"),
        ("/shards/users/pins/42", json!("eu"), "shards.users.pins.42"),
        ("/shards/photos/from", json!("2020-1"), "shards.photos.from"),
        ("/pools/2/shard", json!("shard_2026*"), "pools[2].shard"),
        ("/pools/0/host", json!("a:1"), "pools[0].host"),
        ("/pools/0/origins/0/url", json!("http://a/b"), "pools[0].origins[0].url"),
        ("/pools/0/origins/0/url", json!("ftp://a"), "pools[0].origins[0].url"),
        ("/pools/0/origins", Value::Null, "pools[0].origins"),
        ("/pools/0/origins/0/id", Value::Null, "pools[0].origins[0].id"),
        ("/pools/0/origins/0", json!("http://a"), "pools[0].origins[0]"),
        ("/pools/0", json!("shard_0"), "pools[0]"),
        ("/pools", json!({}), "pools"),
        ("/balance/algorithm", json!("random"), "balance.algorithm"),
        ("/balance/panic_threshold", json!(1.01), "balance.panic_threshold"),
        ("/balance/retry_budget", json!(-0.1), "balance.retry_budget"),
        ("/balance/resolver", json!("127.0.0.1"), "balance.resolver"),
        ("/balance/on_no_healthy", json!("open"), "balance.on_no_healthy"),
        ("/balance/on_no_healthy", json!({}), "balance.on_no_healthy.pool"),
        ("/health/type", json!("ping"), "health.type"),
        ("/limits/creates", json!("1000"), "limits.creates"),
        ("/cache/write_behind/when_full", json!("drop"), "cache.write_behind.when_full"),
        ("/cache/types/0/strategy", json!("eager"), "cache.types[0].strategy"),
        ("/cache/types/0/ttl", Value::Null, "cache.types[0].ttl"),
        ("/cache/types/1/stale_if_error", json!(60), "cache.types[1].stale_if_error"),
        ("/routes/0/path", json!("health"), "routes[0].path"),
        ("/routes/0/path", Value::Null, "routes[0].path"),
        ("/routes/0/shard", json!("path:"), "routes[0].shard"),
        ("/routes/0/shard", json!("query:x"), "routes[0].shard"),
        ("/routes/4/methods", json!(["get"]), "routes[4].methods[0]"),
        ("/routes/4/methods", json!(["GET", ""]), "routes[4].methods[1]"),
        ("/routes/4/host", json!("https://a"), "routes[4].host"),
        ("/routes/4/cors/origins", json!([]), "routes[4].cors.origins"),
        ("/routes/4/cors/origins", json!(["*", "https://a.example"]), "routes[4].cors.origins[0]"),
        ("/alerts/error_rate", json!(5), "alerts.error_rate"),
        ("/alerts/error_rate/warning", json!("1%"), "alerts.error_rate.warning"),
        ("/alerts/error_rate/critical", json!(101), "alerts.error_rate.critical"),
        ("/trace/ratio", json!(2), "trace.ratio"),
        ("/edge/notify", json!(["edge.example"]), "edge.notify[0]"),
        ("/edge/notify", json!(["https://edge.example", "http://edge.example"]), "edge.notify[1]"),
        ("/edge/notify", json!(["https://edge.example/?a=b"]), "edge.notify[0]"),
        ("/log/level", json!("verbose"), "log.level"),
        ("/log/format", json!("xml"), "log.format"),
    ] {
        refused(pointer, new, path);
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn every_bound_is_kept_at_both_ends() {
    for (pointer, path, good, bad) in [
        ("/server/threads", "server.threads", json!([0, 1024]), json!([1025])),
        ("/server/max_header_bytes", "server.max_header_bytes", json!(["8KiB", "16MiB"]), json!(["8191B", "17MiB"])),
        ("/server/header_timeout", "server.header_timeout", json!(["1ms", "1h"]), json!(["0s", "2h"])),
        ("/session/refresh_grace", "session.refresh_grace", json!(["0s", "5m"]), json!(["301s"])),
        ("/session/max_per_user", "session.max_per_user", json!([1, 1000]), json!([0, 1001])),
        ("/session/access_ttl_jitter", "session.access_ttl_jitter", json!([0, 0.99]), json!([1.0, -0.1])),
        ("/session/leeway", "session.leeway", json!(["0s", "5m"]), json!(["301s"])),
        ("/session/near_cache", "session.near_cache", json!([1]), json!([0])),
        ("/session/token_cache", "session.token_cache", json!([0]), json!([-1])),
        ("/shards/users/count", "shards.users.count", json!([2]), json!([0, 16_385, 4_294_967_295_u32])),
        ("/store/wait_replicas", "store.wait_replicas", json!([0, 16]), json!([17])),
        ("/store/timeout", "store.timeout", json!(["1ms"]), json!(["0s"])),
        ("/pools/0/origins/0/weight", "pools[0].origins[0].weight", json!([1, 65_535]), json!([0, 65_536])),
        ("/pools/0/origins/0/max_connections", "pools[0].origins[0].max_connections", json!([1]), json!([0])),
        ("/balance/panic_threshold", "balance.panic_threshold", json!([0, 1]), json!([1.5])),
        ("/balance/queue_max", "balance.queue_max", json!([0]), json!([1_000_001])),
        ("/health/expect_status", "health.expect_status", json!([200, 599]), json!([199, 600])),
        ("/health/healthy_threshold", "health.healthy_threshold", json!([1, 100]), json!([0, 101])),
        ("/health/unhealthy_threshold", "health.unhealthy_threshold", json!([1, 100]), json!([0, 101])),
        ("/health/max_error_rate", "health.max_error_rate", json!([0.001, 1]), json!([0, 1.1])),
        ("/health/max_latency_p95", "health.max_latency_p95", json!(["1ms"]), json!(["0s"])),
        ("/health/min_samples", "health.min_samples", json!([1]), json!([0])),
        ("/limits/body", "limits.body", json!(["1B"]), json!(["0B"])),
        ("/limits/json_body", "limits.json_body", json!(["8KiB"]), json!(["4KiB"])),
        ("/cache/jitter", "cache.jitter", json!([0, 1]), json!([1.1])),
        ("/cache/write_behind/max_items", "cache.write_behind.max_items", json!([1]), json!([0])),
        ("/cache/types/0/ttl", "cache.types[0].ttl", json!(["1ms"]), json!(["0s"])),
        ("/routes/4/timeout", "routes[4].timeout", json!(["1ms"]), json!(["0s"])),
        ("/trace/ratio", "trace.ratio", json!([0, 1]), json!([1.1])),
    ] {
        for value in good.as_array().unwrap() {
            assert_eq!(errors(&[(pointer, value.clone())]), [], "{pointer} = {value}");
        }
        for value in bad.as_array().unwrap() {
            refused(pointer, value.clone(), path);
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn values_that_contradict_each_other_are_refused() {
    for (pointer, new, path) in [
        ("/server/listen", json!([]), "server.listen"),
        ("/server/listen", json!(["[::1]:1", "[::1]:1"]), "server.listen[1]"),
        ("/admin/listen", json!("127.0.0.1:8080"), "admin.listen"),
        ("/server/proxy_protocol", json!(true), "server.proxy_protocol"),
        ("/session/access_ttl", json!("31d"), "session.access_ttl"),
        ("/session/idle_ttl", json!("5m"), "session.idle_ttl"),
        ("/store/kind", json!("redis"), "store.nodes"),
        ("/health/timeout", json!("30s"), "health.timeout"),
        ("/health/timeout", json!("31s"), "health.timeout"),
        ("/health/fast_interval", json!("31s"), "health.fast_interval"),
        ("/health/path", json!("health"), "health.path"),
        ("/health/path", json!("/a b"), "health.path"),
        ("/cache/max_entry", json!("65MiB"), "cache.max_entry"),
        ("/balance/sticky/cookie_name", json!("a;b"), "balance.sticky.cookie_name"),
        ("/balance/sticky/cookie_name", json!("__host-edgekeep-AT"), "balance.sticky.cookie_name"),
        ("/alerts/auth_success_rate/critical", json!(95.1), "alerts.auth_success_rate.critical"),
        ("/alerts/api_latency/critical", json!("499ms"), "alerts.api_latency.critical"),
        ("/alerts/error_rate/critical", json!(0.9), "alerts.error_rate.critical"),
        ("/alerts/error_rate/warning", json!(0), "alerts.error_rate.warning"),
        ("/alerts/api_latency/warning", json!("0s"), "alerts.api_latency.warning"),
        ("/alerts/objectives", json!({"error_rate": 100}), "alerts.objectives.error_rate"),
        ("/alerts/objectives", json!({"error_rate": 0}), "alerts.objectives.error_rate"),
    ] {
        refused(pointer, new, path);
    }
    let leeway = [("/session/leeway", json!("1m")), ("/session/access_ttl", json!("1m"))];
    assert_eq!(errors(&leeway)[0].path, "session.leeway");
    let tcp = [("/health/type", json!("tcp")), ("/health/body_contains", json!("ok"))];
    assert_eq!(errors(&tcp)[0].path, "health.body_contains");
    let alone = [("/store/kind", json!("redis")), ("/store/cluster", json!(false))];
    let with = |nodes: Value, key: (&'static str, Value)| {
        errors(&[alone[0].clone(), alone[1].clone(), ("/store/nodes", nodes), key])
    };
    assert_eq!(with(json!(["redis://a", "redis://b"]), ("/store/path", json!("x")))[0].path, "store.nodes");
    assert_eq!(
        with(json!(["redis://a"]), ("/store/read_from_replicas", json!(true)))[0].path,
        "store.read_from_replicas"
    );
    assert_eq!(with(json!(["redis://a"]), ("/store/path", json!("x"))), []);
    let mixed = [("/store/kind", json!("redis")), ("/store/nodes", json!(["redis://a", "rediss://b"]))];
    assert_eq!(errors(&mixed)[0].path, "store.nodes");
    // Equal thresholds are not on the wrong side, and port 0 is a new port each time.
    assert_eq!(errors(&[("/alerts/error_rate/critical", json!(1))]), []);
    assert_eq!(errors(&[("/server/listen", json!(["127.0.0.1:0", "127.0.0.1:0"]))]), []);
}

#[wasm_bindgen_test(unsupported = test)]
fn pools_shards_and_pins_must_fit_together() {
    let spare = json!({"name": "spare", "origins": [{"id": "y", "url": "http://y"}]});
    let month = |shard: &str, id: &str| json!({"shard": shard, "origins": [{"id": id, "url": "http://y"}]});
    for (pointer, new, path) in [
        ("/shards/users/count", json!(3), "pools"),
        ("/shards/users/pins/42", json!("shard_2"), "shards.users.pins.42"),
        ("/shards/users/pins/42", json!("shard_2026_3"), "shards.users.pins.42"),
        ("/pools/-", spare, "pools[4].name"),
        ("/pools/-", month("shard_1", "y"), "pools[4].shard"),
        ("/pools/-", month("shard_2026_*", "y"), "pools[4].shard"),
        ("/pools/-", month("shard_5", "p"), "pools[4].origins[0].id"),
        ("/pools/0/origins/1/id", json!("a"), "pools[0].origins[1].id"),
        ("/pools/0/origins/1/id", json!("a b"), "pools[0].origins[1].id"),
        ("/pools/0/origins", json!([]), "pools[0].origins"),
        ("/pools/0/name", json!("x"), "pools[0].name"),
        ("/pools/3/name", Value::Null, "pools[3].shard"),
        ("/pools/3/name", json!("shard_0"), "pools[3].name"),
        ("/pools/3/name", json!("any"), "pools[3].name"),
        ("/balance/on_no_healthy", json!({"pool": "other"}), "balance.on_no_healthy.pool"),
    ] {
        refused(pointer, new, path);
    }
    let padded = [("/pools/-", month("shard_2027_3", "m")), ("/pools/-", month("shard_2027_03", "n"))];
    assert_eq!(errors(&padded)[0].path, "pools[5].shard");
    let python = ("/shards/users/hash", json!("python"));
    assert_eq!(errors(std::slice::from_ref(&python)), []);
    for (user, good) in [("-7", true), ("0", true), ("alice", false), ("007", false), ("-0", false), ("1.0", false)] {
        let found = errors(&[python.clone(), ("/shards/users/pins", json!({user: "shard_1"}))]);
        assert_eq!(found.is_empty(), good, "{user}");
    }
    assert_eq!(refused("/shards/users/pins", json!({"": "shard_1"}), "shards.users.pins.\"\"").found, "\"\"");
    let config = changed(&[("/balance/on_no_healthy", json!({"pool": "spare"}))]).unwrap();
    assert_eq!(config.balance.on_no_healthy, OnNoHealthy::Pool("spare".into()));
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    let pool = |shard: &str| config.pool_of(ShardName::parse(shard).unwrap());
    assert_eq!(
        [pool("shard_1"), pool("shard_2026_3_1"), pool("shard_2025_1"), pool("shard_9")],
        [Some(1), Some(2), None, None]
    );
}

#[wasm_bindgen_test(unsupported = test)]
fn routes_must_lead_somewhere_and_differ() {
    for (pointer, new, path) in [
        ("/routes/1/shard", json!("path:user"), "routes[1].shard"),
        ("/routes/4/shard", json!("path:rest"), "routes[4].shard"),
        ("/routes/4/shard", json!("photo:rest"), "routes[4].shard"),
        ("/routes/1/shard", json!("shard_7"), "routes[1].shard"),
        ("/routes/1/shard", json!("shard_2025_1"), "routes[1].shard"),
        ("/routes/1/cache", json!("user_profil"), "routes[1].cache"),
        ("/routes/0/shared", json!(true), "routes[0].shared"),
        ("/routes/4/cors/origins", json!(["*"]), "routes[4].cors.credentials"),
        ("/routes/-", json!({"path": "/users/{id}/profile"}), "routes[7]"),
        ("/routes/-", json!({"path": "/public/{more..}", "methods": ["PUT", "GET"]}), "routes[7]"),
        ("/routes/-", json!({"path": "/v1/sessions"}), "routes[7].path"),
        ("/routes/-", json!({"path": "/v1/users/{user}/sessions"}), "routes[7].path"),
        ("/routes/-", json!({"path": "/v1/authorize/{rest..}"}), "routes[7].path"),
        ("/cache/types/1/name", json!("user_profile"), "cache.types[1].name"),
    ] {
        // The last change also leaves routes without their type; only its own error is asked for here.
        let found = errors(&[(pointer, new.clone())]);
        assert!(found.iter().any(|error| error.path == path), "{pointer} = {new}: {found:?}");
        assert!(found.iter().all(|error| error.path == path || error.path.ends_with(".cache")), "{found:?}");
    }
    for route in [
        json!({"path": "/photos", "shard": "photo:at"}),
        json!({"path": "/v1/sessions/{rest..}"}),
        json!({"path": "/v1/{rest..}"}),
        json!({"path": "/pinned", "shard": "shard_1"}),
        json!({"path": "/march", "shard": "shard_2026_3"}),
        json!({"path": "/public/{rest..}", "methods": ["POST"]}),
        json!({"path": "/{rest..}", "host": "app.example"}),
    ] {
        assert_eq!(errors(&[("/routes/-", route.clone())]), [], "{route}");
    }
    let moved = [("/server/api_prefix", json!("/auth")), ("/routes/-", json!({"path": "/v1/sessions"}))];
    assert_eq!(errors(&moved), []);
}

#[wasm_bindgen_test(unsupported = test)]
fn one_mistake_is_reported_once() {
    // Each of these would break a rule about other values too, if it were taken for a value.
    for (pointer, new, path) in [
        ("/health/interval", json!("1x"), "health.interval"),
        ("/session/refresh_ttl", json!("1x"), "session.refresh_ttl"),
        ("/pools/1/shard", json!("shard_x"), "pools[1].shard"),
        ("/cache/types/0/name", json!(1), "cache.types[0].name"),
        ("/cache/types", json!(1), "cache.types"),
        ("/routes/2/path", json!("/photos/{month"), "routes[2].path"),
        ("/alerts/error_rate/warning", json!(200), "alerts.error_rate.warning"),
    ] {
        refused(pointer, new, path);
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_secret_has_one_source_and_its_default_yields_to_a_file() {
    let config =
        changed(&[("/session/service_token_env", Value::Null), ("/session/service_token_file", json!("t"))]).unwrap();
    assert_eq!(config.session.service_token, SecretSource { env: None, file: Some("t".into()) });
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    for (section, key) in [
        ("admin", "token"),
        ("session", "service_token"),
        ("shards/users", "key"),
        ("balance", "origin_key"),
        ("alerts", "webhook_secret"),
        ("edge", "credential"),
    ] {
        let (env, file) = (format!("/{section}/{key}_env"), format!("/{section}/{key}_file"));
        assert_eq!(errors(&[(&env, json!("NAME"))]), []);
        let both = errors(&[(&env, json!("NAME")), (&file, json!("name"))]);
        assert_eq!(both.len(), 1, "{both:?}");
        assert_eq!(both[0].path, format!("{}.{key}_file", section.replace('/', ".")));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn no_error_shows_a_secret() {
    for (pointer, new) in [
        ("/admin/token", json!("hunter2")),
        ("/admin/token_env", json!("hunter2!")),
        ("/admin/token_env", json!(["hunter2"])),
        ("/admin/token_file", json!("hunter2\n")),
        ("/session/service_token_env", json!({"value": "hunter2"})),
        ("/session/password", json!("hunter2")),
        ("/store/nodes", json!(["redis://:hunter2@127.0.0.1:7000"])),
        ("/store/nodes", json!("redis://:hunter2@127.0.0.1:7000")),
        ("/pools/0/origins/0/url", json!("http://user:hunter2@127.0.0.1:9001")),
        ("/pools/0/origins/0/url", json!("http:/user:hunter2@127.0.0.1:9001")),
        ("/alerts/webhook", json!("hooks.example/services/hunter2")),
        ("/alerts/webhook", json!("http://u:hunter2@hooks.example/")),
        ("/edge/notify", json!(["https://edge.example/#hunter2"])),
    ] {
        let errors = changed(&[(pointer, new.clone())]).unwrap_err().to_string();
        assert!(!errors.contains("hunter2"), "{pointer} = {new}: {errors}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn numbers_of_either_kind_are_read_and_toml_only_values_are_refused() {
    assert_eq!(changed(&[("/trace/ratio", json!(1))]).unwrap().trace.ratio, Ratio(1.0));
    for text in ["nan", "inf", "2020-01-01", "\"0.5\""] {
        let text = EXAMPLE.replace("panic_threshold = 0.5", &format!("panic_threshold = {text}"));
        let errors = Config::from_toml(&text).unwrap_err();
        assert_eq!((errors.0.len(), errors.0[0].path.as_str()), (1, "balance.panic_threshold"));
    }
    assert_eq!(changed(&[("/cache/memory", json!("1GiB"))]).unwrap().cache.memory, ByteSize(1 << 30));
}

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| places(inner, &format!("{at}/{key}"), out)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, inner)| places(inner, &format!("{at}/{i}"), out)),
        _ => {}
    }
    out.push(at.to_owned());
}

#[wasm_bindgen_test(unsupported = test)]
fn any_value_in_any_place_is_read_or_refused_with_a_path() {
    let original: Value = serde_json::from_str(&example().to_json()).unwrap();
    let mut pointers = Vec::new();
    places(&original, "", &mut pointers);
    let strange = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0.5),
        json!(u64::MAX),
        json!(""),
        json!("é\u{0}"),
        json!("shard_99999999999999999999"),
        json!("[::1]:"),
        json!("http://]["),
        json!("18446744073709551615d"),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"pool": {}}),
    ];
    let mut accepted = 0;
    for pointer in &pointers {
        for new in &strange {
            let mut value = original.clone();
            *value.pointer_mut(pointer).unwrap() = new.clone();
            match Config::from_json(&value.to_string()) {
                Ok(config) => {
                    accepted += 1;
                    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config, "{pointer} = {new}");
                }
                Err(errors) => assert!(!errors.0.is_empty(), "{pointer} = {new}"),
            }
        }
    }
    assert!(accepted > 50 && accepted < pointers.len() * strange.len() / 2, "{accepted}");
}
