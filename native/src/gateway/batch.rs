//! Small messages of one turn of a core's loop leave together, at the turn's end.
//!
//! Whoever waits for a message is woken by it. A peer that gets the messages of a turn one by one wakes for each, does
//! what there is to do and sleeps again; one that gets them together wakes once, and answers together, so that the next
//! turn here is larger too. On a busy core that is worth a tenth of a small request (docs/performance.md). A message waits
//! only for the tasks that were ready before it, never for a timer, and not when many bytes wait already.
//!
//! A message is copied into the batch, which also makes one `send` of hyper's pieces (a head, a body): a list of pieces
//! goes through the kernel's file layer and costs half a microsecond more. Copying two kilobytes costs a tenth of that.
//! What is larger leaves at once and uncopied.

use std::future::poll_fn;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::{mem, net};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

/// Messages up to this size wait for the end of the turn.
pub const SMALL: usize = 2048;
/// With so many bytes the batch leaves before its turn ends: they should still be in the nearest caches.
const LARGEST: usize = 32 * 1024;

/// One core's messages that leave at the end of the turn. `Send` only because hyper's upgrades ask for it of sockets: one
/// core has it all, and no lock is ever waited for. None is held while another one is taken, but for adding a message.
#[derive(Clone, Default)]
pub struct Batch(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    /// Sockets that did not take all of a message.
    slow: Vec<Arc<Mutex<Half>>>,
    /// Who comes behind the tasks that are ready.
    sender: Option<Waker>,
}

struct Message {
    socket: Arc<Mutex<Half>>,
    length: usize,
}

/// A socket whose small messages leave in batches.
pub struct Batched {
    half: Arc<Mutex<Half>>,
    batch: Batch,
}

/// The other end of a socket, for whoever looks at it while nobody reads.
pub struct FarEnd(Weak<Mutex<Half>>);

/// What the socket shares with its batch.
struct Half {
    stream: TcpStream,
    /// Messages in the batch.
    waiting: usize,
    /// What the kernel had no room for, of a message that counts as written. Until it has left, nothing else is taken.
    rest: Vec<u8>,
    /// Why a message that counted as written did not leave.
    failed: Option<ErrorKind>,
    /// Bytes that the kernel took.
    sent: u64,
    /// Who waits until `rest` has left,
    writer: Option<Waker>,
    /// and who sends it.
    sender: Option<Waker>,
    abandoned: bool,
}

impl Batch {
    /// Sends each turn's batch at its end. Belongs on the core's loop.
    pub async fn send_always(&self) {
        poll_fn(|cx| -> Poll<()> {
            let mut waiting = lock(&self.0);
            if !waiting.sender.as_ref().is_some_and(|sender| sender.will_wake(cx.waker())) {
                waiting.sender = Some(cx.waker().clone());
            }
            drop(waiting);
            self.send();
            let slow = mem::take(&mut lock(&self.0).slow);
            for half in slow {
                tokio::task::spawn_local(poll_fn(move |cx| lock(&half).poll_rest(cx)));
            }
            Poll::Pending
        })
        .await;
    }

    /// Sends what waits now.
    fn send(&self) {
        let mut waiting = lock(&self.0);
        let (mut bytes, mut messages) = (mem::take(&mut waiting.bytes), mem::take(&mut waiting.messages));
        drop(waiting);
        let mut left = &bytes[..];
        for Message { socket, length } in messages.drain(..) {
            let (message, following) = left.split_at_checked(length).unwrap_or((left, &[]));
            left = following;
            if lock(&socket).send(message) {
                let mut waiting = lock(&self.0);
                waiting.slow.push(socket);
                waiting.sender.iter().for_each(Waker::wake_by_ref);
            }
        }
        bytes.clear();
        let mut waiting = lock(&self.0);
        // The room is used again.
        if waiting.messages.is_empty() {
            (waiting.bytes, waiting.messages) = (bytes, messages);
        }
    }

