//! The deployment of the scenarios that look at the wire itself: recording origins instead of the demo's, so that each
//! byte is seen and each fault of an origin can be played. What they show rests on no session store, so they are played
//! natively over the embedded one, and at the edge.

use anyhow::Result;
use edgekeep_tests::{Deployment, Kind, Own, Setup};

use crate::scenario::Scenario;

/// Which recording origin serves which scenarios.
pub mod at {
    pub const HEADS: usize = 0;
    pub const FLOW: usize = 1;
    pub const PAIR: [usize; 2] = [2, 3];
    pub const BESIDE_DEAD: usize = 4;
    pub const BUDGET: usize = 5;
    pub const KEPT: usize = 6;
    pub const STICKY: [usize; 2] = [7, 8];
    pub const FRAMING: usize = 9;
    pub const FULL: [usize; 2] = [10, 11];
    pub const DAY: usize = 12;
    pub const LATE: [usize; 2] = [13, 14];
    pub const DYING: [usize; 2] = [15, 16];
    pub const ALL: usize = 17;
}

/// How long the head of a request may take to come, here.
pub const HEADER_TIMEOUT_MS: u64 = 1_500;
/// The time limit of the routes below `/quick`.
pub const QUICK_MS: u64 = 600;
/// How long a sticky cookie is good, here.
pub const STICKY_SECONDS: u64 = 3;

