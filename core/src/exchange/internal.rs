//! What the Worker, the application and other services ask: validation for the edge, placement, public keys.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::own::{Call, Stored, json_object, not_found, text_field};
use super::{Awaiting, Context, Decided, Exchange, Purpose, Reply, Rules, SessionAnswer, Site, Step};
use crate::http::{Problem, ProblemCode};
use crate::session::{StoreOp, Tombstone};
use crate::{SessionId, Timestamp, UserId};

/// How long clients may keep what is for everyone: the public keys, the description of the API.
const PUBLIC_MAX_AGE: &str = "public, max-age=300";
/// The most tombstones in one call.
const MAX_TOMBSTONES: usize = 1000;

impl Exchange {
    /// `POST /v1/edge/validate {sid, sub, gen}` → `{live, epoch, expires_at, gen}`; it also confirms `gen`.
    pub(super) fn edge_validate(&mut self, bytes: &[u8], _cx: &mut Context<'_>) -> Decided {
        let (id, generation, object) = session_and_generation(bytes, &["sid", "sub", "gen"])?;
        let sub = text_field(&object, "sub")?.unwrap_or_default();
        let user = UserId::new(&sub).map_err(|e| Problem::new(ProblemCode::BadRequest, format!("sub {e}")))?;
        self.confirm = Some((id, generation));
        self.awaiting = Awaiting::Validate(user.clone());
        Ok(Step::Session { id, user, generation, freshness: super::Freshness::Primary })
    }

    pub(super) fn edge_validated(&mut self, user: &UserId, answer: SessionAnswer, cx: &Context<'_>) -> Decided {
        let body = match answer {
            SessionAnswer::Unavailable => return Err(self.store_unavailable()),
            SessionAnswer::Loaded(session) if session.live && session.user == *user && session.expires_at > cx.now => {
                json!({
                    "live": true,
                    "epoch": session.epoch,
                    "expires_at": session.expires_at.0,
                    "gen": session.generation,
                })
            }
            SessionAnswer::Loaded(_) | SessionAnswer::Missing => {
                self.confirm = None;
                json!({"live": false})
            }
        };
        Ok(no_store(Reply::json(200, &body)))
    }

    /// `POST /v1/edge/confirm {sid, gen}` → 204.
    pub(super) fn edge_confirm(&mut self, bytes: &[u8]) -> Decided {
        let (id, generation, _) = session_and_generation(bytes, &["sid", "gen"])?;
        self.awaiting = Awaiting::Stored(Stored::Confirmed);
        Ok(Step::Store(Box::new(StoreOp::Confirm { id, generation })))
    }

    /// `POST /v1/edge/tombstones {tombstones: [{sid, until} | {user, epoch, until}]}` → 204, at the edge.
    pub(super) fn edge_tombstones(&mut self, bytes: &[u8]) -> Decided {
        let object = json_object(bytes, &["tombstones"])?;
        let bad = |detail: &str| Problem::new(ProblemCode::BadRequest, detail);
        let rows =
            object.get("tombstones").and_then(Value::as_array).ok_or_else(|| bad("tombstones must be a list"))?;
        if rows.len() > MAX_TOMBSTONES {
            return Err(bad("tombstones must be at most 1000"));
        }
        let tombstones = rows.iter().map(Tombstone::from_json).collect::<Option<Vec<_>>>().ok_or_else(|| {
            bad("each of tombstones must be {sid, until} or {user, epoch, until}, until in milliseconds")
        })?;
        self.awaiting = Awaiting::Stored(Stored::Tombstoned(tombstones.clone()));
        Ok(Step::Store(Box::new(StoreOp::Bury(tombstones))))
    }

    /// What Workers are to be told of a revocation, where some are named: until the last token of what ended expires.
    pub(super) fn note_revocation(&mut self, ended: &[SessionId], epoch: Option<u64>, now: Timestamp) {
        let config = &self.rules.config;
        if self.rules.site != Site::Native || config.edge.notify.is_empty() {
            return;
        }
        let until = now + config.session.access_ttl + config.session.leeway;
        let until = Timestamp(until.0.div_ceil(1000) * 1000);
        self.tombstones = match (epoch, &self.purpose) {
            // One for all of them, and for those that the index did not name.
            (Some(epoch), Purpose::Own(Call::RevokeUser(user))) => {
                vec![Tombstone::User { user: user.clone(), epoch, until }]
            }
            _ => ended.iter().map(|id| Tombstone::Session { id: *id, until }).collect(),
        };
    }

    pub(super) fn tombstoned(&self, tombstones: &[Tombstone]) -> Step {
        for tombstone in tombstones {
            match tombstone {
                Tombstone::Session { id, .. } => self.live.near.invalidate(*id),
                Tombstone::User { user, .. } => self.live.near.invalidate_user(user),
            }
        }
        Step::Respond(Box::new(Reply::empty(204)))
    }

    /// `GET /.well-known/jwks.json`, for everyone.
    pub(super) fn jwks(&self, cx: &Context<'_>) -> Step {
        let text = self.rules.keys.public_jwks();
        let digest = Sha256::digest(&text);
        let tag = format!("\"{}\"", digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect::<String>());
        published(cx, tag, "application/jwk-set+json", || text.into_bytes())
    }

