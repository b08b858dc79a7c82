//! Which shard a user or a photo lives on, and how that changes without losing anyone.
//!
//! `hash` turns an identity into a slot, `map` gives each slot an owner and knows the phases of a move, `change` makes
//! the next map from the current one, `encoding` writes maps so that two nodes can compare them, `photo` names photo
//! shards by UTC month.

mod change;
mod encoding;
mod hash;
mod map;
mod photo;

pub use change::ChangeError;
pub use encoding::MapError;
pub use hash::{HashKind, SLOTS, ShardKey, Slot};
pub use map::{Adopt, Epoch, MAX_SHARDS, Phase, PlaceError, Placement, ShardMap, ShardName, ShardNameError, SlotMove};
pub use photo::{MAX_MONTHS, MAX_SUB_SHARDS, Month, PhotoError, PhotoRules, PhotoShard};
