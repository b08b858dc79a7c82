//! A request on its way: its head, and its body as the client sends it. Small pieces are joined and are one
//! message of the core's batch, large ones go out as they came.

use std::io::{Error, ErrorKind, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::io::AsyncWrite;

use super::request::{RequestFraming, RequestLines};
use crate::gateway::batch::SMALL;
use crate::gateway::upload::{Attempt, UploadError};

/// What a connection that waits for its next request keeps of the room for heads.
const KEPT_ROOM: usize = 16 * 1024;
const CRLF: &[u8] = b"\r\n";

pub struct Sending<B = Attempt> {
    /// The head, small pieces, and the sizes of chunks, of which the first bytes have left.
    out: Vec<u8>,
    left: usize,
    /// A large piece, which follows,
    piece: Bytes,
    /// and what ends its chunk.
    end: &'static [u8],
    /// What is still to come.
    body: Option<B>,
    /// And so much of it, where that was said.
    framing: RequestFraming,
    is_on: bool,
}

/// Why a request did not leave whole.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Body(#[from] UploadError),
    #[error(transparent)]
    Io(#[from] Error),
}

impl<B> Default for Sending<B> {
    fn default() -> Sending<B> {
        Sending {
            out: Vec::new(),
            left: 0,
            piece: Bytes::new(),
            end: b"",
            body: None,
            framing: RequestFraming::None,
            is_on: false,
        }
    }
}

impl<B: Body<Data = Bytes, Error = UploadError> + Unpin> Sending<B> {
    pub fn begin(&mut self, lines: &RequestLines<'_>, body: B) {
        let framing = RequestFraming::of(&body);
        self.out.clear();
        lines.write(framing, &mut self.out);
        self.framing = framing;
        self.body = if framing == RequestFraming::None { None } else { Some(body) };
        (self.left, self.is_on) = (0, true);
        (self.piece, self.end) = (Bytes::new(), b"");
    }

    /// All of it has left.
    pub fn is_done(&self) -> bool {
        !self.is_on
    }

    pub fn give_up(&mut self) {
        (self.body, self.is_on) = (None, false);
    }

    pub fn poll(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        loop {
            self.fill(cx)?;
            if self.left == self.out.len() && self.piece.is_empty() && self.end.is_empty() {
                // Also what TLS still holds, before the next piece is waited for.
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                if self.body.is_some() {
                    return Poll::Pending;
                }
                self.is_on = false;
                self.out.clear();
                self.out.shrink_to(KEPT_ROOM);
                self.left = 0;
                return Poll::Ready(Ok(()));
            }
            let sent = ready!(self.poll_write(stream, cx))?;
            if sent == 0 {
                return Poll::Ready(Err(Error::from(ErrorKind::WriteZero).into()));
            }
            self.sent(sent);
        }
    }

    /// Takes what is there of the body, as long as it is small.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), UploadError> {
        if self.left == self.out.len() {
            self.out.clear();
            self.left = 0;
        }
        while self.piece.is_empty() && self.end.is_empty() && self.out.len() < SMALL {
            let Some(body) = &mut self.body else { return Ok(()) };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(frame)) => self.take(frame?)?,
                Poll::Ready(None) => self.end(&HeaderMap::new())?,
            }
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), UploadError> {
        let data = match frame.into_data() {
            // No bytes would be the last chunk.
            Ok(data) if data.is_empty() => return Ok(()),
            Ok(data) => data,
            Err(frame) => return frame.into_trailers().map_or(Ok(()), |trailers| self.end(&trailers)),
        };
        let end = match &mut self.framing {
            RequestFraming::None => b"",
            RequestFraming::Length(rest) => {
                *rest = rest.checked_sub(data.len() as u64).ok_or(UploadError::Length)?;
                b""
            }
            RequestFraming::Chunked => {
                // Writing to a vector cannot fail.
                let _ = write!(self.out, "{:x}\r\n", data.len());
                CRLF
            }
        };
        if self.out.len() + data.len() > SMALL {
            (self.piece, self.end) = (data, end);
        } else {
            self.out.extend_from_slice(&data);
            self.out.extend_from_slice(end);
        }
        Ok(())
    }

    /// The body is over. One whose length was said has no room for trailers; and cut short it never ends: the origin
    /// would take the next request for the rest of it.
    fn end(&mut self, trailers: &HeaderMap) -> Result<(), UploadError> {
        self.body = None;
        match self.framing {
            RequestFraming::None | RequestFraming::Length(0) => return Ok(()),
            RequestFraming::Length(_) => return Err(UploadError::Length),
            RequestFraming::Chunked => {}
        }
        self.out.extend_from_slice(b"0\r\n");
        for (name, value) in trailers {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), CRLF] {
                self.out.extend_from_slice(piece);
            }
        }
        self.out.extend_from_slice(CRLF);
        Ok(())
    }

    fn poll_write(&self, stream: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let (stream, out) = (Pin::new(stream), self.out.get(self.left..).unwrap_or_default());
        if self.piece.is_empty() && self.end.is_empty() {
            return stream.poll_write(cx, out);
        }
        stream.poll_write_vectored(cx, &[IoSlice::new(out), IoSlice::new(&self.piece), IoSlice::new(self.end)])
    }

    fn sent(&mut self, mut sent: usize) {
        let of_out = sent.min(self.out.len() - self.left);
        self.left += of_out;
        sent -= of_out;
        let of_piece = sent.min(self.piece.len());
        self.piece.advance(of_piece);
        sent -= of_piece;
        self.end = self.end.get(sent..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Result as IoResult;
    use std::task::Waker;

    use edgekeep_core::http::HeaderEdits;
    use http::{HeaderValue, Request};
    use http_body::SizeHint;

    use super::*;

    /// A client's body: its frames, with a pause before each.
    struct Frames {
        frames: VecDeque<Frame<Bytes>>,
        length: Option<u64>,
        paused: bool,
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = UploadError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
            self.paused = !self.paused;
            if self.paused { Poll::Pending } else { Poll::Ready(self.frames.pop_front().map(Ok)) }
        }

        fn is_end_stream(&self) -> bool {
            self.frames.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
        }
    }

    /// Takes so many bytes at a call.
    struct Taking(usize, Vec<u8>);

    impl AsyncWrite for Taking {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<IoResult<usize>> {
            let taken = bytes.len().min(self.0);
            self.1.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<IoResult<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<IoResult<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What goes out when so many bytes are taken at a time.
    fn sent(taken: usize, length: Option<u64>, frames: impl IntoIterator<Item = Frame<Bytes>>) -> Vec<u8> {
        try_sent(taken, length, frames).unwrap()
    }

    fn try_sent(
        taken: usize,
        length: Option<u64>,
        frames: impl IntoIterator<Item = Frame<Bytes>>,
    ) -> Result<Vec<u8>, SendError> {
        let (parts, ()) = Request::post("/x").header("host", "a").body(()).unwrap().into_parts();
        let edits = HeaderEdits::default();
        let lines = RequestLines { parts: &parts, edits: &edits, host: None, authority: "b", upgrade: false };
        let (mut sending, mut stream) = (Sending::default(), Taking(taken, Vec::new()));
        sending.begin(&lines, Frames { frames: frames.into_iter().collect(), length, paused: false });
        assert!(!sending.is_done());
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..1_000 {
            if let Poll::Ready(done) = sending.poll(&mut stream, &mut cx) {
                done?;
                assert!(sending.is_done());
                return Ok(stream.1);
            }
        }
        panic!("never done");
    }

    #[test]
    fn however_little_is_taken_the_same_bytes_go_out() {
        let (small, large) = (Bytes::from_static(b"small"), Bytes::from(vec![b'l'; SMALL + 1]));
        let pieces = [small.clone(), Bytes::new(), large.clone(), small.clone(), large.clone()];
        let all = pieces.concat();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let frames = || pieces.iter().cloned().map(Frame::data).chain([Frame::trailers(trailers.clone())]);
        let chunk = |data: &Bytes| [format!("{:x}\r\n", data.len()).as_bytes(), &data[..], CRLF].concat();
        let chunks = [chunk(&small), chunk(&large), chunk(&small), chunk(&large)].concat();
        let head = "POST /x HTTP/1.1\r\nhost: a\r\n";
        let length = format!("{head}content-length: {}\r\n\r\n", all.len());
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
        for taken in [1, 2, 3, 7, 64, 2047, 2048, 2049, 4096, usize::MAX] {
            let whole = sent(taken, Some(all.len() as u64), frames());
            assert!(whole == [length.as_bytes(), &all].concat(), "with a length, by {taken}");
            let whole = sent(taken, None, frames());
            assert!(whole == [chunked.as_bytes(), &chunks, b"0\r\nx-sum: 1\r\n\r\n"].concat(), "in chunks, by {taken}");
            let whole = sent(taken, None, [Frame::data(small.clone())]);
            assert!(whole == [chunked.as_bytes(), &chunk(&small), b"0\r\n\r\n"].concat(), "one chunk, by {taken}");
        }
        assert_eq!(sent(5, None, []), format!("{head}content-length: 0\r\n\r\n").into_bytes(), "no body at all");
    }

    #[test]
    fn a_body_that_is_not_as_long_as_was_said_is_no_whole_one() {
        // The origin would take the next request for the rest of a short one, and the rest of a long one for a request.
        for (said, pieces) in [(5, &["1234"][..]), (5, &["123", "456"]), (5, &["12345", "6"]), (1, &[])] {
            let frames = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece.as_bytes())));
            let frames = frames.chain([Frame::trailers(HeaderMap::new())]);
            let sent = try_sent(usize::MAX, Some(said), frames);
            assert!(matches!(sent, Err(SendError::Body(_))), "{said}, {pieces:?}: {sent:?}");
        }
    }
}
