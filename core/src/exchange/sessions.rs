//! The session API: create, refresh, list, end (DESIGN §4).

use serde_json::{Value, json};

use super::admit::{bearer, conflicting_cookies};
use super::event::{Revoked, SessionHappened};
use super::own::{Call, Stored, json_object, text_field};
use super::{Awaiting, Context, Decided, Exchange, Purpose, Reply, Step, cookies, oauth};
use crate::http::{Cookie, Problem, ProblemCode};
use crate::metrics::Refresh as RefreshCount;
use crate::session::{
    Decision, Device, NewSession, RefreshState, RefreshToken, Refusal, Rotate, SessionRow, StoreOp, StoreOutcome,
    created_at_text, decide, steer_session_id,
};
use crate::token::{AccessClaims, MAX_TEXT, is_text, sign_access};
use crate::{Millis, SessionId, Timestamp, UserId};

/// The largest `device_info`, as compact JSON.
const MAX_DEVICE_INFO: usize = 4 * 1024;
/// How many ids are drawn for a session before the store is called broken: 98 random bits do not collide twice.
const MAX_DRAWS: u8 = 3;
/// How often a compare-and-set is tried again when another refresh was faster.
const MAX_ATTEMPTS: u8 = 4;

/// What is said of a refresh token whose session is not there, has ended or has expired.
const ENDED: &str = "has no live session";

/// A session being created.
#[derive(Debug)]
pub(super) struct Created {
    new: Box<NewSession>,
    draws: u8,
}

/// A refresh under way.
#[derive(Debug)]
pub(super) struct Refreshed {
    pub presented: RefreshToken,
    pub device: Option<Device>,
    pub from_cookie: bool,
    /// The client that `/oauth/token` was told of: another one's token is refused.
    pub client_id: Option<String>,
    pub phase: Phase,
    pub attempts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The optimistic rotation, or the read that a named client needs first.
    First,
    /// A decided write, and what it counts as: the current token afterwards is the answer.
    Write(RefreshCount),
    /// A reuse that is being revoked.
    Revoke,
}

/// Both tokens, ready for an answer.
struct Issued {
    session: SessionId,
    access: String,
    refresh: String,
    expires_in: u64,
    refresh_expires_in: u64,
}

impl Exchange {
    pub(super) fn count_create(&self, cx: &Context<'_>) -> Result<(), Problem> {
        let limit = &self.rules.config.limits.creates;
        let who = cx.head.header("authorization").and_then(bearer).unwrap_or_default();
        self.live
            .creates
            .count(who.as_bytes(), limit.count, limit.per, cx.now)
            .map_err(|wait| Problem::new(ProblemCode::TooManyRequests, "limits.creates is used up").retry_after(wait))
    }

    pub(super) fn check_refresh_failures(&self, cx: &Context<'_>) -> Result<(), Problem> {
        let limit = &self.rules.config.limits.refresh_failures;
        match self.live.refresh_failures.exhausted(&self.client_key(), limit.count, limit.per, cx.now) {
            Some(wait) => {
                Err(Problem::new(ProblemCode::TooManyRequests, "too many failed refreshes").retry_after(wait))
            }
            None => Ok(()),
        }
    }

    fn count_refresh_failure(&self, cx: &Context<'_>) {
        let limit = &self.rules.config.limits.refresh_failures;
        let _ = self.live.refresh_failures.count(&self.client_key(), limit.count, limit.per, cx.now);
    }

    fn client_key(&self) -> Vec<u8> {
        self.client.ip.map(|ip| ip.to_string()).unwrap_or_default().into_bytes()
    }

