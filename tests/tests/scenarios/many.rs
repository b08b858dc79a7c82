//! Very many connections at once, and too many.

#![allow(clippy::print_stdout, reason = "a measurement prints its figures")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, Kept, Kind, Setup, eventually, holds, raise_file_limit};

use crate::scenario::Scenario;

const IDLE: usize = 10_000;
const BUSY: usize = 2_000;
/// What a gateway needs of which clients may take three of four; no fewer than each busy one with its origin does.
const FILES: u64 = (IDLE + BUSY) as u64 / 3 * 4 + 200;

pub fn scenarios() -> Vec<Scenario> {
    let alone = |name, play| Scenario::alone(name, Setup::default(), play).only(Kind::NativeEmbedded);
    vec![
        alone(
            "ten_thousand_idle_and_two_thousand_busy_connections",
            ten_thousand_idle_and_two_thousand_busy_connections,
        ),
        alone("connections_beyond_the_files_wait_and_are_served", connections_beyond_the_files_wait_and_are_served),
    ]
}

fn ten_thousand_idle_and_two_thousand_busy_connections(d: &Deployment) -> Result<()> {
    let allowed = raise_file_limit()?;
    ensure!(allowed >= FILES, "this machine allows {allowed} open files, {FILES} are needed: ulimit -Hn");
    // The limit of the deployment's programs is the old one; the gateway raises its own.
    let access = d.login("one-of-many")?.access;
    let request = format!("GET /echo/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {access}\r\n\r\n");
    d.stop_origins();
    d.start_origins()?;
    let process = d.gateway_process()?;
    Kept::new(d.entry()).ask(&request)?;
    let (before, _) = holds(process)?;
    let begun = Instant::now();
    let mut idle: Vec<Kept> = (0..IDLE).map(|_| Kept::new(d.entry())).collect();
    for client in &mut idle {
        ensure!(client.ask(&request)?.0 == 200);
    }
    let (after, files) = holds(process)?;
    ensure!(files > IDLE, "only {files} files are open");
    println!(
        "{IDLE} idle connections, each after one request, within {:?}: {:.1} KiB each ({before} KiB before, {after} after)",
        begun.elapsed(),
        (after.saturating_sub(before)) as f64 / IDLE as f64
    );

    let tokens = d.key_file().with_file_name("tokens");
    fs::write(&tokens, format!("{access}\n"))?;
    let mut load = Command::new(env!("CARGO_BIN_EXE_load"));
    load.args(["--address", &d.entry().address.to_string(), "--path", "/echo/x", "--tokens"]).arg(&tokens);
    load.args(["--connections", &BUSY.to_string(), "--warmup", "1", "--seconds", "3"]);
    let said = load.output()?;
    let figures = String::from_utf8_lossy(&said.stdout).lines().last().unwrap_or_default().to_owned();
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    println!("{BUSY} busy connections beside them: {figures}");
    for (number, client) in idle.iter_mut().enumerate() {
        let (status, _) = client.ask(&request).with_context(|| format!("idle connection {number}"))?;
        ensure!(status == 200 && client.figures.reconnects == 0, "idle connection {number}: {status}");
    }
    let (held, _) = holds(process)?;
    println!("{held} KiB resident at the end");
    drop(idle);
    eventually("the files are closed", Duration::from_secs(60), || Ok(holds(process)?.1 < 5_000))
}

fn connections_beyond_the_files_wait_and_are_served(d: &Deployment) -> Result<()> {
    const FILES: usize = 200;
    d.terminate_gateway()?;
    d.gateway_ended(Duration::from_secs(10))?;
    let mut shell = Command::new("sh");
    d.start_gateway_by(shell.args(["-c", &format!("ulimit -n {FILES}; exec \"$@\""), "sh"]))?;
    let access = d.login("beyond")?.access;
    let request =
        format!("GET /echo/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {access}\r\n\r\n");
    let process = d.gateway_process()?;
    let mut early = Kept::new(d.entry());
    let early_request = request.replace("connection: close\r\n", "");
    ensure!(early.ask(&early_request)?.0 == 200);
    let mut clients = Vec::new();
    for _ in 0..2 * FILES {
        clients.push(TcpStream::connect(d.entry().address)?);
    }
    eventually("no place is left", Duration::from_secs(10), || Ok(d.gateway_log()?.contains("cannot accept")))?;
    // Files are left for the way to the origins.
    ensure!(holds(process)?.1 < FILES - FILES / 10, "{:?}", holds(process)?);
    for path in ["/echo/x", "/stream/20000?framing=chunked", "/status/204"] {
        let (status, _) = early.ask(&early_request.replace("/echo/x", path))?;
        ensure!(status < 300, "{path}: {status} while others wait");
    }
    ensure!(early.figures.reconnects == 0, "{:?}", early.figures);
    // It waits, and does not spin.
    let before = cpu_ticks(process)?;
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_ticks(process)? - before;
    ensure!(spent < 30, "{spent} ticks of a hundred while it could do nothing");
    let told = d.gateway_log()?.matches("cannot accept").count();
    ensure!((1..20).contains(&told), "told {told} times that nothing can be accepted");
    // Those that leave make room: every other one is served in the end.
    let waiting = clients.split_off(FILES);
    drop(clients);
    for (number, mut client) in waiting.into_iter().enumerate() {
        client.set_read_timeout(Some(Duration::from_secs(20)))?;
        client.write_all(request.as_bytes())?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).with_context(|| format!("connection {number}"))?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "connection {number}: {answer}");
    }
    d.terminate_gateway()?;
    d.gateway_ended(Duration::from_secs(10))
}

/// What a process has used of the CPU, in hundredths of a second.
fn cpu_ticks(process: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok(fields.get(11).context("no utime")?.parse::<u64>()? + fields.get(12).context("no stime")?.parse::<u64>()?)
}
