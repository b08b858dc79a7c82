//! Edgekeep's decisions. No IO, no clock, no randomness, no async: shells hand in `now` and [`Entropy`], feed events
//! and perform the effects they are asked for.
//!
//! Dependencies, each for what it is best at: `serde_json` and `toml` read, `jsonwebtoken` frames JWTs (with the
//! signatures of `hmac`, `sha2` and `ed25519-dalek`), `matchit` matches paths, `quick_cache` evicts, `siphasher`
//! places, `rand_chacha` draws, `chrono` knows the calendar, `http` parses origin URLs, `uuid` prints ids, `subtle`
//! compares in constant time.

pub mod alert;
pub mod balance;
pub mod cache;
mod entropy;
pub mod health;
mod identity;
pub mod metrics;
pub mod shard;
mod units;

pub use entropy::Entropy;
pub use identity::{MAX_USER_DIGITS, MAX_USER_ID, SessionId, UserId, UserIdError, UserIdKind};
pub use units::{ByteSize, Millis, Percent, Ratio, Timestamp};
