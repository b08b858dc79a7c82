//! The scenarios: each is written once, as a client sees it, and runs against every deployment as a test of its own
//! (`native_embedded::…`, `native_redis::…`, `edge_beside_region::…`).
//!
//! Scenarios that leave nothing behind share one deployment of each kind, with users of their own. Those that kill
//! something start their own. A deployment's logs are searched after its last scenario: no panic, no secret.

#![allow(clippy::print_stdout, reason = "figures and seeds, for whoever reads the run")]

mod access;
mod access_log;
mod authorize;
mod bodies;
mod cluster;
mod cookies;
mod crowd;
mod day_one;
mod events;
mod failures;
mod flow;
mod framing;
mod headers;
mod health;
mod http2;
mod hygiene;
mod input;
mod keys;
mod layout;
mod life;
mod many;
mod metrics;
mod oauth;
mod operation;
mod origins_tls;
mod paths;
mod proxy_protocol;
mod queue;
mod refresh;
mod refusals;
mod resolve;
mod retries;
mod revocation;
mod scenario;
mod shards;
mod slow;
mod sockets;
mod sticky;
mod streams;
mod tls;
mod wire;

use std::process::ExitCode;

use edgekeep_tests::{Kind, Stage, end_programs_with_us};
use libtest_mimic::{Arguments, run};

use scenario::{Scenario, close};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Scenarios wait more than they compute.
    arguments.test_threads.get_or_insert(6);
    let all: Vec<Scenario> = [
        life::scenarios(),
        refusals::scenarios(),
        refresh::scenarios(),
        revocation::scenarios(),
        resolve::scenarios(),
        streams::scenarios(),
        tls::scenarios(),
        shards::scenarios(),
        slow::scenarios(),
        paths::scenarios(),
        proxy_protocol::scenarios(),
        headers::scenarios(),
        http2::scenarios(),
        bodies::scenarios(),
        input::scenarios(),
        cookies::scenarios(),
        oauth::scenarios(),
        origins_tls::scenarios(),
        events::scenarios(),
        authorize::scenarios(),
        failures::scenarios(),
        layout::scenarios(),
        cluster::scenarios(),
        access::scenarios(),
        access_log::scenarios(),
        keys::scenarios(),
        many::scenarios(),
        metrics::scenarios(),
        health::scenarios(),
        operation::scenarios(),
        hygiene::scenarios(),
        framing::scenarios(),
        flow::scenarios(),
        sockets::scenarios(),
        retries::scenarios(),
        queue::scenarios(),
        sticky::scenarios(),
        day_one::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Err(error) = end_programs_with_us() {
        eprintln!("a signal would leave programs behind: {error:#}");
    }
    let stage = Stage::default();
    let on = &stage;
    let trials = Kind::ALL.into_iter().flat_map(|kind| all.iter().filter_map(move |s| s.trial(kind, on))).collect();
    let conclusion = run(&arguments, trials);
    let faults = close(&stage);
    for fault in &faults {
        eprintln!("{fault}");
    }
    if faults.is_empty() { conclusion.exit_code() } else { ExitCode::from(101) }
}
