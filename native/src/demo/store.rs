//! What a shard's demo origins remember: profiles, photos and vectors in one SQLite file.
//!
//! Two origins of a shard share one [`SharedDb`], so either answers for the other's writes. SQLite blocks, so every
//! call runs on tokio's blocking threads, one at a time behind a mutex: a demo wants to be plain, not quick.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, ToSql, Transaction, TransactionBehavior, params_from_iter};
use thiserror::Error;

/// The largest stored body in bytes, and so the largest that a write may carry.
pub const MAX_BODY: usize = 1024 * 1024;

/// How long a statement waits for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

// A revision is never used twice, not even after a deletion, so an ETag made of it is strong.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS profiles (
        user_id TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL, revision INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS photos (
        month TEXT NOT NULL, photo_id TEXT NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (month, photo_id)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS vectors (
        vector_id TEXT NOT NULL PRIMARY KEY, body TEXT NOT NULL, revision INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS revisions (id INTEGER PRIMARY KEY CHECK (id = 0), last INTEGER NOT NULL) STRICT;
    INSERT OR IGNORE INTO revisions (id, last) VALUES (0, 0);
";

/// One shard's SQLite file. A clone is the same connection.
#[derive(Clone)]
pub struct SharedDb(Arc<Mutex<Connection>>);

/// Which row is meant. The parts are decoded text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Profile(String),
    Photo { month: String, photo_id: String },
    Vector(String),
}

/// A resource as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// JSON, as the client wrote it.
    pub body: String,
    /// Unique in the shard and ever higher.
    pub revision: i64,
}

/// What a PUT did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Nothing stood there before.
    pub created: bool,
    pub revision: i64,
}

/// Why the store did not do as asked; nothing was changed.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("another process holds the file")]
    Busy,
    #[error("the merged document is larger than {MAX_BODY} bytes")]
    TooLarge,
    #[error(transparent)]
    Sqlite(rusqlite::Error),
    #[error("the call was not finished")]
    Stopped,
}

impl SharedDb {
    /// Opens the file, or makes it with its tables; its folder must exist.
    pub fn open(path: &Path) -> Result<SharedDb, rusqlite::Error> {
        let connection = Connection::open(path)?;
        // First, since the pragmas below already need the file.
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // An acknowledged write is on the disk, also when the power fails.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(SCHEMA)?;
        Ok(SharedDb(Arc::new(Mutex::new(connection))))
    }

    pub async fn read(&self, key: Key) -> Result<Option<Stored>, StoreError> {
        self.run(move |connection| Ok(read(connection, &key)?)).await
    }

    /// Stores `body`, which must be JSON, in place of what stood there.
    pub async fn put(&self, key: Key, body: String) -> Result<Written, StoreError> {
        self.transact(move |transaction| {
            let revision = next_revision(transaction)?;
            let table = key.table();
            let mut values: Vec<&dyn ToSql> = vec![&body, &revision];
            values.extend(key.values());
            let update = format!("UPDATE {table} SET body = ?, revision = ? WHERE {}", key.condition());
            let changed = transaction.prepare_cached(&update)?.execute(values.as_slice())?;
            if changed == 0 {
                let (columns, marks) = (key.columns().join(", "), vec!["?"; values.len()].join(", "));
                let insert = format!("INSERT INTO {table} (body, revision, {columns}) VALUES ({marks})");
                transaction.prepare_cached(&insert)?.execute(values.as_slice())?;
            }
            Ok(Written { created: changed == 0, revision })
        })
        .await
    }

    /// Applies a JSON merge patch (RFC 7396); `None` when nothing stands there.
    pub async fn merge(&self, key: Key, patch: String) -> Result<Option<Stored>, StoreError> {
        self.transact(move |transaction| {
            let revision = next_revision(transaction)?;
            let mut values: Vec<&dyn ToSql> = vec![&patch, &revision];
            values.extend(key.values());
            let update = format!(
                "UPDATE {} SET body = json_patch(body, ?), revision = ? WHERE {}",
                key.table(),
                key.condition()
            );
            transaction.prepare_cached(&update)?.execute(values.as_slice())?;
            let merged = read(transaction, &key)?;
            if merged.as_ref().is_some_and(|stored| stored.body.len() > MAX_BODY) {
                return Err(StoreError::TooLarge);
            }
            Ok(merged)
        })
        .await
    }

    /// Whether something stood there.
    pub async fn delete(&self, key: Key) -> Result<bool, StoreError> {
        self.transact(move |transaction| {
            let delete = format!("DELETE FROM {} WHERE {}", key.table(), key.condition());
            Ok(transaction.prepare_cached(&delete)?.execute(params_from_iter(key.values()))? > 0)
        })
        .await
    }