    /// Takes a message in, as one with the last if that is of the same socket; whether that makes it many bytes.
    fn add(&self, socket: &Arc<Mutex<Half>>, half: &mut Half, pieces: &[IoSlice<'_>], length: usize) -> bool {
        let mut waiting = lock(&self.0);
        if waiting.messages.is_empty() {
            waiting.sender.iter().for_each(Waker::wake_by_ref);
        }
        for piece in pieces {
            waiting.bytes.extend_from_slice(piece);
        }
        match waiting.messages.last_mut() {
            Some(last) if Arc::ptr_eq(&last.socket, socket) => last.length += length,
            _ => {
                half.waiting += 1;
                waiting.messages.push(Message { socket: socket.clone(), length });
            }
        }
        waiting.bytes.len() >= LARGEST
    }
}

impl Half {
    /// Sends a message of the batch; whether a first rest of one stays.
    fn send(&mut self, mut message: &[u8]) -> bool {
        self.waiting -= 1;
        if !self.rest.is_empty() {
            self.rest.extend_from_slice(message);
            return false;
        }
        while !message.is_empty() && self.failed.is_none() {
            match self.stream.try_write(message) {
                Ok(0) => self.fail(&ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    self.sent += sent as u64;
                    message = message.get(sent..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.rest = message.to_vec();
                    return true;
                }
                Err(error) => self.fail(&error),
            }
        }
        false
    }

    /// Sends the rest as there is room.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.rest.is_empty() {
            if self.abandoned {
                return Poll::Ready(());
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.rest) {
                Poll::Pending => {
                    self.sender = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Ok(sent)) => {
                    self.sent += sent as u64;
                    self.rest.drain(..sent);
                }
                Poll::Ready(Err(error)) => {
                    self.rest.clear();
                    self.fail(&error);
                }
            }
        }
        (self.rest, self.sender) = (Vec::new(), None);
        self.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(())
    }

    fn fail(&mut self, error: &Error) {
        self.failed = Some(error.kind());
        // Whoever waits for an answer learns that there will be none. What came before can still be read.
        let _ = SockRef::from(&self.stream).shutdown(net::Shutdown::Both);
    }

