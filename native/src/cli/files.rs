//! Keys and secrets on disk: readable by their owner only, made once, and replaced as a whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edgekeep_core::Entropy;
use edgekeep_core::config::{Algorithm, SecretSource};
use edgekeep_core::token::{KeyAlgorithm, KeyRing};

use super::Failure;
use crate::gateway::{clock, seed};

/// For the owner to read and write.
const PRIVATE: u32 = 0o600;
/// For the owner alone: a folder that is made for private files.
const PRIVATE_FOLDER: u32 = 0o700;

/// The key ring of `path`; a new one is made when there is no file. True: it was made now.
pub fn keys(path: &Path, algorithm: Algorithm) -> Result<(KeyRing, bool), Failure> {
    if path.exists() {
        return Ok((existing_keys(path)?, false));
    }
    let algorithm = match algorithm {
        Algorithm::EdDSA => KeyAlgorithm::EdDsa,
        Algorithm::HS256 => KeyAlgorithm::Hs256,
    };
    let ring = KeyRing::generate(algorithm, &mut Entropy::from_seed(seed()?), clock::now());
    write_private(path, ring.to_json().as_bytes())?;
    Ok((ring, true))
}

/// The key ring of a file that must be there and be able to issue.
pub fn existing_keys(path: &Path) -> Result<KeyRing, Failure> {
    let shown = path.display();
    let text = read_private(path, "session.keys")?.ok_or_else(|| format!("session.keys: {shown} does not exist"))?;
    let ring = KeyRing::from_json(&text).map_err(|e| format!("session.keys: {shown}: {e}"))?;
    if !ring.can_issue() {
        return Err(format!("session.keys: {shown} cannot issue sessions: it is an edge's").into());
    }
    Ok(ring)
}

/// The secret of `path`; 32 random bytes are made when there is no file. True: it was made now.
pub fn secret(path: &Path) -> Result<(String, bool), Failure> {
    if let Some(text) = read_private(path, "a secret")? {
        return Ok((text.trim().to_owned(), false));
    }
    let secret = URL_SAFE_NO_PAD.encode(seed()?);
    write_private(path, secret.as_bytes())?;
    Ok((secret, true))
}

/// The value of `*_env` or `*_file`; `None` when the variable is not set or empty. `key` names it in errors.
pub fn configured(source: &SecretSource, key: &str, base: &Path) -> Result<Option<String>, Failure> {
    if let Some(file) = &source.file {
        let path = base.join(file);
        let text = read_private(&path, key)?.ok_or_else(|| format!("{key}_file: {} does not exist", path.display()))?;
        return Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()));
    }
    match source.env.as_ref().map(std::env::var) {
        None | Some(Err(std::env::VarError::NotPresent)) => Ok(None),
        Some(Ok(value)) => Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty())),
        Some(Err(std::env::VarError::NotUnicode(_))) => Err(format!("{key}_env: the variable is not UTF-8").into()),
    }
}

/// A file that only its owner may read; `None` when there is none.
pub fn read_private(path: &Path, key: &str) -> Result<Option<String>, Failure> {
    let shown = path.display();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{key}: cannot open {shown}: {error}").into()),
    };
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        return Err(format!("{key}: {shown} can be read by others (mode {mode:o}): chmod 600 {shown}").into());
    }
    Ok(Some(std::io::read_to_string(file).map_err(|e| format!("{key}: cannot read {shown}: {e}"))?))
}

/// Writes a file that did not exist, durably, mode 0600.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(folder).map_err(failed)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path).map_err(failed)?;
    // The mode above is cut by the umask only downwards; say it again for a file system that ignored it.
    file.set_permissions(Permissions::from_mode(PRIVATE)).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(())
}

/// The keys of a file, whatever they are for. `key` names the file in errors.
pub fn any_keys(path: &Path, key: &str) -> Result<KeyRing, Failure> {
    let shown = path.display();
    let text = read_private(path, key)?.ok_or_else(|| format!("{key}: {shown} does not exist"))?;
    Ok(KeyRing::from_json(&text).map_err(|e| format!("{key}: {shown}: {e}"))?)
}

