//! A request body on its way to an origin: streamed, its first bytes kept so that it can be sent again, and cut off at
//! `limits.body`.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use edgekeep_core::Millis;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::clock::Tick;
use super::head::strip_trailers;

/// The client's side of the body, shared by the attempts to send it.
#[derive(Clone)]
pub struct Upload(Rc<RefCell<State>>);

struct State {
    incoming: Incoming,
    is_http2: bool,
    /// What was read so far, unless it is more than may be kept.
    kept: Option<Vec<Bytes>>,
    kept_bytes: u64,
    keep_at_most: u64,
    read: u64,
    limit: u64,
    too_large: bool,
    /// The client's body broke off, or was none.
    broken: bool,
    /// Which attempt may read: the newest. An older one that is still being polled must not take what is the newer's.
    generation: u32,
    /// When the last piece came, or the body ended.
    moved_at: Tick,
    ended: bool,
    /// The client owes the next piece.
    owed: bool,
}

/// Who has to do something next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Client,
    Origin,
}

/// One attempt's body.
pub struct Attempt {
    upload: Upload,
    generation: u32,
    /// How many of the kept pieces this attempt has sent.
    sent: usize,
}

/// Why a body cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("the body is larger than limits.body")]
    TooLarge,
    #[error("the client's body failed: {0}")]
    Client(hyper::Error),
    #[error("the client has reset its stream")]
    Reset,
    #[error("the body is not as long as was said")]
    Length,
    #[error("the body cannot be sent again")]
    NotReplayable,
}

impl Upload {
    pub fn new(incoming: Incoming, limit: u64, version: Version) -> Upload {
        Upload(Rc::new(RefCell::new(State {
            ended: incoming.is_end_stream(),
            incoming,
            is_http2: version == Version::HTTP_2,
            kept: Some(Vec::new()),
            kept_bytes: 0,
            keep_at_most: 0,
            read: 0,
            limit,
            too_large: false,
            broken: false,
            generation: 0,
            moved_at: Tick::now(),
            owed: false,
        })))
    }

    /// For how long nothing has moved, and whose turn it is.
    pub fn quiet(&self) -> (Duration, Turn) {
        let state = self.0.borrow();
        let turn = if state.owed && !state.ended { Turn::Client } else { Turn::Origin };
        (state.moved_at.elapsed(), turn)
    }

    /// For how long an origin has had all that it was sent of a body; none where there is no body.
    pub fn sent_ago(&self) -> Option<Millis> {
        let state = self.0.borrow();
        (state.read > 0).then(|| Millis(u64::try_from(state.moved_at.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }

    /// A body for the next attempt, which keeps at most `retry_buffer` bytes.
    pub fn attempt(&self, retry_buffer: u64) -> Attempt {
        let mut state = self.0.borrow_mut();
        state.keep_at_most = retry_buffer;
        state.generation += 1;
        state.moved_at = Tick::now();
        Attempt { upload: self.clone(), generation: state.generation, sent: 0 }
    }

    /// Everything that was read is still at hand.
    pub fn is_replayable(&self) -> bool {
        self.0.borrow().kept.is_some()
    }

    /// The client has sent all of it.
    pub fn is_ended(&self) -> bool {
        self.0.borrow().ended
    }

    pub fn is_too_large(&self) -> bool {
        self.0.borrow().too_large
    }

    pub fn is_broken(&self) -> bool {
        self.0.borrow().broken
    }

    /// Reads the whole body, at most `limit` bytes of it; `None` beyond.
    pub async fn collect(&self, limit: u64) -> Result<Option<Vec<u8>>, UploadError> {
        let mut bytes = Vec::new();
        loop {
            let frame = std::future::poll_fn(|cx| self.0.borrow_mut().poll_client(cx));
            let Some(frame) = frame.await else { return Ok(Some(bytes)) };
            if let Some(data) = frame?.data_ref() {
                if (bytes.len() + data.len()) as u64 > limit {
                    return Ok(None);
                }
                bytes.extend_from_slice(data);
            }
        }
    }
}

impl State {
    /// What the client sends next. In HTTP/2 hyper takes a reset that names no error for an end like any other.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            None if self.is_http2 && !self.incoming.is_end_stream() => Poll::Ready(Some(Err(UploadError::Reset))),
            frame => Poll::Ready(frame.map(|frame| frame.map_err(UploadError::Client))),
        }
    }
}

impl Attempt {
    /// What an earlier attempt has read is not at hand any more.
    fn lacks_its_beginning(&self, state: &State) -> bool {
        state.kept.is_none() && self.sent == 0 && state.read > 0
    }
}

impl Body for Attempt {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = &mut *self;
        let state = &mut *this.upload.0.borrow_mut();
        if state.generation != this.generation || this.lacks_its_beginning(state) {
            return Poll::Ready(Some(Err(UploadError::NotReplayable)));
        }
        if let Some(piece) = state.kept.as_ref().and_then(|pieces| pieces.get(this.sent)) {
            this.sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        let mut frame = match state.poll_client(cx) {
            Poll::Pending => {
                state.owed = true;
                return Poll::Pending;
            }
            Poll::Ready(None) => {
                (state.ended, state.moved_at) = (true, Tick::now());
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => {
                state.broken = true;
                return Poll::Ready(Some(Err(error)));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        if frame.is_trailers() {
            strip_trailers(&mut frame);
            // They are not kept, so the body could only be sent again without them.
            state.kept = None;
        }
        (state.owed, state.moved_at, state.ended) = (false, Tick::now(), state.incoming.is_end_stream());
        if let Some(data) = frame.data_ref() {
            state.read += data.len() as u64;
            if state.read > state.limit {
                state.too_large = true;
                return Poll::Ready(Some(Err(UploadError::TooLarge)));
            }
            this.sent += 1;
            if let Some(pieces) = &mut state.kept {
                state.kept_bytes += data.len() as u64;
                if state.kept_bytes > state.keep_at_most {
                    state.kept = None;
                } else {
                    pieces.push(data.clone());
                }
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.upload.0.borrow();
        let has_sent_what_was_read = match &state.kept {
            Some(kept) => self.sent >= kept.len(),
            None => !self.lacks_its_beginning(&state),
        };
        has_sent_what_was_read && state.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.upload.0.borrow();
        let resent: u64 = match &state.kept {
            Some(kept) => kept.iter().skip(self.sent).map(|piece| piece.len() as u64).sum(),
            None => 0,
        };
        match state.incoming.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + resent),
            None => SizeHint::default(),
        }
    }
}
