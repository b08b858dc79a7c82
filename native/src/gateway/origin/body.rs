//! The body of an origin's answer, with the connection over which it comes.

use std::io::Result;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use edgekeep_core::exchange::Endpoint;
use http_body::{Frame, SizeHint};
use tokio::task::AbortHandle;

use super::{Held, Upgraded};

/// Dropped before its end, it closes the connection.
pub struct AnswerBody {
    connection: Held,
    endpoint: Arc<Endpoint>,
    /// What goes on sending the request's body: neither side waits for the other.
    sending: Option<AbortHandle>,
}

impl AnswerBody {
    pub fn new(connection: Held, endpoint: Arc<Endpoint>) -> AnswerBody {
        let mut body = AnswerBody { connection, endpoint, sending: None };
        if !body.connection.borrow().sending.is_done() {
            let connection = body.connection.clone();
            let sending = std::future::poll_fn(move |cx| connection.borrow_mut().poll_sending(cx));
            body.sending = Some(tokio::task::spawn_local(sending).abort_handle());
        }
        body
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        self.connection.borrow_mut().poll_body(cx)
    }

    pub fn is_end_stream(&self) -> bool {
        self.connection.borrow().framing.is_over()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.connection.borrow().framing.rest().map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    /// The connection, if another request may follow on it.
    pub fn reusable(&self) -> Option<(&Arc<Endpoint>, Held)> {
        self.connection.borrow().is_reusable().then(|| (&self.endpoint, self.connection.clone()))
    }

    /// The connection speaks another protocol from here on.
    pub fn upgraded(&self) -> Upgraded {
        Upgraded(self.connection.clone())
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Some(sending) = &self.sending {
            sending.abort();
        }
    }
}
