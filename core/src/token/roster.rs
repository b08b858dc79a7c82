//! Which keys the live gateways know and sign with, so that no token reaches a gateway that cannot verify it (DESIGN
//! §4, Keys).
//!
//! Each gateway reports its keys in the store under a lease and reads what the others reported, in one step. A
//! [`KeyRoster`] is one gateway's part. A key file is taken up in two steps: *ask*, whether another gateway lacks a key
//! that this file signs with, or signs with one that it no longer has; then *tell*, reporting what will be, and asking
//! once more. Whoever comes in between sees the report or is seen. Only then the shell swaps the keys. A gateway that
//! starts does the same, and so does one that becomes ready: until it is through it gets no requests, so its keys stand
//! in nobody's way. One with a wrong or an old file stays out by itself and puts nobody else out.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::keys::{KeyKind, KeyRing};
use crate::shard::Epoch;

/// Names of keys by kind: the `kid` of access keys, [`SecretKey::name`](super::SecretKey::name) of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyNames {
    access: BTreeSet<String>,
    refresh: BTreeSet<String>,
    sticky: BTreeSet<String>,
    log: BTreeSet<String>,
}

impl KeyNames {
    pub fn of(&self, kind: KeyKind) -> &BTreeSet<String> {
        match kind {
            KeyKind::Access => &self.access,
            KeyKind::Refresh => &self.refresh,
            KeyKind::Sticky => &self.sticky,
            KeyKind::Log => &self.log,
        }
    }

    fn of_mut(&mut self, kind: KeyKind) -> &mut BTreeSet<String> {
        match kind {
            KeyKind::Access => &mut self.access,
            KeyKind::Refresh => &mut self.refresh,
            KeyKind::Sticky => &mut self.sticky,
            KeyKind::Log => &mut self.log,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (KeyKind, &str)> {
        KeyKind::ALL.into_iter().flat_map(|kind| self.of(kind).iter().map(move |name| (kind, name.as_str())))
    }

    pub fn contains(&self, kind: KeyKind, name: &str) -> bool {
        self.of(kind).contains(name)
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(super) fn keep_kinds(&mut self, kinds: &[KeyKind]) {
        for kind in KeyKind::ALL.into_iter().filter(|kind| !kinds.contains(kind)) {
            self.of_mut(kind).clear();
        }
    }

    /// Those of these names that `known` has not.
    fn without<'a>(&'a self, known: &KeyNames) -> impl Iterator<Item = (KeyKind, &'a str)> {
        self.iter().filter(|(kind, name)| !known.contains(*kind, name))
    }

    fn in_both(&self, other: &KeyNames) -> KeyNames {
        let both = self.iter().filter(|(kind, name)| other.contains(*kind, name));
        both.map(|(kind, name)| (kind, name.to_owned())).collect()
    }

    fn in_either(&self, other: &KeyNames) -> KeyNames {
        self.iter().chain(other.iter()).map(|(kind, name)| (kind, name.to_owned())).collect()
    }
}

impl Extend<(KeyKind, String)> for KeyNames {
    fn extend<I: IntoIterator<Item = (KeyKind, String)>>(&mut self, names: I) {
        for (kind, name) in names {
            self.of_mut(kind).insert(name);
        }
    }
}

impl FromIterator<(KeyKind, String)> for KeyNames {
    fn from_iter<I: IntoIterator<Item = (KeyKind, String)>>(names: I) -> KeyNames {
        let mut all = KeyNames::default();
        all.extend(names);
        all
    }
}

/// What a gateway tells the others, as JSON in the store. Members that are not known here are a newer gateway's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayReport {
    /// The keys that it verifies with.
    pub knows: KeyNames,
    /// The keys that it signs with, or is about to, or that are its next and that it saw another sign with: that one may
    /// be gone when somebody asks, and its tokens are not.
    pub signs: KeyNames,
    /// Whether it is ready, or is about to be. One that is not gets no requests, and so no token of anybody's.
    pub ready: bool,
    /// The epoch of the shard map in use.
    pub epoch: Option<u64>,
    /// Whether it admits Workers: they verify with exported keys and report nothing.
    pub edge: bool,
}

impl Default for GatewayReport {
    /// Of a gateway about which nothing is known: it may get requests, and may lack any key.
    fn default() -> GatewayReport {
        let (knows, signs) = Default::default();
        GatewayReport { knows, signs, ready: true, epoch: None, edge: false }
    }
}

impl GatewayReport {
    pub fn to_json(&self) -> String {
        // Sets of strings always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A gateway that reported within its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveGateway {
    pub id: String,
    pub report: GatewayReport,
}

impl LiveGateway {
    /// From a row of the store. A report that cannot be read counts as of a gateway that knows no key: nobody signs with
    /// a new one until it is gone or reports better.
    pub fn read(id: &str, report: &str) -> LiveGateway {
        LiveGateway { id: id.to_owned(), report: serde_json::from_str(report).unwrap_or_default() }
    }
}

/// A key that one gateway signs with, or would, and another lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// The other gateway: the one that lacks the key, or the one that signs with it, as the context says.
    pub gateway: String,
    pub kind: KeyKind,
    pub key: String,
}

impl Lack {
    fn new(gateway: &LiveGateway, (kind, key): (KeyKind, &str)) -> Lack {
        Lack { gateway: gateway.id.clone(), kind, key: key.to_owned() }
    }
}

/// Which live gateways lack which of these keys. Empty: they may be promoted.
pub fn gateways_lacking(keys: &KeyNames, live: &[LiveGateway]) -> Vec<Lack> {
    lacking(keys, live.iter())
}

fn lacking<'a>(keys: &KeyNames, gateways: impl Iterator<Item = &'a LiveGateway>) -> Vec<Lack> {
    let lacks_of = |gateway: &LiveGateway| -> Vec<Lack> {
        keys.without(&gateway.report.knows).map(|key| Lack::new(gateway, key)).collect()
    };
    gateways.flat_map(lacks_of).collect()
}

