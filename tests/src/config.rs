//! The configuration of a deployment under test. Its routes lead to the demo origins' paths, which show what arrived.
//!
//! What is not under `/echo` and the other probes falls to a route without authentication: a path that slips past the
//! strict route of `/account` reaches an origin, and its answer says so.

use std::net::Ipv4Addr;

use crate::deployment::Kind;

/// A user whose shard is pinned: the pool with two origins.
pub const PINNED_TO_TWO_ORIGINS: &str = "pinned-to-shard-0";
/// A user whose shard is pinned: the pool with one origin.
pub const PINNED_TO_ONE_ORIGIN: &str = "pinned-to-shard-1";

/// The address whose `X-Forwarded-*` headers are believed.
pub const TRUSTED_PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

/// How long a superseded refresh token is still answered, in seconds. Long enough for forty clients at once on a busy
/// machine, short enough to be waited out.
pub const GRACE_SECONDS: u64 = 4;

/// How long an access token and a routing cookie live with [`Setup::short_lives`], in seconds.
pub const ACCESS_SECONDS: u64 = 6;
/// How long a refresh token lives with [`Setup::short_lives`], in seconds.
pub const REFRESH_SECONDS: u64 = 18;

/// What may differ between deployments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// Origins are checked every second instead of every 30.
    pub quick_checks: bool,
    /// A level of the log at which everything is said.
    pub talkative: bool,
    /// Access keys of HS256 instead of EdDSA.
    pub shared_keys: bool,
    /// Tokens live for seconds: [`ACCESS_SECONDS`] and [`REFRESH_SECONDS`].
    pub short_lives: bool,
}

/// Ports of one deployment.
#[derive(Clone, Copy, Debug)]
pub struct PortsOf {
    pub gateway: u16,
    pub admin: u16,
    /// Two origins of shard_0, one of shard_1.
    pub origins: [u16; 3],
    /// Nobody listens here.
    pub dead: u16,
    /// The Worker, in front of the gateway; unused natively.
    pub worker: u16,
}

/// The gateway's file.
pub fn region(ports: &PortsOf, kind: Kind, setup: Setup) -> String {
    let PortsOf { gateway, admin, origins: [a, b, c], dead, worker } = ports;
    let checks = if setup.quick_checks {
        "interval = \"1s\"\ntimeout = \"500ms\"\nfast_interval = \"200ms\""
    } else {
        "interval = \"30s\""
    };
    let notify = match kind {
        Kind::NativeEmbedded => String::new(),
        Kind::EdgeBesideRegion => format!("\"http://127.0.0.1:{worker}\""),
    };
    let (lives, sticky) = if setup.short_lives {
        let lives = format!(
            "access_ttl = \"{ACCESS_SECONDS}s\"\naccess_ttl_jitter = 0.0\nrefresh_ttl = \"{REFRESH_SECONDS}s\"\n\
             idle_ttl = \"{REFRESH_SECONDS}s\""
        );
        (lives, format!("max_age = \"{ACCESS_SECONDS}s\""))
    } else {
        (String::new(), String::new())
    };
    let algorithm = if setup.shared_keys { "HS256" } else { "EdDSA" };
    let level = if setup.talkative { "debug" } else { "info" };
    format!(
        r#"[server]
listen = ["127.0.0.1:{gateway}"]
threads = 2
drain_timeout = "1s"
trusted_proxies = ["{TRUSTED_PROXY}"]

[admin]
listen = "127.0.0.1:{admin}"

[session]
refresh_grace = "{GRACE_SECONDS}s"
max_per_user = 3
cookies = true
csrf_origins = ["https://app.example"]
algorithm = "{algorithm}"
keys = "data/keys.json"
{lives}

[store]
kind = "embedded"
path = "data/edgekeep.redb"

[shards.users]
count = 2
pins = {{ "{PINNED_TO_TWO_ORIGINS}" = "shard_0", "{PINNED_TO_ONE_ORIGIN}" = "shard_1" }}

[limits]
creates = "100000/1s"
refresh_failures = "20/1m"

[balance]
connect_timeout = "500ms"

[balance.sticky]
{sticky}

[health]
{checks}

[edge]
notify = [{notify}]

[log]
level = "{level}"

[[pools]]
shard = "shard_0"
origins = [
  {{ id = "a", url = "http://127.0.0.1:{a}" }},
  {{ id = "b", url = "http://127.0.0.1:{b}" }},
]

[[pools]]
shard = "shard_1"
origins = [{{ id = "c", url = "http://127.0.0.1:{c}" }}]

[[pools]]
shard = "shard_2024_5"
origins = [{{ id = "photos", url = "http://127.0.0.1:{a}" }}]

[[pools]]
shard = "shard_2024_6"
origins = [{{ id = "dead", url = "http://127.0.0.1:{dead}" }}]

[[routes]]
path = "/account/{{rest..}}"
auth = "strict"
shard = "user"

[[routes]]
path = "/echo/account/{{rest..}}"
auth = "strict"
shard = "user"
pass_token = true

[[routes]]
path = "/echo/token/{{rest..}}"
auth = "token"
shard = "user"

[[routes]]
path = "/echo/open/{{rest..}}"
auth = "none"
shard = "any"

[[routes]]
path = "/echo/optional/{{rest..}}"
auth = "optional"
shard = "user"

[[routes]]
path = "/echo/one-shard/{{rest..}}"
auth = "session"
shard = "shard_1"

[[routes]]
path = "/echo/of/{{user_id}}"
auth = "session"
shard = "path:user_id"

[[routes]]
path = "/echo/{{rest..}}"
auth = "session"
shard = "user"

[[routes]]
path = "/stream/{{rest..}}"
auth = "session"
shard = "user"

[[routes]]
path = "/status/{{rest..}}"
auth = "session"
shard = "user"

[[routes]]
path = "/slow/{{rest..}}"
auth = "session"
shard = "user"
timeout = "500ms"

[[routes]]
path = "/photos/{{month}}/{{photo_id}}"
auth = "session"
shard = "photo:month"

[[routes]]
path = "/{{rest..}}"
auth = "none"
shard = "any"
"#
    )
}
