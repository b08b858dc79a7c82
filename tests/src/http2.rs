//! HTTP/2 as a client speaks it, stream by stream, and byte by byte where a client misbehaves.

use std::future::poll_fn;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use hyper::http::{HeaderMap, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::client::Entry;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers that wait to be read leave room for the one that is read.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// One connection.
#[derive(Clone)]
pub struct Http2 {
    sender: SendRequest<Bytes>,
    /// `http` or `https`, and the host.
    at: String,
}

/// An answer that came whole.
pub struct Whole {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Whole {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Runs what talks HTTP/2, with an end to its time.
pub fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.context("it took too long")? })
}

impl Http2 {
    /// With prior knowledge, over a plain connection.
    pub async fn connect(entry: Entry) -> Result<Http2> {
        Http2::over(TcpStream::connect(entry.address).await?, "http", &entry.address.to_string()).await
    }

    pub async fn over<S>(stream: S, scheme: &str, host: &str) -> Result<Http2>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder.initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder.handshake(stream).await?;
        tokio::spawn(async move {
            // Its end shows in the streams.
            let _ = connection.await;
        });
        Ok(Http2 { sender, at: format!("{scheme}://{host}") })
    }

    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Request<()>> {
        let mut request = Request::builder().method(method).uri(format!("{}{target}", self.at));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.body(())?)
    }

    /// Begins a request; with a body, that is still to be sent.
    pub async fn begin(&self, request: Request<()>, with_body: bool) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let mut sender = self.sender.clone().ready().await?;
        Ok(sender.send_request(request, !with_body)?)
    }

    /// A request without a body and its whole answer.
    pub async fn ask(&self, request: Request<()>) -> Result<Whole> {
        let (answer, _) = self.begin(request, false).await?;
        whole(answer).await
    }

    pub async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Result<Whole> {
        self.ask(self.request("GET", target, headers)?).await
    }

    /// How many streams the other side lets be open.
    pub fn most_streams(&self) -> usize {
        self.sender.current_max_send_streams()
    }
}

/// Reads an answer to its end.
pub async fn whole(answer: ResponseFuture) -> Result<Whole> {
    let (head, mut stream) = answer.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?;
    Ok(Whole { status: head.status, headers: head.headers, body, trailers })
}

/// Reads on until the stream is reset, and says why; `None` when it is not within the time.
pub async fn reset_within(stream: &mut RecvStream, time: Duration) -> Result<Option<Reason>> {
    let reading = async {
        while let Some(data) = stream.data().await {
            match data {
                Ok(data) => stream.flow_control().release_capacity(data.len())?,
                Err(error) if error.is_reset() => return Ok(error.reason()),
                Err(error) => return Err(error.into()),
            }
        }
        bail!("it ended as if it were whole")
    };
    tokio::time::timeout(time, reading).await.unwrap_or(Ok(None))
}

/// Waits until the other side resets what is being sent.
pub async fn upload_reset(stream: &mut SendStream<Bytes>) -> Result<Reason> {
    Ok(poll_fn(|cx| stream.poll_reset(cx)).await?)
}

/// Frames written by hand (RFC 9113 §4.1), for what no well-behaved client sends.
pub mod raw {
    /// What every connection begins with: the preface and empty settings.
    pub fn beginning() -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes
    }

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend(stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A field as HPACK writes it without a table and without Huffman's code; both parts shorter than 127 bytes.
    pub fn field(name: &str, value: &str) -> Vec<u8> {
        let mut bytes = vec![0];
        for part in [name, value] {
            bytes.push(u8::try_from(part.len()).unwrap_or(126));
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }

    /// The kinds of the frames that stand whole in these bytes, each with its payload.
    pub fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut found = Vec::new();
        while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some((payload, after)) = rest.split_at_checked(length) else { break };
            found.push((*kind, payload.to_vec()));
            bytes = after;
        }
        found
    }
}
