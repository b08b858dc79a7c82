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
    /// Until another request, or another protocol, has it.
    connection: Option<Held>,
    endpoint: Arc<Endpoint>,
    /// What goes on sending the request's body: neither side waits for the other.
    sending: Option<AbortHandle>,
}

impl AnswerBody {
    pub fn new(connection: Held, endpoint: Arc<Endpoint>) -> AnswerBody {
        let sending = (!connection.borrow().sending.is_done()).then(|| {
            let connection = connection.clone();
            let sending = std::future::poll_fn(move |cx| connection.borrow_mut().poll_sending(cx));
            tokio::task::spawn_local(sending).abort_handle()
        });
        AnswerBody { connection: Some(connection), endpoint, sending }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        self.connection.as_ref().map_or(Poll::Ready(None), |connection| connection.borrow_mut().poll_body(cx))
    }

    pub fn is_end_stream(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.borrow().framing.is_over())
    }

    pub fn size_hint(&self) -> SizeHint {
        let rest = self.connection.as_ref().map_or(Some(0), |connection| connection.borrow().framing.rest());
        rest.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    /// Gives the connection away, if another request may follow on it: what comes over it then is no more of this body.
    pub fn reusable(&mut self) -> Option<(&Arc<Endpoint>, Held)> {
        let connection = self.connection.take_if(|connection| connection.borrow().is_reusable())?;
        connection.borrow_mut().let_go();
        Some((&self.endpoint, connection))
    }

    /// The connection speaks another protocol from here on.
    pub fn upgraded(mut self) -> Option<Upgraded> {
        self.connection.take().map(Upgraded)
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // An origin that has answered to the end may still want the rest of the upload.
        if let Some(sending) = &self.sending
            && !self.is_end_stream()
        {
            sending.abort();
        }
    }
}
