//! `docs/storage.md`, as far as the scenarios read it: what it gives to operators is what they run with.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::common::root;

/// The user that Redis is given for gateways.
pub const GATEWAY_USER: &str = "edgekeep";

/// The line that gives Redis that user, word by word as its command line takes it.
pub(crate) fn gateway_user(password: &str) -> Result<Vec<String>> {
    let text = read()?;
    let start = format!("user {GATEWAY_USER} on >PASSWORD ");
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(&start))
        .context("docs/storage.md gives no user")?;
    let mut words = vec!["--user".to_owned(), GATEWAY_USER.to_owned(), "on".to_owned(), format!(">{password}")];
    words.extend(line.split_whitespace().map(str::to_owned));
    Ok(words)
}

/// The fields of a session's refresh state.
pub fn refresh_state_fields() -> Result<BTreeSet<String>> {
    let text = read()?;
    let (_, after) = text.split_once("| Field | Holds |\n").context("docs/storage.md has no table of fields")?;
    let rows = after.lines().skip(1).take_while(|line| line.starts_with('|'));
    let names = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split(','));
    let fields: BTreeSet<String> = names.map(|name| name.trim().trim_matches('`').to_owned()).collect();
    ensure!(fields.contains("n"), "docs/storage.md: {fields:?}");
    Ok(fields)
}

fn read() -> Result<String> {
    Ok(fs::read_to_string(root().join("docs/storage.md"))?)
}
