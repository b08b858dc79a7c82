//! The roster's rules one by one, and then all gateways of a deployment at once in every order that chance gives.

use wasm_bindgen_test::wasm_bindgen_test;

use super::*;
use crate::session::RefreshToken;
use crate::token::{AccessClaims, KeyAlgorithm, Retention, Verifier, sign_access};
use crate::{Entropy, Millis, SessionId, Timestamp, UserId};

const NOW: Timestamp = Timestamp(1_750_000_000_000);

fn first(seed: u64) -> KeyRing {
    KeyRing::generate(KeyAlgorithm::Hs256, &mut Entropy::for_tests(seed), NOW)
}

fn published(ring: &KeyRing) -> KeyRing {
    ring.publish_next(KeyAlgorithm::Hs256, &mut Entropy::for_tests(77), NOW).unwrap()
}

fn promoted(ring: &KeyRing) -> KeyRing {
    ring.promote_next(NOW).unwrap()
}

fn other(id: &str, ring: &KeyRing) -> LiveGateway {
    LiveGateway {
        id: id.to_owned(),
        report: GatewayReport { knows: ring.names(), signs: ring.signing_names(), ..GatewayReport::default() },
    }
}

/// Exchanges until nothing more is due at once.
fn exchange(roster: &mut KeyRoster, others: &[LiveGateway]) {
    loop {
        let own = seen(roster);
        roster.heard(others.iter().cloned().chain([own]).collect());
        if !roster.is_hurried() {
            return;
        }
    }
}

fn started(ring: &KeyRing, others: &[LiveGateway]) -> KeyRoster {
    started_as("me", ring, others)
}

fn started_as(id: &str, ring: &KeyRing, others: &[LiveGateway]) -> KeyRoster {
    let mut roster = KeyRoster::new(id, ring);
    exchange(&mut roster, others);
    roster
}

/// As the others see it.
fn seen(roster: &KeyRoster) -> LiveGateway {
    LiveGateway { id: roster.id().to_owned(), report: roster.report(None, false) }
}

