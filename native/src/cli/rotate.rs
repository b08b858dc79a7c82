//! `edgekeep keys rotate` and `keys retire`: the steps by which new keys take the place of old ones while gateways run.
//!
//! Each step changes the file and says what to do with it; no step is taken before the one before has arrived everywhere.
//! docs/keys.md is the runbook.

#![allow(clippy::print_stdout, reason = "the answer of these commands is their output")]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use edgekeep_core::config::{Algorithm, StoreKind};
use edgekeep_core::token::{
    KeyAlgorithm, KeyKind, KeyRing, KeyRow, KeyState, Lack, LiveGateway, Retention, gateways_lacking,
};
use edgekeep_core::{Entropy, Timestamp};

use super::keys::Signing;
use super::settings::Settings;
use super::{Failure, ask, files};
use crate::gateway::{clock, seed};

/// Before an old key's time begins, the gateways are looked at twice: one that had just read its old file when it was
/// given the new one has reported by then. It takes two leases at most to start and report.
const SECOND_LOOK: Duration = Duration::from_secs(10);

#[derive(Args)]
pub struct Rotate {
    #[command(flatten)]
    whose: Whose,
    /// Which keys, separated by commas
    #[arg(long = "kind", value_name = "KIND", value_enum, value_delimiter = ',', default_value = "all")]
    kinds: Vec<Kind>,
    /// With --file: how the next access key signs [default: as the current one; with --config, session.algorithm]
    #[arg(long, value_enum, conflicts_with = "config")]
    algorithm: Option<Signing>,
    /// Workers run with the next keys, or there are none: keys that the edge cannot fetch (HS256, sticky; with --file,
    /// all) may sign
    #[arg(long)]
    edge_deployed: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Whose {
    /// The gateways' configuration: names the key file, and where to ask which gateways are live
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A key file that no running gateway uses
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Retire {
    /// The gateways' configuration: names the key file, how long tokens live, and where to ask which gateways are live
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Access,
    Refresh,
    Sticky,
    Log,
    All,
}

/// What else decides whether the next keys may sign.
struct World {
    live: Vec<LiveGateway>,
    edge: Edge,
    algorithm: KeyAlgorithm,
    now: Timestamp,
}

/// Who else verifies with these keys and reports nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    No,
    /// Workers fetch public access keys by themselves; all else must be deployed.
    BesideRegion,
    /// Nobody can be asked: whatever verifies was given the whole file.
    Alone,
}

/// What a run did, by the rows that it changed.
#[derive(Debug)]
enum Done {
    Published(Vec<KeyRow>),
    Promoted(Vec<KeyRow>),
}

pub fn rotate(options: &Rotate) -> Result<(), Failure> {
    let kinds = kinds(&options.kinds);
    let now = clock::now();
    let (path, key, world) = match (&options.whose.config, &options.whose.file) {
        (Some(config), _) => {
            let settings = Settings::read(config)?;
            let live = ask::live_gateways(&settings)?;
            let credential = files::configured(&settings.config.edge.credential, "edge.credential", &settings.base);
            let edge = !settings.config.edge.notify.is_empty()
                || !matches!(credential, Ok(None))
                || live.iter().any(|gateway| gateway.report.edge);
            let algorithm = match settings.config.session.algorithm {
                Algorithm::EdDSA => KeyAlgorithm::EdDsa,
                Algorithm::HS256 => KeyAlgorithm::Hs256,
            };
            let edge = if edge { Edge::BesideRegion } else { Edge::No };
            (settings.path(&settings.config.session.keys), "session.keys", World { live, edge, algorithm, now })
        }
        (None, Some(file)) => {
            let current = files::any_keys(file, "--file")?.current_access().map(|key| key.algorithm());
            let algorithm = options.algorithm.map(KeyAlgorithm::from).or(current).unwrap_or_default();
            (file.clone(), "--file", World { live: Vec::new(), edge: Edge::Alone, algorithm, now })
        }
        (None, None) => return Err("give --config FILE or --file FILE".into()),
    };
    let mut entropy = Entropy::from_seed(seed()?);
    let done = files::edit_keys(&path, key, |ring| step(ring, &kinds, &world, options.edge_deployed, &mut entropy))?;
    let shown = path.display();
    let gateways = options.whose.config.is_some();
    match done {
        Done::Published(rows) => {
            println!("published in {shown}, and signing nothing yet:");
            rows.iter().for_each(|row| println!("  {:8} {}", row.kind.name(), row.id));
            if gateways {
                println!("now: give the file to every gateway and send each SIGHUP; then run this again");
            } else {
                println!("now: deploy it to everything that verifies; then run this again with --edge-deployed");
            }
            if world.edge == Edge::BesideRegion {
                println!("Workers: `edgekeep keys export --edge --file {shown}`, for HS256 and sticky keys");
            }
            if rows.iter().any(|row| row.kind == KeyKind::Access && row.algorithm == KeyAlgorithm::EdDsa) {
                println!("services of your own that keep the JWKS: they may know the key only after 5 minutes");
            }
        }
        Done::Promoted(rows) => {
            println!("current in {shown}:");
            rows.iter().for_each(|row| println!("  {:8} {}", row.kind.name(), row.id));
            if gateways {
                println!("now: give the file to every gateway and send each SIGHUP; then `edgekeep keys retire`");
            } else {
                println!("now: deploy it");
            }
        }
    }
    Ok(())
}

/// The next step for these kinds, all of which must be at the same one.
fn step(
    ring: &KeyRing,
    kinds: &[KeyKind],
    world: &World,
    edge_deployed: bool,
    entropy: &mut Entropy,
) -> Result<(KeyRing, Done), Failure> {
    let next: Vec<KeyRow> = ring.list().into_iter().filter(|row| row.state == KeyState::Next).collect();
    let (waiting, without): (Vec<KeyKind>, Vec<KeyKind>) =
        kinds.iter().partition(|kind| next.iter().any(|row| row.kind == **kind));
    if waiting.is_empty() {
        let published = ring.publish_next_of(kinds, world.algorithm, entropy, world.now)?;
        let rows = published.list().into_iter().filter(|row| row.state == KeyState::Next && kinds.contains(&row.kind));
        let done = Done::Published(rows.collect());
        return Ok((published, done));
    }
    if !without.is_empty() {
        let names = |kinds: &[KeyKind]| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
        return Err(format!(
            "--kind: {} has a next key and {} has none: name those that you mean",
            names(&waiting),
            names(&without)
        )
        .into());
    }
    let lacks = gateways_lacking(&ring.next_names(kinds), &world.live);
    if !lacks.is_empty() {
        return Err(format!("nothing is changed: {}", lacking(&lacks)).into());
    }
    let promoted: Vec<KeyRow> = next.into_iter().filter(|row| kinds.contains(&row.kind)).collect();
    let unknown_at_edge: Vec<&KeyRow> = promoted.iter().filter(|row| must_be_deployed(row, world.edge)).collect();
    if !unknown_at_edge.is_empty() && !edge_deployed {
        let names: Vec<String> = unknown_at_edge.iter().map(|row| format!("{} {}", row.kind, row.id)).collect();
        return Err(format!(
            "--edge-deployed: Workers cannot fetch {}. Deploy them with what `edgekeep keys export --edge` prints, then \
             run this again with --edge-deployed; also where there are none",
            names.join(", ")
        )
        .into());
    }
    Ok((ring.promote_next_of(kinds, world.now)?, Done::Promoted(promoted)))
}

/// Whether the edge knows this key only once it was deployed with it.
fn must_be_deployed(row: &KeyRow, edge: Edge) -> bool {
    match edge {
        Edge::No => false,
        Edge::Alone => true,
        Edge::BesideRegion => match row.kind {
            KeyKind::Access => row.algorithm == KeyAlgorithm::Hs256,
            KeyKind::Sticky => true,
            // Refreshes are the region's, and a log key verifies nothing.
            KeyKind::Refresh | KeyKind::Log => false,
        },
    }
}

/// Which gateway lacks what, a line each.
fn lacking(lacks: &[Lack]) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut gateways: Vec<&str> = lacks.iter().map(|lack| lack.gateway.as_str()).collect();
    gateways.dedup();
    for gateway in gateways {
        let keys = lacks.iter().filter(|lack| lack.gateway == gateway);
        let keys: Vec<String> = keys.map(|lack| format!("{} key {}", lack.kind, lack.key)).collect();
        lines.push(format!("\ngateway {gateway} lacks {}", keys.join(", ")));
    }
    lines.concat() + "\ngive it the file, send it SIGHUP, and run this again"
}

