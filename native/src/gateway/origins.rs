//! Connections to origins, pooled per core: the last one used is used again, those unused for a while are closed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use edgekeep_core::config::{OriginUrl, Scheme};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::heard::Listening;
pub use super::heard::Sender;

/// An unused connection is closed after this time, before most origins close it themselves.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// The most unused connections per origin and core.
const IDLE_AT_MOST: usize = 4096;

/// One core's connections.
#[derive(Default)]
pub struct Origins {
    idle: RefCell<HashMap<OriginUrl, Vec<Idle>>>,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Handshake(#[from] hyper::Error),
    #[error("timed out")]
    TimedOut,
    #[error("https to origins is not built yet")]
    Tls,
}

impl Origins {
    /// A kept connection that is ready now.
    pub fn take(&self, url: &OriginUrl) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(url)?;
        // From the end: the one used last is the least likely to have been closed by the origin.
        let mut at = kept.len();
        while at > 0 {
            at -= 1;
            if kept[at].sender.is_ready() {
                return Some(kept.swap_remove(at).sender);
            }
            if kept[at].sender.is_closed() {
                kept.swap_remove(at);
            }
        }
        None
    }

    /// Keeps a connection whose response has ended.
    pub fn put(&self, url: &OriginUrl, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let kept = match idle.get_mut(url) {
            Some(kept) => kept,
            None => idle.entry(url.clone()).or_default(),
        };
        if kept.len() < IDLE_AT_MOST {
            kept.push(Idle { sender, since: Instant::now() });
        }
    }

    /// Closes what nobody used for a while.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, kept| {
            kept.retain(|idle| !idle.sender.is_closed() && now.duration_since(idle.since) < IDLE_FOR);
            !kept.is_empty()
        });
    }

    /// A new connection.
    pub async fn connect(&self, url: &OriginUrl, within: Duration) -> Result<Sender, ConnectError> {
        if url.scheme == Scheme::Https {
            return Err(ConnectError::Tls);
        }
        let connecting = TcpStream::connect((url.host.as_str(), url.port));
        let stream = tokio::time::timeout(within, connecting).await.map_err(|_| ConnectError::TimedOut)??;
        stream.set_nodelay(true)?;
        let (stream, heard) = Listening::new(stream);
        let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(async move {
            // How a kept connection ends is of no interest: the next request finds it closed.
            let _ = connection.with_upgrades().await;
        });
        Ok(Sender::new(sender, heard))
    }
}
