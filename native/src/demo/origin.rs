//! One demo origin: accepts connections, finds what a path means, and ends when it is told to.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::answer::{Answer, Refusal, json, text};
use super::store::{Key, SharedDb};
use super::{probes, resources};

/// On every answer: which origin gave it.
const ORIGIN: HeaderName = HeaderName::from_static("x-demo-origin");

/// After `stop`, how long answers that are under way may take. Longer than a request needs, short for who waits.
const DRAIN: Duration = Duration::from_secs(5);

/// After a failed accept (most often: no file descriptor is free), so that the loop doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves one origin on `listener` until `stop` is ready; answers under way then have five seconds.
///
/// Fails when `origin_id` can't stand in a header. Dropping the future closes the listener and every connection at
/// once. Needs a tokio runtime with IO and time; a current-thread one will do.
pub async fn serve(
    listener: TcpListener,
    origin_id: String,
    shard_db: SharedDb,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let header = HeaderValue::from_str(&origin_id)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an origin's id must be a header value"))?;
    // Nothing is ever sent: every connection waits for the sender to go.
    let (running, ended) = watch::channel(());
    let origin = Arc::new(Origin { id: origin_id, header, db: shard_db, ended });
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => drop(connections.spawn(connection(socket, Arc::clone(&origin)))),
                Err(error) => {
                    tracing::warn!(%error, "demo origin: a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    drop(running);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

struct Origin {
    id: String,
    header: HeaderValue,
    db: SharedDb,
    ended: watch::Receiver<()>,
}

async fn connection(socket: TcpStream, origin: Arc<Origin>) {
    // Small answers leave at once; a socket that refuses is about to fail anyway.
    let _ = socket.set_nodelay(true);
    let mut ended = origin.ended.clone();
    let service = service_fn(move |request| {
        let origin = Arc::clone(&origin);
        async move { Ok::<_, Infallible>(origin.answer(request).await) }
    });
    let mut serving = pin!(http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades());
    let served = tokio::select! {
        served = serving.as_mut() => served,
        _ = ended.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "demo origin: a connection ended early");
    }
}

impl Origin {
    async fn answer(&self, mut request: Request<Incoming>) -> Answer {
        let mut answer = self.route(&mut request).await.unwrap_or_else(|refusal| refusal.answer());
        // What was not read is read now, unkept, so that who still sends gets to see the answer instead of a reset
        // connection. When it doesn't arrive, nobody is there to be answered.
        let _ = probes::tally(request.body_mut()).await;
        answer.headers_mut().insert(ORIGIN, self.header.clone());
        answer
    }

    async fn route(&self, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
        let uri = request.uri().clone();
        let segments: Vec<&str> = uri.path().strip_prefix('/').unwrap_or_default().split('/').collect();
        match segments.as_slice() {
            ["health"] => {
                reading(request)?;
                Ok(json(StatusCode::OK, &json!({ "status": "ok", "origin": self.id })))
            }
            ["users", user, "profile"] => {
                let key = Key::Profile(resources::name(user)?);
                resources::resource(&self.db, key, request).await
            }
            ["photos", month, photo] => {
                let key = Key::Photo { month: resources::name(month)?, photo_id: resources::name(photo)? };
                resources::resource(&self.db, key, request).await
            }
            ["vectors", vector] => {
                let key = Key::Vector(resources::name(vector)?);
                resources::resource(&self.db, key, request).await
            }
            ["public", ..] => {
                reading(request)?;
                Ok(public(uri.path()))
            }
            ["echo", ..] => probes::echo(&self.id, request).await,
            ["stream", bytes] => probes::stream(bytes, request).await,
            ["status", code] => probes::status(&self.id, code, request).await,
            ["slow", millis] => probes::slow(&self.id, millis, request).await,
            ["events", millis, ..] => {
                reading(request)?;
                probes::events(millis)
            }
            ["ws", ..] => probes::upgrade(request, self.ended.clone()),
            _ => Err(Refusal::NotFound),
        }
    }
}

/// The same small text from every origin, which any cache may keep for a minute.
fn public(path: &str) -> Answer {
    let mut answer = text(StatusCode::OK, "text/plain; charset=utf-8", format!("Public text at {path}\n"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=60"));
    answer
}

fn reading(request: &Request<Incoming>) -> Result<(), Refusal> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Refusal::Method("GET, HEAD")),
    }
}
