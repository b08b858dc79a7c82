//! What a validation costs: 100,000 distinct HS256 tokens in random order, each signature checked and each session
//! looked up in the near cache, beside one HMAC-SHA256 over the same bytes in the same order; and the memory of a
//! near-cached session. One JSON line a figure, for `cargo xtask bench`; nothing is asserted here.
//!
//! `cargo run --release -p edgekeep-core --example validation`

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a measurement needs a clock")]
#![allow(clippy::print_stdout, reason = "the figures are its output")]

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use edgekeep_core::session::{Found, LoadedSession, NearCache, steer_session_id};
use edgekeep_core::token::{AccessClaims, KeyAlgorithm, KeyRing, Verifier, sign_access};
use edgekeep_core::{Entropy, Millis, SessionId, Timestamp, UserId};
use hmac::{Hmac, Mac};
use sha2::Sha256;

// As the gateway has it. wasm builds examples too, and has none.
#[cfg(not(target_arch = "wasm32"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOKENS: usize = 100_000;
const SESSIONS: usize = 1_000_000;
const ROUNDS: usize = 7;
const NOW: Timestamp = Timestamp(1_750_000_000_000);

fn main() -> Result<(), Box<dyn Error>> {
    let mut entropy = Entropy::for_tests(1);
    let ring = KeyRing::generate(KeyAlgorithm::Hs256, &mut entropy, NOW);
    let verifier = Verifier::new(&ring, "edgekeep", "app", Millis::ZERO);

    // Bound a little above what is put in: the cache's parts do not fill evenly.
    let before = resident()?;
    let near = NearCache::new(SESSIONS * 11 / 10, &mut entropy);
    let mut sampled = Vec::new();
    for n in 0..SESSIONS {
        // 16 bytes, as the target says.
        let user = UserId::new(&format!("user-{n:011}"))?;
        let id = steer_session_id(&user, &mut entropy);
        if n % (SESSIONS / TOKENS) == 0 {
            sampled.push((id, user.clone()));
        }
        near.fill(&near.begin(id, &user), &loaded(user.clone()));
    }
    let sampled_bytes = sampled.capacity() * size_of::<(SessionId, UserId)>() + sampled.len() * 32;
    let resident = resident()?.saturating_sub(before).saturating_sub(sampled_bytes);
    let entries = near.len();
    let small = NearCache::new(TOKENS * 11 / 10, &mut entropy);
    for (id, user) in &sampled {
        small.fill(&small.begin(*id, user), &loaded(user.clone()));
    }
    println!(r#"{{"name":"near_cache_entries","count":{entries}}}"#);
    println!(r#"{{"name":"near_cache_bytes_per_session","bytes":{:.1}}}"#, resident as f64 / entries as f64);
    println!(r#"{{"name":"near_cache_estimate_per_session","bytes":{:.1}}}"#, near.memory() as f64 / entries as f64);

    let mut tokens = Vec::with_capacity(TOKENS);
    for (id, user) in sampled {
        tokens.push(sign_access(&ring, &claims(id, user, &mut entropy))?);
    }
    for at in (1..tokens.len()).rev() {
        tokens.swap(at, entropy.below(at as u64 + 1) as usize);
    }
    let bytes = tokens.iter().map(String::len).sum::<usize>() / tokens.len();
    println!(r#"{{"name":"token_bytes","bytes":{bytes}}}"#);

    let keyed = Hmac::<Sha256>::new_from_slice(&entropy.bytes::<32>())?;
    let begin = |token: &String| {
        let mut mac = keyed.clone();
        mac.update(token.rsplit_once('.').map_or(token.as_bytes(), |(signed, _)| signed.as_bytes()));
        black_box(mac.finalize());
        true
    };
    let verified = |token: &String| verifier.verify(token, NOW).is_ok_and(|claims| black_box(claims.generation) == 0);
    let validated = |near: &NearCache, token: &String| {
        verifier.verify(token, NOW).is_ok_and(|claims| {
            matches!(near.find(claims.sid, &claims.sub, NOW), Found::Verified(entry) if entry.expires_at > NOW)
        })
    };
    // Round by round in turn, so that a slow moment of the machine meets all of them.
    let mut rounds = [[0.0; 4]; ROUNDS];
    for round in &mut rounds {
        *round = [
            nanoseconds(&tokens, begin)?,
            nanoseconds(&tokens, verified)?,
            nanoseconds(&tokens, |token| validated(&small, token))?,
            nanoseconds(&tokens, |token| validated(&near, token))?,
        ];
    }
    for (column, name) in
        ["one_hmac_sha256", "verify_hs256", "validate_100k_sessions", "validate_1m_sessions"].into_iter().enumerate()
    {
        let best = rounds.iter().map(|round| round[column]).fold(f64::INFINITY, f64::min);
        println!(r#"{{"name":"{name}","ns":{best:.0}}}"#);
        let mut ratios = rounds.map(|round| round[column] / round[0]);
        ratios.sort_unstable_by(f64::total_cmp);
        println!(r#"{{"name":"{name}_over_one_hmac","ratio":{:.2}}}"#, ratios[ROUNDS / 2]);
    }
    let begun = Instant::now();
    for (n, token) in tokens.iter().enumerate() {
        black_box(near.begin(SessionId((n as u128).to_be_bytes()), black_box(&UserId::new(&token[..16])?)));
    }
    println!(r#"{{"name":"near_begin","ns":{:.0}}}"#, begun.elapsed().as_nanos() as f64 / tokens.len() as f64);
    Ok(())
}

/// The time of one, over all tokens in their order; an error when one of them fails.
fn nanoseconds(tokens: &[String], work: impl Fn(&String) -> bool) -> Result<f64, Box<dyn Error>> {
    let begun = Instant::now();
    for token in tokens {
        if !work(black_box(token)) {
            return Err("a good token was refused".into());
        }
    }
    Ok(begun.elapsed().as_nanos() as f64 / tokens.len() as f64)
}

fn loaded(user: UserId) -> LoadedSession {
    LoadedSession {
        user,
        epoch: 1,
        live: true,
        expires_at: NOW + Millis::from_secs(86_400),
        generation: 0,
        checked_at: NOW,
    }
}

fn claims(sid: SessionId, sub: UserId, entropy: &mut Entropy) -> AccessClaims {
    let jti: String = entropy.bytes::<16>().iter().map(|b| format!("{b:02x}")).collect();
    AccessClaims {
        iss: "edgekeep".into(),
        sub,
        aud: "app".into(),
        client_id: "app".into(),
        iat: NOW,
        exp: NOW + Millis::from_secs(900),
        jti: jti.into(),
        sid,
        generation: 0,
    }
}

/// Resident memory of this process in bytes (Linux).
fn resident() -> Result<usize, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<usize>()? * 1024)
}