    /// All or nothing. The write lock is taken at the start, where waiting for it is possible.
    async fn transact<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            // A panic rolled its transaction back, so what it left behind is sound.
            work(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
        .unwrap_or(Err(StoreError::Stopped))
    }
}

fn read(connection: &Connection, key: &Key) -> Result<Option<Stored>, rusqlite::Error> {
    let select = format!("SELECT body, revision FROM {} WHERE {}", key.table(), key.condition());
    connection
        .prepare_cached(&select)?
        .query_row(params_from_iter(key.values()), |row| Ok(Stored { body: row.get(0)?, revision: row.get(1)? }))
        .optional()
}

fn next_revision(transaction: &Transaction<'_>) -> Result<i64, rusqlite::Error> {
    transaction
        .prepare_cached("UPDATE revisions SET last = last + 1 WHERE id = 0 RETURNING last")?
        .query_row([], |row| row.get(0))
}

impl Key {
    fn table(&self) -> &'static str {
        match self {
            Key::Profile(_) => "profiles",
            Key::Photo { .. } => "photos",
            Key::Vector(_) => "vectors",
        }
    }

    fn columns(&self) -> &'static [&'static str] {
        match self {
            Key::Profile(_) => &["user_id"],
            Key::Photo { .. } => &["month", "photo_id"],
            Key::Vector(_) => &["vector_id"],
        }
    }

    /// In the order of the columns.
    fn values(&self) -> Vec<&dyn ToSql> {
        match self {
            Key::Profile(id) | Key::Vector(id) => vec![id],
            Key::Photo { month, photo_id } => vec![month, photo_id],
        }
    }

    fn condition(&self) -> String {
        self.columns().iter().map(|column| format!("{column} = ?")).collect::<Vec<_>>().join(" AND ")
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy,
            _ => StoreError::Sqlite(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(id: &str) -> Key {
        Key::Profile(id.into())
    }

    #[tokio::test]
    async fn a_revision_is_not_used_again_after_a_deletion_or_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shard.sqlite");
        let db = SharedDb::open(&file).unwrap();
        let first = db.put(profile("42"), "{}".into()).await.unwrap();
        assert!(first.created);
        assert!(db.delete(profile("42")).await.unwrap());
        assert!(!db.delete(profile("42")).await.unwrap());
        drop(db);

        let db = SharedDb::open(&file).unwrap();
        let second = db.put(profile("42"), "{}".into()).await.unwrap();
        assert!(second.created && second.revision > first.revision);
        assert!(!db.put(profile("42"), "{}".into()).await.unwrap().created);
    }

    #[tokio::test]
    async fn the_three_kinds_and_the_two_parts_of_a_photo_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let db = SharedDb::open(&folder.path().join("shard.sqlite")).unwrap();
        let photo = |month: &str, id: &str| Key::Photo { month: month.into(), photo_id: id.into() };
        let keys = [profile("x"), Key::Vector("x".into()), photo("2026-03", "x"), photo("2026-04", "x")];
        for (n, key) in keys.iter().enumerate() {
            db.put(key.clone(), format!("{{\"n\":{n}}}")).await.unwrap();
        }
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(db.read(key.clone()).await.unwrap().unwrap().body, format!("{{\"n\":{n}}}"));
        }
        assert_eq!(db.read(photo("x", "2026-03")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_merge_that_would_grow_past_the_limit_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let db = SharedDb::open(&folder.path().join("shard.sqlite")).unwrap();
        let half = "x".repeat(MAX_BODY / 2);
        db.put(profile("42"), format!("{{\"a\":\"{half}\"}}")).await.unwrap();
        let before = db.read(profile("42")).await.unwrap();
        let refused = db.merge(profile("42"), format!("{{\"b\":\"{half}\"}}")).await;
        assert!(matches!(refused, Err(StoreError::TooLarge)));
        assert_eq!(db.read(profile("42")).await.unwrap(), before);
        assert_eq!(db.merge(profile("43"), "{}".into()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn two_connections_to_one_file_see_each_other_and_wait_for_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shard.sqlite");
        let (one, other) = (SharedDb::open(&file).unwrap(), SharedDb::open(&file).unwrap());
        let mut writes = tokio::task::JoinSet::new();
        for n in 0..40 {
            let db = if n % 2 == 0 { one.clone() } else { other.clone() };
            writes.spawn(async move { db.put(Key::Vector(n.to_string()), "[]".into()).await.unwrap().revision });
        }
        let mut revisions = writes.join_all().await;
        revisions.sort_unstable();
        assert_eq!(revisions, (1..=40).collect::<Vec<i64>>());
        assert!(one.read(Key::Vector("39".into())).await.unwrap().is_some());
    }
}
