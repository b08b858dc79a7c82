//! Which rule a request falls under: its path made canonical, Edgekeep's own paths first, then the most specific route.
//!
//! A path is read once, strictly, and everything that decides (route, shard, cache) uses that one reading, so nobody
//! slips past a `strict` route by spelling its path in another way.

mod own;
mod path;
mod pattern;
mod router;

pub use own::{OwnPath, own_path};
pub use path::{CanonicalPath, PathError};
pub use pattern::{MAX_PARAMETERS, MAX_SEGMENTS, Pattern, PatternError, Segment};
pub use router::{AmbiguousRoutes, RouteMatch, Router, ambiguous_routes};
