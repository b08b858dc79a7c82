//! Certificates: what this gateway shows to its clients, whom it takes for an origin, and what it shows to that one. They
//! are read from files at start, at each reload and by `check`, all of them or none.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use edgekeep_core::config::{Config, PoolTls, Scheme, ServerTls};
use rustls_native_certs::{CertificateResult, load_native_certs};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::ProducesTickets;
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// HTTP/2 in ALPN (RFC 9113 §3.2).
pub const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// Others may read the file, or change it.
const BY_OTHERS: u32 = 0o007;

/// Everything that the configuration names, read.
pub struct Certificates {
    clients: Option<TlsAcceptor>,
    origins: HashMap<Named, TlsConnector>,
    /// Kept over reloads, so that clients resume what began before.
    tickets: Arc<dyn ProducesTickets>,
}

/// What makes one connection to an origin differ from another's: pools that name the same files share one, and with it
/// the sessions that can be resumed.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Named {
    ca: Option<String>,
    client_cert: Option<String>,
}

impl Named {
    fn of(tls: Option<&PoolTls>) -> Named {
        Named { ca: tls.and_then(|tls| tls.ca.clone()), client_cert: tls.and_then(|tls| tls.client_cert.clone()) }
    }
}

/// No certificate authority is known.
#[derive(Debug, thiserror::Error)]
#[error("no trusted certificate is found on this machine (SSL_CERT_FILE names a file of them){0}")]
pub struct NoRoots(String);

impl Certificates {
    /// Reads every file; the errors name their keys.
    pub fn read(config: &Config, base: &Path) -> Result<Certificates, Vec<String>> {
        let tickets = aws_lc_rs::Ticketer::new().map_err(|error| vec![format!("server.tls: {error}")])?;
        Certificates::with_tickets(config, base, tickets)
    }

    /// Reads every file again.
    pub fn read_again(&self, config: &Config, base: &Path) -> Result<Certificates, Vec<String>> {
        Certificates::with_tickets(config, base, self.tickets.clone())
    }

    fn with_tickets(
        config: &Config,
        base: &Path,
        tickets: Arc<dyn ProducesTickets>,
    ) -> Result<Certificates, Vec<String>> {
        let mut errors = Vec::new();
        let clients = config
            .server
            .tls
            .as_ref()
            .and_then(|tls| acceptor(tls, base, &tickets).map_err(|mut found| errors.append(&mut found)).ok());
        let mut origins = HashMap::new();
        for (at, pool) in config.pools.iter().enumerate() {
            let named = Named::of(pool.tls.as_ref());
            // A pool that names files is checked even while its origins speak plain HTTP.
            let asks = pool.tls.is_some() || pool.origins.iter().any(|origin| origin.url.scheme == Scheme::Https);
            if !asks || origins.contains_key(&named) {
                continue;
            }
            match connector_of(&named, base, &format!("pools[{at}].tls")) {
                Ok(connector) => drop(origins.insert(named, connector)),
                Err(mut found) => errors.append(&mut found),
            }
        }
        if errors.is_empty() { Ok(Certificates { clients, origins, tickets }) } else { Err(errors) }
    }

    /// For connections of clients; none: they come without TLS.
    pub fn clients(&self) -> Option<&TlsAcceptor> {
        self.clients.as_ref()
    }

    /// For connections to the origins of a pool with this `tls`. None is known for a pool that a reload brought just now:
    /// its certificates follow.
    pub fn origin(&self, tls: Option<&PoolTls>) -> Option<&TlsConnector> {
        self.origins.get(&Named::of(tls))
    }
}

fn acceptor(tls: &ServerTls, base: &Path, tickets: &Arc<dyn ProducesTickets>) -> Result<TlsAcceptor, Vec<String>> {
    let chain = certificates(&base.join(&tls.cert), "server.tls.cert");
    let key = private_key(&base.join(&tls.key), "server.tls.key");
    let (chain, key) = both(chain, key)?;
    let built = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = built.map_err(|error| vec![mismatch("server.tls", &error)])?;
    config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
    config.ticketer = tickets.clone();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn connector_of(named: &Named, base: &Path, key: &str) -> Result<TlsConnector, Vec<String>> {
    let roots = match &named.ca {
        Some(ca) => authorities(&base.join(ca), &format!("{key}.ca")),
        None => trusted(load_native_certs()).map_err(|error| format!("{key}.ca: is left out, and {error}")),
    };
    let shown = match &named.client_cert {
        Some(file) => {
            let (path, key) = (base.join(file), format!("{key}.client_cert"));
            match both(certificates(&path, &key), private_key(&path, &key)) {
                Ok(shown) => Ok(Some(shown)),
                Err(errors) => Err(errors.join("; ")),
            }
        }
        None => Ok(None),
    };
    let (roots, shown) = both(roots, shown)?;
    connector(roots, shown).map_err(|error| vec![mismatch(&format!("{key}.client_cert"), &error)])
}

/// Speaks HTTP/1.1 to whom `roots` vouch for.
pub fn connector(
    roots: RootCertStore,
    shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<TlsConnector, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match shown {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP_1.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Those that the operating system trusts, as they were found.
pub fn trusted(found: CertificateResult) -> Result<RootCertStore, NoRoots> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(NoRoots(why));
    }
    Ok(roots)
}

/// Named, since another dependency may bring a second provider.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn authorities(path: &Path, key: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, key)? {
        roots.add(certificate).map_err(|error| format!("{key}: {}: {error}", path.display()))?;
    }
    Ok(roots)
}

