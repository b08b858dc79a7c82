//! Running deployments beside their `/openapi.json`: schemathesis makes requests of what the document says, valid and
//! not, and holds every answer against it: status, media type, headers, schema, refused methods, refused strangers.
//!
//! `EDGEKEEP_SCHEMATHESIS` names the program; `cargo xtask test openapi` brings it. The short form has one seed, the
//! long form (`EDGEKEEP_LONG`) a new one each time, which it prints; `EDGEKEEP_SEED` sets either.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use edgekeep_tests::{Deployment, EDGE_TOKEN, Kind, SERVICE_TOKEN, Setup, end_programs_with_us, is_long};
use libtest_mimic::{Arguments, Failed, Trial, run};
use serde_json::{Value, json};

/// The seed of the short form.
const SEED: u64 = 3;

/// By operation: how often each status came.
type Answers = BTreeMap<String, BTreeMap<String, u64>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other: each asks as fast as it can.
    arguments.test_threads.get_or_insert(1);
    if let Err(error) = end_programs_with_us() {
        eprintln!("a signal would leave programs behind: {error:#}");
    }
    let mut trials: Vec<Trial> =
        Kind::ALL.into_iter().map(|kind| trial(kind, "answers_as_documented", answers)).collect();
    trials.push(trial(Kind::NativeEmbedded, "a_document_that_is_wrong_is_found_out", finds_faults));
    run(&arguments, trials).exit_code()
}

fn trial(kind: Kind, name: &str, play: fn(&Deployment) -> Result<()>) -> Trial {
    Trial::test(format!("{}::{name}", kind.name()), move || {
        let told = |error: anyhow::Error| Failed::from(format!("{error:#}"));
        let setup = Setup { roomy_limits: true, ..Setup::default() };
        let deployment = Deployment::start(kind, setup).map_err(told)?;
        play(&deployment).map_err(|error| told(error.context(deployment.last_words())))?;
        let faults = deployment.faults_in_logs().map_err(told)?;
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
    })
}

/// Calls that a deployment of this kind does not answer.
fn closed(kind: Kind) -> &'static [(&'static str, &'static str, &'static str)] {
    match kind {
        Kind::EdgeBesideRegion => &[
            ("validateForEdge", "POST", "/v1/edge/validate"),
            ("confirmForEdge", "POST", "/v1/edge/confirm"),
            ("readShardMap", "GET", "/v1/edge/shard-map"),
        ],
        _ => &[("buryAtEdge", "POST", "/v1/edge/tombstones")],
    }
}

fn answers(d: &Deployment) -> Result<()> {
    let given = d.get("/openapi.json").send()?.expect(200)?;
    ensure!(given.header("etag").is_some(), "{given}");
    let document = given.json()?;
    ensure!(document["openapi"] == "3.1.0", "{given}");
    let mut options = Vec::new();
    for (operation, method, path) in closed(d.kind) {
        d.request(method, path).header("x-edgekeep-edge", EDGE_TOKEN).send()?.problem(404, "not_found")?;
        options.extend(["--exclude-operation-id".to_owned(), (*operation).to_owned()]);
    }
    options.extend(["--max-examples".to_owned(), if is_long() { "200" } else { "10" }.to_owned()]);
    let Asked { found, report, answers } = ask(d, &document, &options)?;
    ensure!(!found, "{report}");
    // A document that is never fulfilled is not proven by refusals.
    let operations = operations(&document).filter(|id| closed(d.kind).iter().all(|(other, ..)| id != other));
    for operation in operations {
        let statuses = answers.get(&operation).with_context(|| format!("{operation} was never asked\n{report}"))?;
        let fulfilled = statuses.keys().any(|status| status.starts_with('2'));
        ensure!(fulfilled, "{operation} never succeeded: {statuses:?}\n{report}");
    }
    Ok(())
}

fn operations(document: &Value) -> impl Iterator<Item = String> {
    let items = document["paths"].as_object().into_iter().flatten();
    let operations = items.flat_map(|(_, item)| item.as_object().into_iter().flatten());
    operations.filter_map(|(_, operation)| operation["operationId"].as_str().map(str::to_owned))
}

