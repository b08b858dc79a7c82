//! The origin of `cargo xtask bench`: one fixed answer, as fast as a socket gives it.
//!
//! It shares a core with the load, so every microsecond it spends is one that the gateway under test might be waiting
//! for. It therefore reads nothing but where a head ends, and serves only requests without a body.

use std::net::SocketAddr;

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HEAD_END: &[u8] = b"\r\n\r\n";

/// A head larger than this closes the connection: a proxy has gone wrong.
const MAX_HEAD: usize = 64 * 1024;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    listen: SocketAddr,
    /// The body of every answer.
    #[arg(long)]
    body: String,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let answer: &'static [u8] = answer(&options.body).leak();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(options.listen).await?;
        loop {
            let (socket, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                // The other side closing, cleanly or not, is how every connection here ends.
                let _ = serve(socket, answer).await;
            });
        }
    })
}

fn answer(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn serve(mut socket: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut read_to = 0;
        while let Some(end) = find_head_end(&buffer, read_to) {
            socket.write_all(answer).await?;
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
