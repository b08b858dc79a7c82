//! What whoever runs a gateway does to it: reload, stop, replace. Clients go on asking meanwhile, and none may notice.

#![allow(clippy::print_stdout, reason = "a measurement prints its figures")]

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, Entry, Kept, PINNED_TO_TWO_ORIGINS, Setup, eventually, hang_up, under_load};

use crate::scenario::Scenario;

/// As the deployments' file says it.
const SHORT_DRAIN: &str = "drain_timeout = \"1s\"";
/// Longer than the slow requests here.
const LONG_DRAIN: &str = "drain_timeout = \"20s\"";
/// A request that takes so many milliseconds, and the limit in the file that would not let it.
const SLOW: &str = "/slow/2000";
/// A route that comes and goes.
const MORE: &str = "\n[[routes]]\npath = \"/more/{rest..}\"\nauth = \"none\"\nshard = \"any\"\n";
const SLOW_ROUTE: &str = "timeout = \"500ms\"";

pub fn scenarios() -> Vec<Scenario> {
    let alone = |name, play| Scenario::alone(name, Setup::default(), play).natively();
    vec![
        alone("a_reload_under_load_fails_no_request", a_reload_under_load_fails_no_request),
        alone("a_bad_file_changes_nothing_and_says_why", a_bad_file_changes_nothing_and_says_why),
        alone("a_gateway_that_ends_finishes_what_is_in_flight", a_gateway_that_ends_finishes_what_is_in_flight),
        alone("what_does_not_end_is_cut_after_the_drain_timeout", what_does_not_end_is_cut_after_the_drain_timeout),
        alone("a_second_signal_ends_the_wait", a_second_signal_ends_the_wait),
        alone("a_handover_under_load_fails_no_request", a_handover_under_load_fails_no_request),
        alone("a_successor_is_not_ended_by_a_reload", a_successor_is_not_ended_by_a_reload),
        alone("a_successor_that_cannot_start_changes_nothing", a_successor_that_cannot_start_changes_nothing),
        alone("a_gateway_of_systemds_sockets_restarts_unnoticed", a_gateway_of_systemds_sockets_restarts_unnoticed),
    ]
}

/// Requests of a few users to all pools, with and without a body.
fn requests(d: &Deployment) -> Result<Vec<String>> {
    let mut requests = Vec::new();
    for user in ["one", "two", PINNED_TO_TWO_ORIGINS] {
        let access = d.login(user)?.access;
        let head = format!("host: app.example\r\nauthorization: Bearer {access}\r\n");
        requests.push(format!("GET /echo/x HTTP/1.1\r\n{head}\r\n"));
        requests.push(format!("POST /echo/x HTTP/1.1\r\n{head}content-length: 5\r\n\r\nhello"));
        requests.push(format!("GET /stream/20000?framing=chunked HTTP/1.1\r\n{head}\r\n"));
    }
    Ok(requests)
}

/// Slow requests are given their time, in flight and when the gateway ends.
fn let_slow_requests_end(d: &Deployment) -> Result<()> {
    d.change_configuration(|text| text.replace(SHORT_DRAIN, LONG_DRAIN).replace(SLOW_ROUTE, "timeout = \"10s\""))?;
    let said = d.reload()?;
    ensure!(said.contains(" INFO ") && said.ends_with("reloaded"), "{said}");
    Ok(())
}

