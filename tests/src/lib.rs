//! What the scenarios stand on: deployments of Edgekeep made of real processes, a plain HTTP client that sends what it
//! is told byte for byte, and tokens forged with a deployment's own keys.
//!
//! Nothing here knows the gateway's code: a scenario sees what any client sees.

mod answer;
mod certificates;
mod client;
mod common;
mod config;
mod deployment;
mod dns;
mod forge;
pub mod framing;
mod gateway;
pub mod http2;
mod load;
mod process;
mod raw;
mod recorder;
mod redis;
mod relay;
mod resp;
pub mod storage_doc;
pub mod tls;
mod unsteady;
mod user;
pub mod wire;

pub use answer::{Answer, Tally};
pub use certificates::Certificates;
pub use client::{Ended, Entry, Framing, Open, Request, pattern_checksum};
pub use common::{Stage, is_long, local, lock, raise_file_limit, root};
pub use config::{
    ACCESS_SECONDS, GRACE_SECONDS, Own, PINNED_TO_ONE_ORIGIN, PINNED_TO_TWO_ORIGINS, PINNED_WITH_STREAMS,
    REFRESH_SECONDS, Setup, TRUSTED_PROXY, Unsteady,
};
pub use deployment::{
    Deployment, EDGE_TOKEN, Kind, ORIGIN_KEY, REDIS_PASSWORD, RunningGateway, SERVICE_TOKEN, gateway_binary,
};
pub use dns::Dns;
pub use forge::{AccessKey, Forged};
pub use gateway::{Gateway, Origin, Written, answer_heads};
pub use load::{Figures, Kept, under_load};
pub use process::{Ports, Program, end_programs_with_us, eventually, hang_up, holds, tail};
pub use raw::{Raw, RawAnswer};
pub use recorder::{Recorder, Recording, Then, Visit};
pub use redis::{Cluster, RedisOptions, SLOTS, Standalone};
pub use resp::{Redis, Reply};
pub use unsteady::{Does, UnsteadyOrigin};
pub use user::{Session, fresh_address};