    /// `GET /v1/shards/users/{id}`, for applications with the service credential.
    pub(super) fn shard_of_user(&mut self, user: &UserId, cx: &Context<'_>) -> Decided {
        self.check_service(cx)?;
        let Some(map) = &self.rules.map else { return Err(not_found()) };
        let placement = map.place(user).map_err(|e| Problem::new(ProblemCode::BadIdentity, e.to_string()))?;
        let mut body = json!({
            "user_id": user.as_str(),
            "shard": placement.shard.as_str(),
            "slot": placement.slot.number(),
            "epoch": map.epoch().0,
            "pinned": placement.pinned,
        });
        if let Some(next) = placement.next {
            body["next"] = Value::from(next.as_str());
        }
        if let Some(previous) = placement.previous {
            body["previous"] = Value::from(previous.as_str());
        }
        Ok(no_store(Reply::json(200, &body)))
    }

    /// `GET /v1/shards/photos?at=` or `?from=&to=`.
    pub(super) fn shards_of_photos(&mut self, cx: &Context<'_>) -> Decided {
        self.check_service(cx)?;
        let Some(map) = &self.rules.map else { return Err(not_found()) };
        let query: Vec<(String, String)> =
            form_urlencoded::parse(cx.head.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let value = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let bad = |e: crate::shard::PhotoError| Problem::new(ProblemCode::BadInstant, e.to_string());
        let shards = match (value("at"), value("from"), value("to")) {
            (Some(at), None, None) => map.photo_shards(self.rules.photos.month(at, cx.now).map_err(bad)?),
            (None, Some(from), Some(to)) => map.shards_for_range(&self.rules.photos, from, to, cx.now).map_err(bad)?,
            _ => return Err(Problem::new(ProblemCode::BadRequest, "give either at, or from and to")),
        };
        let shards: Vec<&str> = shards.iter().map(|shard| shard.as_str()).collect();
        Ok(no_store(Reply::json(200, &json!({ "shards": shards }))))
    }
}

/// The map with its key, for a Worker.
pub(super) fn shard_map(rules: &Rules) -> Decided {
    let Some(map) = &rules.map else { return Err(not_found()) };
    let mut reply = Reply::empty(200);
    reply.head.set("content-type", "application/json");
    reply.body = super::ReplyBody::Bytes(map.to_json().into_bytes());
    Ok(no_store(reply))
}

/// A document for everyone, or 304 for who has it.
pub(super) fn published(
    cx: &Context<'_>,
    tag: String,
    content_type: &'static str,
    body: impl FnOnce() -> Vec<u8>,
) -> Step {
    let mut known = false;
    cx.head.each_header("if-none-match", &mut |value| known |= names_tag(value, &tag));
    let mut reply = Reply::empty(if known { 304 } else { 200 });
    reply.head.set("etag", tag);
    reply.head.set("cache-control", PUBLIC_MAX_AGE);
    if !known {
        reply.head.set("content-type", content_type);
        reply.body = super::ReplyBody::Bytes(body());
    }
    Step::Respond(Box::new(reply))
}

/// Whether an `If-None-Match` names this tag, compared weakly (RFC 9110 §13.1.2). No tag of ours holds a comma.
fn names_tag(value: &[u8], tag: &str) -> bool {
    let Ok(value) = std::str::from_utf8(value) else { return false };
    value.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

fn no_store(mut reply: Reply) -> Step {
    reply.head.set("cache-control", "no-store");
    Step::Respond(Box::new(reply))
}

fn session_and_generation(
    bytes: &[u8],
    allowed: &[&str],
) -> Result<(SessionId, u32, serde_json::Map<String, Value>), Problem> {
    let object = json_object(bytes, allowed)?;
    let bad = |detail: &str| Problem::new(ProblemCode::BadRequest, detail);
    let id = text_field(&object, "sid")?.and_then(|sid| SessionId::parse(&sid)).ok_or_else(|| bad("sid is no id"))?;
    let generation = object.get("gen").and_then(Value::as_u64).and_then(|gen_| u32::try_from(gen_).ok());
    Ok((id, generation.ok_or_else(|| bad("gen must be a counter"))?, object))
}

impl Tombstone {
    /// `{sid, until}` or `{user, epoch, until}`; `until` in milliseconds since the epoch.
    pub fn from_json(value: &Value) -> Option<Tombstone> {
        let until = Timestamp(value.get("until")?.as_u64()?);
        if let Some(sid) = value.get("sid") {
            return Some(Tombstone::Session { id: SessionId::parse(sid.as_str()?)?, until });
        }
        let user = UserId::new(value.get("user")?.as_str()?).ok()?;
        Some(Tombstone::User { user, epoch: value.get("epoch")?.as_u64()?, until })
    }

    /// The body of `POST /v1/edge/tombstones` for as many of these as one call takes, within `max_bytes` where one alone
    /// does not need more; and how many they are.
    pub fn batch<'a>(tombstones: impl IntoIterator<Item = &'a Tombstone>, max_bytes: usize) -> (String, usize) {
        let mut body = "{\"tombstones\":[".to_owned();
        let mut count = 0;
        for tombstone in tombstones.into_iter().take(MAX_TOMBSTONES) {
            let row = tombstone.to_json().to_string();
            // Two for a comma and the list's end, one for the object's.
            if count > 0 && body.len() + row.len() + 3 > max_bytes {
                break;
            }
            if count > 0 {
                body.push(',');
            }
            body.push_str(&row);
            count += 1;
        }
        body.push_str("]}");
        (body, count)
    }

    /// When it may be forgotten.
    pub fn until(&self) -> Timestamp {
        match self {
            Tombstone::Session { until, .. } | Tombstone::User { until, .. } => *until,
        }
    }

    pub fn to_json(&self) -> Value {
        match self {
            Tombstone::Session { id, until } => json!({"sid": id.to_string(), "until": until.0}),
            Tombstone::User { user, epoch, until } => {
                json!({"user": user.as_str(), "epoch": epoch, "until": until.0})
            }
        }
    }
}