/// Replaces the keys of a file with what `edit` makes of them. A gateway that reads it meanwhile gets the old ones or the
/// new ones, whole; so does one after a crash. Of two commands at once the second is refused.
pub fn edit_keys<T>(
    path: &Path,
    key: &str,
    edit: impl FnOnce(&KeyRing) -> Result<(KeyRing, T), Failure>,
) -> Result<T, Failure> {
    // Behind a symbolic link the file is replaced, not the link.
    let path = path.canonicalize().map_err(|e| format!("{key}: cannot open {}: {e}", path.display()))?;
    let mut draft = Draft::beside(&path)?;
    let old = any_keys(&path, key)?;
    let (new, result) = edit(&old)?;
    let text = new.to_json();
    if text != old.to_json() {
        draft.replace(&path, text.as_bytes()).map_err(|e| format!("{key}: cannot write {}: {e}", path.display()))?;
    }
    Ok(result)
}

/// A new version of a file while it is written; gone again unless it took the file's place.
struct Draft {
    file: File,
    path: PathBuf,
    took_its_place: bool,
}

impl Draft {
    fn beside(path: &Path) -> Result<Draft, Failure> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let path = path.with_file_name(name);
        let shown = path.display();
        match OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&path) {
            Ok(file) => Ok(Draft { file, path, took_its_place: false }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(format!(
                "{shown} exists: another command is changing these keys, or one was interrupted; then remove it"
            )
            .into()),
            Err(error) => Err(format!("cannot write {shown}: {error}").into()),
        }
    }

    fn replace(&mut self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        // The gateway's user must be able to read what an administrator changed.
        let (old, new) = (std::fs::metadata(path)?, self.file.metadata()?);
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(&self.file, Some(old.uid()), Some(old.gid()))?;
        }
        self.file.set_permissions(Permissions::from_mode(PRIVATE))?;
        self.file.write_all(bytes)?;
        self.file.sync_all()?;
        std::fs::rename(&self.path, path)?;
        self.took_its_place = true;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What stands there after it took the file's place is another command's.
        if !self.took_its_place {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_private_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/keys.json");
        let (made, fresh) = keys(&path, Algorithm::EdDSA).unwrap();
        assert!(fresh);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let (read, fresh) = keys(&path, Algorithm::EdDSA).unwrap();
        assert!(!fresh);
        assert_eq!(made.to_json(), read.to_json());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        keys(&path, Algorithm::HS256).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = keys(&path, Algorithm::HS256).unwrap_err().to_string();
        assert!(error.contains("can be read by others (mode 640)"), "{error}");
    }

    #[test]
    fn keys_are_replaced_whole_and_stay_private() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("keys.json"), folder.path().join("link.json"));
        keys(&path, Algorithm::EdDSA).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let publish = |ring: &KeyRing| {
            let next = ring.publish_next(KeyAlgorithm::EdDsa, &mut Entropy::from_seed(seed()?), clock::now())?;
            Ok((next, ()))
        };
        edit_keys(&link, "--file", publish).unwrap();
        assert_eq!(any_keys(&path, "--file").unwrap().list().len(), 8);
        assert!(link.is_symlink() && !path.is_symlink());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // What is refused changes nothing and leaves nothing behind.
        let before = std::fs::read(&path).unwrap();
        let refused = edit_keys(&path, "--file", publish).unwrap_err().to_string();
        assert!(refused.contains("already published"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn two_commands_at_once_do_not_undo_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        keys(&path, Algorithm::EdDSA).unwrap();
        edit_keys(&path, "--file", |ring| {
            let second = edit_keys(&path, "--file", |ring| Ok((ring.clone(), ()))).unwrap_err().to_string();
            assert!(second.contains("another command is changing these keys"), "{second}");
            Ok((ring.clone(), ()))
        })
        .unwrap();
        edit_keys(&path, "--file", |ring| Ok((ring.clone(), ()))).unwrap();
    }
}
