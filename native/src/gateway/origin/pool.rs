//! Connections to origins, pooled per core: the last one used is used again, those unused for a while are closed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use edgekeep_core::exchange::Endpoint;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::stream::Stream;
use super::{Connection, Held};
use crate::gateway::batch::{Batch, Batched};
use crate::gateway::clock::Tick;
use crate::gateway::listen::ALIVE;
use crate::gateway::patience::Patience;
use crate::tls::Certificates;

/// An unused connection is closed after this time, before most origins close it themselves.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// The most unused connections per origin and core.
const IDLE_AT_MOST: usize = 4096;
/// What is wrong with an origin's TLS is said once in this time, by each core.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// One core's connections.
pub struct Origins {
    batch: Batch,
    idle: RefCell<HashMap<Arc<Endpoint>, Vec<Idle>>>,
    /// When an origin's TLS was last complained of.
    said: RefCell<HashMap<Arc<Endpoint>, Instant>>,
}

struct Idle {
    connection: Held,
    since: Tick,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("timed out")]
    TimedOut,
    #[error("TLS: {0}")]
    Tls(String),
}

impl ConnectError {
    /// The gateway, or its machine, has no file left: no origin's fault.
    pub fn is_own(&self) -> bool {
        let ConnectError::Io(error) = self else { return false };
        matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
    }
}

impl Origins {
    pub fn new(batch: &Batch) -> Origins {
        Origins { batch: batch.clone(), idle: RefCell::default(), said: RefCell::default() }
    }

    /// A kept connection that is still there.
    pub fn take(&self, endpoint: &Arc<Endpoint>) -> Option<Held> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(endpoint)?;
        // From the end: the one used last is the least likely to have been closed by the origin.
        std::iter::from_fn(|| kept.pop()).map(|idle| idle.connection).find(|held| held.borrow_mut().is_usable())
    }

    /// Keeps a connection whose answer has ended.
    pub fn put(&self, endpoint: &Arc<Endpoint>, connection: Held) {
        let mut idle = self.idle.borrow_mut();
        let kept = match idle.get_mut(endpoint) {
            Some(kept) => kept,
            None => idle.entry(endpoint.clone()).or_default(),
        };
        if kept.len() < IDLE_AT_MOST {
            kept.push(Idle { connection, since: Tick::now() });
        }
    }

    /// Closes what nobody used for a while, and what its origin has closed.
    pub fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, kept| {
            kept.retain(|idle| idle.since.elapsed() < IDLE_FOR && idle.connection.borrow_mut().is_usable());
            !kept.is_empty()
        });
        let now = Instant::now();
        self.said.borrow_mut().retain(|_, last| now.duration_since(*last) < SAID_EVERY);
    }

    /// A new connection.
    pub async fn connect(
        &self,
        endpoint: &Arc<Endpoint>,
        certificates: &ArcSwap<Certificates>,
        within: Duration,
    ) -> Result<Held, ConnectError> {
        let connecting = async {
            let stream = Patience::new(Batched::new(dial(endpoint).await?, &self.batch), within);
            let stream = match endpoint.is_encrypted() {
                false => Stream::Plain(stream),
                true => Stream::Encrypted(Box::new(encrypt(stream, endpoint, &certificates.load_full()).await?)),
            };
            Ok(Rc::new(RefCell::new(Connection::new(stream))))
        };
        let connected = tokio::time::timeout(within, connecting).await.unwrap_or(Err(ConnectError::TimedOut));
        if let Err(error @ ConnectError::Tls(_)) = &connected {
            self.complain(endpoint, error);
        }
        connected
    }

    /// A wrong certificate does not heal by itself, as a refused connection may.
    fn complain(&self, endpoint: &Arc<Endpoint>, error: &ConnectError) {
        let now = Instant::now();
        let mut said = self.said.borrow_mut();
        if said.get(endpoint).is_none_or(|last| now.duration_since(*last) >= SAID_EVERY) {
            said.insert(endpoint.clone(), now);
            let address = endpoint.address.map(tracing::field::display);
            tracing::warn!(origin = %endpoint.url, address, %error, "no connection to the origin");
        }
    }
}

/// A plain connection to where an origin listens.
pub async fn dial(endpoint: &Endpoint) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((endpoint.host().as_str(), endpoint.url.port)).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&ALIVE)?;
    Ok(stream)
}

/// The origin's own side of TLS, as its pool asks for it.
pub async fn encrypt<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    endpoint: &Endpoint,
    certificates: &Certificates,
) -> Result<TlsStream<S>, ConnectError> {
    let failed = |why: &dyn std::fmt::Display| ConnectError::Tls(why.to_string());
    let name = endpoint.certified_name().to_owned();
    let name = ServerName::try_from(name).map_err(|_| failed(&"its host is no name that a certificate can have"))?;
    let connector =
        certificates.origin(endpoint.tls.as_ref()).ok_or_else(|| failed(&"its certificates are not read"))?;
    connector.connect(name, stream).await.map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn files_that_ran_out_are_the_gateways_own_fault() {
        for (errno, is_own) in [(Errno::MFILE, true), (Errno::NFILE, true), (Errno::CONNREFUSED, false)] {
            assert_eq!(ConnectError::Io(Error::from(errno)).is_own(), is_own, "{errno}");
        }
        assert!(!ConnectError::TimedOut.is_own() && !ConnectError::Tls(String::new()).is_own());
    }
}
