//! The load of `cargo xtask bench`: as many connections as asked, on one thread, with bearer tokens in turn.
//!
//! It asks in a closed loop (the next request when the last one's answer was read), which shows the most that a proxy
//! gives, or at a fixed rate, which shows what a request costs and how long it takes when the proxy is not full. Every
//! answer is checked. It shares a core with the origin, so it must cost little: requests are written before the run,
//! and of an answer's head only what is needed is read.
//!
//! When the warm-up is over it prints `measuring`, and at the end one line of JSON. The caller reads the proxy's CPU
//! time at both; the load states its own.

mod connect;
mod http1;
mod http2;
mod pace;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use hdrhistogram::Histogram;

use connect::Connector;
use pace::Pace;

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
    /// A file with one bearer token a line, each with the cookie that its owner has, after a space, if any; they are
    /// sent in turn. Without it no token is sent.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// A header to send besides, as `name: value`; may be given several times.
    #[arg(long = "header", value_parser = header_line)]
    headers: Vec<(String, String)>,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests a second, whatever the answers; without it every connection sends when it has its answer.
    #[arg(long)]
    rate: Option<f64>,
    /// Who signed the server's certificate, as PEM: speak TLS.
    #[arg(long)]
    authority: Option<PathBuf>,
    /// Speak HTTP/2, over TLS, with so many streams on each connection.
    #[arg(long, requires = "authority")]
    http2_streams: Option<usize>,
    /// A new connection for every request.
    #[arg(long, conflicts_with = "http2_streams")]
    new_connections: bool,
    /// Bytes to upload with every request, which then is a POST.
    #[arg(long, default_value_t = 0, conflicts_with = "http2_streams")]
    upload: usize,
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
    /// The length that every answer's body must have.
    #[arg(long, conflicts_with = "expect_body")]
    expect_length: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(&options))
}

/// `NAME: VALUE`, parted.
fn header_line(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once(':').ok_or("a header is written as `name: value`")?;
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(of_name) || value.chars().any(char::is_control) {
        return Err("a name of a header, or its value, has characters that may not be there");
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let load = Rc::new(Load::new(options)?);
    let pacer = tokio::task::spawn_local(Rc::clone(&load.pace).run());
    let mut clients = Vec::with_capacity(options.connections);
    for _ in 0..options.connections {
        clients.push(match options.http2_streams {
            Some(streams) => tokio::task::spawn_local(http2::drive(Rc::clone(&load), streams)),
            None => tokio::task::spawn_local(http1::drive(Rc::clone(&load))),
        });
    }
    tokio::time::sleep(Duration::from_secs_f64(options.warmup)).await;
    load.latencies.borrow_mut().reset();
    let measured_from = Instant::now();
    let cpu_before = own_cpu()?;
    writeln!(std::io::stdout(), "measuring")?;

    let finish = async {
        pacer.await??;
        for client in clients {
            client.await??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout_at((load.pace.end + GRACE).into(), finish)
        .await
        .context("answers are outstanding: the proxy hangs, or is far behind the rate")??;
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
    connector: Connector,
    pace: Rc<Pace>,
    http1: Vec<Vec<u8>>,
    http2: Vec<hyper::Request<http_body_util::Empty<bytes::Bytes>>>,
    next: Cell<usize>,
    /// Sent after every head.
    upload: Vec<u8>,
    new_connections: bool,
    expected: Expected,
    latencies: RefCell<Histogram<u64>>,
    reconnects: Cell<u64>,
}

/// What every answer must be.
struct Expected {
    status: u16,
    body: Option<Vec<u8>>,
    length: Option<usize>,
}

/// Who sends a request.
#[derive(Default)]
struct Client {
    token: Option<String>,
    cookie: Option<String>,
}

impl Load {
    fn new(options: &Options) -> anyhow::Result<Load> {
        let clients = match &options.tokens {
            None => vec![Client::default()],
            Some(path) => clients(path)?,
        };
        ensure!(!clients.is_empty(), "the file of tokens is empty");
        let (http1, http2) = match options.http2_streams {
            None => (clients.iter().map(|client| http1::request(options, client)).collect(), Vec::new()),
            Some(_) => {
                let requests = clients.iter().map(|client| http2::request(options, client));
                (Vec::new(), requests.collect::<Result<_, _>>()?)
            }
        };
        let length = Duration::from_secs_f64(options.warmup + options.seconds);
        Ok(Load {
            connector: Connector::new(options.address, options.authority.as_deref(), options.http2_streams.is_some())?,
            pace: Rc::new(Pace::new(options.rate, length)),
            http1,
            http2,
            next: Cell::new(0),
            upload: vec![b'u'; options.upload],
            new_connections: options.new_connections,
            expected: Expected {
                status: options.expect_status,
                body: options.expect_body.clone().map(String::into_bytes),
                length: options.expect_length,
            },
            latencies: RefCell::new(Histogram::new_with_bounds(1, MAX_LATENCY, 3)?),
            reconnects: Cell::new(0),
        })
    }

    /// Whose turn it is, out of `count`.
    fn turn(&self, count: usize) -> usize {
        let at = self.next.get();
        self.next.set((at + 1) % count);
        at
    }

    /// An answer to the request that was to be sent at `due` has been read.
    fn answered(&self, due: Instant) {
        self.latencies.borrow_mut().saturating_record(due.elapsed().as_nanos() as u64);
    }
}

impl Expected {
    /// # Errors
    /// When the answer is not the expected one; `shown` is the part of the body that was kept.
    fn check(&self, status: u16, length: usize, shown: &[u8]) -> anyhow::Result<()> {
        let right = status == self.status
            && self.body.as_deref().is_none_or(|body| body.len() == length && body == shown)
            && self.length.is_none_or(|expected| expected == length);
        if !right {
            let text = String::from_utf8_lossy(&shown[..shown.len().min(1000)]);
            bail!("wrong answer: {status} with a body of {length} bytes: {text}");
        }
        Ok(())
    }
}

fn clients(path: &Path) -> anyhow::Result<Vec<Client>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let client = |line: &str| match line.split_once(' ') {
        Some((token, cookie)) => Client { token: Some(token.to_owned()), cookie: Some(cookie.to_owned()) },
        None => Client { token: Some(line.to_owned()), cookie: None },
    };
    Ok(text.lines().map(client).collect())
}
