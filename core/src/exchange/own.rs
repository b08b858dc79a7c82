//! Edgekeep's own paths: which call a path and method are, who may make it, and where it is answered.
//!
//! An edge beside a region answers what it can decide itself and passes the rest on to its authority, where the
//! client's own credential alone authorises it. The calls that the edge credential opens are never passed on.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::admit::bearer;
use super::event::Revoked;
use super::{Awaiting, Context, Decided, Exchange, Purpose, Reply, Site, Step, internal, oauth, sessions};
use crate::config::AuthMode;
use crate::http::{Problem, ProblemCode};
use crate::route::OwnPath;
use crate::session::StoreOutcome;
use crate::{SessionId, UserId};

/// What is asked of Edgekeep itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Create,
    Refresh,
    ListOwn,
    /// `None`: not a session id, so it can only be unknown.
    EndOwn(Option<SessionId>),
    EndOthers,
    Logout,
    ListUser(UserId),
    RevokeUser(UserId),
    OauthToken,
    OauthRevoke,
    OauthIntrospect,
    EdgeValidate,
    EdgeConfirm,
    EdgeTombstones,
}

impl Call {
    /// Whether it changes sessions.
    pub fn is_change(&self) -> bool {
        match self {
            Call::Create
            | Call::Refresh
            | Call::EndOwn(_)
            | Call::EndOthers
            | Call::Logout
            | Call::RevokeUser(_)
            | Call::OauthToken
            | Call::OauthRevoke => true,
            Call::ListOwn
            | Call::ListUser(_)
            | Call::OauthIntrospect
            | Call::EdgeValidate
            | Call::EdgeConfirm
            | Call::EdgeTombstones => false,
        }
    }

    /// Errors as RFC 6749 JSON instead of problem documents.
    pub fn speaks_oauth(&self) -> bool {
        matches!(self, Call::OauthToken | Call::OauthRevoke | Call::OauthIntrospect)
    }
}

/// A store operation under way, with what the answer needs.
#[derive(Debug)]
pub(super) enum Stored {
    Created(sessions::Created),
    Refreshed(sessions::Refreshed),
    Listed { own: bool },
    Revoked { clear: bool, how: Revoked },
    OauthRevoking { id: SessionId, client: String },
    OauthRevoked,
    Introspected(oauth::Introspected),
    Confirmed,
    Tombstoned(Vec<crate::session::Tombstone>),
}

