//! One client's connection from accept to end: introduced by a proxy or not, TLS or none, HTTP/1.1 or HTTP/2, and what
//! bounds them all.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use edgekeep_core::http::Peer;
use http::header::CONNECTION;
use http::{HeaderValue, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::batch::Batched;
use super::http2;
use super::patience::Patience;
use super::proxy_protocol::{self, Proxied};
use super::service::serve;
use super::socket::{Activity, Socket};
use super::worker::{Counted, Worker};
use crate::log::{self, AccessLine};
use crate::tls::HTTP_2;

/// hyper's own smallest buffer.
const SMALLEST_BUFFER: usize = 8192;

/// What the configuration allowed a connection when it was accepted.
#[derive(Clone, Copy)]
pub struct Bounds {
    header_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_header_bytes: u64,
}

/// One connection, until either side ends it.
pub async fn converse(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    peer: SocketAddr,
    place: Option<OwnedSemaphorePermit>,
) {
    let _counted = Counted::new(worker.clone());
    // Without it a small answer may wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    let address = peer.ip().to_canonical();
    let (bounds, introduced) = {
        let rules = worker.rules.load();
        let server = &rules.config.server;
        let introduced = match server.proxy_protocol {
            false => Introduced::No,
            true if server.trusted_proxies.iter().any(|network| network.contains(address)) => Introduced::ByProxy,
            true => Introduced::ByStranger,
        };
        let bounds = Bounds {
            header_timeout: Duration::from_millis(server.header_timeout.0),
            idle_timeout: Duration::from_millis(server.idle_timeout.0),
            max_header_bytes: server.max_header_bytes.0,
        };
        (bounds, introduced)
    };
    let mut peer = Peer { ip: Some(address), secure: false };
    match introduced {
        Introduced::No => {}
        Introduced::ByProxy => match Box::pin(introduction(&worker, &mut stream, bounds)).await {
            Ok(Some(client)) => peer = Peer { ip: client.ip.or(peer.ip), secure: client.secure },
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(proxy = %address, %error, "a proxy's connection ended early");
                return;
            }
        },
        // Its first bytes would be read as a client's, or its word be taken for a proxy's.
        Introduced::ByStranger => {
            tracing::warn!(%address, "not one of server.trusted_proxies: its connection is closed");
            return;
        }
    }
    let acceptor = worker.certificates.load().clients().cloned();
    let stream = Patience::new(Batched::new(stream, &worker.batch), bounds.idle_timeout);
    let ended = match acceptor {
        None => plain(&worker, stream, peer, bounds, place).await,
        // In a box, as the other ones below: what waits for its first byte is small.
        Some(acceptor) => Box::pin(encrypted(&worker, &acceptor, stream, peer, bounds, place)).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended early");
        // What hyper could not read it has answered itself: requests that no exchange knows.
        if worker.access_log
            && let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_parse()
        {
            let status = if error.is_parse_too_large() {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            };
            log::access(AccessLine::unread(peer.ip, status.as_u16()));
        }
    }
}

/// Whether a proxy says who the client is (`server.proxy_protocol`).
enum Introduced {
    No,
    ByProxy,
    ByStranger,
}

/// What the proxy says; none when this core has drained meanwhile for as long as it may be idle.
async fn introduction(
    worker: &Worker,
    stream: &mut TcpStream,
    bounds: Bounds,
) -> Result<Option<Proxied>, Box<dyn std::error::Error>> {
    tokio::select! {
        biased;
        read = tokio::time::timeout(bounds.header_timeout, proxy_protocol::read(stream)) => {
            Ok(Some(read.map_err(|_| "the PROXY header took longer than server.header_timeout")??))
        }
        () = worker.until_lingered() => Ok(None),
    }
}

type Ended = Result<(), Box<dyn std::error::Error>>;

async fn plain(
    worker: &Rc<Worker>,
    stream: Patience<Batched>,
    peer: Peer,
    bounds: Bounds,
    place: Option<OwnedSemaphorePermit>,
) -> Ended {
    let client = stream.get_ref().far_end();
    let (mut socket, activity) = Socket::new(stream, client, bounds.header_timeout, bounds.idle_timeout, place);
    match begins_http2(worker, &mut socket).await? {
        Some(true) => Box::pin(http2::converse(worker, socket, activity, peer, bounds)).await,
        Some(false) => Box::pin(http1(worker, socket, activity, peer, bounds)).await,
        None => Ok(()),
    }
}

/// Whether the first bytes are those of HTTP/2; none when this core has drained meanwhile for as long as it may be idle.
async fn begins_http2<S: AsyncRead + Unpin>(worker: &Worker, socket: &mut Socket<S>) -> std::io::Result<Option<bool>> {
    tokio::select! {
        biased;
        begun = socket.begins_http2() => begun.map(Some),
        () = worker.until_lingered() => Ok(None),
    }
}

async fn encrypted(
    worker: &Rc<Worker>,
    acceptor: &tokio_rustls::TlsAcceptor,
    stream: Patience<Batched>,
    peer: Peer,
    bounds: Bounds,
    place: Option<OwnedSemaphorePermit>,
) -> Ended {
    let shaking = tokio::time::timeout(bounds.header_timeout, acceptor.accept(stream));
    let stream = tokio::select! {
        biased;
        shaken = shaking => shaken.map_err(|_| "the TLS handshake took longer than server.header_timeout")??,
        () = worker.until_lingered() => return Ok(()),
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
    let client = stream.get_ref().0.get_ref().far_end();
    let (mut socket, activity) = Socket::new(stream, client, bounds.header_timeout, bounds.idle_timeout, place);
    let peer = Peer { secure: true, ..peer };
    if !is_http2 {
        return Box::pin(http1(worker, socket, activity, peer, bounds)).await;
    }
    // Whoever agreed to HTTP/2 begins it in the time of a head, for which hyper would wait for ever. Other first bytes
    // are hyper's to refuse.
    match begins_http2(worker, &mut socket).await? {
        Some(_) => Box::pin(http2::converse(worker, socket, activity, peer, bounds)).await,
        None => Ok(()),
    }
}

async fn http1<S>(worker: &Rc<Worker>, socket: Socket<S>, activity: Activity, peer: Peer, bounds: Bounds) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let activity = &activity;
        // In a box of its own: hyper keeps the room for it while the connection is idle.
        Box::pin(async move {
            let mut response = serve(worker.clone(), peer, activity.clone(), request).await?;
            if worker.linger().is_some() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        })
    });
    let connection = http1::Builder::new()
        .half_close(false)
        .max_buf_size(usize::try_from(bounds.max_header_bytes).unwrap_or(usize::MAX).max(SMALLEST_BUFFER))
        .serve_connection(socket, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = worker.until_draining() => {}
    }
    // From now on each answer is the last of its connection. One that stays idle gets none.
    let linger = worker.linger().unwrap_or_default();
    let idle = async {
        tokio::time::sleep(linger).await;
        activity.idle_for(linger).await;
    };
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = idle => {}
    }
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}
