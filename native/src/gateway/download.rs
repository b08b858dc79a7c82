//! A response body on its way to the client. When it ends, or its client leaves, the exchange ends with it, exactly once.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::head::strip_trailers;
use super::origin::AnswerBody;
use super::service::Ending;

/// What a response carries.
pub enum Download {
    /// An answer of our own.
    Bytes(Option<Bytes>, Option<Box<Ending>>),
    /// An origin's, streamed.
    Origin(AnswerBody, Option<Box<Ending>>),
}

impl Body for Download {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Download::Bytes(bytes, ending) => {
                if let Some(ending) = ending.take() {
                    ending.sent();
                }
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Download::Origin(body, ending) => {
                let mut frame = body.poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &mut frame {
                    strip_trailers(frame);
                }
                if (matches!(frame, Poll::Ready(None))
                    || (matches!(frame, Poll::Ready(Some(Ok(_)))) && body.is_end_stream()))
                    && let Some(ending) = ending.take()
                {
                    ending.answered(body);
                }
                if let Some(ending) = ending {
                    ending.answers(cx.waker());
                    ending.handed(frame.is_ready());
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Download::Bytes(bytes, _) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Download::Origin(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Download::Bytes(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Download::Origin(body, _) => body.size_hint(),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // hyper does not ask a body that is empty from the start. Any other ending dropped here is an abort.
        if !self.is_end_stream() {
            return;
        }
        match self {
            Download::Bytes(_, ending) => ending.take().into_iter().for_each(|ending| ending.sent()),
            Download::Origin(body, ending) => ending.take().into_iter().for_each(|ending| ending.answered(body)),
        }
    }
}