    pub(super) fn create(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let config = &self.rules.config.session;
        let bad = |detail: String| Problem::new(ProblemCode::BadRequest, detail);
        let object = json_object(bytes, &["user_id", "device_info", "client_id", "access_ttl"])?;
        let user_id = object.get("user_id").ok_or_else(|| bad("user_id is required".to_owned()))?;
        let (user, user_kind) = UserId::from_json(user_id).map_err(|e| bad(format!("user_id {e}")))?;
        let device_info = object.get("device_info").cloned().unwrap_or_else(|| json!({}));
        if !device_info.is_object() {
            return Err(bad("device_info must be a JSON object".to_owned()));
        }
        let size = device_info.to_string().len();
        if size > MAX_DEVICE_INFO {
            return Err(bad(format!("device_info must be at most {MAX_DEVICE_INFO} bytes of JSON, found {size}")));
        }
        let client_id = text_field(&object, "client_id")?.unwrap_or_else(|| config.audience.clone());
        if !is_text(&client_id) {
            return Err(bad(format!("client_id must be 1 to {MAX_TEXT} bytes without control characters")));
        }
        let access_ttl = match object.get("access_ttl") {
            None => None,
            Some(value) => Some(access_ttl(value, config.access_ttl)?),
        };
        let Some(rotation) = self.rules.rotation() else { return Err(no_keys()) };
        let absolute = cx.now + config.refresh_ttl;
        let new = Box::new(NewSession {
            id: steer_session_id(&user, &mut cx.local.entropy),
            user,
            user_kind,
            device_info,
            created_at: cx.now,
            client_id: client_id.into(),
            access_ttl,
            key_id: rotation.key_id,
            absolute,
            idle: (cx.now + config.idle_ttl).min(absolute),
            max_per_user: config.max_per_user,
            evict_oldest: config.on_max == crate::config::OnMax::EvictOldest,
        });
        Ok(self.store_new(Created { new, draws: 1 }))
    }

    fn store_new(&mut self, created: Created) -> Step {
        let op = StoreOp::Create(created.new.clone());
        self.awaiting = Awaiting::Stored(Stored::Created(created));
        Step::Store(Box::new(op))
    }

    pub(super) fn created(&mut self, mut created: Created, outcome: &StoreOutcome, cx: &mut Context<'_>) -> Decided {
        match outcome {
            StoreOutcome::Taken if created.draws < MAX_DRAWS => {
                created.draws += 1;
                created.new.id = steer_session_id(&created.new.user, &mut cx.local.entropy);
                Ok(self.store_new(created))
            }
            StoreOutcome::Taken => Err(self.store_unavailable()),
            StoreOutcome::Created { evicted } => {
                let evicted = u32::try_from(evicted.len()).unwrap_or(u32::MAX);
                self.note(SessionHappened::Created { evicted });
                self.note_about(Some(created.new.id), Some(&created.new.user));
                // The epoch does not go into tokens: any will do.
                let state = created.new.refresh_state(0);
                let issued = self.issue(created.new.id, &state, cx)?;
                self.attempt = Some(true);
                let mut reply = Reply::json(201, &token_body(&issued, true));
                self.dress(&mut reply, &issued, false);
                Ok(Step::Respond(Box::new(reply)))
            }
            StoreOutcome::Full => {
                self.note_about(None, Some(&created.new.user));
                let detail =
                    format!("the user already has session.max_per_user = {} sessions", created.new.max_per_user);
                Err(Problem::new(ProblemCode::TooManySessions, detail))
            }
            _ => Err(super::unexpected()),
        }
    }

    pub(super) fn refresh(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let from_cookie = bytes.trim_ascii().is_empty();
        // The answer sets cookies. A page of another site may send a token of its own, and would log this browser in as
        // somebody else; servers and apps, which relay what they got, send neither header.
        let from_browser = ["sec-fetch-site", "origin"].iter().any(|name| cx.head.header(name).is_some());
        if !from_cookie && from_browser && self.rules.config.session.cookies {
            self.check_cross_site(cx)?;
        }
        let token = if from_cookie {
            match &self.cookies.refresh {
                Cookie::Value(token) => token.clone(),
                Cookie::Conflict => {
                    self.attempt = Some(false);
                    return Err(conflicting_cookies());
                }
                Cookie::Absent => {
                    return Err(Problem::new(
                        ProblemCode::MissingCredential,
                        "send {\"refresh_token\": …} or Edgekeep's cookie",
                    ));
                }
            }
        } else {
            let object = json_object(bytes, &["refresh_token"])?;
            text_field(&object, "refresh_token")?
                .ok_or_else(|| Problem::new(ProblemCode::BadRequest, "refresh_token is required"))?
        };
        self.attempt = Some(false);
        if from_cookie {
            self.check_cross_site(cx)?;
        }
        self.start_refresh(&token, from_cookie, None, cx)
    }

