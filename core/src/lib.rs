//! Edgekeep's decisions. No IO, no clock, no randomness, no async: shells hand in `now` and [`Entropy`], feed events
//! and perform the effects they are asked for.
//!
//! Dependencies, each for what it is best at: `serde_json` and `toml` read, `jsonwebtoken` frames JWTs (with the
//! signatures of `hmac`, `sha2` and `ed25519-dalek`), `matchit` matches paths, `quick_cache` evicts, `siphasher`
//! places, `rand_chacha` draws, `chrono` knows the calendar, `http` parses origin URLs, `uuid` prints ids, `subtle`
//! compares in constant time, `zeroize` wipes secrets.

mod entropy;
mod identity;
mod token;
mod units;

pub use entropy::Entropy;
pub use identity::{MAX_USER_DIGITS, MAX_USER_ID, SessionId, UserId, UserIdError, UserIdKind};
pub use token::{
    AccessClaims, AccessKey, Claim, EdgeRole, Fault, FieldFault, JwksError, KeyAlgorithm, KeyError, KeyKind, KeyRing,
    KeyRow, KeyState, MAX_JWKS_KEYS, MAX_TOKEN, Part, PublicKey, Retention, SecretKey, SignError, TokenCache,
    TokenError, Verifier, install_jwt_provider, parse_jwks, sign_access,
};
pub use units::{ByteSize, Millis, Percent, Ratio, Timestamp};