/// Why a gateway's keys keep it from being ready.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotReady {
    /// It started and could not ask the store yet.
    Unheard,
    /// Its file signs with keys that others lack: the file is wrong, or too new.
    Holding(Vec<Lack>),
    /// Its file has lost keys that others sign with, or never had them: the file is wrong, or too old.
    Lacking(Vec<Lack>),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotReady::Unheard => f.write_str("the store has not said yet which keys other gateways sign with"),
            NotReady::Holding(lacks) => list(f, lacks, |f, lack| {
                write!(f, "would sign with {} key {}, which gateway {} lacks", lack.kind, lack.key, lack.gateway)
            }),
            NotReady::Lacking(lacks) => list(f, lacks, |f, lack| {
                write!(f, "lacks {} key {}, which gateway {} signs with", lack.kind, lack.key, lack.gateway)
            }),
        }
    }
}

/// Why new keys are not taken up; the old ones stay.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// They sign with keys that these gateways lack.
    Lacking(Vec<Lack>),
    /// They are without keys that these gateways sign with.
    Losing(Vec<Lack>),
    /// Nobody can say whether the other gateways know the keys.
    StoreDown,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Lacking(lacks) => list(f, lacks, |f, lack| {
                write!(f, "gateway {} lacks {} key {}, which would sign", lack.gateway, lack.kind, lack.key)
            }),
            Refusal::Losing(lacks) => list(f, lacks, |f, lack| {
                write!(f, "{} key {} would be gone, and gateway {} signs with it", lack.kind, lack.key, lack.gateway)
            }),
            Refusal::StoreDown => {
                f.write_str("the store does not answer, so nobody can say whether every gateway knows the keys")
            }
        }
    }
}

fn list(
    f: &mut fmt::Formatter<'_>,
    lacks: &[Lack],
    mut one: impl FnMut(&mut fmt::Formatter<'_>, &Lack) -> fmt::Result,
) -> fmt::Result {
    for (at, lack) in lacks.iter().enumerate() {
        if at > 0 {
            f.write_str("; ")?;
        }
        one(f, lack)?;
    }
    Ok(())
}

/// How far the taking up of new keys is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakingUp {
    /// Exchange reports once more.
    Exchange,
    /// Swap the keys now, then say [`KeyRoster::taken_up`].
    Swap,
    /// The old keys stay. Exchange reports once, to take back what was told.
    Refused(Refusal),
}