impl Exchange {
    pub(super) fn own(&mut self, path: OwnPath<'_>, cx: &mut Context<'_>) -> Decided {
        let method = cx.head.method().to_owned();
        if let OwnPath::Authorize { below } = path {
            return self.authorize(below, cx);
        }
        if let OwnPath::Refused(error) = path {
            return Err(Problem::new(ProblemCode::BadPath, error.to_string()));
        }
        // Whatever is refused on these from here on, is refused in OAuth's words.
        match path {
            OwnPath::OauthToken => self.purpose = Purpose::Own(Call::OauthToken),
            OwnPath::OauthRevoke => self.purpose = Purpose::Own(Call::OauthRevoke),
            OwnPath::OauthIntrospect => self.purpose = Purpose::Own(Call::OauthIntrospect),
            _ => {}
        }
        let for_region = matches!(path, OwnPath::EdgeValidate | OwnPath::EdgeConfirm | OwnPath::EdgeShardMap);
        let for_edge = matches!(path, OwnPath::EdgeTombstones);
        match self.rules.site {
            _ if matches!(path, OwnPath::OpenApi) => {}
            // Passing these on would lend the Worker's own credential to its client.
            Site::EdgeBesideRegion if for_region => return Err(not_found()),
            Site::EdgeBesideRegion if !for_edge => return self.pass_to_authority(cx),
            Site::Native if for_edge => return Err(not_found()),
            Site::Native | Site::EdgeBesideRegion => {}
        }
        let allow = allowed_methods(&path);
        let call = match (path, method.as_str()) {
            (OwnPath::Sessions, "POST") => Call::Create,
            (OwnPath::Sessions, "GET") => Call::ListOwn,
            (OwnPath::Sessions, "DELETE") => match cx.head.query() {
                Some("except=current") => Call::EndOthers,
                _ => {
                    return Err(Problem::new(
                        ProblemCode::BadRequest,
                        "ending the other sessions is asked for with ?except=current",
                    ));
                }
            },
            (OwnPath::SessionsRefresh, "POST") => Call::Refresh,
            (OwnPath::SessionsCurrent, "DELETE") => Call::Logout,
            (OwnPath::Session(id), "DELETE") => Call::EndOwn(SessionId::parse(&id)),
            (OwnPath::UserSessions(id), "GET") => Call::ListUser(user_in_path(&id)?),
            (OwnPath::UserSessions(id), "DELETE") => Call::RevokeUser(user_in_path(&id)?),
            (OwnPath::OauthToken, "POST") => Call::OauthToken,
            (OwnPath::OauthRevoke, "POST") => Call::OauthRevoke,
            (OwnPath::OauthIntrospect, "POST") => Call::OauthIntrospect,
            (OwnPath::Jwks, "GET" | "HEAD") => return Ok(self.jwks(cx)),
            (OwnPath::OpenApi, "GET" | "HEAD") => return Ok(self.openapi(cx)),
            (OwnPath::EdgeValidate, "POST") => Call::EdgeValidate,
            (OwnPath::EdgeConfirm, "POST") => Call::EdgeConfirm,
            (OwnPath::EdgeTombstones, "POST") => Call::EdgeTombstones,
            (OwnPath::EdgeShardMap, "GET") => return self.shard_map(cx),
            (OwnPath::ShardOfUser(id), "GET") => return self.shard_of_user(&user_in_path(&id)?, cx),
            (OwnPath::ShardsOfPhotos, "GET") => return self.shards_of_photos(cx),
            _ => {
                let mut problem = Problem::new(ProblemCode::MethodNotAllowed, format!("{method} does not apply here"));
                problem.allow = Some(allow);
                return Err(problem);
            }
        };
        self.purpose = Purpose::Own(call.clone());
        match &call {
            Call::ListOwn | Call::EndOwn(_) | Call::EndOthers | Call::Logout => self.admit(AuthMode::Strict, cx),
            Call::Create => {
                self.check_service(cx)?;
                // A create succeeds when the session is there.
                self.attempt = Some(false);
                self.count_create(cx)?;
                Ok(self.read_json())
            }
            Call::ListUser(_) | Call::RevokeUser(_) => {
                self.check_service(cx)?;
                self.user_call(cx)
            }
            Call::OauthIntrospect => {
                self.check_introspection(cx)?;
                Ok(self.read_json())
            }
            Call::EdgeValidate | Call::EdgeConfirm | Call::EdgeTombstones => {
                self.check_edge(cx)?;
                Ok(self.read_json())
            }
            Call::Refresh | Call::OauthToken => {
                self.check_refresh_failures(cx)?;
                Ok(self.read_json())
            }
            Call::OauthRevoke => Ok(self.read_json()),
        }
    }

    fn read_json(&mut self) -> Step {
        self.awaiting = Awaiting::Body;
        Step::ReadBody { limit: self.rules.config.limits.json_body.0 }
    }