pub fn retire(options: &Retire) -> Result<(), Failure> {
    let settings = Settings::read(&options.config)?;
    let path = settings.path(&settings.config.session.keys);
    let mut live = ask::live_gateways(&settings)?;
    let ring = files::any_keys(&path, "session.keys")?;
    if settings.config.store.kind == StoreKind::Redis && ring.settle(&live, clock::now()).list() != ring.list() {
        std::thread::sleep(SECOND_LOOK);
        live = ask::live_gateways(&settings)?;
    }
    let retention = Retention::new(&settings.config);
    let now = clock::now();
    let (gone, kept) = files::edit_keys(&path, "session.keys", |ring| {
        let settled = ring.settle(&live, now);
        let left = settled.drop_retired(now, &retention);
        let (old, rows) = (ring.list(), left.list());
        let is_left = |row: &KeyRow| rows.iter().any(|other| (other.kind, &other.id) == (row.kind, &row.id));
        let gone: Vec<KeyRow> = old.into_iter().filter(|row| !is_left(row)).collect();
        Ok((left, (gone, rows.into_iter().filter(|row| row.state == KeyState::Retired).collect::<Vec<_>>())))
    })?;
    let shown = path.display();
    for row in &gone {
        println!("removed {:8} {}", row.kind.name(), row.id);
    }
    for row in &kept {
        println!("stays   {:8} {}  {}", row.kind.name(), row.id, stay(row, &retention));
    }
    match (gone.is_empty(), kept.is_empty()) {
        (true, true) => println!("{shown} has no retired keys"),
        (false, _) => println!("now: give {shown} to every gateway and send each SIGHUP"),
        (true, false) => println!("run this again when it is time"),
    }
    Ok(())
}

