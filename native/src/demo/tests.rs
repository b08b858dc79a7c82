//! A demo origin over real sockets: what it keeps, what it shows, and how it ends.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::http::response::Parts;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::probes::Tally;
use super::store::MAX_BODY;
use super::{SharedDb, serve};

/// An origin that runs, and one connection to it.
struct Running {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
    connection: SendRequest<Full<Bytes>>,
}

impl Running {
    async fn start(id: &str, db: SharedDb) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, id.to_owned(), db, async {
            let _ = stopped.await;
        }));
        let (connection, driver) = handshake(TokioIo::new(TcpStream::connect(address).await.unwrap())).await.unwrap();
        tokio::spawn(driver);
        Running { address, stop, task, connection }
    }

    async fn over(file: &Path) -> Running {
        Running::start("a", SharedDb::open(file).unwrap()).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> (Parts, Bytes) {
        self.connection.ready().await.unwrap();
        let (head, body) = self.connection.send_request(request).await.unwrap().into_parts();
        assert!(head.headers.contains_key("x-demo-origin"));
        (head, body.collect().await.unwrap().to_bytes())
    }

    async fn ask(&mut self, method: Method, path: &str, body: impl Into<Bytes>) -> (Parts, Bytes) {
        let request = Request::builder().method(method).uri(path).header("host", "demo");
        self.send(request.body(Full::new(body.into())).unwrap()).await
    }

    async fn get(&mut self, path: &str) -> (Parts, Bytes) {
        self.ask(Method::GET, path, "").await
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

fn header<'a>(head: &'a Parts, name: &str) -> &'a str {
    head.headers.get(name).unwrap_or_else(|| panic!("no {name} in {head:?}")).to_str().unwrap()
}

