//! What the scenarios stand on: deployments of Edgekeep made of real processes, a plain HTTP client that sends what it
//! is told byte for byte, and tokens forged with a deployment's own keys.
//!
//! Nothing here knows the gateway's code: a scenario sees what any client sees.

mod answer;
mod client;
mod config;
mod deployment;
mod forge;
mod process;
mod user;

pub use answer::{Answer, Tally};
pub use client::{Entry, Framing, Request, pattern_checksum};
pub use config::{
    ACCESS_SECONDS, GRACE_SECONDS, PINNED_TO_ONE_ORIGIN, PINNED_TO_TWO_ORIGINS, REFRESH_SECONDS, Setup, TRUSTED_PROXY,
};
pub use deployment::{Deployment, Kind, RunningGateway, SERVICE_TOKEN};
pub use forge::{AccessKey, Forged};
pub use process::{Ports, end_programs_with_us, eventually};
pub use user::{Session, fresh_address};
