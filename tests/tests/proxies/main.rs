//! Forward-auth as it is deployed: real nginx, HAProxy and Envoy, run from the very files in `examples/`, with a real
//! gateway beside each and an application behind it that keeps what arrived. Each claim runs against every proxy
//! (`nginx::…`, `haproxy::…`, `envoy::…`); a proxy that is not there fails its tests and says how to bring it.

mod failures;
mod identity;
mod paths;
mod proxy_protocol;
mod refusals;
mod stand;
mod witness;

use std::process::ExitCode;

use anyhow::Result;
use edgekeep_tests::{Stage, end_programs_with_us};
use libtest_mimic::{Arguments, Failed, Trial, run};

use stand::{Proxy, Stand};

/// A claim with its name: about a stand that it shares, or about one that it starts itself.
type Shared = (&'static str, fn(&Stand) -> Result<()>);
type Alone = (&'static str, fn(Proxy) -> Result<()>);

/// Claims that leave nothing behind share a stand, each with users of its own.
const SHARED: [Shared; 12] = [
    ("the_application_is_told_who_was_admitted", identity::the_application_is_told_who_was_admitted),
    ("what_a_client_calls_itself_never_arrives", identity::what_a_client_calls_itself_never_arrives),
    (
        "the_application_sees_neither_tokens_nor_our_cookies",
        identity::the_application_sees_neither_tokens_nor_our_cookies,
    ),
    ("without_a_credential_nothing_arrives", refusals::without_a_credential_nothing_arrives),
    ("an_ended_session_is_refused_at_once", refusals::an_ended_session_is_refused_at_once),
    ("a_cross_site_request_with_cookies_is_refused", refusals::a_cross_site_request_with_cookies_is_refused),
    ("a_websocket_of_another_site_is_refused", refusals::a_websocket_of_another_site_is_refused),
    ("what_the_client_says_it_asked_for_is_not_believed", refusals::what_the_client_says_it_asked_for_is_not_believed),
    ("a_refresh_is_never_spent_by_a_subrequest", refusals::a_refresh_is_never_spent_by_a_subrequest),
    ("a_body_arrives_whole", refusals::a_body_arrives_whole),
    ("a_plain_path_arrives_as_it_was_sent", paths::a_plain_path_arrives_as_it_was_sent),
    ("whatever_arrives_was_admitted_as_what_it_is", paths::whatever_arrives_was_admitted_as_what_it_is),
];

/// Those that kill something, or need another application or script.
const ALONE: [Alone; 2] = [
    ("when_edgekeep_is_down_or_hangs_nothing_arrives", failures::when_edgekeep_is_down_or_hangs_nothing_arrives),
    ("an_application_keeps_its_users_data", failures::an_application_keeps_its_users_data),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They wait more than they compute.
    arguments.test_threads.get_or_insert(6);
    if let Err(error) = end_programs_with_us() {
        eprintln!("a signal would leave programs behind: {error:#}");
    }
    let stands: Stage<Proxy, Stand> = Stage::default();
    let mut trials = Vec::new();
    for kind in Proxy::ALL {
        for (name, claim) in SHARED {
            let stands = stands.clone();
            trials.push(Trial::test(format!("{}::{name}", kind.name()), move || {
                let stand = stands.of(kind, || Stand::start(kind))?;
                claim(&stand).map_err(|error| format!("{error:#}\n{}", stand.last_words()).into())
            }));
        }
        for (name, claim) in ALONE {
            trials.push(Trial::test(format!("{}::{name}", kind.name()), move || {
                claim(kind).map_err(|error| failed(&error))
            }));
        }
    }
    trials.push(Trial::test("haproxy::a_script_that_fails_lets_nobody_in", || {
        failures::a_script_that_fails_lets_nobody_in(Proxy::Haproxy).map_err(|error| failed(&error))
    }));
    trials.push(Trial::test("haproxy::its_client_is_the_client_by_the_proxy_protocol", || {
        proxy_protocol::its_client_is_the_client().map_err(|error| failed(&error))
    }));
    let conclusion = run(&arguments, trials);
    drop(stands.close());
    conclusion.exit_code()
}

fn failed(error: &anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
