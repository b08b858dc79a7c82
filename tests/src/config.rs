//! The configuration of a deployment under test. Its routes lead to the demo origins' paths, which show what arrived.
//!
//! What is not under `/echo` and the other probes falls to a route without authentication: a path that slips past the
//! strict route of `/account` reaches an origin, and its answer says so.

use std::net::Ipv4Addr;

use crate::deployment::Kind;
use crate::redis::RedisOptions;
use crate::storage_doc::GATEWAY_USER;

/// A user whose shard is pinned: the pool with two origins.
pub const PINNED_TO_TWO_ORIGINS: &str = "pinned-to-shard-0";
/// A user whose shard is pinned: the pool with one origin.
pub const PINNED_TO_ONE_ORIGIN: &str = "pinned-to-shard-1";

/// A user of streams, on one origin too: what goes on for long must not weigh on the pool whose balance is looked at.
pub const PINNED_WITH_STREAMS: &str = "streams-on-shard-1";

/// The address whose `X-Forwarded-*` headers are believed.
pub const TRUSTED_PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

/// How long a superseded refresh token is still answered, in seconds. Long enough for forty clients at once on a busy
/// machine, short enough to be waited out.
pub const GRACE_SECONDS: u64 = 4;

/// How long an access token and a routing cookie live with [`Setup::short_lives`], in seconds.
pub const ACCESS_SECONDS: u64 = 6;
/// How long a refresh token lives with [`Setup::short_lives`], in seconds.
pub const REFRESH_SECONDS: u64 = 18;

/// What a group of scenarios adds to the file: text, in which `<0>`, `<1>` … are the ports of its recording origins and
/// `<dead>` is a port on which nobody listens.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// How many recording origins run beside the deployment.
    pub recorders: usize,
    /// Lines of `[server]`.
    pub server: &'static str,
    /// Lines of `[balance]`.
    pub balance: &'static str,
    /// Lines of `[balance.sticky]`.
    pub sticky: &'static str,
    /// Whole sections: pools and routes.
    pub text: &'static str,
    /// Sections that a Worker cannot have.
    pub native: &'static str,
}

/// What may differ between deployments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// A level of the log at which everything is said.
    pub talkative: bool,
    /// Room for many sessions of one user, and the default's grace of 30 s: for clients that repeat what was answered
    /// 503 over an outage of seconds.
    pub roomy: bool,
    /// `session.on_store_down = "allow_cached"`.
    pub allow_cached: bool,
    /// Over Redis: one server without a cluster.
    pub standalone: bool,
    /// Over Redis: replicas answer validations.
    pub read_from_replicas: bool,
    /// Over Redis: how its servers run.
    pub redis: RedisOptions,
    /// The region tells its Worker of no revocation.
    pub untold: bool,
    /// No limit that a program which asks all the time could use up.
    pub roomy_limits: bool,
    /// The port of an application below `/app`: its `open` part is for all, its `account` part is `strict`.
    pub application: Option<u16>,
    /// Access keys of HS256 instead of EdDSA.
    pub shared_keys: bool,
    /// `session.on_max = "refuse"`.
    pub refuse_at_max: bool,
    /// `session.near_cache`, where it is not the default.
    pub near_cache: Option<u32>,
    /// Three more origins and a spare one, which the scenario starts and breaks.
    pub unsteady: Option<Unsteady>,
    /// Tokens live for seconds: [`ACCESS_SECONDS`] and [`REFRESH_SECONDS`].
    pub short_lives: bool,
    /// Pools and routes of a group's own.
    pub own: Option<&'static Own>,
}

/// The pool below `/unsteady`, of the origins `u0`, `u1` and `u2`, and the fallback pool `spare` of the origin `s`.
#[derive(Clone, Copy, Debug)]
pub struct Unsteady {
    /// Between checks, in milliseconds.
    pub interval: u64,
    /// While a state is changing.
    pub fast_interval: u64,
    pub timeout: u64,
    /// `balance.on_no_healthy`, in TOML.
    pub on_no_healthy: &'static str,
    /// `health.max_latency_p95`, in milliseconds; it counts from the twentieth request.
    pub max_latency: u64,
}

