//! Certificates that a run makes for itself: a server's of the loopback, the authority that signed it, and a stranger's.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Files in a folder, as PEM.
pub struct Certificates {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    pub fn make(folder: &Path) -> Result<Certificates> {
        let (authority, key) = authority("the authority of the scenarios")?;
        let own = authority.self_signed(&key)?.pem();
        let certificates = Certificates { folder: folder.to_owned(), issuer: Issuer::new(authority, key) };
        fs::write(certificates.authority(), own)?;
        let (stranger, strange_key) = self::authority("a stranger")?;
        fs::write(certificates.stranger(), stranger.self_signed(&strange_key)?.pem())?;
        certificates.sign("server", "127.0.0.1")?;
        Ok(certificates)
    }

    /// A new certificate for a name, as `<file>.pem` with `<file>.key`, and both in `<file>.both`.
    pub fn sign(&self, file: &str, name: &str) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.issuer)?.pem();
        fs::write(self.folder.join(format!("{file}.pem")), &certificate)?;
        for (ending, text) in [("key", key.serialize_pem()), ("both", certificate + &key.serialize_pem())] {
            let path = self.folder.join(format!("{file}.{ending}"));
            fs::write(&path, text)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    /// Who signed the server's.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    /// An authority that signed nothing.
    pub fn stranger(&self) -> PathBuf {
        self.folder.join("stranger.pem")
    }

    pub fn server(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    pub fn server_key(&self) -> PathBuf {
        self.folder.join("server.key")
    }
}

fn authority(name: &str) -> Result<(CertificateParams, KeyPair)> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    // Authorities are told apart by it.
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok((parameters, KeyPair::generate()?))
}