    pub(super) fn own_body(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Decided {
        let Purpose::Own(call) = &self.purpose else { return Err(super::unexpected()) };
        match call {
            Call::Create => self.create(bytes, cx),
            Call::Refresh => self.refresh(bytes, cx),
            Call::OauthToken => self.oauth_token(bytes, cx),
            Call::OauthRevoke => self.oauth_revoke(bytes, cx),
            Call::OauthIntrospect => self.oauth_introspect(bytes, cx),
            Call::EdgeValidate => self.edge_validate(bytes, cx),
            Call::EdgeConfirm => self.edge_confirm(bytes),
            Call::EdgeTombstones => self.edge_tombstones(bytes),
            _ => Err(super::unexpected()),
        }
    }

    /// The user was admitted as `strict`.
    pub(super) fn own_admitted(&mut self, cx: &mut Context<'_>) -> Decided {
        self.user_call(cx)
    }

    pub(super) fn own_stored(&mut self, stored: Stored, outcome: StoreOutcome, cx: &mut Context<'_>) -> Decided {
        if outcome == StoreOutcome::Unavailable {
            return Err(self.store_unavailable());
        }
        match &outcome {
            StoreOutcome::Revoked { ended, epoch, .. } => self.note_revocation(ended, *epoch, cx.now),
            StoreOutcome::Created { evicted } => self.note_revocation(evicted, None, cx.now),
            _ => {}
        }
        match stored {
            Stored::Created(created) => self.created(created, &outcome, cx),
            Stored::Refreshed(refreshed) => self.refreshed(refreshed, outcome, cx),
            Stored::Listed { own } => self.listed(own, outcome),
            Stored::Revoked { clear, how } => {
                self.note_revoked(how, &outcome);
                Ok(sessions::revoked(clear, &outcome))
            }
            Stored::OauthRevoking { id, client } => Ok(self.oauth_revoking(id, &client, &outcome, cx)),
            Stored::OauthRevoked => {
                self.note_revoked(Revoked::Token, &outcome);
                self.oauth_revoked(&outcome)
            }
            Stored::Introspected(asked) => Ok(self.introspected(&asked, outcome, cx)),
            Stored::Confirmed => Ok(Step::Respond(Box::new(Reply::empty(204)))),
            Stored::Tombstoned(tombstones) => Ok(self.tombstoned(&tombstones)),
        }
    }

    /// The service credential, as a bearer token. Presenting one is an attempt to authenticate.
    pub(super) fn check_service(&mut self, cx: &Context<'_>) -> Result<(), Problem> {
        if !self.rules.secrets.has_service() {
            return Err(Problem::new(ProblemCode::Forbidden, "no service token is configured: this call is closed"));
        }
        match cx.head.header("authorization").and_then(bearer) {
            Some(presented) if self.rules.secrets.is_service(presented) => {
                self.attempt = Some(true);
                Ok(())
            }
            Some(_) => {
                self.attempt = Some(false);
                Err(Problem::new(ProblemCode::InvalidToken, "the service credential is not valid"))
            }
            None => Err(Problem::new(ProblemCode::MissingCredential, "send the service credential as a bearer token")),
        }
    }

    fn check_edge(&self, cx: &Context<'_>) -> Result<(), Problem> {
        match cx.head.header("x-edgekeep-edge") {
            Some(presented) if self.rules.secrets.is_edge(presented) => Ok(()),
            _ => Err(Problem::new(ProblemCode::Forbidden, "the edge credential is missing or wrong")),
        }
    }

    /// The Worker's own map: it needs the key to place users itself.
    fn shard_map(&self, cx: &Context<'_>) -> Decided {
        self.check_edge(cx)?;
        internal::shard_map(&self.rules)
    }
}

/// Where every method applies that is proxied at all.
pub(super) const ANY_METHOD: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

pub(super) fn allowed_methods(path: &OwnPath<'_>) -> &'static str {
    match path {
        OwnPath::Authorize { .. } => ANY_METHOD,
        OwnPath::Sessions => "GET, POST, DELETE",
        OwnPath::UserSessions(_) => "GET, DELETE",
        OwnPath::SessionsCurrent | OwnPath::Session(_) => "DELETE",
        OwnPath::Jwks | OwnPath::OpenApi => "GET, HEAD",
        OwnPath::EdgeShardMap | OwnPath::ShardOfUser(_) | OwnPath::ShardsOfPhotos => "GET",
        _ => "POST",
    }
}

pub(super) fn not_found() -> Problem {
    Problem::new(ProblemCode::NotFound, "")
}

fn user_in_path(id: &str) -> Result<UserId, Problem> {
    UserId::new(id).map_err(|e| Problem::new(ProblemCode::BadIdentity, format!("the user id in the path {e}")))
}

/// A JSON object with only these members; the problem names the field.
pub(super) fn json_object(bytes: &[u8], allowed: &[&str]) -> Result<Map<String, Value>, Problem> {
    let bad = |detail: String| Problem::new(ProblemCode::BadRequest, detail);
    let Members { object, twice } = serde_json::from_slice(bytes).map_err(|e| {
        bad(if e.is_data() {
            "the body must be a JSON object".to_owned()
        } else {
            format!("the body is not JSON: line {}, column {}", e.line(), e.column())
        })
    })?;
    // Who looked at it before may have read either.
    if let Some(twice) = twice {
        return Err(bad(format!("field {:?} stands twice", shown(&twice))));
    }
    if let Some(unknown) = object.keys().find(|name| !allowed.contains(&name.as_str())) {
        return Err(bad(format!("unknown field {:?}; allowed: {}", shown(unknown), allowed.join(", "))));
    }
    Ok(object)
}

/// An object, and a name that stands in it twice.
struct Members {
    object: Map<String, Value>,
    twice: Option<String>,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members { object: Map::new(), twice: None };
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if members.object.contains_key(&name) {
                        members.twice = Some(name.clone());
                    }
                    members.object.insert(name, value);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A name from outside, as a message may show it.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(40).collect()
}

pub(super) fn text_field(object: &Map<String, Value>, name: &str) -> Result<Option<String>, Problem> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Problem::new(ProblemCode::BadRequest, format!("{name} must be a string"))),
    }
}