/// Ports of one deployment.
#[derive(Clone, Copy, Debug)]
pub struct PortsOf {
    pub gateway: u16,
    pub admin: u16,
    /// Another gateway over the same store; unused where nobody asks for it.
    pub second: u16,
    pub second_admin: u16,
    /// Two origins of shard_0, one of shard_1.
    pub origins: [u16; 3],
    /// Nobody listens here.
    pub dead: u16,
    /// `u0`, `u1`, `u2` and `s`; unused where the setup has none.
    pub unsteady: [u16; 4],
    /// The Worker, in front of the gateway; unused natively.
    pub worker: u16,
    /// Recording origins, of which as many run as the setup says.
    pub recorders: [u16; RECORDERS],
}

/// The most recording origins beside one deployment.
pub const RECORDERS: usize = 20;

/// The gateway's file; `nodes` are the addresses of its store's servers.
pub fn region(ports: &PortsOf, kind: Kind, setup: Setup, nodes: &[String]) -> String {
    let PortsOf { gateway, admin, origins: [a, b, c], dead, worker, .. } = ports;
    let notify = match kind {
        Kind::NativeEmbedded | Kind::NativeRedis => String::new(),
        Kind::EdgeBesideRegion if setup.untold => String::new(),
        Kind::EdgeBesideRegion => format!("\"http://127.0.0.1:{worker}\""),
    };
    let (grace, max_per_user) = if setup.roomy { (30, 1000) } else { (GRACE_SECONDS, 3) };
    let on_max = if setup.refuse_at_max { "refuse" } else { "evict_oldest" };
    let near_cache = setup.near_cache.map(|sessions| format!("near_cache = {sessions}")).unwrap_or_default();
    let on_store_down = if setup.allow_cached { "allow_cached" } else { "refuse" };
    let store = store(kind, setup, nodes);
    let refresh_failures = if setup.roomy_limits { "1000000/1m" } else { "20/1m" };
    let application = setup.application.map(application).unwrap_or_default();
    let unsteady = setup.unsteady.map(|setup| unsteady(ports.unsteady, setup)).unwrap_or_default();
    let on_no_healthy = setup.unsteady.map_or("\"fail_open\"", |setup| setup.on_no_healthy);
    let (lives, sticky) = if setup.short_lives {
        let lives = format!(
            "access_ttl = \"{ACCESS_SECONDS}s\"\naccess_ttl_jitter = 0.0\nrefresh_ttl = \"{REFRESH_SECONDS}s\"\n\
             idle_ttl = \"{REFRESH_SECONDS}s\""
        );
        (lives, format!("max_age = \"{ACCESS_SECONDS}s\""))
    } else {
        (String::new(), String::new())
    };
    let own = setup.own.map(|own| own.placed(ports, kind)).unwrap_or_default();
    let OwnText { server: own_server, balance: own_balance, sticky: own_sticky, sections: own_sections } = own;
    let algorithm = if setup.shared_keys { "HS256" } else { "EdDSA" };
    let level = if setup.talkative { "debug" } else { "info" };
    format!(
        r#"[server]
listen = ["127.0.0.1:{gateway}"]
threads = 2
drain_timeout = "1s"
trusted_proxies = ["{TRUSTED_PROXY}"]
{own_server}

[admin]
listen = "127.0.0.1:{admin}"

[session]
refresh_grace = "{grace}s"
max_per_user = {max_per_user}
on_max = "{on_max}"
{near_cache}
on_store_down = "{on_store_down}"
cookies = true
csrf_origins = ["https://app.example"]
algorithm = "{algorithm}"
keys = "data/keys.json"
{lives}

[store]
{store}

[shards.users]
count = 2
pins = {{ "{PINNED_TO_TWO_ORIGINS}" = "shard_0", "{PINNED_TO_ONE_ORIGIN}" = "shard_1", "{PINNED_WITH_STREAMS}" = "shard_1" }}

[limits]
creates = "100000/1s"
refresh_failures = "{refresh_failures}"

[balance]
connect_timeout = "500ms"
on_no_healthy = {on_no_healthy}
{own_balance}

[balance.sticky]
{sticky}
{own_sticky}

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
path = "/ws/{{rest..}}"
auth = "session"
shard = "shard_1"

[[routes]]
path = "/ws/account/{{rest..}}"
auth = "strict"
shard = "shard_1"

[[routes]]
path = "/ws/token/{{rest..}}"
auth = "token"
shard = "shard_1"

[[routes]]
path = "/events/{{rest..}}"
auth = "session"
shard = "shard_1"

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

{application}
{unsteady}
{own_sections}
[[routes]]
path = "/{{rest..}}"
auth = "none"
shard = "any"
"#
    )
}