/// Takes up a ring as a shell does.
fn reloaded(roster: &mut KeyRoster, ring: &KeyRing, others: &[LiveGateway]) -> Result<(), Refusal> {
    roster.take_up(ring);
    loop {
        match roster.taking_up() {
            TakingUp::Exchange => {
                let own = seen(roster);
                roster.heard(others.iter().cloned().chain([own]).collect());
            }
            TakingUp::Swap => {
                roster.taken_up();
                exchange(roster, others);
                return Ok(());
            }
            TakingUp::Refused(why) => return Err(why),
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_gateway_alone_is_ready_after_it_reached_the_store() {
    let mut roster = KeyRoster::new("me", &first(1));
    assert_eq!(roster.readiness(), Err(NotReady::Unheard));
    roster.unheard();
    assert_eq!(roster.readiness(), Err(NotReady::Unheard));
    assert!(roster.report(None, false).signs.is_empty(), "it does not say that it signs before it may");
    exchange(&mut roster, &[]);
    assert_eq!(roster.readiness(), Ok(()));
    assert_eq!(roster.report(None, false).signs, first(1).signing_names());
    // What was heard last stays.
    roster.unheard();
    assert_eq!(roster.readiness(), Ok(()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_gateway_with_another_file_stays_out_and_puts_nobody_else_out() {
    let (right, wrong) = (first(1), first(2));
    let mut here = started_as("a", &right, &[]);
    let newcomer = started(&wrong, &[seen(&here)]);
    let why = newcomer.readiness().unwrap_err();
    assert!(matches!(&why, NotReady::Lacking(lacks) if lacks.len() == 4 && lacks[0].gateway == "a"), "{why:?}");
    exchange(&mut here, &[seen(&newcomer)]);
    assert_eq!(here.readiness(), Ok(()));
    // Nor does it keep one with the right file from starting, or from taking up the next keys.
    let mut more = started_as("b", &right, &[seen(&newcomer), seen(&here)]);
    assert_eq!(more.readiness(), Ok(()));
    assert_eq!(reloaded(&mut more, &published(&right), &[seen(&newcomer)]), Ok(()));
    assert_eq!(reloaded(&mut more, &promoted(&published(&right)), &[seen(&newcomer)]), Ok(()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_gateway_that_came_back_with_an_old_file_is_not_ready() {
    let old = first(1);
    let new = promoted(&published(&old));
    let returned = started(&old, &[other("a", &new), other("b", &new)]);
    let why = returned.readiness().unwrap_err();
    let kid = new.current_access().unwrap().kid();
    assert!(why.to_string().contains(&format!("lacks access key {kid}, which gateway a signs with")), "{why}");
    assert_eq!(started_as("c", &new, &[seen(&returned)]).readiness(), Ok(()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_gateway_whose_signing_key_the_others_dropped_waits_and_they_go_on() {
    let next = published(&first(1));
    let retention = Retention { access: Millis::ZERO, refresh: Millis::ZERO, sticky: Millis::ZERO };
    let dropped = promoted(&next).settle(&[], NOW).drop_retired(NOW, &retention);
    let returned = started(&next, &[other("a", &dropped)]);
    let why = returned.readiness().unwrap_err();
    assert!(matches!(&why, NotReady::Holding(lacks) if lacks.iter().all(|lack| lack.gateway == "a")), "{why:?}");
    assert_eq!(started_as("b", &dropped, &[seen(&returned)]).readiness(), Ok(()));
    // With the right file it goes on without a restart.
    let mut returned = returned;
    assert_eq!(reloaded(&mut returned, &dropped, &[other("a", &dropped)]), Ok(()));
    assert_eq!(returned.readiness(), Ok(()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_key_that_another_gateway_lacks_is_not_taken_up() {
    let old = first(1);
    let next = published(&old);
    let mut roster = started(&old, &[other("b", &old)]);
    assert_eq!(reloaded(&mut roster, &next, &[other("b", &old)]), Ok(()), "knowing more is always good");
    let refused = reloaded(&mut roster, &promoted(&next), &[other("b", &old)]).unwrap_err();
    assert!(matches!(&refused, Refusal::Lacking(lacks) if lacks.len() == 4), "{refused:?}");
    assert!(refused.to_string().starts_with("gateway b lacks access key "), "{refused}");
    assert_eq!(roster.report(None, false).signs, old.signing_names(), "everything stays as it was");
    assert_eq!(reloaded(&mut roster, &promoted(&next), &[other("b", &next)]), Ok(()));
    assert_eq!(roster.report(None, false).signs, promoted(&next).signing_names());
}

#[wasm_bindgen_test(unsupported = test)]
fn a_gateway_that_comes_while_another_takes_up_keys_is_seen_by_it_or_sees_it() {
    let old = first(1);
    let next = published(&old);
    let new = promoted(&next);
    let mut roster = started(&next, &[]);
    roster.take_up(&new);
    roster.heard(vec![]);
    assert!(roster.report(None, false).signs.contains(KeyKind::Access, new.current_access().unwrap().kid()));
    // One that comes before this report is written is seen by it …
    let mut one = roster.clone();
    one.heard(vec![other("late", &old)]);
    assert!(matches!(one.taking_up(), TakingUp::Refused(Refusal::Lacking(_))));
    // … and one that comes after it sees the report.
    roster.heard(vec![]);
    assert_eq!(roster.taking_up(), TakingUp::Swap);
    let late = started_as("late", &old, &[seen(&roster)]);
    assert!(matches!(late.readiness(), Err(NotReady::Lacking(_))));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_gateway_that_becomes_ready_says_so_before_it_is() {
    let old = first(1);
    let next = published(&old);
    let new = promoted(&next);
    // It came back without the key that "a" signs with, and then gets a file that has it.
    let mut back = started_as("back", &old, &[other("a", &new)]);
    assert!(!back.report(None, false).ready);
    back.take_up(&next);
    while back.taking_up() == TakingUp::Exchange {
        back.heard(vec![other("a", &new)]);
    }
    back.taken_up();
    assert!(!back.report(None, false).ready);
    back.heard(vec![other("a", &new)]);
    assert!(back.report(None, false).ready && back.readiness().is_err(), "told, and not yet so");
    // Meanwhile "a" went on to keys of which this file knows nothing.
    let newest = promoted(&new.publish_next(KeyAlgorithm::Hs256, &mut Entropy::for_tests(78), NOW).unwrap());
    back.heard(vec![other("a", &newest)]);
    assert!(matches!(back.readiness(), Err(NotReady::Lacking(_))));
    assert!(!back.report(None, false).ready);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_key_that_another_gateway_signs_with_is_not_given_up() {
    let next = published(&first(1));
    let new = promoted(&next);
    let retention = Retention { access: Millis::ZERO, refresh: Millis::ZERO, sticky: Millis::ZERO };
    let dropped = new.settle(&[], NOW).drop_retired(NOW, &retention);
    let mut roster = started(&new, &[other("b", &next)]);
    let refused = reloaded(&mut roster, &dropped, &[other("b", &next)]).unwrap_err();
    assert!(matches!(&refused, Refusal::Losing(_)) && refused.to_string().contains("gateway b signs with it"));
    assert_eq!(reloaded(&mut roster, &dropped, &[other("b", &new)]), Ok(()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_key_that_was_signed_with_is_remembered_when_its_gateway_is_gone() {
    let old = first(1);
    let next = published(&old);
    let mut witness = started_as("x", &next, &[other("a", &promoted(&next))]);
    // "a" is gone; its tokens are not, and one that was away all the time knows nothing of their key.
    exchange(&mut witness, &[]);
    assert!(matches!(started(&old, &[seen(&witness)]).readiness(), Err(NotReady::Lacking(_))));
    // A key that is no more than published keeps nobody out.
    assert_eq!(started(&old, &[seen(&started_as("y", &next, &[]))]).readiness(), Ok(()));
}

#[wasm_bindgen_test(unsupported = test)]
fn without_the_store_only_what_adds_keys_is_taken_up() {
    let old = first(1);
    let next = published(&old);
    let mut roster = started(&old, &[]);
    roster.take_up(&next);
    roster.unheard();
    assert_eq!(roster.taking_up(), TakingUp::Swap);
    roster.taken_up();
    roster.take_up(&promoted(&next));
    roster.unheard();
    assert_eq!(roster.taking_up(), TakingUp::Refused(Refusal::StoreDown));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_report_reads_back_and_one_that_cannot_be_read_lets_nobody_sign() {
    let ring = published(&first(1));
    let report = started(&ring, &[]).report(Some(Epoch(7)), true);
    assert_eq!(LiveGateway::read("a", &report.to_json()).report, report);
    let newer = report.to_json().replacen('{', r#"{"more":[1],"#, 1);
    assert_eq!(LiveGateway::read("a", &newer).report, report);
    for broken in ["", "[]", r#"{"knows":7}"#, "{}"] {
        let gateway = LiveGateway::read("b", broken);
        assert_eq!(gateway.report, GatewayReport::default());
        assert_eq!(gateways_lacking(&ring.next_names(&KeyKind::ALL), &[gateway]).len(), 4);
    }
}

/// One gateway of the simulation: its disk, and the process on it while that runs.
struct Gateway {
    disk: KeyRing,
    process: Option<Process>,
    starts: u32,
}

struct Process {
    ring: KeyRing,
    verifier: Verifier,
    roster: KeyRoster,
    reported: Timestamp,
    /// A reload under way.
    reload: Option<KeyRing>,
}

/// A pair of tokens that a client holds.
struct Tokens {
    kid: String,
    key_id: u8,
    access: String,
    refresh: String,
    issued: Timestamp,
    by: usize,
}

struct World {
    entropy: Entropy,
    now: Timestamp,
    master: KeyRing,
    gateways: Vec<Gateway>,
    /// The store's reports: id, report, when the lease ends.
    reports: Vec<(String, String, Timestamp)>,
    tokens: Vec<Tokens>,
    looked: Option<Timestamp>,
    promotions: u32,
    drops: u32,
    refusals: u32,
    verified: u64,
}

const LEASE: Millis = Millis(5_000);
const RETENTION: Retention = Retention { access: Millis(20_000), refresh: Millis(40_000), sticky: Millis(20_000) };

impl World {
    fn new(seed: u64) -> World {
        let mut entropy = Entropy::for_tests(seed);
        let master = KeyRing::generate(KeyAlgorithm::Hs256, &mut entropy, NOW);
        let gateways = 2 + entropy.below(3);
        let gateway = |_| Gateway { disk: master.clone(), process: None, starts: 0 };
        World {
            now: NOW,
            gateways: (0..gateways).map(gateway).collect(),
            master,
            entropy,
            reports: Vec::new(),
            tokens: Vec::new(),
            looked: None,
            promotions: 0,
            drops: 0,
            refusals: 0,
            verified: 0,
        }
    }

    fn live(&self) -> Vec<LiveGateway> {
        self.reports.iter().map(|(id, report, _)| LiveGateway::read(id, report)).collect()
    }

    /// Anything that can happen, in any order.
    fn step(&mut self) {
        self.now = self.now + Millis(self.entropy.below(200));
        let now = self.now;
        self.reports.retain(|(_, _, until)| *until > now);
        // A live gateway reports each second, and always within its lease.
        for at in 0..self.gateways.len() {
            if self.gateways[at].process.as_ref().is_some_and(|process| now.since(process.reported) > Millis(2_000)) {
                self.exchange(at);
            }
        }
        let at = self.entropy.below(self.gateways.len() as u64) as usize;
        match self.entropy.below(12) {
            0 => self.rotate(),
            1 => self.retire(),
            2 => self.gateways[at].disk = self.master.clone(),
            3 | 4 => self.begin_reload(at),
            5 | 6 => self.exchange(at),
            7 if self.entropy.below(3) == 0 => self.kill(at),
            8 | 9 => self.start(at),
            _ => self.issue(at),
        }
        // What is due at once mostly comes at once, and whoever may sign does.
        for at in 0..self.gateways.len() {
            let hurried = |process: &Process| process.roster.is_hurried() || process.reload.is_some();
            if self.gateways[at].process.as_ref().is_some_and(hurried) && self.entropy.below(3) > 0 {
                self.exchange(at);
                self.issue(at);
            }
        }
        self.verify();
    }

    /// What `keys rotate` does; and now and then somebody edits the file and asks nobody.
    fn rotate(&mut self) {
        let careless = self.entropy.below(3) == 0;
        let next = self.master.next_names(&KeyKind::ALL);
        if next.is_empty() {
            let published = self.master.publish_next(KeyAlgorithm::Hs256, &mut self.entropy, self.now);
            self.master = published.unwrap_or_else(|_| self.master.clone());
        } else if careless || gateways_lacking(&next, &self.live()).is_empty() {
            self.master = self.master.promote_next(self.now).unwrap();
            self.promotions += 1;
        }
    }

    /// What `keys retire` does, run as it is documented: after every machine has the file, those that are down too. It
    /// looks twice, so that a gateway which read its old file just before has reported.
    fn retire(&mut self) {
        let signing = self.master.signing_names();
        if self.gateways.iter().any(|gateway| gateway.disk.signing_names() != signing) {
            self.looked = None;
            return;
        }
        let first = *self.looked.get_or_insert(self.now);
        if self.now.since(first) < Millis(1_000) {
            return;
        }
        self.looked = None;
        let kept = self.master.settle(&self.live(), self.now).drop_retired(self.now, &RETENTION);
        self.drops += u32::from(kept.list().len() < self.master.list().len());
        self.master = kept;
    }

    /// Never the last one that is ready: a gateway that finds nobody must believe its file.
    fn kill(&mut self, at: usize) {
        let is_ready = |gateway: &Gateway| gateway.process.as_ref().is_some_and(|p| p.roster.readiness().is_ok());
        let others = self.gateways.iter().enumerate().filter(|(other, gateway)| *other != at && is_ready(gateway));
        if others.count() > 0 {
            self.gateways[at].process = None;
        }
    }

    fn start(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        if gateway.process.is_none() {
            gateway.starts += 1;
            let ring = gateway.disk.clone();
            gateway.process = Some(Process {
                roster: KeyRoster::new(&format!("{at}-{}", gateway.starts), &ring),
                verifier: Verifier::new(&ring, "i", "app", Millis::ZERO),
                ring,
                reported: Timestamp(0),
                reload: None,
            });
        }
    }

    fn begin_reload(&mut self, at: usize) {
        let Gateway { disk, process: Some(process), .. } = &mut self.gateways[at] else { return };
        if process.reload.is_none() {
            process.roster.take_up(disk);
            process.reload = Some(disk.clone());
            self.swap(at);
        }
    }

    /// One exchange with the store; then whatever it allows.
    fn exchange(&mut self, at: usize) {
        let Some(process) = &mut self.gateways[at].process else { return };
        let (id, report) = (process.roster.id().to_owned(), process.roster.report(None, false).to_json());
        process.reported = self.now;
        self.reports.retain(|(known, ..)| *known != id);
        self.reports.push((id, report, self.now + LEASE));
        let live = self.live();
        if let Some(process) = &mut self.gateways[at].process {
            process.roster.heard(live);
        }
        self.swap(at);
    }

    fn swap(&mut self, at: usize) {
        let Some(process) = &mut self.gateways[at].process else { return };
        let Some(ring) = process.reload.take() else { return };
        match process.roster.taking_up() {
            TakingUp::Exchange => process.reload = Some(ring),
            TakingUp::Swap => {
                process.verifier = Verifier::new(&ring, "i", "app", Millis::ZERO);
                process.ring = ring;
                process.roster.taken_up();
            }
            TakingUp::Refused(_) => self.refusals += 1,
        }
    }

    /// Clients are sent to ready gateways only.
    fn issue(&mut self, at: usize) {
        let Some(process) = self.gateways[at].process.as_ref().filter(|p| p.roster.readiness().is_ok()) else { return };
        let claims = AccessClaims {
            iss: "i".into(),
            sub: UserId::new("42").unwrap(),
            aud: "app".into(),
            client_id: "app".into(),
            iat: self.now,
            exp: self.now + RETENTION.access,
            jti: "j".into(),
            sid: SessionId([7; 16]),
            generation: 0,
        };
        let key = process.ring.current(KeyKind::Refresh).unwrap();
        let refresh = RefreshToken { session: SessionId([7; 16]), counter: 1, key_id: key.id() };
        let kid = process.ring.current_access().unwrap().kid().to_owned();
        // A later token of the same keys says more than an earlier one.
        self.tokens.retain(|tokens| (&tokens.kid, tokens.key_id) != (&kid, key.id()));
        self.tokens.push(Tokens {
            kid,
            key_id: key.id(),
            access: sign_access(&process.ring, &claims).unwrap(),
            refresh: refresh.seal(key),
            issued: self.now,
            by: at,
        });
    }

    /// Every token that is alive, at every gateway that is ready.
    fn verify(&mut self) {
        let now = self.now;
        self.tokens.retain(|tokens| now.since(tokens.issued) < RETENTION.refresh);
        for (at, gateway) in self.gateways.iter().enumerate() {
            let Some(process) = gateway.process.as_ref().filter(|p| p.roster.readiness().is_ok()) else { continue };
            for tokens in &self.tokens {
                let (by, age) = (tokens.by, now.since(tokens.issued));
                // The token's times are whole seconds.
                if age + Millis(1_000) < RETENTION.access {
                    let verified = process.verifier.verify(&tokens.access, now);
                    assert!(verified.is_ok(), "gateway {at}, a token by {by}, {age:?} old: {verified:?}");
                }
                let opened = RefreshToken::open(&tokens.refresh, |id| process.ring.find(KeyKind::Refresh, id));
                assert!(opened.is_ok(), "gateway {at}, a refresh token by {by}, {age:?} old: {opened:?}");
                self.verified += 1;
            }
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn in_no_order_of_events_does_a_ready_gateway_meet_a_token_that_it_cannot_verify() {
    let (mut promotions, mut drops, mut refusals, mut verified, mut ready) = (0, 0, 0, 0, 0);
    for seed in 0..14 {
        let mut world = World::new(seed);
        for _ in 0..2_000 {
            world.step();
        }
        promotions += world.promotions;
        drops += world.drops;
        refusals += world.refusals;
        verified += world.verified;
        let is_ready = |gateway: &&Gateway| gateway.process.as_ref().is_some_and(|p| p.roster.readiness().is_ok());
        ready += world.gateways.iter().filter(is_ready).count();
    }
    // The world moves: keys were promoted, dropped and refused, and tokens were met.
    assert!(promotions > 50 && drops > 30 && refusals > 5, "{promotions} {drops} {refusals}");
    assert!(verified > 50_000 && ready > 14, "{verified} {ready}");
}

#[wasm_bindgen_test(unsupported = test)]
fn signing_without_asking_is_what_the_simulation_would_find() {
    // The same world with promotions that wait for nobody and gateways that ask nobody: it does not hold.
    let broken = |seed| {
        let mut world = World::new(seed);
        for at in 0..world.gateways.len() {
            world.start(at);
            world.exchange(at);
            world.exchange(at);
        }
        let next = world.master.publish_next(KeyAlgorithm::Hs256, &mut world.entropy, NOW).unwrap();
        let ring = next.promote_next(NOW).unwrap();
        world.gateways[0].process.as_mut().unwrap().ring = ring;
        world.issue(0);
        let reader = world.gateways[1].process.as_ref().unwrap();
        reader.verifier.verify(&world.tokens[0].access, NOW).is_err()
    };
    assert!((0..5).all(broken));
}
