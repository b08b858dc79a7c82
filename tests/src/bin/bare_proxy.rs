//! The floor under our gateway in `cargo xtask bench gateway`: the same shape (hyper's low-level connections, one
//! current-thread runtime, pooled origin connections, mimalloc) with nothing decided: two origins take turns.
//!
//! What our gateway costs above this one is what its decisions cost; what this one costs above nginx or HAProxy is
//! what the shape costs.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use clap::Parser;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    listen: SocketAddr,
    /// They take turns.
    #[arg(long, required = true)]
    origin: Vec<SocketAddr>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(options.listen).await?;
        let origin = |address: &SocketAddr| Rc::new(Pool { origin: *address, idle: RefCell::default() });
        let pools: Rc<[_]> = options.origin.iter().map(origin).collect();
        let turn = Rc::new(Cell::new(0));
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let (pools, turn) = (Rc::clone(&pools), Rc::clone(&turn));
            tokio::task::spawn_local(async move {
                let service = service_fn(|request| {
                    turn.set((turn.get() + 1) % pools.len());
                    forward(Rc::clone(&pools[turn.get()]), request)
                });
                // The client closing, cleanly or not, is how every connection here ends.
                let _ = server::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    })
}

async fn forward(pool: Rc<Pool>, mut request: Request<Incoming>) -> anyhow::Result<Response<Pooled>> {
    request.headers_mut().remove(header::CONNECTION);
    let mut connection = pool.take().await?;
    let mut response = connection.send_request(request).await?;
    response.headers_mut().remove(header::CONNECTION);
    Ok(response.map(|body| Pooled { body, connection: Some(connection), pool }))
}

/// Connections to one origin. Those lent out are bounded by the client connections, so the pool needs no limit.
struct Pool {
    origin: SocketAddr,
    idle: RefCell<Vec<SendRequest<Incoming>>>,
}

impl Pool {
    async fn take(&self) -> anyhow::Result<SendRequest<Incoming>> {
        loop {
            let Some(mut connection) = self.idle.borrow_mut().pop() else { break };
            // An error means that the origin closed it while it was idle.
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let socket = TcpStream::connect(self.origin).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = client::handshake(TokioIo::new(socket)).await?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }
}

/// A response body that gives its connection back once all of it was read.
struct Pooled {
    body: Incoming,
    connection: Option<SendRequest<Incoming>>,
    pool: Rc<Pool>,
}

impl Pooled {
    fn give_back(&mut self) {
        self.pool.idle.borrow_mut().extend(self.connection.take());
    }
}

impl Body for Pooled {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if self.body.is_end_stream() {
            self.give_back();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Pooled {
    /// hyper polls no body that was empty from the start.
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }
}