    /// A token without a good tag is refused here, without a call to the store.
    pub(super) fn start_refresh(
        &mut self,
        token: &str,
        from_cookie: bool,
        client_id: Option<String>,
        cx: &mut Context<'_>,
    ) -> Decided {
        self.attempt = Some(false);
        let Some(rotation) = self.rules.rotation() else { return Err(no_keys()) };
        let presented = match RefreshToken::open(token, |id| self.rules.refresh_key(id)) {
            Ok(presented) => presented,
            Err(error) => {
                self.note_reason(error.name());
                return Err(self.refresh_refused(error.to_string(), from_cookie, cx));
            }
        };
        self.note_about(Some(presented.session), None);
        let device = cx.head.header("user-agent").map(Device::from_user_agent);
        let named = client_id.is_some();
        let refreshed = Refreshed { presented, device, from_cookie, client_id, phase: Phase::First, attempts: 0 };
        self.awaiting = Awaiting::Stored(Stored::Refreshed(refreshed));
        Ok(Step::Store(Box::new(if named {
            StoreOp::State(presented.session)
        } else {
            StoreOp::Rotate(Rotate {
                id: presented.session,
                presented: presented.counter,
                now: cx.now,
                key_id: rotation.key_id,
                device,
                idle_ttl: rotation.idle_ttl,
            })
        })))
    }

    pub(super) fn refreshed(
        &mut self,
        mut refreshed: Refreshed,
        outcome: StoreOutcome,
        cx: &mut Context<'_>,
    ) -> Decided {
        let from_cookie = refreshed.from_cookie;
        match outcome {
            StoreOutcome::Rotated(state) => {
                let how = match refreshed.phase {
                    Phase::Write(counted) => counted,
                    Phase::First | Phase::Revoke => RefreshCount::Rotated,
                };
                self.answer_refresh(&refreshed, &state, how, cx)
            }
            StoreOutcome::Revoked { replicated, .. } => {
                cx.local.metrics.refresh(RefreshCount::Reuse);
                self.note(SessionHappened::Reuse { replicated });
                Err(self.refresh_refused("was used before".to_owned(), from_cookie, cx))
            }
            // The same words as for one that ended: nobody learns which it was.
            StoreOutcome::Missing => {
                self.note_reason("ended");
                Err(self.refresh_refused(ENDED.to_owned(), from_cookie, cx))
            }
            StoreOutcome::Mismatch(state, epoch) | StoreOutcome::State(state, epoch) => {
                self.note_about(None, Some(&state.user));
                // An ended session answers like an unknown one, whoever's it was.
                let live = state.is_live(epoch, cx.now);
                if live && refreshed.client_id.as_ref().is_some_and(|client| **client != *state.client_id) {
                    self.note_reason("other_client");
                    return Err(self.refresh_refused("was issued to another client".to_owned(), from_cookie, cx));
                }
                let Some(rotation) = self.rules.rotation() else { return Err(no_keys()) };
                let id = refreshed.presented.session;
                let decision =
                    decide(id, refreshed.presented.counter, refreshed.device, &state, epoch, &rotation, cx.now);
                let (write, counted) = match decision {
                    Decision::Reissue => {
                        return self.answer_refresh(&refreshed, &state, RefreshCount::Reissued, cx);
                    }
                    Decision::Refuse(reason) => {
                        let (name, why) = match reason {
                            Refusal::Ended => ("ended", ENDED),
                            Refusal::TooManyRetries => ("too_many_retries", "was given again too often"),
                            Refusal::FromTheFuture => ("from_the_future", "is not known"),
                        };
                        self.note_reason(name);
                        // The session goes on, and another tab may just have been given its token: that cookie stays.
                        let clears = from_cookie && reason == Refusal::Ended;
                        return Err(self.refresh_refused(why.to_owned(), clears, cx));
                    }
                    Decision::Revoke => {
                        refreshed.phase = Phase::Revoke;
                        self.awaiting = Awaiting::Stored(Stored::Refreshed(refreshed));
                        return Ok(Step::Store(Box::new(StoreOp::Revoke { id, user: None, now: cx.now })));
                    }
                    Decision::Rotate { write, recovered } => {
                        (write, if recovered { RefreshCount::ForwardRecovery } else { RefreshCount::Rotated })
                    }
                    Decision::ReissueLost(write) => (write, RefreshCount::LostAnswer),
                };
                if refreshed.attempts >= MAX_ATTEMPTS {
                    return Err(self.store_unavailable());
                }
                refreshed.attempts += 1;
                refreshed.phase = Phase::Write(counted);
                self.awaiting = Awaiting::Stored(Stored::Refreshed(refreshed));
                Ok(Step::Store(Box::new(StoreOp::Replace(write))))
            }
            _ => Err(super::unexpected()),
        }
    }

