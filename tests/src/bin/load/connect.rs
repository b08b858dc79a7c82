//! Connections to what is measured, with TLS or without.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

pub struct Connector {
    address: SocketAddr,
    tls: Option<TlsConnector>,
    http2: bool,
}

/// Bytes both ways, encrypted or not.
pub trait Socket: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket for S {}

impl Connector {
    pub fn new(address: SocketAddr, authority: Option<&Path>, http2: bool) -> anyhow::Result<Connector> {
        let tls = authority.map(|authority| {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(authority).with_context(|| authority.display().to_string())?)?;
            let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
            // Whoever asks for a new connection each time asks for what a new client costs.
            config.resumption = Resumption::disabled();
            anyhow::Ok(TlsConnector::from(Arc::new(config)))
        });
        Ok(Connector { address, tls: tls.transpose()?, http2 })
    }

    pub async fn connect(&self) -> anyhow::Result<Box<dyn Socket>> {
        let socket = TcpStream::connect(self.address).await.context("cannot connect")?;
        socket.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(socket)) };
        let name = ServerName::IpAddress(self.address.ip().into());
        let socket = tls.connect(name, socket).await.context("no TLS")?;
        let spoken = socket.get_ref().1.alpn_protocol();
        ensure!(!self.http2 || spoken == Some(b"h2"), "the server does not agree to HTTP/2");
        Ok(Box::new(socket))
    }
}
