//! Connections as their users find them, between a client of hyper's and an origin that the test plays.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use edgekeep_core::config::OriginUrl;
use edgekeep_core::exchange::Endpoint;
use edgekeep_core::http::HeaderEdits;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, coop};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use socket2::SockRef;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::gateway::batch::{Batch, Batched};
use crate::gateway::patience::Patience;
use crate::gateway::upload::Upload;

/// How long an origin may take nothing.
const PATIENCE: Duration = Duration::from_millis(500);

/// The gateway's end and the origin's.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    (ours.unwrap(), theirs.unwrap().0)
}

/// With a loop that sends its batches.
fn patient(stream: TcpStream) -> Patience<Batched> {
    let batch = Batch::default();
    let sending = batch.clone();
    tokio::task::spawn_local(async move { sending.send_always().await });
    Patience::new(Batched::new(stream, &batch), PATIENCE)
}

fn held(stream: Stream) -> Held {
    Rc::new(RefCell::new(Connection::new(stream)))
}

/// A connection, and the origin's end of it.
async fn connected() -> (Held, TcpStream) {
    let (ours, theirs) = sockets().await;
    (held(Stream::Plain(patient(ours))), theirs)
}

/// The same over TLS.
async fn encrypted() -> (Held, tokio_rustls::server::TlsStream<TcpStream>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let mut trusted = RootCertStore::empty();
    trusted.add(cert.der().clone()).unwrap();
    let provider = || Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(trusted).with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let server = server.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    let (ours, theirs) = sockets().await;
    let name = ServerName::try_from("localhost").unwrap();
    let (ours, theirs) = tokio::join!(
        TlsConnector::from(Arc::new(client)).connect(name, patient(ours)),
        TlsAcceptor::from(Arc::new(server)).accept(theirs)
    );
    (held(Stream::Encrypted(Box::new(ours.unwrap()))), theirs.unwrap())
}

/// The request that these bytes are, of a client that says no more.
async fn request(bytes: &str) -> Request<Incoming> {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    client.write_all(bytes.as_bytes()).await.unwrap();
    tokio::task::spawn_local(async move {
        std::future::pending::<()>().await;
        drop(client);
    });
    asked(server).await
}

/// The request that comes over this.
async fn asked(server: DuplexStream) -> Request<Incoming> {
    let (tell, mut told) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        let service = service_fn(|request| {
            tell.send(request).unwrap();
            std::future::pending::<Result<Response<String>>>()
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await;
    });
    told.recv().await.unwrap()
}

/// Begins to send the request of these bytes.
async fn begun(held: &Held, bytes: &str) {
    begin(held, request(bytes).await);
}

fn begin(held: &Held, request: Request<Incoming>) {
    let (parts, incoming) = request.into_parts();
    let upload = Upload::new(incoming, u64::MAX, parts.version);
    let edits = HeaderEdits::default();
    let upgrade = parts.headers.contains_key("upgrade");
    let lines = RequestLines { parts: &parts, edits: &edits, host: None, authority: "a", upgrade };
    held.borrow_mut().begin(&lines, upload.attempt(0), PATIENCE);
}

async fn answered(held: &Held, asked: Asked) -> std::result::Result<AnswerHead, Failure> {
    poll_fn(|cx| held.borrow_mut().poll_answer(asked, cx)).await
}

fn body(held: &Held) -> AnswerBody {
    let url = OriginUrl::parse("http://127.0.0.1:1").unwrap();
    AnswerBody::new(held.clone(), Arc::new(Endpoint { url, address: None, tls: None }))
}

async fn frame(body: &mut AnswerBody) -> Option<Result<Bytes>> {
    poll_fn(|cx| body.poll_frame(cx)).await.map(|frame| frame.map(|frame| frame.into_data().unwrap()))
}

