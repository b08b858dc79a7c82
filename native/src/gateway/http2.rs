//! HTTP/2 to a client: many requests at once over one connection, each a task of its own, so that one whose session has
//! ended is cut alone. Origins are spoken to in HTTP/1.1, so a request becomes here what it would have been in that.

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use edgekeep_core::http::Peer;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connection::Bounds;
use super::service::serve;
use super::socket::{Activity, Socket};
use super::worker::Worker;

/// Requests at once over one connection; a browser opens about a hundred.
const STREAMS: u32 = 256;
/// What a client may send of one body before it is read on: enough for 20 Mbit/s at 100 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
/// What a client may send of all its bodies.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is kept of an answer whose client reads slowly.
const SEND_BUFFER: usize = 64 * 1024;
/// How often a client is asked whether it is still there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams that a client may reset before they were begun, and that it may have reset for its faults: beyond that it is
/// an attack (CVE-2023-44487, CVE-2025-8671) and the connection ends.
const RESETS: usize = 64;
const FAULTS: usize = 256;

/// Serves one connection until either side ends it. Whoever is idle or finds this core draining is told by GOAWAY, so
/// that no request is lost on the way.
pub async fn converse<S>(
    worker: &Rc<Worker>,
    socket: Socket<S>,
    activity: Activity,
    peer: Peer,
    bounds: Bounds,
) -> Result<(), Box<dyn std::error::Error>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let begun = Tasks { next: Rc::default(), patience: bounds.idle_timeout };
    let service = service_fn(|mut request| {
        join_cookies(request.headers_mut());
        let stream = activity.stream();
        begun.next(stream.clone());
        serve(worker.clone(), peer, stream, request)
    });
    let connection = http2::Builder::new(begun.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(bounds.max_header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(FAULTS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(socket.without_timers(), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = worker.until_draining() => {}
        () = activity.idle_for(bounds.idle_timeout) => {}
    }
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}

/// Runs each stream on this core until it ends, is cut, or its client has taken nothing of its answer for too long. A
/// stream that is dropped on its way is reset, whether it was about to answer, to send, or to wait for a client that
/// does not read.
#[derive(Clone)]
struct Tasks {
    next: Rc<RefCell<Option<Activity>>>,
    patience: Duration,
}

impl Tasks {
    /// hyper asks the service for an answer, and then for a task that works on it.
    fn next(&self, stream: Activity) {
        self.next.replace(Some(stream));
    }
}

impl<F: Future + 'static> Executor<F> for Tasks {
    fn execute(&self, work: F) {
        let (activity, patience) = (self.next.take(), self.patience);
        tokio::task::spawn_local(async move {
            let mut work = pin!(work);
            // Made when a client takes nothing for the first time, which most never do.
            let mut limit: Option<Pin<Box<Sleep>>> = None;
            std::future::poll_fn(|cx| {
                if activity.as_ref().is_some_and(Activity::is_cut) || work.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let Some(since) = activity.as_ref().and_then(Activity::untaken_since) else { return Poll::Pending };
                let until = since + patience;
                let limit = limit.get_or_insert_with(|| Box::pin(sleep_until(until)));
                while limit.as_mut().poll(cx).is_ready() {
                    if until <= Instant::now() {
                        return Poll::Ready(());
                    }
                    limit.as_mut().reset(until);
                }
                Poll::Pending
            })
            .await;
        });
    }
}

/// A cookie may come in pieces, one a field (RFC 9113 §8.2.3); everybody behind reads one.
fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (pieces.next(), pieces.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for piece in std::iter::once(second).chain(pieces) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(piece.as_bytes());
    }
    // Made of values, it is one.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_cookie_become_one() {
        let joined = |pieces: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for piece in pieces {
                headers.append(COOKIE, HeaderValue::from_static(piece));
            }
            join_cookies(&mut headers);
            headers.get_all(COOKIE).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(joined(&[]), [""; 0]);
        assert_eq!(joined(&["a=1"]), ["a=1"]);
        assert_eq!(joined(&["a=1", "b=2", "c=3; d=4"]), ["a=1; b=2; c=3; d=4"]);
    }
}
