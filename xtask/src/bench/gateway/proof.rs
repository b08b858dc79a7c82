//! What a peer has to show before it is measured: that it does what it is said to do.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};

use super::super::peer::{Peer, Refused};
use super::super::tokens::{self, Tokens};

/// Users whose requests are looked at: enough that no fair choice leaves an origin or a shard out.
const USERS: usize = 24;

/// What a peer does besides passing requests to both origins.
#[derive(Clone, Copy, Default)]
pub struct Job {
    /// It checks tokens.
    pub checks: bool,
    /// The header in which the origin finds the user.
    pub user: Option<&'static str>,
    /// The header in which the origin finds the user's shard, of which there are two.
    pub shard: Option<&'static str>,
    /// It sets a cookie, and follows it.
    pub sticky: bool,
}

/// Proves it over plain connections, and returns what the load sends: the tokens and, for a sticky peer, with every
/// second one the cookie that its owner was given. So both are measured, clients that bring one and clients that don't.
pub fn prove(peer: &Peer, job: Job, tokens: &Tokens, refused: &[Refused]) -> anyhow::Result<Tokens> {
    peer.prove(tokens.first()?, if job.checks { refused } else { &[] })?;
    let mut origins = BTreeSet::new();
    let mut shards = BTreeSet::new();
    for (user, token) in tokens.0.iter().take(USERS).enumerate() {
        let answer = peer.ask("/seen", Some(token), None)?;
        origins.extend(answer.origin);
        if let Some(name) = job.user {
            let user = tokens::user_id(user);
            let named = header(&answer.body, name);
            ensure!(named == Some(&user), "{}: the origin gets {name}: {named:?} for {user}", peer.name);
        }
        if let Some(name) = job.shard {
            let shard = header(&answer.body, name);
            shards.insert(shard.with_context(|| format!("{}: the origin gets no {name}", peer.name))?.to_owned());
        }
        ensure!(answer.cookie.is_some() == job.sticky, "{}: sets the cookie {:?}", peer.name, answer.cookie);
    }
    ensure!(origins.len() == 2, "{}: of two origins it asks {origins:?}", peer.name);
    ensure!(job.shard.is_none() || shards.len() >= 2, "{}: of several shards it names {shards:?}", peer.name);
    if !job.sticky {
        return Ok(Tokens(tokens.0.clone()));
    }

    let mut sent = Vec::with_capacity(tokens.0.len());
    for (user, token) in tokens.0.iter().enumerate() {
        if user % 2 == 1 {
            sent.push(token.clone());
            continue;
        }
        let first = peer.ask(&peer.path, Some(token), None)?;
        let cookie = first.cookie.with_context(|| format!("{}: sets no cookie", peer.name))?;
        for _ in 0..if user < USERS { 4 } else { 0 } {
            let again = peer.ask(&peer.path, Some(token), Some(&cookie))?;
            ensure!(again.origin == first.origin, "{}: does not follow its own cookie {cookie}", peer.name);
            ensure!(again.cookie.is_none(), "{}: sets a cookie again", peer.name);
        }
        sent.push(format!("{token} {cookie}"));
    }
    Ok(Tokens(sent))
}

/// A header's value in a request's head.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let pairs = head.lines().filter_map(|line| line.split_once(':'));
    pairs.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_found_whatever_its_case() {
        let head = "GET /seen HTTP/1.1\r\nhost: a:1\r\nX-User:  user-000001 \r\n\r\n";
        assert_eq!(header(head, "x-user"), Some("user-000001"));
        assert_eq!(header(head, "host"), Some("a:1"));
        assert_eq!(header(head, "x-shard"), None);
    }
}