static OWN: Own = Own {
    recorders: at::ALL,
    server: "header_timeout = \"1500ms\"\nidle_timeout = \"4s\"",
    balance: "origin_key_env = \"EDGEKEEP_ORIGIN_KEY\"\nretry_buffer = \"64KiB\"\nqueue_timeout = \"300ms\"",
    sticky: "max_age = \"3s\"",
    text: r#"
[[pools]]
shard = "shard_2023_1"
origins = [{ id = "heads", url = "http://127.0.0.1:<0>" }]

[[routes]]
path = "/heads/{rest..}"
auth = "none"
shard = "shard_2023_1"

[[routes]]
path = "/heads/known/{rest..}"
auth = "session"
shard = "shard_2023_1"

[[routes]]
path = "/heads/passed/{rest..}"
auth = "session"
shard = "shard_2023_1"
pass_token = true

[[pools]]
shard = "shard_2023_2"
origins = [{ id = "flow", url = "http://127.0.0.1:<1>" }]

[[routes]]
path = "/flow/{rest..}"
auth = "none"
shard = "shard_2023_2"

[[routes]]
path = "/flow/known/{rest..}"
auth = "session"
shard = "shard_2023_2"

[[pools]]
shard = "shard_2022_3"
origins = [{ id = "counted", url = "http://127.0.0.1:<1>" }]

[[routes]]
path = "/counted/{rest..}"
auth = "none"
shard = "shard_2022_3"

[[routes]]
path = "/quick/{rest..}"
auth = "none"
shard = "shard_2023_2"
timeout = "600ms"

[[pools]]
shard = "shard_2023_3"
origins = [{ id = "pair-a", url = "http://127.0.0.1:<2>" }, { id = "pair-b", url = "http://127.0.0.1:<3>" }]

[[routes]]
path = "/pair/{rest..}"
auth = "none"
shard = "shard_2023_3"

[[routes]]
path = "/pair/quick/{rest..}"
auth = "none"
shard = "shard_2023_3"
timeout = "600ms"

[[pools]]
shard = "shard_2023_4"
origins = [{ id = "nobody", url = "http://127.0.0.1:<dead>" }, { id = "alive", url = "http://127.0.0.1:<4>" }]

[[routes]]
path = "/half/{rest..}"
auth = "none"
shard = "shard_2023_4"

[[pools]]
shard = "shard_2023_5"
origins = [{ id = "budget-a", url = "http://127.0.0.1:<5>" }, { id = "budget-b", url = "http://127.0.0.1:<5>" }]

[[routes]]
path = "/budget/{rest..}"
auth = "none"
shard = "shard_2023_5"

[[pools]]
shard = "shard_2023_6"
origins = [{ id = "kept", url = "http://127.0.0.1:<6>" }]

[[routes]]
path = "/kept/{rest..}"
auth = "none"
shard = "shard_2023_6"

[[pools]]
shard = "shard_2023_7"
origins = [{ id = "sticky-a", url = "http://127.0.0.1:<7>" }, { id = "sticky-b", url = "http://127.0.0.1:<8>" }]

[[routes]]
path = "/sticky/{rest..}"
auth = "none"
shard = "shard_2023_7"

[[pools]]
shard = "shard_2023_8"
origins = [{ id = "gone-a", url = "http://127.0.0.1:<dead>" }, { id = "gone-b", url = "http://127.0.0.1:<dead>" }]

[[routes]]
path = "/gone/{rest..}"
auth = "none"
shard = "shard_2023_8"

[[pools]]
shard = "shard_2023_9"
origins = [{ id = "framing", url = "http://127.0.0.1:<9>" }]

[[routes]]
path = "/framing/{rest..}"
auth = "none"
shard = "shard_2023_9"

[[routes]]
path = "/framing/second/{rest..}"
auth = "strict"
shard = "shard_2023_9"

[[pools]]
shard = "shard_2023_10"
origins = [
  { id = "full-a", url = "http://127.0.0.1:<10>", max_connections = 1 },
  { id = "full-b", url = "http://127.0.0.1:<11>", max_connections = 1 },
]

[[routes]]
path = "/full/{rest..}"
auth = "none"
shard = "shard_2023_10"

[[pools]]
shard = "shard_2023_11"
origins = [{ id = "day", url = "http://127.0.0.1:<12>" }]

[[routes]]
path = "/day/{rest..}"
auth = "session"
shard = "shard_2023_11"

[[routes]]
path = "/day/cors/{rest..}"
auth = "session"
shard = "shard_2023_11"
cors = { origins = ["https://app.example", "https://admin.example"], credentials = true }

[[routes]]
path = "/day/shared/{rest..}"
auth = "none"
shard = "shard_2023_11"
cors = { origins = ["*"] }

[[routes]]
path = "/day/optional/{rest..}"
auth = "optional"
shard = "shard_2023_11"

[[routes]]
path = "/day/methods/{rest..}"
methods = ["GET", "HEAD"]
auth = "none"
shard = "shard_2023_11"

[[routes]]
path = "/day/methods/{rest..}"
methods = ["POST"]
auth = "session"
shard = "shard_2023_11"

[[routes]]
path = "/day/of-host/{rest..}"
host = "open.example"
auth = "none"
shard = "shard_2023_11"

[[routes]]
path = "/day/photo"
auth = "none"
shard = "photo:at"

[[pools]]
shard = "shard_2023_12"
origins = [{ id = "december", url = "http://127.0.0.1:<12>" }]

[[pools]]
shard = "shard_2022_4"
origins = [{ id = "dying-a", url = "http://127.0.0.1:<15>" }, { id = "dying-b", url = "http://127.0.0.1:<16>" }]

[[routes]]
path = "/dying/{rest..}"
auth = "none"
shard = "shard_2022_4"

[[pools]]
shard = "shard_2022_1"
origins = [{ id = "late-a", url = "http://127.0.0.1:<13>" }, { id = "late-b", url = "http://127.0.0.1:<14>" }]

[[routes]]
path = "/late/{rest..}"
auth = "none"
shard = "shard_2022_1"
"#,
    native: r#"
[[pools]]
shard = "shard_2022_2"
host = "origin.internal"
origins = [{ id = "named", url = "http://127.0.0.1:<0>" }]

[[routes]]
path = "/named/{rest..}"
auth = "none"
shard = "shard_2022_2"
"#,
};

/// One of these scenarios.
pub fn scenario(name: &'static str, play: fn(&Deployment) -> Result<()>) -> Scenario {
    let setup = Setup { own: Some(&OWN), ..Setup::default() };
    Scenario::among("wire", setup, name, play).except(Kind::NativeRedis)
}

/// One that says something about the native gateway's own sockets.
pub fn native(name: &'static str, play: fn(&Deployment) -> Result<()>) -> Scenario {
    scenario(name, play).only(Kind::NativeEmbedded)
}

/// Lists functions as scenarios of the wire, under their own names.
#[macro_export]
macro_rules! wire {
    ($kind:ident: $($scenario:ident),* $(,)?) => {
        vec![$($crate::wire::$kind(stringify!($scenario), $scenario)),*]
    };
}
