//! The origins of `edgekeep demo`: ordinary HTTP servers that know nothing of Edgekeep, so that a first try has
//! something real to protect, cache and balance, and so that scenarios can see what reaches an origin.
//!
//! Dependencies that only this needs, behind the feature `demo`: `rusqlite` keeps the data (one SQLite file a shard),
//! `hyper-util` fits tokio's sockets to hyper.

mod answer;
mod origin;
mod probes;
mod resources;
mod store;

#[cfg(test)]
mod tests;

pub use origin::serve;
pub use store::SharedDb;
