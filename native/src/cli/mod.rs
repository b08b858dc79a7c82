//! The command line.

pub mod data;
pub mod edge;