/// Each kind of check, with a fault that only it can find: a check that finds none would prove nothing.
fn finds_faults(d: &Deployment) -> Result<()> {
    let good = d.get("/openapi.json").send()?.expect(200)?.json()?;
    let faults: [(&str, &str, &str, Value); 6] = [
        ("a status that is not there", "createSession", "/paths/~1v1~1sessions/post/responses/201", Value::Null),
        (
            "another media type",
            "readKeys",
            "/paths/~1.well-known~1jwks.json/get/responses/200/content",
            json!({ "text/plain": {} }),
        ),
        (
            "a member that never comes",
            "listUserSessions",
            "/components/schemas/SessionRow/required",
            json!(["nothing"]),
        ),
        (
            "a header that never comes",
            "listUserSessions",
            "/components/headers/NoStore/schema",
            json!({ "const": "public" }),
        ),
        (
            "more than is taken",
            "createSession",
            "/components/schemas/CreateSession/properties/client_id/maxLength",
            json!(5),
        ),
        (
            "a credential that nobody asks for",
            "readKeys",
            "/paths/~1.well-known~1jwks.json/get/security",
            json!([{ "serviceBearer": [] }]),
        ),
    ];
    for (what, operation, at, planted) in faults {
        let mut document = good.clone();
        let (parent, name) = at.rsplit_once('/').context("no pointer")?;
        let parent =
            document.pointer_mut(parent).and_then(Value::as_object_mut).with_context(|| format!("{at} is gone"))?;
        let before = if planted.is_null() { parent.remove(name) } else { parent.insert(name.to_owned(), planted) };
        ensure!(before.is_some(), "{at} is gone");
        let options = ["--include-operation-id", operation, "--max-examples", "5", "--phases", "coverage,fuzzing"];
        let asked = ask(d, &document, &options.map(str::to_owned))?;
        ensure!(asked.found, "{what} ({at}) was not found out:\n{}", asked.report);
    }
    Ok(())
}

struct Asked {
    found: bool,
    report: String,
    answers: Answers,
}

fn ask(d: &Deployment, document: &Value, options: &[String]) -> Result<Asked> {
    let folder = tempfile::tempdir()?;
    let (said, counted) = (folder.path().join("openapi.json"), folder.path().join("answers.json"));
    std::fs::write(&said, document.to_string())?;
    let url = format!("http://{}", d.entry().address);
    let seed = seed()?;
    let mut command = Command::new(program()?);
    // It keeps notes where it runs, which no other run should find.
    for file in ["schemathesis.toml", "who.py"] {
        std::fs::copy(own_folder().join(file), folder.path().join(file))?;
    }
    command.current_dir(folder.path()).args(["--config-file", "schemathesis.toml", "run"]).arg(&said);
    command.args(["--url", &url, "--seed", &seed.to_string(), "--no-color"]).args(options);
    command.env("EDGEKEEP_URL", &url).env("EDGEKEEP_ANSWERS", &counted);
    command.env("EDGEKEEP_SERVICE_TOKEN", SERVICE_TOKEN).env("EDGEKEEP_EDGE_TOKEN", EDGE_TOKEN);
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().context("run schemathesis")?;
    let report = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let found = match output.status.code() {
        Some(0) => false,
        Some(1) if report.contains("== FAILURES ==") => true,
        _ => bail!("schemathesis ended with {}:\n{report}", output.status),
    };
    let line = report.lines().find(|line| line.contains(" generated")).unwrap_or_default().trim();
    // The runner has begun a line with the test's name.
    println!("\n{} (seed {seed}): {line}", d.kind.name());
    let answers = serde_json::from_slice(&std::fs::read(&counted).context("read the counted answers")?)?;
    Ok(Asked { found, report, answers })
}

fn seed() -> Result<u64> {
    match std::env::var("EDGEKEEP_SEED") {
        Ok(seed) => seed.parse().context("EDGEKEEP_SEED is no number"),
        Err(_) if is_long() => Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
        Err(_) => Ok(SEED),
    }
}

fn program() -> Result<PathBuf> {
    let named = std::env::var_os("EDGEKEEP_SCHEMATHESIS");
    named
        .map(PathBuf::from)
        .context("no schemathesis: run `cargo xtask test openapi`, or name one in EDGEKEEP_SCHEMATHESIS")
}

fn own_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi")
}