    fn answer_refresh(
        &mut self,
        refreshed: &Refreshed,
        state: &RefreshState,
        how: RefreshCount,
        cx: &mut Context<'_>,
    ) -> Decided {
        let issued = self.issue(refreshed.presented.session, state, cx)?;
        self.attempt = Some(true);
        cx.local.metrics.refresh(how);
        self.note(SessionHappened::Refreshed(how));
        self.note_about(None, Some(&state.user));
        if let Purpose::Own(Call::OauthToken) = self.purpose {
            let mut body = token_body(&issued, true);
            if let Some(body) = body.as_object_mut() {
                body.remove("session_id");
                body.remove("refresh_expires_in");
            }
            return Ok(oauth::token_answer(&body));
        }
        // Tokens that live in HttpOnly cookies are not shown to scripts.
        let mut reply = Reply::json(200, &token_body(&issued, !refreshed.from_cookie));
        self.dress(&mut reply, &issued, refreshed.from_cookie);
        Ok(Step::Respond(Box::new(reply)))
    }

    fn refresh_refused(&mut self, why: String, clear_cookies: bool, cx: &Context<'_>) -> Problem {
        self.count_refresh_failure(cx);
        let why = if why.starts_with("the refresh token") { why } else { format!("the refresh token {why}") };
        let mut problem = Problem::new(ProblemCode::InvalidRefreshToken, why);
        problem.clear_cookies = clear_cookies;
        problem
    }

    /// Signs an access token for the current generation and seals the current refresh token.
    fn issue(&self, id: SessionId, state: &RefreshState, cx: &mut Context<'_>) -> Result<Issued, Problem> {
        let config = &self.rules.config.session;
        let full = state.access_ttl.unwrap_or(config.access_ttl).min(config.access_ttl);
        let jitter = (full.0 as f64 * config.access_ttl_jitter.0 * (1.0 - cx.local.entropy.unit())) as u64;
        let iat = Timestamp(cx.now.seconds() * 1000);
        // At least a second, and never beyond the session itself.
        let exp = (iat + Millis((full.0 - jitter.min(full.0)).max(1000))).min(state.absolute);
        let jti: String = cx.local.entropy.bytes::<16>().iter().map(|b| format!("{b:02x}")).collect();
        let claims = AccessClaims {
            iss: config.issuer.as_str().into(),
            sub: state.user.clone(),
            aud: config.audience.as_str().into(),
            client_id: state.client_id.clone(),
            iat,
            exp,
            jti: jti.into(),
            sid: id,
            generation: state.counter,
        };
        let access = sign_access(&self.rules.keys, &claims).map_err(|_| no_keys())?;
        let key = self.rules.refresh_key(state.key_id).ok_or_else(|| unknown_key(state.key_id))?;
        let refresh = RefreshToken { session: id, counter: state.counter, key_id: state.key_id }.seal(key);
        Ok(Issued {
            session: id,
            access,
            refresh,
            // Rounded up: at 0 a cookie would be deleted instead of set.
            expires_in: Timestamp(exp.seconds() * 1000).ttl_seconds(cx.now),
            refresh_expires_in: state.idle.min(state.absolute).ttl_seconds(cx.now),
        })
    }

    /// `in_cookies`: the client keeps its tokens there and is shown them nowhere else, even when cookies were switched
    /// off meanwhile.
    fn dress(&self, reply: &mut Reply, issued: &Issued, in_cookies: bool) {
        reply.head.set("cache-control", "no-store");
        if in_cookies || self.rules.config.session.cookies {
            let access = (issued.access.as_str(), issued.expires_in);
            cookies::set(&mut reply.head, access, (issued.refresh.as_str(), issued.refresh_expires_in));
        }
    }

