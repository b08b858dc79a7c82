//! The access log: one line for each request, whatever became of it, and none of them worth a request.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, Kind, Setup, eventually, fresh_address, under_load};

use crate::scenario::Scenario;

/// Longer than it takes to fill the log's queue on a busy machine.
const UNREAD: Duration = Duration::from_secs(60);

pub fn scenarios() -> Vec<Scenario> {
    let every = Scenario::shared("every_request_has_one_line", every_request_has_one_line).natively();
    let json =
        Scenario::alone("a_line_of_json_has_the_same_fields", Setup::default(), a_line_of_json_has_the_same_fields);
    let unread = Scenario::alone(
        "a_log_that_nobody_reads_costs_lines_and_no_request",
        Setup::default(),
        a_log_that_nobody_reads_costs_lines_and_no_request,
    );
    vec![every, json.only(Kind::NativeEmbedded), unread.only(Kind::NativeEmbedded)]
}

fn every_request_has_one_line(d: &Deployment) -> Result<()> {
    let access = d.login("logged")?.access;
    let mut told: Vec<(Ipv4Addr, &str, &str)> = Vec::new();
    // Each comes from an address of its own, by which its line is found.
    let mut expect = |what: &'static str, line: &'static str| {
        let address = fresh_address();
        told.push((address, what, line));
        address
    };
    let request = |target: &str, from| d.get(target).from(from).bearer(&access);

    let from = expect("a good one", "method=GET route=\"/echo/{rest..}\" status=200 user=");
    request("/echo/x", from).send()?.expect(200)?;
    let from = expect("one without a credential", "method=GET route=\"/echo/{rest..}\" status=401 micros=");
    d.get("/echo/x").from(from).send()?.expect(401)?;
    let from = expect("one of our own calls", "method=GET route=\"-\" status=200 user=");
    request("/v1/sessions", from).send()?.expect(200)?;
    let from = expect("one whose path is refused", "method=GET route=\"-\" status=400 micros=");
    request("/echo/%2e%2e/x", from).send()?.expect(400)?;
    let from = expect("one whose origin is dead", "status=502 user=");
    request("/photos/2024-06/x", from).send()?.expect(502)?;
    let from = expect("one with a method of its own", "method=SING route=");
    d.request("SING", "/echo/x").from(from).bearer(&access).send()?.expect(200)?;
    let from = expect("one with too long a head", "route=\"-\" status=431");
    request("/echo/x", from).header("x-long", &"a".repeat(100_000)).send()?.expect(431)?;
    let from = expect("one that is none", "route=\"-\" status=400");
    d.request("GET /", "what is this").from(from).send()?.expect(400)?;

    let from = expect("one whose client leaves before its answer", "route=\"/slow/{rest..}\" status=0 user=");
    let socket = request("/slow/400", from).begin()?;
    thread::sleep(Duration::from_millis(100));
    drop(socket);
    let from = expect("one whose client leaves within its answer", "route=\"/events/{rest..}\" status=200 user=");
    drop(request("/events/20", from).open()?);
    let from = expect("an upgraded one", "route=\"/ws/{rest..}\" status=101 user=");
    let mut upgraded = request("/ws/x", from).header("connection", "upgrade").header("upgrade", "echo").open()?;
    upgraded.echoes(b"on the wire")?;
    drop(upgraded);
    let from = expect("an upload that its client breaks off", "method=POST route=\"/echo/{rest..}\" status=400 user=");
    let mut socket = d.post("/echo/x").from(from).bearer(&access).header("content-length", "1000").begin()?;
    socket.write_all(b"not a thousand")?;
    socket.shutdown(Shutdown::Both)?;

    for (address, what, expected) in told {
        let client = format!("client={address} ");
        let mut lines = Vec::new();
        let of_it = || -> Result<Vec<String>> {
            let log = d.gateway_log()?;
            let lines = log.lines().filter(|line| line.contains(" access: ") && line.contains(&client));
            Ok(lines.map(str::to_owned).collect())
        };
        eventually(&format!("the line of {what}"), Duration::from_secs(5), || {
            lines = of_it()?;
            Ok(!lines.is_empty())
        })?;
        ensure!(lines.len() == 1 && lines[0].contains(expected), "{what}: {expected:?} is not in {lines:?}");
        let aborted = what.contains("leaves");
        ensure!(lines[0].contains("aborted=true") == aborted, "{what}: {}", lines[0]);
    }
    Ok(())
}

fn a_line_of_json_has_the_same_fields(d: &Deployment) -> Result<()> {
    d.terminate_gateway()?;
    d.gateway_ended(Duration::from_secs(10))?;
    d.change_configuration(|text| text.replace("[log]\n", "[log]\nformat = \"json\"\n"))?;
    d.start_gateway()?;
    let access = d.login("in-json")?.access;
    d.get("/echo/x").bearer(&access).send()?.expect(200)?;
    let mut line = serde_json::Value::Null;
    eventually("the line", Duration::from_secs(5), || {
        let log = d.gateway_log()?;
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        line = lines.rfind(|line| line["route"] == "/echo/{rest..}").unwrap_or_default();
        Ok(!line.is_null())
    })?;
    for (field, value) in [("client", "127.0.0.1"), ("method", "GET"), ("level", "INFO"), ("target", "access")] {
        ensure!(line[field] == value, "{field} is not {value:?}: {line}");
    }
    ensure!(line["status"] == 200 && line["micros"].is_u64() && line["user"].is_string(), "{line}");
    ensure!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    Ok(())
}

fn a_log_that_nobody_reads_costs_lines_and_no_request(d: &Deployment) -> Result<()> {
    d.terminate_gateway()?;
    d.gateway_ended(Duration::from_secs(10))?;
    let pipe = d.key_file().with_file_name("pipe");
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "no pipe");
    // Opened for both, so that it opens at once; it is read when the time has come.
    let mut unread = std::fs::OpenOptions::new().read(true).write(true).open(&pipe)?;
    let mut shell = Command::new("sh");
    d.start_gateway_by(shell.args(["-c", "exec \"$@\" 2> \"$0\""]).arg(&pipe))?;
    let access = d.login("unread")?.access;
    let request = format!("GET /echo/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {access}\r\n\r\n");
    let dropped = || d.metric("edgekeep_log_lines_dropped_total", None);
    let figures =
        under_load(d.entry(), &[request], || eventually("the log's queue is full", UNREAD, || Ok(dropped()? > 0.0)))?;
    ensure!(figures.longest < Duration::from_secs(2), "a request waited for the log: {figures:?}");
    let dropped = dropped()?;
    // As soon as somebody reads, the count is said.
    let (said, lines) = channel();
    thread::spawn(move || {
        let (mut buffer, mut text) = (vec![0; 1 << 16], String::new());
        while let Ok(count) = unread.read(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            let end = text.rfind('\n').map_or(0, |at| at + 1);
            let rest = text.split_off(end);
            if said.send(std::mem::replace(&mut text, rest)).is_err() {
                return;
            }
        }
    });
    let mut counted = 0.0;
    while counted < dropped {
        let lines = lines.recv_timeout(Duration::from_secs(10)).context("the count was not said")?;
        for line in lines.lines() {
            ensure!(line.starts_with("20") && line.contains('Z'), "not a whole line: {line:?}");
            if let Some((_, count)) = line.split_once("lines were dropped count=") {
                counted += count.parse::<f64>()?;
            }
        }
    }
    ensure!(counted == dropped, "{counted} lines were said to be dropped, and {dropped} counted");
    d.terminate_gateway()?;
    d.gateway_ended(Duration::from_secs(10))
}
