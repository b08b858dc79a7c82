//! The load of `cargo xtask bench`: a closed loop over keep-alive connections that checks every answer.
//!
//! wrk can count statuses but checks a body only through Lua, at a cost of several microseconds a request on the core
//! that the origin shares. This one sends prebuilt requests with the tokens in turn, reads each answer to its end, and
//! the first wrong one ends the run with exit status 1.
//!
//! On standard output: the line `measuring` when the warm-up is over, then one line of JSON. Whoever accounts the
//! proxy's CPU takes its samples at these two lines; the load states its own.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use edgekeep_tests::wire::{Body, Head};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The longest latency told apart, in nanoseconds: a minute. Longer ones are counted as this.
const MAX_LATENCY: u64 = 60_000_000_000;

/// How long answers may be outstanding after the end before the run is called hung.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Options {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long, default_value = "/")]
    path: String,
    /// A file with one bearer token a line; they are sent in turn. Without it no token is sent.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// A header to send besides, as `name: value`; may be given several times.
    #[arg(long = "header", value_parser = header_line)]
    headers: Vec<String>,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Seconds before the measurement starts.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Seconds measured.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long, default_value_t = 200)]
    expect_status: u16,
    /// The body every answer must have, byte for byte. Without it any body will do.
    #[arg(long)]
    expect_body: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(&options))
}

/// `NAME: VALUE` as it is sent.
fn header_line(text: &str) -> Result<String, &'static str> {
    let (name, value) = text.split_once(':').ok_or("a header is written as `name: value`")?;
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(of_name) || value.chars().any(char::is_control) {
        return Err("a name of a header, or its value, has characters that may not be there");
    }
    Ok(format!("{name}: {}", value.trim()))
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let load = Rc::new(Load::new(options)?);
    let warmup = Duration::from_secs_f64(options.warmup);
    let end = load.start + warmup + Duration::from_secs_f64(options.seconds);

    let mut clients = Vec::with_capacity(options.connections);
    for _ in 0..options.connections {
        clients.push(tokio::task::spawn_local(drive(Rc::clone(&load), end)));
    }
    tokio::time::sleep(warmup).await;
    load.latencies.borrow_mut().reset();
    let measured_from = Instant::now();
    let cpu_before = own_cpu()?;
    writeln!(std::io::stdout(), "measuring")?;

    let finish = async {
        for client in clients {
            client.await??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout_at((end + GRACE).into(), finish)
        .await
        .context("answers are outstanding: the proxy hangs")??;
    let elapsed = measured_from.elapsed().as_secs_f64();
    let cpu_seconds = (own_cpu()? - cpu_before).as_secs_f64();

    let latencies = load.latencies.borrow();
    ensure!(!latencies.is_empty(), "no request finished");
    let micros = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let report = serde_json::json!({
        "requests": latencies.len(),
        "seconds": elapsed,
        "cpu_seconds": cpu_seconds,
        "requests_per_second": latencies.len() as f64 / elapsed,
        "latency_us": { "p50": micros(0.5), "p90": micros(0.9), "p99": micros(0.99), "max": micros(1.0) },
        "reconnects": load.reconnects.get(),
    });
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

/// The CPU time of this thread, which is the whole load.
fn own_cpu() -> anyhow::Result<Duration> {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = schedstat.split(' ').next().unwrap_or_default().parse().context("schedstat")?;
    Ok(Duration::from_nanos(nanos))
}

/// What all connections of a run share.
struct Load {
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    next: Cell<usize>,
    status: u16,
    body: Option<Vec<u8>>,
    start: Instant,
    latencies: RefCell<Histogram<u64>>,
    reconnects: Cell<u64>,
}

impl Load {
    fn new(options: &Options) -> anyhow::Result<Load> {
        let headers: String = options.headers.iter().map(|line| format!("{line}\r\n")).collect();
        let request = |token: Option<&str>| {
            let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
            format!(
                "GET {} HTTP/1.1\r\nhost: {}\r\nuser-agent: edgekeep-load\r\naccept: */*\r\n{headers}{authorization}\r\n",
                options.path, options.address
            )
            .into_bytes()
        };
        let requests = match &options.tokens {
            None => vec![request(None)],
            Some(path) => {
                let tokens = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                tokens.lines().map(|token| request(Some(token))).collect()
            }
        };
        ensure!(!requests.is_empty(), "the file of tokens is empty");
        Ok(Load {
            address: options.address,
            requests,
            next: Cell::new(0),
            status: options.expect_status,
            body: options.expect_body.clone().map(String::into_bytes),
            start: Instant::now(),
            latencies: RefCell::new(Histogram::new_with_bounds(1, MAX_LATENCY, 3)?),
            reconnects: Cell::new(0),
        })
    }

    fn next_request(&self) -> &[u8] {
        let at = self.next.get();
        self.next.set((at + 1) % self.requests.len());
        &self.requests[at]
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let socket = TcpStream::connect(self.address).await.context("cannot connect")?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }
}

/// One connection: the next request is sent when the last one's answer has been read.
async fn drive(load: Rc<Load>, end: Instant) -> anyhow::Result<()> {
    let mut socket = load.connect().await?;
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut sent_at = Instant::now();
    while sent_at < end {
        socket.write_all(load.next_request()).await.context("cannot send")?;
        let answer = read_answer(&mut socket, &mut buffer, &load).await?;
        let read_at = Instant::now();
        let nanos = (read_at - sent_at).as_nanos() as u64;
        load.latencies.borrow_mut().saturating_record(nanos);
        sent_at = read_at;
        if answer == Answer::LastOnConnection {
            load.reconnects.set(load.reconnects.get() + 1);
            socket = load.connect().await?;
        }
    }
    Ok(())
}

#[derive(PartialEq)]
enum Answer {
    KeepAlive,
    LastOnConnection,
}

async fn read_answer(socket: &mut TcpStream, buffer: &mut Vec<u8>, load: &Load) -> anyhow::Result<Answer> {
    buffer.clear();
    let head = loop {
        ensure!(socket.read_buf(buffer).await? > 0, "the connection closed where an answer was due");
        if let Some(head) = Head::parse(buffer)? {
            break head;
        }
    };
    let Body::Length(length) = head.body else {
        bail!("a chunked answer: every peer here is expected to say its length");
    };
    let end = head.len + length;
    while buffer.len() < end {
        ensure!(socket.read_buf(buffer).await? > 0, "the connection closed inside an answer's body");
    }
    let body = &buffer[head.len..end];
    let right = head.status == load.status && load.body.as_deref().is_none_or(|expected| expected == body);
    if !right || buffer.len() > end {
        bail!("wrong answer: {}", String::from_utf8_lossy(&buffer[..buffer.len().min(1000)]));
    }
    Ok(if head.close { Answer::LastOnConnection } else { Answer::KeepAlive })
}
