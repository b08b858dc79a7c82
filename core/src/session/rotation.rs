//! Rotation of refresh tokens: one table, and this is the only place it stands.
//!
//! A stored counter `n`, a presented counter `k`, `d = n − k`. A token presented within the grace of being superseded
//! never logs anyone out (racing tabs); an answer that was lost is given again while its access token was never seen;
//! anything else that comes back is a copy in other hands, and the session ends. A token from the future means that
//! the store lost writes in a failover: its tag proves that we issued it.
//!
//! Giving a lost answer again is when its successor really is handed over, so the grace runs from there: two tabs that
//! wake up together after the answer was lost are tabs that race, like any others. A repeat in the second half of the
//! grace, before anyone used the successor, counts as such a loss too, or the tab beside it would come too late.

use sha2::{Digest, Sha256};

use super::record::RefreshState;
use crate::{Millis, SessionId, Timestamp};

/// How often one lost answer is given again.
pub const MAX_LOST_ANSWERS: u8 = 3;
/// The times of how many superseded tokens are kept.
const KEPT_TIMES: usize = 8;
/// How many writes a store may have lost in a failover.
const MAX_LOST_WRITES: i64 = 3;

/// SHA-256 of the refresh request's `User-Agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(pub [u8; 32]);

impl Device {
    pub fn from_user_agent(user_agent: &[u8]) -> Device {
        Device(Sha256::digest(user_agent).into())
    }
}

/// What the table reads from the configuration and the key ring.
#[derive(Clone, Copy, Debug)]
pub struct RotationRules {
    /// `G`: how long a superseded token is still answered with its successor.
    pub grace: Millis,
    pub idle_ttl: Millis,
    /// The refresh key that signs from now on.
    pub key_id: u8,
}

/// The optimistic rotation: sent before the state is known, applied only where the presented token is the current one
/// of a live session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotate {
    pub id: SessionId,
    /// `k`, which must be the stored counter.
    pub presented: u32,
    pub now: Timestamp,
    pub key_id: u8,
    pub device: Option<Device>,
    pub idle_ttl: Millis,
}

impl Rotate {
    /// The state after the rotation, or `None` when nothing may be written: every store does exactly this.
    pub fn apply(&self, state: &RefreshState, user_epoch: u64) -> Option<RefreshState> {
        if state.counter != self.presented || !state.is_live(user_epoch, self.now) {
            return None;
        }
        let mut superseded = Vec::with_capacity(KEPT_TIMES);
        superseded.push(self.now);
        superseded.extend(state.superseded.iter().take(KEPT_TIMES - 1));
        Some(RefreshState {
            counter: state.counter.checked_add(1)?,
            key_id: self.key_id,
            superseded,
            seen: state.seen.max(self.presented),
            retries: 0,
            device: self.device,
            idle: (self.now + self.idle_ttl).min(state.absolute),
            ..state.clone()
        })
    }
}

/// A write the table decided on, made only if the stored state is still the one it decided about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationWrite {
    pub id: SessionId,
    /// The stored counter and retries that the decision rests on.
    pub expect: (u32, u8),
    pub state: Box<RefreshState>,
}

impl RotationWrite {
    /// Never for a session that ended meanwhile: a dead mark may still have the counter that was expected.
    pub fn matches(&self, state: &RefreshState) -> bool {
        !state.dead && (state.counter, state.retries) == self.expect
    }
}

/// Why a refresh is refused with 401 and nothing is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Ended, expired, or older than the user's last revoke-all.
    Ended,
    /// The lost answer was already given three times.
    TooManyRetries,
    /// More than three ahead of the store.
    FromTheFuture,
}

/// What to do about a presented refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Issue the next token after this write. `recovered` counts `refresh_forward_recovery`.
    Rotate {
        write: RotationWrite,
        recovered: bool,
    },
    /// Give the current token again, byte for byte; nothing is written.
    Reissue,
    /// Give the current token again after counting that.
    ReissueLost(RotationWrite),
    Refuse(Refusal),
    /// Reuse: end the session and count `refresh_reuse`.
    Revoke,
}

