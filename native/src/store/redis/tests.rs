//! Against a real `redis-server` on this machine: that the scripts do what core's types say, and nothing else. What a
//! cluster adds (redirections, replicas, failovers) is in the scenarios.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use edgekeep_core::session::{Device, Found, LoadedSession, steer_session_id};
use edgekeep_core::{Entropy, UserIdKind};

use super::*;
use crate::gateway::clock::exact as now;

/// One standalone server, ended by its id.
struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--port"]).arg(port.to_string());
        command.arg("--dir").arg(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("redis-server runs here: `cargo xtask tools` brings it");
        Server { child, port, _folder: folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Opened {
    store: Redis,
    near: Arc<NearCache>,
    entropy: Entropy,
    server: Server,
}

const CREATED: StoreOutcome = StoreOutcome::Created { evicted: Vec::new() };
const LIFETIMES: Lifetimes = Lifetimes { dead_mark: Millis(60_000), epoch: Millis(3_600_000) };

fn open() -> Opened {
    let server = Server::start();
    let mut entropy = Entropy::for_tests(7);
    let near = Arc::new(NearCache::new(1000, &mut entropy));
    let login = Login {
        seeds: vec![format!("127.0.0.1:{}", server.port)],
        timeout: Duration::from_millis(2_000),
        ..Login::default()
    };
    let store = Redis::open(login, near.clone(), LIFETIMES).unwrap();
    Opened { store, near, entropy, server }
}

fn user() -> UserId {
    UserId::new("42").unwrap()
}

fn new(entropy: &mut Entropy) -> NewSession {
    let now = now();
    NewSession {
        id: steer_session_id(&user(), entropy),
        user: user(),
        user_kind: UserIdKind::Integer,
        device_info: serde_json::json!({"os": "linux"}),
        created_at: now,
        client_id: "app".into(),
        access_ttl: None,
        key_id: 1,
        absolute: now + Millis(3_600_000),
        idle: now + Millis(1_800_000),
        max_per_user: 3,
        evict_oldest: true,
    }
}

impl Opened {
    async fn create(&mut self) -> SessionId {
        let new = new(&mut self.entropy);
        let id = new.id;
        let outcome = self.store.perform(StoreOp::Create(Box::new(new))).await;
        assert!(matches!(outcome, StoreOutcome::Created { .. }), "{outcome:?}");
        id
    }

    async fn read(&self, id: SessionId) -> Option<LoadedSession> {
        match self.store.load(id, &user(), Freshness::Cached, now()).await {
            Load::Loaded(session) => Some(session),
            Load::Missing => None,
            Load::Unavailable => panic!("the store is there"),
        }
    }

    async fn ids(&self) -> Vec<SessionId> {
        match self.store.perform(StoreOp::List { user: user(), now: now() }).await {
            StoreOutcome::Listed(rows) => rows.iter().map(|row| row.id).collect(),
            other => panic!("{other:?}"),
        }
    }

    async fn state(&self, id: SessionId) -> RefreshState {
        match self.store.perform(StoreOp::State(id)).await {
            StoreOutcome::State(state, _) => *state,
            other => panic!("{other:?}"),
        }
    }

    async fn raw(&self, command: &mut Cmd) -> Value {
        let (mut replies, _) = self.store.ask(0, std::slice::from_ref(command)).await.ok().unwrap();
        replies.remove(0)
    }
}

fn rotate(id: SessionId, presented: u32, at: Timestamp) -> Rotate {
    Rotate { id, presented, now: at, key_id: 2, device: Some(Device([7; 32])), idle_ttl: Millis(1_000_000) }
}

#[tokio::test]
async fn what_is_stored_is_the_documented_layout_with_lives_that_end() {
    let mut opened = open();
    let session = new(&mut opened.entropy);
    let outcome = opened.store.perform(StoreOp::Create(Box::new(session.clone()))).await;
    assert_eq!(outcome, CREATED);
    let record = opened.raw(cmd("GET").arg(format!("session:{}", session.id))).await;
    assert_eq!(bytes(&record), Some(session.record_json().as_bytes()));
    let expires = |key: String| cmd("PEXPIRETIME").arg(key).clone();
    let at = opened.raw(&mut expires(format!("session:{}", session.id))).await;
    assert_eq!(integer(&at), Some(session.absolute.0));
    let at = opened.raw(&mut expires(format!("{{session:{}}}:rt", session.id))).await;
    assert_eq!(integer(&at), Some(session.idle.0));
    let at = opened.raw(&mut expires("{user:42}:sessions".to_owned())).await;
    assert_eq!(integer(&at), Some(session.absolute.0));
    let score = opened.raw(cmd("ZSCORE").arg("{user:42}:sessions").arg(session.id.to_string())).await;
    assert!(matches!(score, Value::Double(score) if score == session.absolute.0 as f64), "{score:?}");
    assert_eq!(opened.state(session.id).await, session.refresh_state(0));
    let loaded = opened.read(session.id).await.unwrap();
    assert_eq!((loaded.user, loaded.live, loaded.expires_at), (user(), true, session.idle));
}

#[tokio::test]
async fn a_creation_that_is_repeated_finds_its_own_session_and_nobody_elses_is_overwritten() {
    let mut opened = open();
    let session = new(&mut opened.entropy);
    for _ in 0..2 {
        let outcome = opened.store.perform(StoreOp::Create(Box::new(session.clone()))).await;
        assert_eq!(outcome, CREATED);
    }
    let other = NewSession { device_info: serde_json::json!({}), ..session.clone() };
    let outcome = opened.store.perform(StoreOp::Create(Box::new(other))).await;
    assert_eq!(outcome, StoreOutcome::Taken);
    assert_eq!(opened.state(session.id).await, session.refresh_state(0));
}

#[tokio::test]
async fn the_oldest_session_makes_room_or_the_newest_is_refused() {
    let mut opened = open();
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(opened.create().await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(opened.ids().await, made[2..]);
    assert!(opened.state(made[0]).await.dead, "an evicted session leaves a dead mark");
    let refusing = NewSession { evict_oldest: false, ..new(&mut opened.entropy) };
    assert_eq!(opened.store.perform(StoreOp::Create(Box::new(refusing))).await, StoreOutcome::Full);
    assert_eq!(opened.ids().await, made[2..]);
}

#[tokio::test]
async fn the_oldest_is_the_one_made_first_also_where_lives_were_shortened_meanwhile() {
    let mut opened = open();
    let mut made = Vec::new();
    for life in [9_000_000, 8_000_000, 1_000_000] {
        let session = new(&mut opened.entropy);
        let session = NewSession { absolute: session.created_at + Millis(life), ..session };
        made.push(session.id);
        assert_eq!(opened.store.perform(StoreOp::Create(Box::new(session))).await, CREATED);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(opened.ids().await, made, "oldest first");
    let session = new(&mut opened.entropy);
    let newest = session.id;
    let outcome = opened.store.perform(StoreOp::Create(Box::new(session))).await;
    assert_eq!(outcome, StoreOutcome::Created { evicted: vec![made[0]] });
    assert_eq!(opened.ids().await, [made[1], made[2], newest]);
}

#[tokio::test]
async fn ending_the_others_again_writes_although_nothing_is_left_to_end() {
    let mut opened = open();
    let (keep, _other) = (opened.create().await, opened.create().await);
    let offset = async |opened: &Opened| {
        let info = opened.raw(cmd("INFO").arg("commandstats")).await;
        let Value::VerbatimString { text, .. } = info else { panic!("{info:?}") };
        let line = text.lines().find(|line| line.starts_with("cmdstat_pexpire:")).unwrap_or("calls=0").to_owned();
        line.split(['=', ',']).nth(1).unwrap().parse::<u64>().unwrap()
    };
    let mut writes = Vec::new();
    for _ in 0..2 {
        let before = offset(&opened).await;
        opened.store.perform(StoreOp::RevokeOthers { user: user(), keep, now: now() }).await;
        writes.push(offset(&opened).await - before);
    }
    assert!(writes[1] >= 1, "{writes:?}: a WAIT after it says nothing about the first time");
}

#[tokio::test]
async fn sessions_that_went_idle_make_room_before_any_live_one_does() {
    let mut opened = open();
    let idle = NewSession { idle: now() + Millis(30), ..new(&mut opened.entropy) };
    opened.store.perform(StoreOp::Create(Box::new(idle))).await;
    let live = [opened.create().await, opened.create().await];
    tokio::time::sleep(Duration::from_millis(60)).await;
    let newest = opened.create().await;
    assert_eq!(opened.ids().await.len(), 3);
    for id in live.into_iter().chain([newest]) {
        assert!(opened.read(id).await.is_some_and(|session| session.live));
    }
    let members = opened.raw(cmd("ZCARD").arg("{user:42}:sessions")).await;
    assert_eq!(integer(&members), Some(3), "the index does not keep what is gone");
}

#[tokio::test]
async fn forty_rotations_of_one_token_rotate_it_once() {
    let mut opened = open();
    let id = opened.create().await;
    let mut waiting = tokio::task::JoinSet::new();
    let at = now();
    for _ in 0..40 {
        let store = opened.store.clone();
        waiting.spawn(async move { store.perform(StoreOp::Rotate(rotate(id, 0, at))).await });
    }
    let outcomes = waiting.join_all().await;
    assert_eq!(outcomes.iter().filter(|o| matches!(o, StoreOutcome::Rotated(_))).count(), 1);
    assert!(outcomes.iter().all(|o| matches!(o, StoreOutcome::Rotated(_) | StoreOutcome::Mismatch(..))));
    assert_eq!(opened.state(id).await.counter, 1);
}

/// The optimistic rotation stands in Lua as well as in core: this is what keeps the two one rule.
#[tokio::test]
async fn the_script_rotates_exactly_as_core_does_whatever_the_state() {
    let mut opened = open();
    let mut entropy = Entropy::for_tests(11);
    for round in 0..300 {
        let id = opened.create().await;
        let at = now();
        let before = opened.state(id).await;
        let near_now = |entropy: &mut Entropy| Timestamp(at.0 - 500 + entropy.below(1_000));
        let state = RefreshState {
            counter: [0, 1, 5, u32::MAX - 1, u32::MAX][entropy.below(5) as usize],
            key_id: entropy.below(4) as u8,
            superseded: (0..entropy.below(9)).map(|n| Timestamp(at.0 - n)).collect(),
            seen: entropy.below(6) as u32,
            retries: entropy.below(4) as u8,
            reissued: (entropy.below(2) == 0).then(|| Timestamp(at.0 - 9)),
            device: (entropy.below(2) == 0).then_some(Device([3; 32])),
            idle: if entropy.below(3) == 0 { near_now(&mut entropy) } else { before.idle },
            ..before.clone()
        };
        let mut set = cmd("HSET");
        set.arg(state_key(id));
        for (field, value) in state::whole(&state) {
            set.arg(field).arg(value);
        }
        opened.raw(&mut set).await;
        let step = Rotate {
            presented: if entropy.below(4) == 0 { entropy.below(7) as u32 } else { state.counter },
            idle_ttl: Millis([1, 1_000_000, u64::from(u32::MAX)][entropy.below(3) as usize]),
            device: (entropy.below(2) == 0).then_some(Device([4; 32])),
            ..rotate(id, 0, at)
        };
        let expected = step.apply(&state, 0);
        match (opened.store.perform(StoreOp::Rotate(step.clone())).await, expected) {
            (StoreOutcome::Rotated(stored), Some(expected)) => {
                assert_eq!(*stored, expected, "round {round}");
                if stored.idle > now() + Millis(1_000) {
                    assert_eq!(opened.state(id).await, expected, "round {round}: as it is stored");
                }
            }
            (StoreOutcome::Mismatch(stored, 0), None) => assert_eq!(*stored, state, "round {round}"),
            (outcome, expected) => panic!("round {round}: {outcome:?} instead of {expected:?}\n{step:?}\n{state:?}"),
        }
        opened.store.perform(StoreOp::Revoke { id, user: None, now: now() }).await;
    }
}

#[tokio::test]
async fn a_rotation_that_comes_late_begins_its_grace_when_it_comes() {
    let mut opened = open();
    let id = opened.create().await;
    // Sent a minute ago, to a server that was frozen since.
    let sent = Timestamp(now().0 - 60_000);
    opened.store.perform(StoreOp::Rotate(rotate(id, 0, sent))).await;
    let at = opened.state(id).await.superseded[0];
    assert!(now().since(at) < Millis(5_000), "{at:?}: whoever asks again would be taken for a thief");
    let soon = now();
    opened.store.perform(StoreOp::Rotate(rotate(id, 1, soon))).await;
    assert_eq!(opened.state(id).await.superseded[0], soon);
}

#[tokio::test]
async fn a_decided_write_is_made_only_where_the_state_is_still_the_same_and_the_session_lives() {
    let mut opened = open();
    let id = opened.create().await;
    let state = opened.state(id).await;
    let write =
        RotationWrite { id, expect: (0, 0), state: Box::new(RefreshState { retries: 1, counter: 4, ..state.clone() }) };
    let outcome = opened.store.perform(StoreOp::Replace(write.clone())).await;
    assert_eq!(outcome, StoreOutcome::Rotated(write.state.clone()));
    let outcome = opened.store.perform(StoreOp::Replace(write.clone())).await;
    assert!(matches!(outcome, StoreOutcome::Mismatch(state, 0) if state.counter == 4));
    opened.store.perform(StoreOp::Revoke { id, user: Some(user()), now: now() }).await;
    let late = RotationWrite { expect: (4, 1), ..write };
    let outcome = opened.store.perform(StoreOp::Replace(late)).await;
    assert!(matches!(outcome, StoreOutcome::Mismatch(state, 0) if state.dead), "never brings one back");
    assert!(opened.read(id).await.is_none());
}

#[tokio::test]
async fn ending_a_session_leaves_a_dead_mark_and_no_trace_in_the_index_and_can_be_repeated() {
    let mut opened = open();
    let (id, other) = (opened.create().await, opened.create().await);
    let strangers = StoreOp::Revoke { id, user: UserId::new("43").ok(), now: now() };
    assert!(matches!(opened.store.perform(strangers).await, StoreOutcome::Revoked { ended, .. } if ended.is_empty()));
    assert!(opened.read(id).await.is_some());
    for ended in [vec![id], Vec::new()] {
        let outcome = opened.store.perform(StoreOp::Revoke { id, user: Some(user()), now: now() }).await;
        assert_eq!(outcome, StoreOutcome::Revoked { ended, epoch: None, replicated: true });
    }
    assert!(opened.read(id).await.is_none());
    assert_eq!(opened.ids().await, [other]);
    let left = opened.raw(cmd("PTTL").arg(state_key(id))).await;
    assert!(integer(&left).is_some_and(|left| left > 50_000 && left <= 60_000), "{left:?}");
    assert!(
        matches!(opened.store.perform(StoreOp::Rotate(rotate(id, 0, now()))).await, StoreOutcome::Mismatch(s, _) if s.dead)
    );
}

#[tokio::test]
async fn ending_all_raises_the_epoch_and_ending_the_others_keeps_one() {
    let mut opened = open();
    let made = [opened.create().await, opened.create().await, opened.create().await];
    let op = StoreOp::RevokeOthers { user: user(), keep: made[1], now: now() };
    let outcome = opened.store.perform(op).await;
    assert!(matches!(&outcome, StoreOutcome::Revoked { ended, epoch: None, .. } if ended.len() == 2), "{outcome:?}");
    assert_eq!(opened.ids().await, [made[1]]);
    let op = StoreOp::RevokeAll { user: user(), now: now() };
    let outcome = opened.store.perform(op).await;
    assert_eq!(outcome, StoreOutcome::Revoked { ended: vec![made[1]], epoch: Some(1), replicated: true });
    assert!(opened.ids().await.is_empty());
    let after = opened.create().await;
    assert_eq!(opened.state(after).await.epoch, 1);
    // What goes on in the background must not end what came after it.
    let (ended, epoch, _) = opened.store.revoke_all_once(&user(), Ending::Again(1), now()).await.ok().unwrap();
    assert!(ended.is_empty());
    assert_eq!(epoch, 1);
    assert_eq!(opened.ids().await, [after]);
}

#[tokio::test]
async fn a_creation_between_the_reading_of_the_members_and_the_script_makes_it_begin_again() {
    let mut opened = open();
    for _ in 0..20 {
        let mut waiting = tokio::task::JoinSet::new();
        let mut before = Vec::new();
        before.push(opened.create().await);
        for _ in 0..4 {
            let (store, session) = (opened.store.clone(), new(&mut opened.entropy));
            waiting.spawn(async move { store.perform(StoreOp::Create(Box::new(session))).await });
        }
        let store = opened.store.clone();
        waiting.spawn(async move { store.perform(StoreOp::RevokeAll { user: user(), now: now() }).await });
        let outcomes = waiting.join_all().await;
        assert!(
            outcomes.iter().all(|o| matches!(o, StoreOutcome::Created { .. } | StoreOutcome::Revoked { .. })),
            "{outcomes:?}"
        );
        // Whatever is left was created after it: under its epoch.
        let Value::Array(_) = opened.raw(cmd("ZRANGE").arg("{user:42}:sessions").arg(0).arg(-1)).await else {
            panic!()
        };
        let epoch = opened.store.epoch(before[0], &user()).await.ok().unwrap();
        for id in opened.ids().await {
            assert_eq!(opened.state(id).await.epoch, epoch);
        }
        assert!(opened.read(before[0]).await.is_none());
    }
}

#[tokio::test]
async fn a_confirmation_raises_what_was_seen_and_never_beyond_what_was_issued() {
    let mut opened = open();
    let id = opened.create().await;
    opened.store.perform(StoreOp::Rotate(rotate(id, 0, now()))).await;
    for (generation, seen) in [(1, 1), (0, 1), (9, 1)] {
        opened.store.perform(StoreOp::Confirm { id, generation }).await;
        assert_eq!(opened.state(id).await.seen, seen);
    }
    let strange = steer_session_id(&user(), &mut opened.entropy);
    opened.store.perform(StoreOp::Confirm { id: strange, generation: 1 }).await;
    assert_eq!(opened.store.perform(StoreOp::State(strange)).await, StoreOutcome::Missing);
}

#[tokio::test]
async fn a_change_made_elsewhere_drops_what_was_read() {
    let mut opened = open();
    for change in 0..4 {
        let id = opened.create().await;
        let ticket = opened.near.begin(id, &user());
        let session = opened.read(id).await.unwrap();
        assert!(opened.near.fill(&ticket, &session), "change {change}");
        assert!(matches!(opened.near.find(id, &user(), now()), Found::Verified(_)));
        // As another gateway, or an operator by hand, would.
        let mut command = match change {
            0 => cmd("DEL").arg(record_key(id)).clone(),
            1 => cmd("HSET").arg(state_key(id)).arg("dead").arg("1").clone(),
            2 => cmd("INCR").arg(epoch_key(&user())).clone(),
            _ => cmd("FLUSHALL"),
        };
        opened.raw(&mut command).await;
        for _ in 0..200 {
            if opened.near.find(id, &user(), now()) == Found::Nothing {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(opened.near.find(id, &user(), now()), Found::Nothing, "change {change}");
        assert!(opened.read(id).await.is_none_or(|session| !session.live), "change {change}");
    }
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_sent_again() {
    let mut opened = open();
    opened.create().await;
    opened.raw(cmd("SCRIPT").arg("FLUSH")).await;
    let id = opened.create().await;
    opened.raw(cmd("SCRIPT").arg("FLUSH")).await;
    opened.store.perform(StoreOp::Confirm { id, generation: 0 }).await;
    assert!(matches!(opened.store.perform(StoreOp::Rotate(rotate(id, 0, now()))).await, StoreOutcome::Rotated(_)));
}

#[tokio::test]
async fn a_server_that_is_gone_is_unavailable_and_what_was_read_is_unverified_until_it_is_back() {
    let mut opened = open();
    let id = opened.create().await;
    let ticket = opened.near.begin(id, &user());
    let session = opened.read(id).await.unwrap();
    assert!(opened.near.fill(&ticket, &session));
    let _ = opened.server.child.kill();
    let _ = opened.server.child.wait();
    assert_eq!(opened.store.perform(StoreOp::State(id)).await, StoreOutcome::Unavailable);
    assert!(matches!(opened.store.load(id, &user(), Freshness::Primary, now()).await, Load::Unavailable));
    assert!(matches!(opened.near.find(id, &user(), now()), Found::Unverified(_)));
    let mut again = Command::new("redis-server");
    again.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--port"]);
    again.arg(opened.server.port.to_string()).arg("--dir").arg(opened.server._folder.path());
    opened.server.child = again.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for _ in 0..300 {
        if let Load::Loaded(session) = opened.store.load(id, &user(), Freshness::Primary, now()).await {
            assert!(session.live);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the store did not come back by itself");
}

#[tokio::test]
async fn reports_are_answered_to_all_until_their_lease_ends() {
    let opened = open();
    let lease = Duration::from_millis(300);
    assert_eq!(opened.store.exchange_reports("a", "one", lease).await.unwrap(), [("a".into(), "one".into())]);
    let mut both = opened.store.exchange_reports("b", "two", lease).await.unwrap();
    both.sort();
    assert_eq!(both, [("a".to_owned(), "one".to_owned()), ("b".to_owned(), "two".to_owned())]);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(opened.store.exchange_reports("", "", lease).await.unwrap(), []);
}
