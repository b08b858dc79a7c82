//! A gateway that goes gives its listening sockets to the one that comes, over a Unix socket of its own: nobody finds
//! the port closed, and connections that nobody has accepted yet are accepted by the successor.
//!
//! The successor connects, says hello and gets every socket. It starts; as soon as it can serve, or can do nothing more
//! without the store that only one process may have open, it says that it is ready, and the old one drains and ends.
//! Whatever goes wrong before that leaves the old one as it was.
//!
//! Each message is a line of JSON. After the answer to a hello comes one byte for each socket, which carries it.

use std::cell::Cell;
use std::fs::Permissions;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use crate::gateway::listen::{Passed, Sockets};

/// Of these messages. A successor that speaks another one is refused.
const VERSION: u32 = 1;
/// How long the other side may take for an answer that needs no work.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a successor may take to start. One that hangs must not keep others out for ever.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longer lines are no messages of ours.
const LINE_AT_MOST: usize = 4096;
/// More sockets than a gateway of the largest machine has.
const SOCKETS_AT_MOST: usize = 65_536;

#[derive(Serialize, Deserialize)]
struct Hello {
    version: u32,
    pid: u32,
}

#[derive(Serialize, Deserialize)]
enum Offer {
    Sockets { count: usize, drain_millis: u64 },
    Refused(String),
}

#[derive(Serialize, Deserialize)]
struct Ready {
    /// It serves only when the store is free.
    waits_for_store: bool,
}

/// Where the gateway with this key file and admin port hands over.
pub fn path(keys: &Path, admin_port: u16) -> PathBuf {
    keys.with_file_name(format!("edgekeep-{admin_port}.sock"))
}

/// Who takes over.
pub struct Successor {
    pub pid: u32,
    pub waits_for_store: bool,
}

/// Where a successor comes in.
pub struct Host {
    listener: tokio::net::UnixListener,
    path: PathBuf,
    inode: u64,
    /// A successor puts its own in this place.
    replaced: Cell<bool>,
}

impl Host {
    /// For this user only, in place of an older gateway's. Needs a runtime.
    pub fn open(path: &Path) -> std::io::Result<Host> {
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        let listener = tokio::net::UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        let inode = std::fs::metadata(&fresh)?.ino();
        std::fs::rename(&fresh, path)?;
        Ok(Host { listener, path: path.to_owned(), inode, replaced: Cell::new(false) })
    }

    /// Waits until a successor has the sockets and is ready.
    pub async fn successor(&self, sockets: &Sockets, drain: impl Fn() -> Duration) -> Successor {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            match pass_on(stream, sockets, drain()).await {
                Ok(successor) => {
                    self.replaced.set(true);
                    return successor;
                }
                Err(error) => tracing::warn!(%error, "no handover: going on as before"),
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Never under a successor's hands, which may open its own at this moment; nor that of somebody else.
        if !self.replaced.get() && std::fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn pass_on(
    mut stream: tokio::net::UnixStream,
    sockets: &Sockets,
    drain: Duration,
) -> Result<Successor, Box<dyn std::error::Error>> {
    let (peer, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if peer != own && peer != 0 {
        return Err(format!("user {peer} asked for the sockets of user {own}").into());
    }
    let hello: Hello = tokio::time::timeout(ANSWER_WITHIN, receive(&mut stream)).await??;
    if hello.version != VERSION {
        let refusal = format!("version {} of the handover was asked for, this gateway has {VERSION}", hello.version);
        send(&mut stream, &Offer::Refused(refusal.clone())).await?;
        return Err(refusal.into());
    }
    tracing::info!(successor = hello.pid, "a successor starts");
    let drain_millis = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
    let passing = async {
        send(&mut stream, &Offer::Sockets { count: sockets.all().count(), drain_millis }).await?;
        for socket in sockets.all() {
            stream.async_io(Interest::WRITABLE, || send_socket(&stream, socket)).await?;
        }
        std::io::Result::Ok(())
    };
    tokio::time::timeout(ANSWER_WITHIN, passing).await??;
    let ready: Ready = tokio::time::timeout(READY_WITHIN, receive(&mut stream))
        .await
        .map_err(|_| format!("the successor was not ready within {READY_WITHIN:?}"))?
        .map_err(|error| format!("the successor ended before it was ready ({error})"))?;
    send(&mut stream, &VERSION).await?;
    Ok(Successor { pid: hello.pid, waits_for_store: ready.waits_for_store })
}

async fn send(stream: &mut tokio::net::UnixStream, message: &impl Serialize) -> std::io::Result<()> {
    stream.write_all(&line(message)?).await
}

async fn receive<T: for<'de> Deserialize<'de>>(stream: &mut tokio::net::UnixStream) -> std::io::Result<T> {
    let mut line = Vec::new();
    // Byte by byte: what follows a line may carry a socket.
    while line.last() != Some(&b'\n') && line.len() < LINE_AT_MOST {
        line.push(stream.read_u8().await?);
    }
    Ok(serde_json::from_slice(&line)?)
}

fn line(message: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

fn send_socket(stream: &impl AsFd, socket: &TcpListener) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let carried = [socket.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&carried));
    sendmsg(stream, &[IoSlice::new(b"s")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_socket(stream: &UnixStream) -> std::io::Result<TcpListener> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let carried: Option<OwnedFd> = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut carried) => carried.next(),
        _ => None,
    });
    Ok(carried.ok_or(ErrorKind::UnexpectedEof)?.into())
}

/// The gateway that ran before, as its successor sees it.
pub struct Predecessor {
    stream: UnixStream,
    /// How long it may take to finish what is in flight.
    pub drain: Duration,
}

/// Why the sockets could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    #[error("--takeover: {0} belongs to another user")]
    Foreign(PathBuf),
    #[error("--takeover: the running gateway refused: {0}")]
    Refused(String),
    #[error("--takeover: {0}: {1}")]
    Broken(PathBuf, std::io::Error),
}

impl Predecessor {
    /// Asks the gateway at this path for its sockets; `None`: none runs there.
    pub fn ask(path: &Path) -> Result<Option<(Predecessor, Passed)>, TakeOverError> {
        let broken = |error| TakeOverError::Broken(path.to_owned(), error);
        let mut stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(broken(error)),
        };
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| broken(error.into()))?;
        if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
            return Err(TakeOverError::Foreign(path.to_owned()));
        }
        stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(broken)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN)).map_err(broken)?;
        let hello = Hello { version: VERSION, pid: std::process::id() };
        line(&hello).and_then(|hello| stream.write_all(&hello)).map_err(broken)?;
        let (count, drain_millis) = match receive_line(&mut stream).map_err(broken)? {
            Offer::Refused(why) => return Err(TakeOverError::Refused(why)),
            Offer::Sockets { count, drain_millis } => (count.min(SOCKETS_AT_MOST), drain_millis),
        };
        let sockets = (0..count).map(|_| receive_socket(&stream)).collect::<std::io::Result<_>>().map_err(broken)?;
        let passed = Passed { from: "the running gateway", sockets };
        Ok(Some((Predecessor { stream, drain: Duration::from_millis(drain_millis) }, passed)))
    }

    /// Says that it may go. One that is gone already makes no difference: the sockets are here.
    pub fn ready(mut self, waits_for_store: bool) {
        let said = line(&Ready { waits_for_store }).and_then(|ready| self.stream.write_all(&ready));
        let heard = said.and_then(|()| receive_line::<u32>(&mut self.stream));
        if let Err(error) = heard {
            tracing::warn!(%error, "the gateway that was running has ended by itself");
        }
    }
}