/// Until when a retired key stays, in words.
pub fn stay(row: &KeyRow, retention: &Retention) -> String {
    match row.may_go_at(retention) {
        Some(at) => format!("until {}: what it signed may be alive till then", at.to_rfc3339()),
        None => "a gateway may still sign with it: `edgekeep keys retire` asks, and starts its time".to_owned(),
    }
}

fn kinds(asked: &[Kind]) -> Vec<KeyKind> {
    let wants = |kind: &KeyKind| {
        let own = match kind {
            KeyKind::Access => Kind::Access,
            KeyKind::Refresh => Kind::Refresh,
            KeyKind::Sticky => Kind::Sticky,
            KeyKind::Log => Kind::Log,
        };
        asked.contains(&Kind::All) || asked.contains(&own)
    };
    KeyKind::ALL.into_iter().filter(wants).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgekeep_core::token::GatewayReport;

    const NOW: Timestamp = Timestamp(1_750_000_000_000);

    fn world(live: Vec<LiveGateway>, edge: Edge, algorithm: KeyAlgorithm) -> World {
        World { live, edge, algorithm, now: NOW }
    }

    fn ring(algorithm: KeyAlgorithm) -> KeyRing {
        KeyRing::generate(algorithm, &mut Entropy::from_seed([1; 32]), NOW)
    }

    fn gateway(id: &str, ring: &KeyRing) -> LiveGateway {
        let report = GatewayReport { knows: ring.names(), signs: ring.signing_names(), ..GatewayReport::default() };
        LiveGateway { id: id.to_owned(), report }
    }

    fn run(ring: &KeyRing, asked: &[Kind], world: &World, deployed: bool) -> Result<KeyRing, String> {
        let mut entropy = Entropy::from_seed([2; 32]);
        step(ring, &kinds(asked), world, deployed, &mut entropy).map(|(ring, _)| ring).map_err(|e| e.to_string())
    }

    fn states(ring: &KeyRing, kind: KeyKind) -> Vec<KeyState> {
        ring.list().into_iter().filter(|row| row.kind == kind).map(|row| row.state).collect()
    }

    #[test]
    fn a_second_run_promotes_what_the_first_published_once_every_gateway_knows_it() {
        let old = ring(KeyAlgorithm::EdDsa);
        let alone = world(vec![], Edge::No, KeyAlgorithm::EdDsa);
        let next = run(&old, &[Kind::All], &alone, false).unwrap();
        let behind = world(vec![gateway("a", &next), gateway("b", &old)], Edge::No, KeyAlgorithm::EdDsa);
        let refused = run(&next, &[Kind::All], &behind, false).unwrap_err();
        assert!(refused.contains("gateway b lacks access key ") && !refused.contains("gateway a"), "{refused}");
        assert!(run(&next, &[Kind::All], &behind, true).is_err(), "--edge-deployed says nothing of gateways");
        let there = world(vec![gateway("a", &next), gateway("b", &next)], Edge::No, KeyAlgorithm::EdDsa);
        let new = run(&next, &[Kind::All], &there, false).unwrap();
        for kind in KeyKind::ALL {
            assert_eq!(states(&new, kind), [KeyState::Retired, KeyState::Current], "{kind}");
        }
    }

    #[test]
    fn kinds_at_different_steps_are_not_guessed_at() {
        let alone = world(vec![], Edge::No, KeyAlgorithm::EdDsa);
        let next = run(&ring(KeyAlgorithm::EdDsa), &[Kind::Access, Kind::Log], &alone, false).unwrap();
        let refused = run(&next, &[Kind::All], &alone, false).unwrap_err();
        assert!(refused.starts_with("--kind: access, log has a next key and refresh, sticky has none"), "{refused}");
        let new = run(&next, &[Kind::Access], &alone, false).unwrap();
        assert_eq!(states(&new, KeyKind::Log), [KeyState::Current, KeyState::Next]);
    }

    #[test]
    fn what_the_edge_cannot_fetch_waits_until_it_was_deployed() {
        use KeyAlgorithm::{EdDsa, Hs256};
        // How the next access key signs, who verifies, which kind, and whether the flag is needed.
        let cases = [
            (EdDsa, Edge::No, Kind::All, false),
            (Hs256, Edge::No, Kind::All, false),
            (EdDsa, Edge::BesideRegion, Kind::Access, false),
            (Hs256, Edge::BesideRegion, Kind::Access, true),
            (EdDsa, Edge::BesideRegion, Kind::Sticky, true),
            (EdDsa, Edge::BesideRegion, Kind::Refresh, false),
            (EdDsa, Edge::BesideRegion, Kind::All, true),
            (EdDsa, Edge::Alone, Kind::Access, true),
            (Hs256, Edge::Alone, Kind::Refresh, true),
        ];
        for (algorithm, edge, kind, needed) in cases {
            let world = world(vec![], edge, algorithm);
            let next = run(&ring(EdDsa), &[kind], &world, false).unwrap();
            let refused = run(&next, &[kind], &world, false).err();
            assert_eq!(refused.is_some(), needed, "{refused:?}");
            assert!(refused.is_none_or(|why| why.starts_with("--edge-deployed: ")));
            assert!(run(&next, &[kind], &world, true).is_ok());
        }
    }
}