    /// The calls of an admitted user, and the service's calls about a user.
    pub(super) fn user_call(&mut self, cx: &mut Context<'_>) -> Decided {
        let Purpose::Own(call) = &self.purpose else { return Err(super::unexpected()) };
        let now = cx.now;
        let me = self.identity.as_ref().map(|identity| (identity.claims.sub.clone(), identity.claims.sid));
        let (stored, op) = match (call, me) {
            (Call::ListUser(user), _) => (Stored::Listed { own: false }, StoreOp::List { user: user.clone(), now }),
            (Call::RevokeUser(user), _) => {
                (Stored::Revoked { clear: false, how: Revoked::All }, StoreOp::RevokeAll { user: user.clone(), now })
            }
            (Call::ListOwn, Some((user, _))) => (Stored::Listed { own: true }, StoreOp::List { user, now }),
            (Call::EndOthers, Some((user, keep))) => {
                (Stored::Revoked { clear: false, how: Revoked::Others }, StoreOp::RevokeOthers { user, keep, now })
            }
            (Call::Logout, Some((user, id))) => {
                (Stored::Revoked { clear: true, how: Revoked::One }, StoreOp::Revoke { id, user: Some(user), now })
            }
            (Call::EndOwn(Some(id)), Some((user, _))) => (
                Stored::Revoked { clear: false, how: Revoked::One },
                StoreOp::Revoke { id: *id, user: Some(user), now },
            ),
            // Not an id that was ever given out: as gone as any other.
            (Call::EndOwn(None), Some(_)) => return Ok(revoked(false, &StoreOutcome::Missing)),
            _ => return Err(super::unexpected()),
        };
        match &op {
            StoreOp::Revoke { id, user, .. } => self.note_about(Some(*id), user.as_ref()),
            StoreOp::RevokeAll { user, .. } | StoreOp::RevokeOthers { user, .. } => self.note_about(None, Some(user)),
            _ => {}
        }
        self.awaiting = Awaiting::Stored(stored);
        Ok(Step::Store(Box::new(op)))
    }

    pub(super) fn listed(&self, own: bool, outcome: StoreOutcome) -> Decided {
        let StoreOutcome::Listed(rows) = outcome else { return Err(super::unexpected()) };
        let current = self.identity.as_ref().filter(|_| own).map(|identity| identity.claims.sid);
        let sessions: Vec<Value> = rows.iter().map(|row| session_row(row, current)).collect();
        let mut reply = Reply::json(200, &json!({ "sessions": sessions }));
        reply.head.set("cache-control", "no-store");
        Ok(Step::Respond(Box::new(reply)))
    }
}

fn session_row(row: &SessionRow, current: Option<SessionId>) -> Value {
    let mut shown = json!({
        "session_id": row.id.to_string(),
        "device_info": row.record.get("device_info").cloned().unwrap_or_else(|| json!({})),
        "created_at": row.record.get("created_at").cloned().unwrap_or(Value::Null),
        "expires_at": created_at_text(row.idle.min(row.absolute)),
    });
    if let Some(at) = row.refreshed_at {
        shown["refreshed_at"] = Value::from(created_at_text(at));
    }
    if let Some(current) = current {
        shown["current"] = Value::from(row.id == current);
    }
    shown
}

/// 204 when enough replicas have it; 202 says that they will.
pub(super) fn revoked(clear: bool, outcome: &StoreOutcome) -> Step {
    let mut reply = match outcome {
        StoreOutcome::Revoked { replicated: false, .. } => Reply::json(202, &json!({"replicated": false})),
        _ => Reply::empty(204),
    };
    if clear {
        reply.head.set("clear-site-data", "\"cache\", \"cookies\", \"storage\"");
        cookies::clear(&mut reply.head);
    }
    reply.head.set("cache-control", "no-store");
    Step::Respond(Box::new(reply))
}

fn token_body(issued: &Issued, with_tokens: bool) -> Value {
    let mut body = json!({
        "session_id": issued.session.to_string(),
        "token_type": "Bearer",
        "expires_in": issued.expires_in,
        "refresh_expires_in": issued.refresh_expires_in,
    });
    if with_tokens {
        body["access_token"] = Value::from(issued.access.as_str());
        body["refresh_token"] = Value::from(issued.refresh.as_str());
    }
    body
}

/// Whole seconds; only ever shorter than the configured one.
fn access_ttl(value: &Value, most: Millis) -> Result<Millis, Problem> {
    let bad = || {
        let detail = format!("access_ttl must be whole seconds from 1 to {}: it only shortens", most.0 / 1000);
        Problem::new(ProblemCode::BadRequest, detail)
    };
    let seconds = value.as_u64().ok_or_else(bad)?;
    let ttl = Millis::from_secs(seconds);
    if seconds == 0 || ttl > most {
        return Err(bad());
    }
    Ok(ttl)
}

/// The session's current token was signed with a key that is not in this gateway's file: it lags behind another
/// gateway, or the key was removed before its last token ended. Nobody is logged out for that.
fn unknown_key(id: u8) -> Problem {
    let detail = format!("this gateway does not have refresh key {id}; trying again is safe");
    Problem::new(ProblemCode::StoreUnavailable, detail).retry_after(1)
}

/// Not reached where a session can be created: start-up refuses a key ring that cannot issue.
fn no_keys() -> Problem {
    Problem::new(ProblemCode::Internal, "this gateway has no keys to issue with")
}
