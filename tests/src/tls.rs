//! TLS as the scenarios' clients and origins speak it, with certificates that a run made for itself.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

use crate::client::Entry;

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

fn roots(authority: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// A client that trusts this authority and speaks these protocols; it resumes what began with it.
pub fn client(authority: &Path, protocols: &[&str]) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder().with_root_certificates(roots(authority)?).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// A connection to an entry, after its handshake.
pub fn connect(config: &Arc<ClientConfig>, entry: Entry) -> Result<TlsStream> {
    let mut socket = TcpStream::connect(entry.address)?;
    let name = ServerName::from(entry.address.ip());
    let mut tls = ClientConnection::new(config.clone(), name)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(tls, socket))
}

/// An origin that shows what stands in a file; with an authority, only to clients of that.
pub fn server(both: &Path, clients: Option<&Path>) -> Result<Arc<ServerConfig>> {
    let builder = match clients {
        Some(authority) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots(authority)?)).build()?;
            ServerConfig::builder().with_client_cert_verifier(verifier)
        }
        None => ServerConfig::builder().with_no_client_auth(),
    };
    let chain = CertificateDer::pem_file_iter(both)?.collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(both)?)?))
}
