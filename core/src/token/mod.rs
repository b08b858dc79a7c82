//! Access tokens and the keys behind them (DESIGN §4).
//!
//! [`KeyRing`] holds the keys and their rotation, [`KeyRoster`] keeps gateways from signing with what another cannot
//! verify, [`sign_access`] issues, [`Verifier`] refuses, [`TokenCache`] spares
//! repeated signatures, and [`parse_jwks`] brings the edge the keys that it does not know yet.

mod access;
mod cache;
mod claims;
mod jwks;
mod keyfile;
mod keys;
mod members;
mod provider;
mod roster;
mod verify;

pub use access::{AccessClaims, SignError, sign_access};
pub(crate) use access::{MAX_TEXT, is_text};
pub use cache::TokenCache;
pub use claims::Claim;
pub use jwks::{JwksError, MAX_JWKS_KEYS, PublicKey, parse_jwks};
pub use keyfile::{FieldFault, KeyError};
pub use keys::{AccessKey, EdgeRole, KeyAlgorithm, KeyKind, KeyRing, KeyRow, KeyState, Retention, SecretKey};
pub use provider::install as install_jwt_provider;
pub use roster::{
    GatewayReport, KeyNames, KeyRoster, Lack, LiveGateway, NotReady, Refusal, TakingUp, gateways_lacking,
};
pub use verify::{Fault, MAX_TOKEN, Part, TokenError, Verifier};
