//! Certificates that a run makes for itself: a server's of the loopback, the authority that signed it, and a stranger's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Files in a folder, as PEM.
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    pub fn make(folder: &Path) -> Result<Certificates> {
        let certificates = Certificates { folder: folder.to_owned() };
        let (authority, key) = authority("the authority of the scenarios")?;
        fs::write(certificates.authority(), authority.self_signed(&key)?.pem())?;
        let (stranger, strange_key) = self::authority("a stranger")?;
        fs::write(certificates.stranger(), stranger.self_signed(&strange_key)?.pem())?;
        let own_key = KeyPair::generate()?;
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        let issuer = Issuer::from_params(&authority, &key);
        fs::write(certificates.server(), server.signed_by(&own_key, &issuer)?.pem())?;
        fs::write(certificates.server_key(), own_key.serialize_pem())?;
        Ok(certificates)
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
