//! A response body on its way to the client. When it ends, or its client leaves, the exchange ends with it, exactly once.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::head::strip_trailers;
use super::service::Ending;

/// What a response carries.
pub enum Download {
    /// An answer of our own.
    Bytes(Option<Bytes>, Option<Box<Ending>>),
    /// An origin's, streamed.
    Origin(Incoming, Option<Box<Ending>>),
}

impl Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Download::Bytes(bytes, ending) => {
                if let Some(ending) = ending.take() {
                    ending.sent();
                }
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Download::Origin(incoming, ending) => {
                let mut frame = Pin::new(&mut *incoming).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &mut frame {
                    strip_trailers(frame);
                }
                if (matches!(frame, Poll::Ready(None))
                    || (matches!(frame, Poll::Ready(Some(Ok(_)))) && incoming.is_end_stream()))
                    && let Some(ending) = ending.take()
                {
                    ending.sent();
                }
                if let Some(ending) = ending {
                    ending.goes_on(cx.waker());
                    ending.handed(frame.is_ready());
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Download::Bytes(bytes, _) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Download::Origin(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Download::Bytes(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Download::Origin(incoming, _) => incoming.size_hint(),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // hyper does not ask a body that is empty from the start. Any other ending dropped here is an abort.
        if self.is_end_stream()
            && let Download::Bytes(_, ending) | Download::Origin(_, ending) = self
            && let Some(ending) = ending.take()
        {
            ending.sent();
        }
    }
}