fn receive_line<T: for<'de> Deserialize<'de>>(stream: &mut UnixStream) -> std::io::Result<T> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.last() != Some(&b'\n') && line.len() < LINE_AT_MOST {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets() -> Sockets {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Sockets::open(&[free()], free(), 2, Passed::default()).unwrap()
    }

    /// A host that waits for successors, while the test plays them in a thread of their own.
    fn beside_a_host(play: impl FnOnce(&Path) + Send + 'static) -> Option<Successor> {
        let folder = tempfile::tempdir().unwrap();
        let at = path(&folder.path().join("keys.json"), 9090);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (host, sockets) = (Host::open(&at).unwrap(), sockets());
            assert_eq!(std::fs::metadata(&at).unwrap().mode() & 0o777, 0o600);
            let played = tokio::task::spawn_blocking({
                let at = at.clone();
                move || play(&at)
            });
            let came = tokio::select! {
                came = host.successor(&sockets, || Duration::from_secs(7)) => Some(came),
                () = async { played.await.unwrap() } => None,
            };
            drop(host);
            assert_eq!(at.exists(), came.is_some(), "left to a successor, and to nobody else");
            came
        })
    }

    #[test]
    fn a_successor_gets_every_socket_and_the_old_one_hears_when_it_is_ready() {
        let came = beside_a_host(|at| {
            let (predecessor, passed) = Predecessor::ask(at).unwrap().unwrap();
            assert_eq!((passed.sockets.len(), predecessor.drain), (3, Duration::from_secs(7)));
            assert!(passed.sockets.iter().all(|socket| socket.local_addr().is_ok()));
            predecessor.ready(true);
        });
        let came = came.unwrap();
        assert_eq!((came.pid, came.waits_for_store), (std::process::id(), true));
    }

    #[test]
    fn a_successor_that_fails_leaves_the_way_open_for_the_next() {
        let came = beside_a_host(|at| {
            drop(Predecessor::ask(at).unwrap().unwrap());
            let mut rubbish = UnixStream::connect(at).unwrap();
            rubbish.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let (next, _) = Predecessor::ask(at).unwrap().unwrap();
            next.ready(false);
        });
        assert!(!came.unwrap().waits_for_store);
    }

    #[test]
    fn a_successor_of_another_version_is_refused_and_told_why() {
        let came = beside_a_host(|at| {
            let mut stream = UnixStream::connect(at).unwrap();
            stream.write_all(b"{\"version\":2,\"pid\":1}\n").unwrap();
            match receive_line(&mut stream).unwrap() {
                Offer::Refused(why) => assert!(why.contains("version 2"), "{why}"),
                Offer::Sockets { .. } => panic!("it got the sockets"),
            }
        });
        assert!(came.is_none());
    }

    #[test]
    fn where_nobody_runs_there_is_nothing_to_take_over() {
        let folder = tempfile::tempdir().unwrap();
        let at = path(&folder.path().join("keys.json"), 9090);
        assert!(Predecessor::ask(&at).unwrap().is_none());
        // Nor where somebody was killed.
        drop(std::os::unix::net::UnixListener::bind(&at).unwrap());
        assert!(Predecessor::ask(&at).unwrap().is_none());
    }
}
