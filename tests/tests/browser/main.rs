//! Cookies mode in a real Chromium: stories.mjs plays a person, their tabs and other people's pages against a running
//! deployment; each of its stories is a test here.
//!
//! Chromium takes `http://localhost` for a secure origin, so `__Host-` cookies live there as they would under TLS.
//! `cargo xtask test browser` brings the browser; `EDGEKEEP_CHROMIUM` names another one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail, ensure};
use edgekeep_tests::{Deployment, Kind, Ports, SERVICE_TOKEN, Setup, end_programs_with_us, is_long};
use libtest_mimic::{Arguments, Failed, Trial, run};
use serde_json::{Value, json};

/// As stories.mjs names them.
const STORIES: [&str; 9] = [
    "logging_in_sets_cookies_that_no_script_can_read",
    "tabs_that_refresh_at_once_all_stay_logged_in",
    "a_form_of_others_changes_nothing",
    "a_form_of_others_cannot_log_one_in_as_somebody_else",
    "scripts_of_others_cannot_use_the_session",
    "a_websocket_opens_for_ones_own_pages_only",
    "two_values_of_one_cookie_are_refused_and_both_cleared",
    "logging_out_leaves_nothing_behind",
    "an_expired_access_token_is_refreshed_when_the_page_asks",
];

/// By story: nothing, or what went wrong.
type Ended = BTreeMap<String, Option<String>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    if let Err(error) = end_programs_with_us() {
        eprintln!("a signal would leave programs behind: {error:#}");
    }
    let mut trials = Vec::new();
    for kind in Kind::ALL {
        // One browser plays all stories of a deployment, when the first of them is asked for.
        let played: Arc<OnceLock<Result<Ended, String>>> = Arc::default();
        for story in STORIES {
            let played = played.clone();
            trials.push(Trial::test(format!("{}::{story}", kind.name()), move || {
                let ended = played.get_or_init(|| play(kind).map_err(|error| format!("{error:#}")));
                let ended = ended.as_ref().map_err(Failed::from)?;
                match ended.get(story) {
                    Some(None) => Ok(()),
                    Some(Some(error)) => Err(error.into()),
                    None => Err(format!("{story} was not played").into()),
                }
            }));
        }
    }
    run(&arguments, trials).exit_code()
}

fn play(kind: Kind) -> Result<Ended> {
    let application = Ports::free()?;
    let deployment = Deployment::start(kind, Setup { application: Some(application), ..Setup::default() })?;
    let rounds = if is_long() { 200 } else { 20 };
    let options = json!({
        "gateway": format!("http://localhost:{}", deployment.entry().address.port()),
        "origin": application,
        "serviceToken": SERVICE_TOKEN,
        "rounds": rounds,
    });
    let mut ended = tell(&options).with_context(|| deployment.last_words())?;
    ensure!(ended.len() == STORIES.len(), "not all were played: {:?}\n{}", ended.keys(), deployment.last_words());
    let faults = deployment.faults_in_logs()?;
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    for error in ended.values_mut().flatten() {
        *error += &format!("\n{}", deployment.last_words());
    }
    Ok(ended)
}

fn tell(options: &Value) -> Result<Ended> {
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/stories.mjs"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut node = command.spawn().context("run node")?;
    // Kept open: the stories end with it.
    let mut input = node.stdin.take().context("no standard input")?;
    writeln!(input, "{options}")?;
    let output = node.wait_with_output()?;
    drop(input);
    let mut ended = Ended::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let story: Value = serde_json::from_str(line).with_context(|| format!("not a story's end: {line}"))?;
        let name = story["name"].as_str().with_context(|| format!("no name in {line}"))?;
        if let Some(note) = story["note"].as_str() {
            println!("\n{name}: {note}");
        }
        ended.insert(name.to_owned(), story["error"].as_str().map(str::to_owned));
    }
    if !output.status.success() {
        bail!("the stories ended with {} after {:?}", output.status, ended.keys());
    }
    Ok(ended)
}
