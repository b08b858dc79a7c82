//! The files that a data folder begins with: keys and credentials, made once and never overwritten.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use edgekeep_core::token::{KeyAlgorithm, KeyError, KeyRing};
use edgekeep_core::{Entropy, Timestamp};
use tempfile::NamedTempFile;

/// The keys and credentials of a data folder.
pub struct DemoFiles {
    pub keys: KeyRing,
    /// What the Worker shows to its authority.
    pub edge_token: String,
    /// What the login service shows.
    pub service_token: String,
}

/// Why a data folder's files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0}: {1}")]
    Keys(PathBuf, KeyError),
    #[error("{0} is empty: remove it, and it is made anew")]
    Empty(PathBuf),
    #[error("the system gave no randomness: {0}")]
    Random(getrandom::Error),
}

/// Reads `keys.json`, `edge-token` and `service-token` of a folder. What is missing is made, with mode 0600; what is
/// there stays as it is, also when two processes start at once.
pub fn demo_files(dir: &Path) -> Result<DemoFiles, DataError> {
    fs::create_dir_all(dir).map_err(|error| DataError::Io(dir.to_owned(), error))?;
    let keys = dir.join("keys.json");
    let text = read_or_make(dir, &keys, || {
        let ring = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::from_seed(random()?), now());
        Ok(ring.to_json())
    })?;
    Ok(DemoFiles {
        keys: KeyRing::from_json(&text).map_err(|error| DataError::Keys(keys, error))?,
        edge_token: token(dir, "edge-token")?,
        service_token: token(dir, "service-token")?,
    })
}

/// 32 random bytes, as base64url.
fn token(dir: &Path, name: &str) -> Result<String, DataError> {
    let path = dir.join(name);
    let text = read_or_make(dir, &path, || Ok(format!("{}\n", BASE64_URL_SAFE_NO_PAD.encode(random()?))))?;
    let token = text.trim();
    if token.is_empty() { Err(DataError::Empty(path)) } else { Ok(token.to_owned()) }
}

fn read_or_make(
    dir: &Path,
    path: &Path,
    make: impl FnOnce() -> Result<String, DataError>,
) -> Result<String, DataError> {
    let failed = |error| DataError::Io(path.to_owned(), error);
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found.map_err(failed),
    }
    // Written whole under another name (0600 from the start), then linked: nobody reads half a file.
    let text = make()?;
    let mut file = NamedTempFile::new_in(dir).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(text),
        // Somebody was faster: theirs counts.
        Err(lost) if lost.error.kind() == io::ErrorKind::AlreadyExists => fs::read_to_string(path).map_err(failed),
        Err(lost) => Err(failed(lost.error)),
    }
}

fn random() -> Result<[u8; 32], DataError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(DataError::Random)?;
    Ok(bytes)
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_made_once_for_their_owner_only_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("data/demo");
        let first = demo_files(&dir).unwrap();
        assert!(first.keys.can_issue());
        assert_ne!(first.edge_token, first.service_token);
        for name in ["keys.json", "edge-token", "service-token"] {
            assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        let again = demo_files(&dir).unwrap();
        assert_eq!(again.keys.to_json(), first.keys.to_json());
        assert_eq!((again.edge_token, again.service_token), (first.edge_token, first.service_token));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "nothing else is left behind");
    }

    #[test]
    fn a_broken_file_is_named_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("keys.json"), "{").unwrap();
        let error = demo_files(folder.path()).err().unwrap();
        assert!(error.to_string().contains("keys.json"), "{error}");
        fs::remove_file(folder.path().join("keys.json")).unwrap();
        fs::write(folder.path().join("edge-token"), " \n").unwrap();
        assert!(matches!(demo_files(folder.path()), Err(DataError::Empty(path)) if path.ends_with("edge-token")));
    }
}