/// At least one.
fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err(unreadable(path, key, "a certificate", &pem::Error::NoItemsFound)),
        Ok(found) => Ok(found),
        Err(error) => Err(unreadable(path, key, "a certificate", &error)),
    }
}

fn private_key(path: &Path, key: &str) -> Result<PrivateKeyDer<'static>, String> {
    let found = PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, key, "a private key", &error))?;
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & BY_OTHERS != 0 {
        let (shown, mode) = (path.display(), mode & 0o777);
        return Err(format!("{key}: {shown} can be read by everybody (mode {mode:o}): chmod 640 {shown}"));
    }
    Ok(found)
}

fn unreadable(path: &Path, key: &str, what: &str, error: &pem::Error) -> String {
    let shown = path.display();
    match error {
        pem::Error::Io(error) => format!("{key}: cannot read {shown}: {error}"),
        pem::Error::NoItemsFound => format!("{key}: {shown} has no PEM section of {what}"),
        error => format!("{key}: {shown} is no PEM file with {what}: {error}"),
    }
}

fn mismatch(key: &str, error: &Error) -> String {
    match error {
        Error::InconsistentKeys(_) => format!("{key}: the private key is not that of the certificate"),
        error => format!("{key}: {error}"),
    }
}

fn both<A, B>(first: Result<A, String>, second: Result<B, String>) -> Result<(A, B), Vec<String>> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (first, second) => Err([first.err(), second.err()].into_iter().flatten().collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::path::PathBuf;

    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    /// A pair for this name as `<name>.pem` and `<name>.key`.
    fn pair(folder: &Path, name: &str) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        write(folder.join(format!("{name}.pem")), cert.pem()).unwrap();
        private(&folder.join(format!("{name}.key")), &signing_key.serialize_pem());
        private(&folder.join(format!("{name}.both")), &(cert.pem() + &signing_key.serialize_pem()));
    }

    fn private(path: &PathBuf, text: &str) {
        write(path, text).unwrap();
        set_permissions(path, Permissions::from_mode(0o640)).unwrap();
    }

    fn config(server: &str, pool: &str) -> Config {
        let server = if server.is_empty() { String::new() } else { format!("[server]\ntls = {server}\n") };
        let text = format!(
            "{server}[[pools]]\nshard = \"shard_0\"\n{pool}\norigins = [{{ id = \"a\", url = \"https://a.internal\" }}]"
        );
        Config::from_toml(&text).unwrap()
    }

    fn errors(server: &str, pool: &str, folder: &Path) -> Vec<String> {
        Certificates::read(&config(server, pool), folder).err().unwrap_or_default()
    }

    #[test]
    fn a_pair_that_fits_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        pair(folder.path(), "one");
        let config = config("{ cert = \"one.pem\", key = \"one.key\" }", "tls = { ca = \"one.pem\" }");
        let certificates = Certificates::read(&config, folder.path()).ok().unwrap();
        assert!(certificates.clients().is_some());
        assert!(certificates.origin(config.pools[0].tls.as_ref()).is_some());
        assert!(certificates.origin(None).is_none());
    }

    #[test]
    fn every_file_that_cannot_be_used_is_named_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        pair(folder, "one");
        pair(folder, "other");
        write(folder.join("no.pem"), "nothing").unwrap();
        let found = errors("{ cert = \"gone.pem\", key = \"no.pem\" }", "tls = { ca = \"no.pem\" }", folder);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("server.tls.cert: cannot read "), "{found:?}");
        assert!(found[1].starts_with("server.tls.key: ") && found[1].ends_with("no PEM section of a private key"));
        assert!(found[2].starts_with("pools[0].tls.ca: ") && found[2].ends_with("no PEM section of a certificate"));

        let of_two = errors("{ cert = \"one.pem\", key = \"other.key\" }", "tls = { ca = \"one.pem\" }", folder);
        assert_eq!(of_two, ["server.tls: the private key is not that of the certificate"]);
        let shown = errors("", "tls = { ca = \"one.pem\", client_cert = \"one.both\" }", folder);
        assert_eq!(shown, [""; 0]);
        let half = errors("", "tls = { ca = \"one.pem\", client_cert = \"one.pem\" }", folder);
        assert!(half[0].starts_with("pools[0].tls.client_cert: ") && half[0].ends_with("of a private key"), "{half:?}");
    }

    #[test]
    fn a_key_that_everybody_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        pair(folder.path(), "one");
        set_permissions(folder.path().join("one.key"), Permissions::from_mode(0o644)).unwrap();
        let found = errors("{ cert = \"one.pem\", key = \"one.key\" }", "tls = { ca = \"one.pem\" }", folder.path());
        assert!(found[0].starts_with("server.tls.key: ") && found[0].contains("(mode 644)"), "{found:?}");
    }
}