fn a_reload_under_load_fails_no_request(d: &Deployment) -> Result<()> {
    let figures = under_load(d.entry(), &requests(d)?, || {
        // A weight, a route that comes and goes, an origin that comes and goes, a setting.
        for change in [
            |text: String| text.replace("id = \"b\", url", "id = \"b\", weight = 3, url"),
            |text: String| text + MORE,
            |text: String| text.replace("id = \"b\"", "id = \"another\"").replace(SHORT_DRAIN, LONG_DRAIN),
            |text: String| text.replace("id = \"another\"", "id = \"b\""),
            |text: String| text.replace(MORE, ""),
        ] {
            d.change_configuration(change)?;
            let said = d.reload()?;
            ensure!(said.ends_with("reloaded") && !said.contains("not reloaded"), "{said}");
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    println!("five reloads: {figures:?}");
    ensure!(figures.answers > 300, "hardly a load: {figures:?}");
    ensure!(figures.reconnects == 0, "a reload ended connections: {figures:?}");
    Ok(())
}

fn a_bad_file_changes_nothing_and_says_why(d: &Deployment) -> Result<()> {
    let asks = requests(d)?;
    for (change, why) in [
        ("max_header_bytes = \"32KiB\"\n", "server.max_header_bytes cannot change while running"),
        ("idle_timeout = \"many\"\nheader_timeout = 3\n", "server.idle_timeout"),
        ("no_such_key = 1\n", "server.no_such_key"),
    ] {
        d.change_configuration(|text| text.replacen("[server]\n", &format!("[server]\n{change}"), 1))?;
        let figures = under_load(d.entry(), &asks, || {
            let log_before = d.gateway_log()?.len();
            let said = d.reload()?;
            ensure!(said.contains(" ERROR ") && said.contains("not reloaded"), "{said}");
            let log = d.gateway_log()?;
            let said = log.get(log_before..).unwrap_or_default();
            ensure!(said.contains(why), "it does not say {why:?}: {said}");
            Ok(())
        })?;
        ensure!(figures.reconnects == 0, "{figures:?}");
        d.change_configuration(|text| text.replacen(change, "", 1))?;
    }
    ensure!(!d.reload()?.contains("not reloaded"), "the good file is refused");
    Ok(())
}

fn a_gateway_that_ends_finishes_what_is_in_flight(d: &Deployment) -> Result<()> {
    let_slow_requests_end(d)?;
    let access = d.login("in-flight")?.access;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {access}\r\n\r\n");
    // Idle on two connections, of which one asks once more; in flight on another; connected and silent on the last; and
    // an upgraded one, whose client leaves a while after.
    let (mut asks_again, mut idle) = (Kept::new(d.entry()), Kept::new(d.entry()));
    for client in [&mut asks_again, &mut idle] {
        ensure!(client.ask(&request("/echo/x"))?.0 == 200);
    }
    let mut silent = TcpStream::connect(d.entry().address)?;
    let mut upgraded =
        d.get("/ws/x").bearer(&access).header("connection", "upgrade").header("upgrade", "echo").open()?;
    upgraded.echoes(b"before")?;
    let slow = {
        let (request, entry) = (request(SLOW), d.entry());
        thread::spawn(move || Kept::new(entry).ask(&request))
    };
    thread::sleep(Duration::from_millis(300));
    d.terminate_gateway()?;
    let asked = Instant::now();
    eventually("the port closes", Duration::from_secs(2), || Ok(TcpStream::connect(d.entry().address).is_err()))?;
    println!("the port closed within {:?}", asked.elapsed());
    ensure!(d.admin("GET", "/readyz").send()?.status == 503, "a draining gateway says that it is ready");
    let metrics = d.metric("edgekeep_log_lines_dropped_total", None).context("a draining gateway counts nothing")?;
    ensure!(metrics == 0.0, "{metrics} lines were dropped");
    // Both were idle when the signal came.
    let (status, _) = asks_again.ask(&request("/echo/x"))?;
    ensure!(status == 200 && asks_again.figures.reconnects == 1, "{status}, {:?}", asks_again.figures);
    silent.write_all(request("/echo/x").replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut silent, &mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (status, _) = slow.join().map_err(|_| anyhow::anyhow!("a client broke"))??;
    ensure!(status == 200 && asked.elapsed() > Duration::from_millis(1500), "{status} after {:?}", asked.elapsed());
    upgraded.echoes(b"still there")?;
    drop(upgraded);
    d.gateway_ended(Duration::from_secs(5))?;
    println!("ended after {:?}", asked.elapsed());
    ensure!(asked.elapsed() < Duration::from_secs(10), "it waited for the drain timeout");
    d.start_gateway()
}

fn what_does_not_end_is_cut_after_the_drain_timeout(d: &Deployment) -> Result<()> {
    let access = d.login("endless")?.access;
    let mut events = d.get("/events/50").bearer(&access).open()?;
    let mut upgraded =
        d.get("/ws/x").bearer(&access).header("connection", "upgrade").header("upgrade", "echo").open()?;
    upgraded.echoes(b"before")?;
    d.terminate_gateway()?;
    let asked = Instant::now();
    let (lasted, _) = events.until_its_end(Duration::from_secs(5))?;
    ensure!(lasted > Duration::from_millis(800), "cut after {lasted:?}, before the drain timeout of 1 s");
    upgraded.until_its_end(Duration::from_secs(5))?;
    d.gateway_ended(Duration::from_secs(5))?;
    println!("cut after {lasted:?}, ended after {:?}", asked.elapsed());
    // Each has its line in the log.
    let log = d.gateway_log()?;
    for route in ["/events/{rest..}", "/ws/{rest..}"] {
        let line = log.lines().find(|line| line.contains(" access: ") && line.contains(route));
        ensure!(line.is_some_and(|line| line.contains("aborted=true")), "{route}: {line:?}\n{log}");
    }
    d.start_gateway()
}

fn a_second_signal_ends_the_wait(d: &Deployment) -> Result<()> {
    let_slow_requests_end(d)?;
    let access = d.login("patient")?.access;
    let mut events = d.get("/events/50").bearer(&access).open()?;
    d.terminate_gateway()?;
    thread::sleep(Duration::from_millis(500));
    let second = Instant::now();
    d.terminate_gateway()?;
    d.gateway_ended(Duration::from_secs(5))?;
    ensure!(second.elapsed() < Duration::from_secs(3), "ended after {:?}", second.elapsed());
    events.until_its_end(Duration::from_secs(1))?;
    d.start_gateway()
}

fn a_handover_under_load_fails_no_request(d: &Deployment) -> Result<()> {
    let_slow_requests_end(d)?;
    let asks = requests(d)?;
    let slow = asks.first().context("no request")?.replace("/echo/x", SLOW);
    let before = d.gateway_process()?;
    let mut in_flight = Duration::ZERO;
    let figures = under_load(d.entry(), &asks, || {
        // More cores than sockets are passed, fewer, and as many.
        for (old, new) in [(2, 3), (3, 1), (1, 2)] {
            d.change_configuration(|text| text.replace(&format!("threads = {old}"), &format!("threads = {new}")))?;
            let (request, entry): (String, Entry) = (slow.clone(), d.entry());
            let slow = thread::spawn(move || Kept::new(entry).ask(&request));
            thread::sleep(Duration::from_millis(200));
            let begun = Instant::now();
            d.hand_over()?;
            in_flight = in_flight.max(begun.elapsed());
            let (status, _) = slow.join().map_err(|_| anyhow::anyhow!("a client broke"))??;
            ensure!(status == 200, "in flight over a handover: {status}");
        }
        Ok(())
    })?;
    println!("three handovers, the longest of {in_flight:?}: {figures:?}");
    ensure!(d.gateway_process()? != before, "the same process as before");
    ensure!(figures.answers > 300 && figures.reconnects > 0, "hardly a load: {figures:?}");
    Ok(())
}

fn a_successor_is_not_ended_by_a_reload(d: &Deployment) -> Result<()> {
    let_slow_requests_end(d)?;
    let slow = requests(d)?.first().context("no request")?.replace("/echo/x", SLOW);
    let entry = d.entry();
    let slow = thread::spawn(move || Kept::new(entry).ask(&slow));
    thread::sleep(Duration::from_millis(200));
    let reloads = || Ok::<_, anyhow::Error>(d.gateway_log()?.matches(": reloaded").count());
    let before = reloads()?;
    d.hand_over_while(|successor| {
        // Over the embedded store it waits now for the old one, which has a request in flight.
        let ready = "a successor is ready: draining";
        eventually("the old one drains", Duration::from_secs(10), || Ok(d.gateway_log()?.contains(ready)))?;
        hang_up(successor);
        Ok(())
    })?;
    let (status, _) = slow.join().map_err(|_| anyhow::anyhow!("a client broke"))??;
    ensure!(status == 200, "in flight: {status}");
    eventually("the reload", Duration::from_secs(5), || Ok(reloads()? > before))
}

fn a_successor_that_cannot_start_changes_nothing(d: &Deployment) -> Result<()> {
    let (clients, _) = d.addresses();
    let process = d.gateway_process()?;
    let asks = requests(d)?;
    for (change, with, why) in [
        ("[server]\n", "[server]\nno_such_key = 1\n".to_owned(), "server.no_such_key".to_owned()),
        // A start makes keys where there are none; in the place of a gateway that would log everybody out.
        ("keys = \"data/keys.json\"", "keys = \"data/other.json\"".to_owned(), "session.keys: ".to_owned()),
        (
            &format!("listen = [\"{clients}\"]"),
            "listen = [\"127.0.0.1:1\"]".to_owned(),
            format!("the running gateway passed a socket on {clients}, but server.listen is 127.0.0.1:1"),
        ),
        ("count = 2", "count = 2\nkey_file = \"nowhere\"".to_owned(), "shards.users.key_file".to_owned()),
    ] {
        d.change_configuration(|text| text.replacen(change, &with, 1))?;
        let figures = under_load(d.entry(), &asks, || {
            let said = d.failed_handover()?;
            ensure!(said.contains(&why), "it does not say {why:?}: {said}");
            Ok(())
        })?;
        ensure!(figures.reconnects == 0, "{why}: {figures:?}");
        d.change_configuration(|text| text.replacen(&with, change, 1))?;
    }
    ensure!(d.gateway_process()? == process);
    d.hand_over()
}

fn a_gateway_of_systemds_sockets_restarts_unnoticed(d: &Deployment) -> Result<()> {
    let_slow_requests_end(d)?;
    let asks = requests(d)?;
    d.terminate_gateway()?;
    d.gateway_ended(Duration::from_secs(30))?;
    let (clients, admin) = d.addresses();
    let mut manager = Command::new(env!("CARGO_BIN_EXE_listen_fds"));
    d.start_gateway_by(manager.args(["--listen", &clients.to_string(), "--listen", &admin.to_string(), "--"]))?;
    let figures = under_load(d.entry(), &asks, || {
        for _ in 0..2 {
            let before = d.gateway_log()?.matches(" ready listen=").count();
            // The launcher asks the gateway to end, and starts the next one when it has.
            d.terminate_gateway()?;
            eventually("the next one", Duration::from_secs(20), || {
                Ok(d.gateway_log()?.matches(" ready listen=").count() > before)
            })?;
        }
        Ok(())
    })?;
    println!("two restarts: {figures:?}");
    ensure!(figures.answers > 300 && figures.reconnects > 0, "hardly a load: {figures:?}");
    // It was told what systemd is told.
    let log = d.gateway_log()?;
    for told in ["READY=1", "STOPPING=1"] {
        ensure!(log.contains(&format!("notified: {told}")), "no {told}: {log}");
    }
    Ok(())
}