/// One gateway's part. The shell exchanges [`KeyRoster::report`] for what is live, each second and whenever
/// [`KeyRoster::is_hurried`] or a reload asks for it, one exchange at a time, and hands in what it got.
#[derive(Clone, Debug)]
pub struct KeyRoster {
    id: String,
    knows: KeyNames,
    /// Empty until all others were seen to know them.
    signs: KeyNames,
    next: KeyNames,
    /// What others were seen to sign with.
    seen: KeyNames,
    coming: Option<Coming>,
    refused: Option<Refusal>,
    /// What the others reported last.
    others: Option<Vec<LiveGateway>>,
    /// Whether its keys allow requests: told to the others before it is so.
    serving: Serving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serving {
    No,
    Told,
    Yes,
}

/// Keys on the way to being used.
#[derive(Clone, Debug)]
struct Coming {
    knows: KeyNames,
    signs: KeyNames,
    next: KeyNames,
    /// Since the start: the gateway has no others, and waits until these may be used.
    at_start: bool,
    /// Nobody objected, and from now on the report says what will be.
    told: bool,
    /// Nobody objected after that either.
    clear: bool,
    objection: Option<Refusal>,
}

impl Coming {
    fn new(ring: &KeyRing, at_start: bool) -> Coming {
        let (knows, signs, next) = (ring.names(), ring.signing_names(), ring.next_names(&KeyKind::ALL));
        Coming { knows, signs, next, at_start, told: false, clear: false, objection: None }
    }
}

impl KeyRoster {
    /// A gateway that starts with these keys. `id` is its own among all, and new at each start.
    pub fn new(id: &str, ring: &KeyRing) -> KeyRoster {
        KeyRoster {
            id: id.to_owned(),
            knows: ring.names(),
            signs: KeyNames::default(),
            next: ring.next_names(&KeyKind::ALL),
            seen: KeyNames::default(),
            coming: Some(Coming::new(ring, true)),
            refused: None,
            others: None,
            serving: Serving::No,
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// What to report now. While keys are being taken up it promises no more than both the old and the new ones hold.
    pub fn report(&self, epoch: Option<Epoch>, edge: bool) -> GatewayReport {
        let signs = self.signs.in_either(&self.seen.in_both(&self.next));
        let (knows, signs) = match &self.coming {
            Some(coming) if coming.told => (self.knows.in_both(&coming.knows), signs.in_either(&coming.signs)),
            _ => (self.knows.clone(), signs),
        };
        GatewayReport { knows, signs, ready: self.serving != Serving::No, epoch: epoch.map(|epoch| epoch.0), edge }
    }

    /// What is live, this gateway's own report included, read together with writing that report.
    pub fn heard(&mut self, live: Vec<LiveGateway>) {
        let others: Vec<_> = live.into_iter().filter(|gateway| gateway.id != self.id).collect();
        self.seen = others.iter().fold(self.seen.in_both(&self.knows), |seen, gateway| {
            seen.in_either(&gateway.report.signs.in_both(&self.knows))
        });
        if let Some(mut coming) = self.coming.take() {
            coming.objection = self.objection(&coming, &others);
            match (&coming.objection, coming.told) {
                (None, true) if coming.at_start => self.signs = coming.signs,
                (None, told) => {
                    coming.clear = told;
                    coming.told = true;
                    self.coming = Some(coming);
                }
                (Some(_), _) if coming.at_start => {
                    coming.told = false;
                    self.coming = Some(coming);
                }
                (Some(objection), _) => self.refused = Some(objection.clone()),
            }
        }
        let holding = self.coming.as_ref().is_some_and(|coming| coming.at_start && coming.objection.is_some());
        let lacking = !signed_without(&self.knows, &others, |_| true).is_empty();
        self.serving = match self.serving {
            _ if holding || lacking => Serving::No,
            Serving::No => Serving::Told,
            Serving::Told | Serving::Yes => Serving::Yes,
        };
        self.others = Some(others);
    }

    fn objection(&self, coming: &Coming, others: &[LiveGateway]) -> Option<Refusal> {
        let lacking = lacking(&coming.signs, others.iter().filter(|gateway| gateway.report.ready));
        if !lacking.is_empty() {
            return Some(Refusal::Lacking(lacking));
        }
        let lost = |(kind, name): &(KeyKind, &str)| self.knows.contains(*kind, name);
        let losing = signed_without(&coming.knows, others, lost);
        (!losing.is_empty()).then_some(Refusal::Losing(losing))
    }

    /// The store did not answer an exchange: what was heard last stays, and new keys wait for it unless they sign as
    /// the old ones do and only add to them.
    pub fn unheard(&mut self) {
        if let Some(mut coming) = self.coming.take() {
            if coming.at_start {
                self.coming = Some(coming);
            } else if coming.signs == self.signs && self.knows.without(&coming.knows).next().is_none() {
                coming.clear = true;
                self.coming = Some(coming);
            } else {
                self.refused = Some(Refusal::StoreDown);
            }
        }
    }

    /// Whether the next exchange is due at once.
    pub fn is_hurried(&self) -> bool {
        self.serving == Serving::Told || self.coming.as_ref().is_some_and(|coming| coming.told)
    }

    /// Begins to take up other keys. A gateway that is not ready since its start takes them at once and begins anew.
    pub fn take_up(&mut self, ring: &KeyRing) {
        self.refused = None;
        let starting = self.coming.as_ref().is_some_and(|coming| coming.at_start);
        self.coming = Some(Coming { clear: starting, at_start: starting, ..Coming::new(ring, starting) });
    }

    /// How far that is.
    pub fn taking_up(&self) -> TakingUp {
        match (&self.refused, &self.coming) {
            (Some(refusal), _) => TakingUp::Refused(refusal.clone()),
            (None, Some(coming)) if !coming.clear => TakingUp::Exchange,
            (None, _) => TakingUp::Swap,
        }
    }

    /// The keys were swapped.
    pub fn taken_up(&mut self) {
        match self.coming.take() {
            Some(coming) if coming.at_start => {
                (self.knows, self.next) = (coming.knows.clone(), coming.next.clone());
                self.coming = Some(Coming { told: false, clear: false, objection: None, ..coming });
            }
            Some(coming) => (self.knows, self.signs, self.next) = (coming.knows, coming.signs, coming.next),
            None => {}
        }
    }

    /// The keys could not be swapped after all.
    pub fn left_as_it_was(&mut self) {
        if self.coming.as_ref().is_some_and(|coming| !coming.at_start) {
            self.coming = None;
        }
        self.refused = None;
    }

    /// Whether this gateway's keys let it be ready.
    pub fn readiness(&self) -> Result<(), NotReady> {
        let Some(others) = &self.others else { return Err(NotReady::Unheard) };
        let lacking = signed_without(&self.knows, others, |_| true);
        if !lacking.is_empty() {
            return Err(NotReady::Lacking(lacking));
        }
        match &self.coming {
            Some(Coming { at_start: true, objection, .. }) => Err(match objection {
                Some(Refusal::Lacking(lacks)) => NotReady::Holding(lacks.clone()),
                _ => NotReady::Unheard,
            }),
            _ if self.serving == Serving::Yes => Ok(()),
            _ => Err(NotReady::Unheard),
        }
    }
}

/// What others sign with and `known` has not.
fn signed_without(
    known: &KeyNames,
    others: &[LiveGateway],
    mut counts: impl FnMut(&(KeyKind, &str)) -> bool,
) -> Vec<Lack> {
    let mut lacks = Vec::new();
    for gateway in others {
        let missing = gateway.report.signs.without(known).filter(|key| counts(key));
        lacks.extend(missing.map(|key| Lack::new(gateway, key)));
    }
    lacks
}

#[cfg(test)]
mod tests;