    /// Whether all that counts as written has left, or will at the turn's end.
    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(failed) = self.failed {
            return Poll::Ready(Err(failed.into()));
        }
        if self.rest.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Batched {
    pub fn new(stream: TcpStream, batch: &Batch) -> Batched {
        let half = Half {
            stream,
            waiting: 0,
            rest: Vec::new(),
            failed: None,
            sent: 0,
            writer: None,
            sender: None,
            abandoned: false,
        };
        Batched { half: Arc::new(Mutex::new(half)), batch: batch.clone() }
    }

    pub fn far_end(&self) -> FarEnd {
        FarEnd(Arc::downgrade(&self.half))
    }

    /// Bytes that the kernel has taken so far.
    pub fn sent(&self) -> u64 {
        lock(&self.half).sent
    }

    /// Lets nothing more leave, and tells how many bytes have.
    pub fn withdraw(&self) -> u64 {
        let mut half = lock(&self.half);
        half.failed = Some(ErrorKind::ConnectionAborted);
        half.rest.clear();
        half.sent
    }

    /// Sends the batch if something of this socket is in it.
    fn send_waiting(&self) {
        if lock(&self.half).waiting > 0 {
            self.batch.send();
        }
    }
}

impl FarEnd {
    /// Whether it has ended, though something that it sent before may be unread.
    pub fn has_ended(&self) -> bool {
        let Some(half) = self.0.upgrade() else { return false };
        let half = lock(&half);
        let ready = pin!(unconstrained(half.stream.ready(Interest::READABLE)));
        matches!(ready.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }
}

impl Drop for Batched {
    /// What counts as written leaves, as far as it does so at once.
    fn drop(&mut self) {
        self.send_waiting();
        let mut half = lock(&self.half);
        half.abandoned = true;
        half.sender.take().into_iter().for_each(Waker::wake);
    }
}

impl AsyncRead for Batched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let mut half = lock(&self.half);
        let before = buf.filled().len();
        ready!(Pin::new(&mut half.stream).poll_read(cx, buf))?;
        // The kernel tells of a failure once, and told it to a message: what follows looks like the peer's end.
        match half.failed {
            // Behind the peer's own end that is what a message meets.
            None | Some(ErrorKind::BrokenPipe) => {}
            Some(failed) if buf.filled().len() == before => return Poll::Ready(Err(failed.into())),
            Some(_) => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Batched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if length > SMALL {
            self.send_waiting();
        }
        let mut half = lock(&self.half);
        ready!(half.poll_taken(cx))?;
        if length > SMALL {
            let stream = Pin::new(&mut half.stream);
            let mut filled = pieces.iter().filter(|piece| !piece.is_empty());
            let sent = ready!(match (filled.next(), filled.next()) {
                // No list for one piece, as most of a long body are.
                (Some(piece), None) => stream.poll_write(cx, piece),
                _ => stream.poll_write_vectored(cx, pieces),
            });
            match &sent {
                Ok(sent) => half.sent += *sent as u64,
                Err(error) => half.fail(error),
            }
            return Poll::Ready(sent);
        }
        let many = self.batch.add(&self.half, &mut half, pieces, length);
        drop(half);
        if many {
            self.batch.send();
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        lock(&self.half).poll_taken(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.send_waiting();
        let mut half = lock(&self.half);
        ready!(half.poll_taken(cx))?;
        Pin::new(&mut half.stream).poll_shutdown(cx)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream as Peer};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::{LocalSet, yield_now};
    use tokio::time::{sleep, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn on_a_core<F: Future<Output = ()>>(work: impl FnOnce(Batch) -> F) {
        let batch = Batch::default();
        let sending = batch.clone();
        let tasks = LocalSet::new();
        tasks.spawn_local(async move { sending.send_always().await });
        tasks.run_until(timeout(PATIENCE, work(batch))).await.unwrap();
    }

    async fn connected(batch: &Batch) -> (Batched, Peer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Batched::new(ours.unwrap(), batch), theirs.unwrap().0.into_std().unwrap())
    }

    /// A socket with a rest: it has written so many bytes, more than the kernel has room for.
    async fn with_a_rest(batch: &Batch) -> (Batched, Peer, usize) {
        let (mut socket, peer) = connected(batch).await;
        let mut written = 0;
        while lock(&socket.half).rest.is_empty() {
            written += socket.write(&[b'x'; SMALL]).await.unwrap();
            batch.send();
        }
        (socket, peer, written)
    }

    /// What is there to read.
    fn came(mut peer: &Peer) -> Vec<u8> {
        let mut read = Vec::new();
        let end = peer.read_to_end(&mut read);
        assert!(end.is_ok() || end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
        read
    }

    #[tokio::test]
    async fn messages_leave_at_the_end_of_the_turn_in_their_order() {
        on_a_core(|batch| async move {
            let ((mut one, at_one), (mut two, at_two)) = (connected(&batch).await, connected(&batch).await);
            one.write_all(b"a").await.unwrap();
            two.write_all(b"b").await.unwrap();
            one.write_all(b"c").await.unwrap();
            one.flush().await.unwrap();
            one.write_all(b"d").await.unwrap();
            // What follows of the same socket is one message with what stands before it.
            assert_eq!(lock(&batch.0).messages.len(), 3);
            assert_eq!((came(&at_one), came(&at_two), one.sent()), (vec![], vec![], 0));
            yield_now().await;
            assert_eq!((came(&at_one), came(&at_two), one.sent()), (b"acd".to_vec(), b"b".to_vec(), 3));
        })
        .await;
    }

    #[tokio::test]
    async fn a_large_message_leaves_at_once_behind_those_before_it() {
        on_a_core(|batch| async move {
            let (mut socket, peer) = connected(&batch).await;
            let pieces = [&[b'h'; 48][..], &[b'b'; SMALL - 48], b"r"];
            let slices = |count: usize| pieces.iter().take(count).map(|piece| IoSlice::new(piece)).collect::<Vec<_>>();
            assert_eq!(socket.write_vectored(&slices(2)).await.unwrap(), SMALL);
            assert_eq!(came(&peer), b"");
            assert_eq!(socket.write_vectored(&slices(3)).await.unwrap(), SMALL + 1);
            assert_eq!(came(&peer), [pieces[0], pieces[1], pieces[0], pieces[1], pieces[2]].concat());
            let alone = [IoSlice::new(b""), IoSlice::new(&[b'a'; SMALL + 1]), IoSlice::new(b"")];
            assert_eq!(socket.write_vectored(&alone).await.unwrap(), SMALL + 1);
            assert_eq!(came(&peer), [b'a'; SMALL + 1]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_large_batch_does_not_wait() {
        on_a_core(|batch| async move {
            let (mut socket, peer) = connected(&batch).await;
            for _ in 0..LARGEST / SMALL - 1 {
                socket.write_all(&[b'x'; SMALL]).await.unwrap();
            }
            socket.write_all(&[b'x'; SMALL - 1]).await.unwrap();
            assert_eq!(came(&peer).len(), 0);
            socket.write_all(b"x").await.unwrap();
            assert_eq!(came(&peer).len(), LARGEST);
        })
        .await;
    }

    #[tokio::test]
    async fn what_the_kernel_has_no_room_for_leaves_before_anything_else_is_taken() {
        on_a_core(|batch| async move {
            let (mut socket, peer, written) = with_a_rest(&batch).await;
            let waiting = timeout(Duration::from_millis(50), socket.write_all(b"y")).await;
            assert!(waiting.is_err() && timeout(Duration::from_millis(50), socket.flush()).await.is_err());
            let reading = async {
                let mut read = Vec::new();
                while !read.ends_with(b"y") {
                    read.extend(came(&peer));
                    sleep(Duration::from_millis(1)).await;
                }
                read
            };
            let (read, wrote) = tokio::join!(reading, socket.write_all(b"y"));
            wrote.unwrap();
            assert_eq!((read.len(), socket.sent()), (written + 1, written as u64 + 1));
        })
        .await;
    }

    #[tokio::test]
    async fn a_socket_is_shut_down_behind_all_that_was_written() {
        on_a_core(|batch| async move {
            let (mut idle, at_idle) = connected(&batch).await;
            idle.write_all(b"last").await.unwrap();
            idle.shutdown().await.unwrap();
            assert_eq!(came(&at_idle), b"last");
            let (mut socket, peer, written) = with_a_rest(&batch).await;
            let reading = async {
                let mut read = 0;
                while read < written {
                    read += came(&peer).len();
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let ((), shut) = tokio::join!(reading, socket.shutdown());
            shut.unwrap();
            peer.set_nonblocking(false).unwrap();
            assert_eq!((&peer).read(&mut [0]).unwrap(), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_written_leaves_when_the_socket_is_dropped_if_there_is_room() {
        on_a_core(|batch| async move {
            let (mut socket, peer) = connected(&batch).await;
            socket.write_all(b"last").await.unwrap();
            drop(socket);
            assert_eq!(came(&peer), b"last");
            // A rest keeps no socket open of which nobody knows any more.
            let (socket, peer, written) = with_a_rest(&batch).await;
            yield_now().await;
            drop(socket);
            let (mut read, mut reader) = (Vec::new(), TcpStream::from_std(peer).unwrap());
            reader.read_to_end(&mut read).await.unwrap();
            assert!(read.len() < written, "{} of {written}", read.len());
        })
        .await;
    }

    #[tokio::test]
    async fn a_message_that_cannot_leave_fails_the_socket() {
        on_a_core(|batch| async move {
            let (mut socket, peer) = connected(&batch).await;
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            sleep(Duration::from_millis(10)).await;
            socket.write_all(b"one").await.unwrap();
            batch.send();
            // Whoever waits for an answer is told.
            assert!(socket.read_u8().await.is_err());
            assert!(socket.write_all(b"two").await.is_err() && socket.flush().await.is_err());
            assert_eq!(socket.sent(), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn a_reset_that_a_message_met_is_not_read_as_an_end() {
        on_a_core(|batch| async move {
            // One that breaks off what it says, and one that has said all of it.
            for (is_whole, end) in [(false, Err(ErrorKind::ConnectionReset)), (true, Ok(4))] {
                for length in [1, SMALL + 1] {
                    let (mut socket, mut peer) = connected(&batch).await;
                    peer.write_all(b"said").unwrap();
                    if is_whole {
                        peer.shutdown(Shutdown::Write).unwrap();
                    }
                    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(peer);
                    sleep(Duration::from_millis(10)).await;
                    assert_eq!(socket.write_all(&[b'x'; SMALL + 1][..length]).await.is_ok(), length <= SMALL);
                    batch.send();
                    let mut read = Vec::new();
                    let ended = socket.read_to_end(&mut read).await.map_err(|error| error.kind());
                    assert_eq!((&read[..], ended), (&b"said"[..], end), "{length}");
                }
            }
        })
        .await;
    }

    #[tokio::test]
    async fn an_end_is_seen_behind_what_nobody_has_read() {
        on_a_core(|batch| async move {
            for resets in [false, true] {
                let (mut socket, mut peer) = connected(&batch).await;
                let far_end = socket.far_end();
                peer.write_all(b"ab").unwrap();
                // Some of it is read, and then no more.
                assert_eq!(socket.read_u8().await.unwrap(), b'a');
                sleep(Duration::from_millis(10)).await;
                assert!(!far_end.has_ended());
                if resets {
                    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
                }
                drop(peer);
                sleep(Duration::from_millis(10)).await;
                assert!(far_end.has_ended(), "resets: {resets}");
                drop(socket);
                assert!(!far_end.has_ended());
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_rest_whose_reader_has_left_fails_the_socket() {
        on_a_core(|batch| async move {
            let (mut socket, peer, _) = with_a_rest(&batch).await;
            let leaving = async {
                sleep(Duration::from_millis(10)).await;
                drop(peer);
            };
            let ((), wrote) = tokio::join!(leaving, socket.write_all(b"y"));
            wrote.unwrap_err();
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_taken_back_does_not_leave() {
        on_a_core(|batch| async move {
            let (mut socket, peer) = connected(&batch).await;
            socket.write_all(b"kept").await.unwrap();
            yield_now().await;
            socket.write_all(b"not").await.unwrap();
            assert_eq!(socket.withdraw(), 4);
            yield_now().await;
            drop(socket);
            assert_eq!(came(&peer), b"kept");
        })
        .await;
    }
}
