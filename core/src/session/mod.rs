//! Sessions: what a session is, which id it gets, the refresh token, the one table that rotates it, the words stores
//! are spoken to in, and the near cache before them. What is decided about a session is decided here and nowhere else.

mod layout;
mod near;
mod record;
mod refresh;
mod rotation;
mod steer;
mod store;

pub use layout::{SessionKey, epoch_key, index_key, record_key, state_key, user_tag};
pub use near::{Found, Kept, NEAR_MAX_AGE, NearCache, NearEntry, Ticket};
pub use record::{LoadedSession, NewSession, RefreshState, SessionRow, created_at_text};
pub use refresh::{RefreshToken, RefreshTokenError};
pub use rotation::{Decision, Device, MAX_LOST_ANSWERS, Refusal, Rotate, RotationRules, RotationWrite, decide};
pub use steer::{redis_slot, session_slot, steer_session_id};
pub use store::{StoreOp, StoreOutcome, Tombstone};