/// An [`Own`] with its ports.
#[derive(Default)]
struct OwnText {
    server: String,
    balance: String,
    sticky: String,
    sections: String,
}

impl Own {
    fn placed(&self, ports: &PortsOf, kind: Kind) -> OwnText {
        let place = |text: &str| {
            let mut text = text.replace("<dead>", &ports.dead.to_string());
            for (at, port) in ports.recorders.iter().enumerate() {
                text = text.replace(&format!("<{at}>"), &port.to_string());
            }
            text
        };
        let native = if kind.is_native() { self.native } else { "" };
        OwnText {
            server: place(self.server),
            balance: place(self.balance),
            sticky: place(self.sticky),
            sections: place(self.text) + &place(native),
        }
    }
}

fn store(kind: Kind, setup: Setup, nodes: &[String]) -> String {
    if kind != Kind::NativeRedis {
        return "kind = \"embedded\"\npath = \"data/edgekeep.redb\"".to_owned();
    }
    let Setup { standalone, read_from_replicas, redis, .. } = setup;
    let wait_replicas = u8::from(!standalone);
    let cluster = !standalone;
    let username = if redis.documented_user { format!("username = \"{GATEWAY_USER}\"") } else { String::new() };
    let has_password = redis.password.is_some() || redis.documented_user;
    let password = if has_password { "password_env = \"EDGEKEEP_REDIS_PASSWORD\"" } else { "" };
    // A list of strings is written alike in TOML and in Rust.
    format!(
        "kind = \"redis\"\nnodes = {nodes:?}\ncluster = {cluster}\nread_from_replicas = {read_from_replicas}\n\
         wait_replicas = {wait_replicas}\n{username}\n{password}"
    )
}

fn application(port: u16) -> String {
    let mut text = format!(
        r#"
[[pools]]
shard = "shard_2024_7"
origins = [{{ id = "application", url = "http://127.0.0.1:{port}" }}]
"#
    );
    for (path, auth) in
        [("/app/open/{rest..}", "none"), ("/app/account/{rest..}", "strict"), ("/app/{rest..}", "session")]
    {
        text += &format!("\n[[routes]]\npath = \"{path}\"\nauth = \"{auth}\"\nshard = \"shard_2024_7\"\n");
    }
    text
}

fn unsteady([u0, u1, u2, s]: [u16; 4], setup: Unsteady) -> String {
    let Unsteady { interval, fast_interval, timeout, max_latency, .. } = setup;
    format!(
        r#"
[health]
interval = "{interval}ms"
fast_interval = "{fast_interval}ms"
timeout = "{timeout}ms"
max_latency_p95 = "{max_latency}ms"
min_samples = 20

[[pools]]
shard = "shard_2024_8"
origins = [
  {{ id = "u0", url = "http://127.0.0.1:{u0}" }},
  {{ id = "u1", url = "http://127.0.0.1:{u1}" }},
  {{ id = "u2", url = "http://127.0.0.1:{u2}" }},
]

[[pools]]
name = "spare"
origins = [{{ id = "s", url = "http://127.0.0.1:{s}" }}]

[[routes]]
path = "/unsteady/{{rest..}}"
auth = "none"
shard = "shard_2024_8"
"#
    )
}