/// The table, for a token with a good tag. `device` is that of this request.
pub fn decide(
    id: SessionId,
    presented: u32,
    device: Option<Device>,
    state: &RefreshState,
    user_epoch: u64,
    rules: &RotationRules,
    now: Timestamp,
) -> Decision {
    if !state.is_live(user_epoch, now) {
        return Decision::Refuse(Refusal::Ended);
    }
    let behind = i64::from(state.counter) - i64::from(presented);
    let expect = (state.counter, state.retries);
    if behind <= 0 {
        if behind < -MAX_LOST_WRITES {
            return Decision::Refuse(Refusal::FromTheFuture);
        }
        let base = if behind == 0 {
            state.clone()
        } else {
            RefreshState { counter: presented, superseded: Vec::new(), ..state.clone() }
        };
        let rotate = Rotate { id, presented, now, key_id: rules.key_id, device, idle_ttl: rules.idle_ttl };
        return match rotate.apply(&base, user_epoch) {
            Some(next) => {
                Decision::Rotate { write: RotationWrite { id, expect, state: Box::new(next) }, recovered: behind < 0 }
            }
            // The counter is exhausted after 2³² rotations.
            None => Decision::Refuse(Refusal::Ended),
        };
    }
    let superseded_at = usize::try_from(behind - 1).ok().and_then(|at| state.superseded.get(at));
    let age = superseded_at.map(|at| now.since(*at)).filter(|age| *age <= rules.grace);
    let same_device = device.is_some() && device == state.device;
    let lost = behind == 1 && state.seen < state.counter && same_device;
    let renewable = lost && state.retries < MAX_LOST_ANSWERS;
    if age.is_some_and(|age| age.0 <= rules.grace.0 / 2 || !renewable) {
        return Decision::Reissue;
    }
    if lost {
        if state.retries >= MAX_LOST_ANSWERS {
            return Decision::Refuse(Refusal::TooManyRetries);
        }
        let mut superseded = state.superseded.clone();
        superseded.splice(..superseded.len().min(1), [now]);
        let next = RefreshState { retries: state.retries + 1, superseded, ..state.clone() };
        return Decision::ReissueLost(RotationWrite { id, expect, state: Box::new(next) });
    }
    Decision::Revoke
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entropy, UserId};
    use wasm_bindgen_test::wasm_bindgen_test;

    const ID: SessionId = SessionId([5; 16]);
    const RULES: RotationRules = RotationRules { grace: Millis(30_000), idle_ttl: Millis(1_000_000), key_id: 2 };
    const PHONE: Option<Device> = Some(Device([1; 32]));
    const OTHER: Option<Device> = Some(Device([2; 32]));

    /// Counter 5, superseded 10 s apart ending at 100 s, on PHONE.
    fn state() -> RefreshState {
        RefreshState {
            user: UserId::new("42").unwrap(),
            client_id: "app".into(),
            access_ttl: None,
            counter: 5,
            key_id: 1,
            superseded: vec![
                Timestamp(100_000),
                Timestamp(90_000),
                Timestamp(80_000),
                Timestamp(70_000),
                Timestamp(60_000),
            ],
            seen: 4,
            retries: 0,
            device: PHONE,
            epoch: 1,
            absolute: Timestamp(10_000_000),
            idle: Timestamp(5_000_000),
            dead: false,
        }
    }

    fn on(state: &RefreshState, presented: u32, device: Option<Device>, now: u64) -> Decision {
        decide(ID, presented, device, state, 1, &RULES, Timestamp(now))
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_current_token_rotates_and_moves_the_idle_limit_but_never_the_absolute_one() {
        let Decision::Rotate { write, recovered: false } = on(&state(), 5, OTHER, 9_500_000 - 5_000_000) else {
            panic!("must rotate");
        };
        assert_eq!(write.expect, (5, 0));
        let next = write.state;
        assert_eq!((next.counter, next.key_id, next.seen, next.device), (6, 2, 5, OTHER));
        assert_eq!(next.superseded[0], Timestamp(4_500_000));
        assert_eq!(next.idle, Timestamp(5_500_000));
        assert_eq!(next.absolute, Timestamp(10_000_000));
        let late = RefreshState { idle: Timestamp(10_000_000), ..state() };
        let Decision::Rotate { write, .. } = on(&late, 5, PHONE, 9_500_000) else { panic!("must rotate") };
        assert_eq!(write.state.idle, Timestamp(10_000_000), "idle never passes absolute");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_token_superseded_within_the_grace_is_answered_with_the_current_one_on_any_device() {
        assert_eq!(on(&state(), 4, OTHER, 130_000), Decision::Reissue, "30 s after: still within");
        assert_eq!(on(&state(), 3, None, 120_000), Decision::Reissue, "two behind, 30 s after its own time");
        assert_eq!(on(&state(), 4, OTHER, 130_001), Decision::Revoke, "one millisecond later");
        assert_eq!(on(&state(), 3, PHONE, 120_001), Decision::Revoke);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_lost_answer_is_given_again_three_times_and_then_refused_without_revoking() {
        let mut current = state();
        for retries in 1..=MAX_LOST_ANSWERS {
            let now = 500_000 * u64::from(retries);
            let Decision::ReissueLost(write) = on(&current, 4, PHONE, now) else { panic!("must reissue") };
            assert!(write.matches(&current));
            assert_eq!((write.state.retries, write.state.counter), (retries, 5));
            assert_eq!(write.state.superseded.len(), state().superseded.len(), "the others keep their times");
            current = *write.state;
        }
        assert_eq!(on(&current, 4, PHONE, 2_000_000), Decision::Refuse(Refusal::TooManyRetries));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_repeat_late_in_the_grace_renews_it_until_the_successor_was_seen() {
        assert_eq!(on(&state(), 4, PHONE, 115_000), Decision::Reissue, "the first half: nothing is written");
        let Decision::ReissueLost(write) = on(&state(), 4, PHONE, 115_001) else { panic!("must renew") };
        assert_eq!((write.state.superseded[0], write.state.retries), (Timestamp(115_001), 1));
        for state in [
            RefreshState { seen: 5, ..state() },
            RefreshState { retries: MAX_LOST_ANSWERS, ..state() },
            RefreshState { device: OTHER, ..state() },
        ] {
            assert_eq!(on(&state, 4, PHONE, 130_000), Decision::Reissue, "and within it nobody is refused");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn tabs_that_ask_for_a_lost_answer_together_race_like_any_others() {
        let Decision::ReissueLost(write) = on(&state(), 4, PHONE, 500_000) else { panic!("must reissue") };
        // The first one's request was answered, and its access token is in use.
        let current = RefreshState { seen: 5, ..*write.state };
        assert_eq!(on(&current, 4, PHONE, 530_000), Decision::Reissue, "within the grace of that answer");
        assert_eq!(on(&current, 4, PHONE, 530_001), Decision::Revoke);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn once_the_successor_was_seen_or_on_another_device_an_old_token_is_reuse() {
        let seen = RefreshState { seen: 5, ..state() };
        assert_eq!(on(&seen, 4, PHONE, 500_000), Decision::Revoke);
        assert_eq!(on(&state(), 4, OTHER, 500_000), Decision::Revoke);
        assert_eq!(on(&state(), 4, None, 500_000), Decision::Revoke, "an absent device is a different one");
        let unknown = RefreshState { device: None, ..state() };
        assert_eq!(on(&unknown, 4, None, 500_000), Decision::Revoke, "absent never equals absent");
        assert_eq!(on(&state(), 3, PHONE, 500_000), Decision::Revoke, "two behind");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_token_up_to_three_ahead_recovers_what_a_failover_lost_and_four_ahead_is_refused() {
        for ahead in 1..=3 {
            let Decision::Rotate { write, recovered: true } = on(&state(), 5 + ahead, PHONE, 200_000) else {
                panic!("must recover")
            };
            assert_eq!(write.expect, (5, 0));
            assert_eq!((write.state.counter, write.state.superseded.len()), (6 + ahead, 1));
        }
        assert_eq!(on(&state(), 9, PHONE, 200_000), Decision::Refuse(Refusal::FromTheFuture));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_ended_session_is_refused_whatever_is_presented() {
        for ended in [
            RefreshState { dead: true, ..state() },
            RefreshState { epoch: 0, ..state() },
            RefreshState { idle: Timestamp(200_000), ..state() },
            RefreshState { absolute: Timestamp(200_000), ..state() },
        ] {
            for presented in 0..10 {
                assert_eq!(on(&ended, presented, PHONE, 200_000), Decision::Refuse(Refusal::Ended));
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn only_the_last_eight_times_are_kept_and_the_counter_never_wraps() {
        let mut current = RefreshState { superseded: Vec::new(), counter: 0, ..state() };
        for step in 0..20 {
            let rotate = Rotate {
                id: ID,
                presented: step,
                now: Timestamp(u64::from(step)),
                key_id: 1,
                device: PHONE,
                idle_ttl: Millis(1_000_000),
            };
            current = rotate.apply(&current, 1).unwrap();
        }
        assert_eq!(current.superseded.len(), 8);
        assert_eq!(current.superseded[7], Timestamp(12));
        let last = RefreshState { counter: u32::MAX, ..state() };
        assert_eq!(on(&last, u32::MAX, PHONE, 100_000), Decision::Refuse(Refusal::Ended));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn honest_tabs_that_race_within_the_grace_are_never_logged_out() {
        // Any number of tabs share one token store, read it at their own pace and present what they read.
        for seed in 0..200 {
            let mut entropy = Entropy::for_tests(seed);
            let mut current = RefreshState { superseded: Vec::new(), counter: 0, seen: 0, ..state() };
            let mut now = 100_000;
            let mut held: Vec<(u32, u64)> = vec![(0, now); 3];
            for _ in 0..100 {
                now += entropy.below(10_000);
                let tab = entropy.below(3) as usize;
                // A tab never holds what was superseded more than the grace ago: it reloads the shared store first.
                if now - held[tab].1 > RULES.grace.0 {
                    held[tab] = (current.counter, now);
                }
                match on(&current, held[tab].0, PHONE, now) {
                    Decision::Rotate { write, .. } => current = *write.state,
                    Decision::Reissue => {}
                    Decision::ReissueLost(write) => current = *write.state,
                    other => panic!("seed {seed}: {other:?}"),
                }
                held[tab] = (current.counter, now);
            }
        }
    }
}