fn is_problem(head: &Parts, body: &[u8], status: u16) {
    assert_eq!((head.status.as_u16(), header(head, "content-type")), (status, "application/problem+json"));
    assert_eq!(parsed(body)["status"], json!(status));
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shard.sqlite");
    let written = [
        ("/users/42/profile", r#"{"name": "Ada", "credit": 123456789012345678901234567890}"#),
        ("/photos/2026-03/p1", r#"{"width": 640}"#),
        ("/vectors/v1", "[0.25, -1, 3e8]"),
    ];
    let mut origin = Running::over(&file).await;
    for (path, body) in written {
        is_problem(&origin.get(path).await.0, &origin.get(path).await.1, 404);
        let (head, answered) = origin.ask(Method::PUT, path, body).await;
        assert_eq!((head.status, header(&head, "content-location")), (StatusCode::CREATED, path));
        assert_eq!(answered, body);
    }
    origin.stop().await;

    let mut origin = Running::over(&file).await;
    for (path, body) in written {
        let (head, answered) = origin.get(path).await;
        assert_eq!((head.status, header(&head, "content-type")), (StatusCode::OK, "application/json"));
        assert_eq!(answered, body);
        assert_eq!(origin.ask(Method::PUT, path, "{}").await.0.status, StatusCode::OK);
        assert_eq!(origin.ask(Method::DELETE, path, "").await.0.status, StatusCode::NO_CONTENT);
        assert_eq!(origin.ask(Method::DELETE, path, "").await.0.status, StatusCode::NO_CONTENT);
        assert_eq!(origin.get(path).await.0.status, StatusCode::NOT_FOUND);
    }
    origin.stop().await;
}

#[tokio::test]
async fn two_origins_of_a_shard_answer_for_each_other_with_one_etag() {
    let folder = tempfile::tempdir().unwrap();
    let db = SharedDb::open(&folder.path().join("shard.sqlite")).unwrap();
    let mut a = Running::start("a", db.clone()).await;
    let mut b = Running::start("b", db).await;
    let (put, _) = a.ask(Method::PUT, "/users/u%2F1/profile", r#"{"n":1}"#).await;
    let (got, body) = b.get("/users/u%2f1/profile").await;
    assert_eq!((header(&put, "x-demo-origin"), header(&got, "x-demo-origin")), ("a", "b"));
    assert_eq!(body, r#"{"n":1}"#);
    let tag = header(&got, "etag");
    assert_eq!(tag, header(&put, "etag"));

    let conditional = |tag: &str| {
        let request = Request::builder().uri("/users/u%2F1/profile").header("host", "demo");
        request.header("if-none-match", tag).body(Full::default()).unwrap()
    };
    let (head, body) = a.send(conditional(tag)).await;
    assert_eq!((head.status, header(&head, "etag"), body.len()), (StatusCode::NOT_MODIFIED, tag, 0));
    // The same bytes again are a new revision: the tag is the write's, not the content's.
    b.ask(Method::PUT, "/users/u%2F1/profile", r#"{"n":1}"#).await;
    assert_eq!(a.send(conditional(tag)).await.0.status, StatusCode::OK);
}

#[tokio::test]
async fn a_patch_merges_into_a_profile_and_into_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Running::over(&folder.path().join("shard.sqlite")).await;
    assert_eq!(origin.ask(Method::PATCH, "/users/7/profile", "{}").await.0.status, StatusCode::NOT_FOUND);
    let (put, _) = origin.ask(Method::PUT, "/users/7/profile", r#"{"a":1,"b":{"c":2,"d":3}}"#).await;
    let (head, body) = origin.ask(Method::PATCH, "/users/7/profile", r#"{"a":null,"b":{"c":9},"e":[1]}"#).await;
    assert_eq!((head.status, header(&head, "content-location")), (StatusCode::OK, "/users/7/profile"));
    assert_eq!(parsed(&body), json!({ "b": { "c": 9, "d": 3 }, "e": [1] }));
    assert_ne!(header(&head, "etag"), header(&put, "etag"));
    assert_eq!(origin.get("/users/7/profile").await.1, body);

    let (head, body) = origin.ask(Method::PATCH, "/vectors/7", "{}").await;
    is_problem(&head, &body, 405);
    assert_eq!(header(&head, "allow"), "GET, HEAD, PUT, DELETE");
}

#[tokio::test]
async fn a_write_that_is_no_json_of_its_shape_or_too_large_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Running::over(&folder.path().join("shard.sqlite")).await;
    let large = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    assert_eq!(origin.ask(Method::PUT, "/users/1/profile", large(MAX_BODY)).await.0.status, StatusCode::CREATED);
    let before = origin.get("/users/1/profile").await.1;
    for (path, body, status) in [
        ("/users/1/profile", "{".to_owned(), 400),
        ("/users/1/profile", "[1]".to_owned(), 422),
        ("/users/1/profile", large(MAX_BODY + 1), 413),
        ("/users/1/profile", large(8 * MAX_BODY), 413),
        ("/users/%ff/profile", "{}".to_owned(), 400),
        ("/users//profile", "{}".to_owned(), 400),
        ("/photos/2026-03/1", "7".to_owned(), 422),
        ("/vectors/1", r#"[1, "2"]"#.to_owned(), 422),
    ] {
        let (head, body) = origin.ask(Method::PUT, path, body).await;
        is_problem(&head, &body, status);
    }
    // A long upload to where none is wanted gets its answer too, and the connection lives on.
    for (path, status) in [("/nowhere", 404), ("/health", 405), ("/ws", 426), ("/status/x", 400)] {
        let (head, body) = origin.ask(Method::POST, path, vec![0; 16 * MAX_BODY]).await;
        is_problem(&head, &body, status);
    }
    assert_eq!(origin.get("/users/1/profile").await.1, before);
    assert_eq!(origin.get("/vectors/1").await.0.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn health_public_text_statuses_and_waits_are_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Running::over(&folder.path().join("shard.sqlite")).await;
    let (head, body) = origin.get("/health").await;
    assert_eq!((head.status, parsed(&body)), (StatusCode::OK, json!({ "status": "ok", "origin": "a" })));
    let (head, body) = origin.get("/public/css/site.css?v=1").await;
    assert_eq!(header(&head, "cache-control"), "public, max-age=60");
    assert_eq!(body, "Public text at /public/css/site.css\n");
    let (head, body) = origin.ask(Method::HEAD, "/public/x", "").await;
    assert_eq!((head.status, header(&head, "content-length"), body.len()), (StatusCode::OK, "25", 0));

    for code in [200, 204, 205, 302, 304, 418, 421, 503, 599] {
        let (head, body) = origin.ask(Method::POST, &format!("/status/{code}"), "ignored").await;
        assert_eq!(head.status.as_u16(), code);
        if code >= 400 {
            is_problem(&head, &body, code);
        }
    }
    for wrong in ["/status/101", "/status/600", "/status/x", "/slow/-1", "/slow/600001", "/stream/1k"] {
        let (head, body) = origin.get(wrong).await;
        is_problem(&head, &body, 400);
    }
    for nowhere in ["/", "/users/1", "/users/1/profile/", "//health"] {
        let (head, body) = origin.get(nowhere).await;
        is_problem(&head, &body, 404);
    }

    let begun = tokio::time::Instant::now();
    assert_eq!(parsed(&origin.get("/slow/120").await.1)["waited_ms"], 120);
    assert!(begun.elapsed() >= Duration::from_millis(120));
}

#[tokio::test]
async fn an_echo_shows_what_arrived_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Running::over(&folder.path().join("shard.sqlite")).await;
    let request = Request::builder().method("REPORT").uri("/echo/a%2Fb?x=%20y&x").header("Host", "demo");
    let request = request.header("X-Two", "1").header("x-two", "2").header("x-raw", &b"caf\xe9"[..]);
    let (head, body) = origin.send(request.body(Full::from("foobar")).unwrap()).await;
    assert_eq!(header(&head, "cache-control"), "no-store");
    assert_eq!(
        parsed(&body),
        json!({
            "origin": "a", "method": "REPORT", "path": "/echo/a%2Fb", "query": "x=%20y&x",
            "headers": {
                "host": ["demo"], "x-two": ["1", "2"], "x-raw": ["caf\u{e9}"], "content-length": ["6"],
            },
            "body": { "length": 6, "fnv1a": "85944171f73967e8" },
        })
    );
    assert_eq!(parsed(&origin.get("/echo/").await.1)["query"], Value::Null);
}

#[tokio::test]
async fn a_stream_has_every_byte_in_its_place_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Running::over(&folder.path().join("shard.sqlite")).await;
    let length = 3_000_001;
    let pattern: Bytes = (0..length).map(|at| (at % 251) as u8).collect();
    let (head, body) = origin.get(&format!("/stream/{length}")).await;
    assert_eq!(header(&head, "content-length"), length.to_string());
    assert!(body == pattern);
    let (head, body) = origin.ask(Method::POST, &format!("/stream/{length}?framing=chunked"), "up").await;
    assert_eq!((header(&head, "transfer-encoding"), header(&head, "x-demo-received")), ("chunked", "2"));
    assert!(body == pattern);

    let mut expected = Tally::new();
    expected.add(&pattern);
    let (head, body) = origin.ask(Method::POST, "/stream/0", pattern).await;
    assert_eq!(header(&head, "x-demo-received"), length.to_string());
    assert_eq!(parsed(&body), json!({ "received": length, "fnv1a": expected.checksum() }));
    assert!(origin.get("/stream/0").await.1.is_empty());
}

#[tokio::test]
async fn a_stream_of_terabytes_is_not_made_before_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Running::over(&folder.path().join("shard.sqlite")).await;
    let request = Request::builder().uri("/stream/8000000000000").header("host", "demo");
    let answer = origin.connection.send_request(request.body(Full::default()).unwrap()).await.unwrap();
    let mut body = answer.into_body();
    let mut read = 0;
    while read < 1_000_000 {
        read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
}

#[tokio::test]
async fn an_upgraded_connection_sends_bytes_back_until_the_origin_stops() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Running::over(&folder.path().join("shard.sqlite")).await;
    let (head, body) = origin.get("/ws").await;
    is_problem(&head, &body, 426);
    assert_eq!(header(&head, "upgrade"), "echo");

    let mut socket = TcpStream::connect(origin.address).await.unwrap();
    // The first bytes of the new protocol come with the request.
    let request = b"GET /ws HTTP/1.1\r\nhost: demo\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly ";
    socket.write_all(request).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"early ") {
        assert_ne!(socket.read_buf(&mut seen).await.unwrap(), 0, "{}", String::from_utf8_lossy(&seen));
    }
    let text = String::from_utf8(seen).unwrap();
    assert!(text.starts_with("HTTP/1.1 101 ") && text.contains("x-demo-origin: a\r\n"), "{text}");
    socket.write_all(b"and late").await.unwrap();
    let mut late = [0; 8];
    socket.read_exact(&mut late).await.unwrap();
    assert_eq!(&late, b"and late");
    origin.stop().await;
    assert_eq!(socket.read(&mut late).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stop_waits_for_the_answer_under_way_and_not_for_idle_connections() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Running::over(&folder.path().join("shard.sqlite")).await;
    let address = origin.address;
    let silent = TcpStream::connect(address).await.unwrap();
    origin.get("/health").await;
    let request = Request::builder().uri("/slow/300").header("host", "demo").body(Full::default()).unwrap();
    let answer = origin.connection.send_request(request);
    tokio::time::sleep(Duration::from_millis(100)).await;

    let begun = tokio::time::Instant::now();
    origin.stop.send(()).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    origin.task.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(TcpStream::connect(address).await.is_err());
    drop(silent);
}

#[tokio::test]
async fn an_id_that_no_header_can_carry_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let db = SharedDb::open(&folder.path().join("shard.sqlite")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = serve(listener, "a\nb".into(), db, std::future::pending()).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}