#[tokio::test]
async fn a_kept_connection_is_looked_at_whatever_its_task_has_done_before() {
    let work = async {
        for said in ["", "HTTP/1.1 200 OK\r\n\r\n"] {
            let (held, mut origin) = connected().await;
            assert!(held.borrow_mut().is_usable());
            origin.write_all(said.as_bytes()).await.unwrap();
            drop(origin);
            tokio::time::sleep(Duration::from_millis(50)).await;
            // tokio tells a task that has done much to wait, and to look again later.
            while coop::has_budget_remaining() {
                coop::consume_budget().await;
            }
            assert!(!held.borrow_mut().is_usable(), "{said:?}");
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn an_answer_that_gave_its_connection_back_reads_nothing_of_the_next() {
    let work = async {
        let (held, mut origin) = connected().await;
        begun(&held, "GET /first HTTP/1.1\r\nhost: a\r\n\r\n").await;
        origin.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst").await.unwrap();
        answered(&held, Asked::Usual).await.unwrap();
        let mut first = body(&held);
        assert_eq!(frame(&mut first).await.unwrap().unwrap(), "first");
        let again = first.reusable().unwrap().1;
        begun(&again, "GET /second HTTP/1.1\r\nhost: a\r\n\r\n").await;
        origin.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond").await.unwrap();
        answered(&again, Asked::Usual).await.unwrap();
        assert!(first.is_end_stream() && first.size_hint().exact() == Some(0) && first.reusable().is_none());
        assert!(frame(&mut first).await.is_none());
        assert_eq!(frame(&mut body(&again)).await.unwrap().unwrap(), "second");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_kept_connection_keeps_no_large_buffer() {
    const LENGTH: usize = 4 * 1024 * 1024;
    let work = async {
        let (held, mut origin) = connected().await;
        begun(&held, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let sending = tokio::task::spawn_local(async move {
            origin.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n").as_bytes()).await.unwrap();
            origin.write_all(&vec![b'x'; LENGTH]).await.unwrap();
            origin
        });
        answered(&held, Asked::Usual).await.unwrap();
        let (mut large, mut came) = (body(&held), 0);
        while came < LENGTH {
            came += frame(&mut large).await.unwrap().unwrap().len();
        }
        assert!(large.reusable().is_some());
        sending.await.unwrap();
        let connection = held.borrow();
        assert!(connection.next_read > FIRST_READ, "it was read in small pieces");
        assert!(connection.read.capacity() == 0, "{} bytes are kept", connection.read.capacity());
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn protocols_are_not_switched_inside_a_request() {
    for (rest, switches) in [("hello", true), ("hel", false)] {
        let work = async {
            let (held, mut origin) = connected().await;
            let head = "POST / HTTP/1.1\r\nhost: a\r\nupgrade: x\r\nconnection: upgrade\r\ncontent-length: 5\r\n\r\n";
            begun(&held, &format!("{head}{rest}")).await;
            tokio::task::spawn_local(async move {
                let mut read = Vec::new();
                while !read.ends_with(rest.as_bytes()) {
                    origin.read_buf(&mut read).await.unwrap();
                }
                origin.write_all(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n").await.unwrap();
                std::future::pending::<()>().await;
            });
            let switched = answered(&held, Asked::Upgrade).await;
            assert_eq!(switched.is_ok(), switches, "{switched:?}");
            if let Err(failure) = switched {
                assert_eq!(failure.stage, FailedStage::HeadReceived);
            }
            assert!(!held.borrow().is_reusable());
        };
        LocalSet::new().run_until(work).await;
    }
}

#[tokio::test]
async fn a_body_that_is_not_at_hand_any_more_is_not_sent_as_none() {
    let bytes = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
    let work = async {
        for (retry_buffer, again) in [(5, true), (4, false)] {
            let (parts, incoming) = request(bytes).await.into_parts();
            let upload = Upload::new(incoming, u64::MAX, parts.version);
            let mut first = upload.attempt(retry_buffer);
            assert!(!first.is_end_stream());
            poll_fn(|cx| Pin::new(&mut first).poll_frame(cx)).await.unwrap().unwrap();
            assert!(first.is_end_stream());
            let mut second = upload.attempt(retry_buffer);
            assert!(!second.is_end_stream(), "with room for {retry_buffer}");
            let sent = poll_fn(|cx| Pin::new(&mut second).poll_frame(cx)).await.unwrap();
            assert_eq!((sent.is_ok(), upload.is_replayable()), (again, again));
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_request_is_unsent_only_where_that_is_certain() {
    // Closed like this, a socket is reset at once.
    fn reset(origin: TcpStream) {
        SockRef::from(&origin).set_linger(Some(Duration::ZERO)).unwrap();
        drop(origin);
    }
    let work = async {
        let (plain, origin) = connected().await;
        reset(origin);
        let (tls, origin) = encrypted().await;
        reset(origin.into_inner().0);
        tokio::time::sleep(Duration::from_millis(50)).await;
        for (held, stage) in [(plain, FailedStage::Unsent), (tls, FailedStage::Sent)] {
            begun(&held, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
            let failure = answered(&held, Asked::Usual).await.unwrap_err();
            assert_eq!(failure.stage, stage, "{failure}");
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_request_that_may_go_elsewhere_does_not_leave_here_any_more() {
    let work = async {
        let (held, mut origin) = connected().await;
        // It still reads, and might do what it is asked.
        origin.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        begun(&held, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
        let failure = answered(&held, Asked::Usual).await.unwrap_err();
        assert_eq!(failure.stage, FailedStage::Unsent, "{failure}");
        drop(held);
        let mut read = Vec::new();
        origin.read_to_end(&mut read).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&read), "");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn an_upload_that_its_origin_does_not_take_ends_although_it_was_answered() {
    let work = async {
        for (answer, is_over) in [("content-length: 2\r\n\r\nok", true), ("content-length: 3\r\n\r\nok", false)] {
            let (held, mut origin) = connected().await;
            let length = 64 << 20;
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
            let (mut client, server) = tokio::io::duplex(64 * 1024);
            tokio::task::spawn_local(async move {
                let _ = client.write_all(head.as_bytes()).await;
                let _ = client.write_all(&vec![b'x'; length]).await;
            });
            begin(&held, asked(server).await);
            origin.write_all(format!("HTTP/1.1 200 OK\r\n{answer}").as_bytes()).await.unwrap();
            answered(&held, Asked::Usual).await.unwrap();
            let mut body = body(&held);
            assert_eq!(frame(&mut body).await.unwrap().unwrap(), "ok");
            let begun = std::time::Instant::now();
            if is_over {
                drop(body);
                while !held.borrow().sending.is_done() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                assert!(!held.borrow().is_reusable());
            } else {
                frame(&mut body).await.unwrap().unwrap_err();
            }
            let took = begun.elapsed();
            assert!(took > PATIENCE / 2 && took < PATIENCE * 10, "{took:?}");
        }
    };
    LocalSet::new().run_until(tokio::time::timeout(PATIENCE * 60, work)).await.expect("it is kept");
}
