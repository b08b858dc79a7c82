//! One connection to a Worker, kept while it lives. Over https it trusts what the operating system trusts
//! (`SSL_CERT_FILE` and `SSL_CERT_DIR` name something else): that follows the machine's updates and takes a company's
//! own authority, which roots compiled in would not.

use bytes::Bytes;
use edgekeep_core::config::{OriginUrl, Scheme, WebUrl};
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls_native_certs::{CertificateResult, load_native_certs};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::tls::{NoRoots, connector, trusted};

/// The most of an answer that is read, to use the connection again.
const MOST_READ: usize = 64 * 1024;

pub struct Client {
    origin: OriginUrl,
    /// Without the slash at its end.
    path: String,
    sender: Option<SendRequest<Full<Bytes>>>,
    /// Finds whom to trust.
    roots: Box<dyn Fn() -> CertificateResult>,
    tls: Option<TlsConnector>,
}

/// Why a Worker was not told.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no edge credential is configured: set what edge.credential names")]
    NoCredential,
    #[error("the edge credential is not a header value")]
    BadCredential,
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error(transparent)]
    NoRoots(#[from] NoRoots),
    #[error("TLS: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
    #[error("its host is no name that a certificate can have")]
    Name,
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Refused(StatusCode),
}

impl Client {
    pub fn new(url: &WebUrl) -> Client {
        Client::trusting(url, load_native_certs)
    }

    pub fn trusting(url: &WebUrl, roots: impl Fn() -> CertificateResult + 'static) -> Client {
        let path = url.path.trim_end_matches('/').to_owned();
        Client { origin: url.origin.clone(), path, sender: None, roots: Box::new(roots), tls: None }
    }

    /// Posts a list of tombstones.
    pub async fn post(&mut self, api_prefix: &str, credential: Option<&str>, body: String) -> Result<(), CallError> {
        let credential = credential.ok_or(CallError::NoCredential)?;
        let mut credential = HeaderValue::from_str(credential).map_err(|_| CallError::BadCredential)?;
        credential.set_sensitive(true);
        let target = format!("{}{api_prefix}/v1/edge/tombstones", self.path);
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        // A path of the configuration, which was read as one.
        *request.uri_mut() = target.parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::from_str(&self.origin.authority) {
            headers.insert(HOST, host);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-edgekeep-edge", credential);

        let sender = self.sender().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        if Limited::new(response.into_body(), MOST_READ).collect().await.is_err() {
            self.sender = None;
        }
        if status.is_success() { Ok(()) } else { Err(CallError::Refused(status)) }
    }

    /// The next call makes a new connection.
    pub fn close(&mut self) {
        self.sender = None;
    }

    async fn sender(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, CallError> {
        let kept = match self.sender.take() {
            Some(mut sender) if !sender.is_closed() => sender.ready().await.is_ok().then_some(sender),
            _ => None,
        };
        let sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        Ok(self.sender.insert(sender))
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let stream = TcpStream::connect((self.origin.host.as_str(), self.origin.port)).await?;
        stream.set_nodelay(true)?;
        match self.origin.scheme {
            Scheme::Http => speak(stream).await,
            Scheme::Https => {
                let name = ServerName::try_from(self.origin.host.as_str().to_owned()).map_err(|_| CallError::Name)?;
                speak(self.tls()?.connect(name, stream).await?).await
            }
        }
    }

    fn tls(&mut self) -> Result<TlsConnector, CallError> {
        if let Some(tls) = &self.tls {
            return Ok(tls.clone());
        }
        let connector = connector(trusted((self.roots)())?, None)?;
        Ok(self.tls.insert(connector).clone())
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<SendRequest<Full<Bytes>>, CallError> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        // How a kept connection ends is of no interest: the next call finds it closed.
        let _ = connection.await;
    });
    Ok(sender)
}
