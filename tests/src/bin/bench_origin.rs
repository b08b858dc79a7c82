//! The origins of `cargo xtask bench`: one fixed answer, as fast as a socket gives it, on each address.
//!
//! They share a core with the load, so every microsecond they spend is one that the gateway under test might be waiting
//! for. They are one process therefore, and read of a GET nothing but where its head ends. Each says in
//! `x-bench-origin` which it is, and answers `/seen` with the head that came, for whoever must prove what a proxy sends.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HEAD_END: &[u8] = b"\r\n\r\n";

/// A head larger than this closes the connection: a proxy has gone wrong.
const MAX_HEAD: usize = 64 * 1024;

/// More header fields than this in a request close the connection.
const MAX_HEADERS: usize = 64;

#[derive(Parser)]
struct Options {
    /// An origin for each; they are called `0`, `1` and so on.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// The body of every answer.
    #[arg(long)]
    body: String,
    /// The body is repeated up to this length.
    #[arg(long)]
    length: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(!options.body.is_empty(), "--body must not be empty");
    let length = options.length.unwrap_or(options.body.len());
    let body: Vec<u8> = options.body.bytes().cycle().take(length).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let mut origins = Vec::new();
        for (name, address) in options.listen.iter().enumerate() {
            let listener = TcpListener::bind(address).await?;
            let head = head(name, "application/json", body.len());
            let answer: &'static [u8] = [head.as_bytes(), &body].concat().leak();
            origins.push(tokio::task::spawn_local(accept(listener, name, answer)));
        }
        for origin in origins {
            origin.await??;
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener, name: usize, answer: &'static [u8]) -> anyhow::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::task::spawn_local(async move {
            // The other side closing, cleanly or not, is how every connection here ends.
            let _ = serve(socket, name, answer).await;
        });
    }
}

fn head(name: usize, content_type: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\ncontent-type: {content_type}\r\n\
         x-bench-origin: {name}\r\ncontent-length: {length}\r\n\r\n"
    )
}

async fn serve(mut socket: TcpStream, name: usize, answer: &'static [u8]) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut read_to = 0;
        while let Some(end) = find_head_end(&buffer, read_to) {
            let request = &buffer[read_to..end];
            if request.starts_with(b"GET /seen") {
                let seen = [head(name, "text/plain", request.len()).as_bytes(), request].concat();
                socket.write_all(&seen).await?;
            } else if request.starts_with(b"GET ") {
                socket.write_all(answer).await?;
            } else {
                let body = content_length(request)?;
                let here = buffer.len() - end;
                discard(&mut socket, body.saturating_sub(here)).await?;
                socket.write_all(answer).await?;
                read_to = end + body.min(here);
                continue;
            }
            read_to = end;
        }
        buffer.drain(..read_to);
        if buffer.len() > MAX_HEAD {
            return Ok(());
        }
    }
}

/// The index after the blank line that ends the head which starts at `from`.
fn find_head_end(buffer: &[u8], from: usize) -> Option<usize> {
    let at = memchr::memmem::find(buffer.get(from..)?, HEAD_END)?;
    Some(from + at + HEAD_END.len())
}

/// The length of an upload; a chunked one is an error here.
fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head)?;
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.context("an upload without content-length")?;
    Ok(std::str::from_utf8(length.value)?.trim().parse()?)
}

async fn discard(socket: &mut TcpStream, mut length: usize) -> anyhow::Result<()> {
    let mut scratch = vec![0; length.min(MAX_HEAD)];
    while length > 0 {
        let up_to = length.min(scratch.len());
        let read = socket.read(&mut scratch[..up_to]).await?;
        ensure!(read > 0, "an upload that ends early");
        length -= read;
    }
    Ok(())
}
