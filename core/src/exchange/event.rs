//! What happens to sessions, for the log: every creation, refresh, refusal, revocation and reuse, told once its answer
//! is out. Sessions and users stand there by the names that logs may use, never by their ids.

use std::net::IpAddr;

use super::{Exchange, Rules};
use crate::http::ProblemCode;
use crate::metrics::Refresh;
use crate::session::StoreOutcome;
use crate::{SessionId, UserId};

/// One event, ready for a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEvent {
    pub what: SessionHappened,
    /// Keyed hashes: `Rules::log_name` of the id's text.
    pub session: Option<String>,
    pub user: Option<String>,
    /// The client as policy sees it.
    pub client: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionHappened {
    Created {
        /// How many older sessions of the user made room for it.
        evicted: u32,
    },
    Refreshed(Refresh),
    /// A credential was presented and refused, with the problem's code or, for a refresh token, the table's reason.
    Refused(&'static str),
    Revoked {
        how: Revoked,
        /// How many sessions ended.
        count: u32,
        /// Enough replicas have it.
        replicated: bool,
    },
    /// A refresh token in other hands: its session was ended.
    Reuse {
        replicated: bool,
    },
}

/// Which sessions a revocation meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// The caller's own, or another one of the same user.
    One,
    Others,
    All,
    /// The session of a token, by RFC 7009.
    Token,
}

impl SessionEvent {
    pub const fn name(&self) -> &'static str {
        match self.what {
            SessionHappened::Created { .. } => "session_created",
            SessionHappened::Refreshed(_) => "session_refreshed",
            SessionHappened::Refused(_) => "session_refused",
            SessionHappened::Revoked { .. } => "session_revoked",
            SessionHappened::Reuse { .. } => "refresh_reuse",
        }
    }

    /// How it was refreshed or revoked, or why it was refused.
    pub const fn how(&self) -> Option<&'static str> {
        match self.what {
            SessionHappened::Created { .. } | SessionHappened::Reuse { .. } => None,
            SessionHappened::Refreshed(how) => Some(how.name()),
            SessionHappened::Refused(why) => Some(why),
            SessionHappened::Revoked { how, .. } => Some(match how {
                Revoked::One => "one",
                Revoked::Others => "others",
                Revoked::All => "all",
                Revoked::Token => "token",
            }),
        }
    }

    /// How many sessions a revocation ended, or a creation evicted.
    pub const fn count(&self) -> Option<u32> {
        match self.what {
            SessionHappened::Revoked { count, .. } | SessionHappened::Created { evicted: count @ 1.. } => Some(count),
            SessionHappened::Reuse { .. } => Some(1),
            SessionHappened::Created { .. } | SessionHappened::Refreshed(_) | SessionHappened::Refused(_) => None,
        }
    }

    /// Whether enough replicas have a revocation.
    pub const fn replicated(&self) -> Option<bool> {
        match self.what {
            SessionHappened::Revoked { replicated, .. } | SessionHappened::Reuse { replicated } => Some(replicated),
            SessionHappened::Created { .. } | SessionHappened::Refreshed(_) | SessionHappened::Refused(_) => None,
        }
    }
}

/// What an exchange notes on its way; it is named and handed out at the end.
#[derive(Debug, Default)]
pub(super) struct Noted {
    what: Option<SessionHappened>,
    session: Option<SessionId>,
    user: Option<UserId>,
    refused: Option<(ProblemCode, Option<&'static str>)>,
}

impl Exchange {
    /// What happened, and to whom.
    pub(super) fn note(&mut self, what: SessionHappened) {
        self.noted().what = Some(what);
    }

    pub(super) fn note_about(&mut self, session: Option<SessionId>, user: Option<&UserId>) {
        let noted = self.noted();
        noted.session = session.or(noted.session);
        if let Some(user) = user {
            noted.user = Some(user.clone());
        }
    }

    /// A finer reason than the problem's code.
    pub(super) fn note_reason(&mut self, why: &'static str) {
        self.noted().refused = Some((ProblemCode::InvalidRefreshToken, Some(why)));
    }

    pub(super) fn note_refusal(&mut self, code: ProblemCode) {
        let presented = self.attempt == Some(false) || code == ProblemCode::TooManyRequests;
        if presented && code.facts().0 < 500 && self.noted.as_ref().is_none_or(|noted| noted.refused.is_none()) {
            self.noted().refused = Some((code, None));
        }
    }

    pub(super) fn note_revoked(&mut self, how: Revoked, outcome: &StoreOutcome) {
        if let StoreOutcome::Revoked { ended, replicated, .. } = outcome {
            let count = u32::try_from(ended.len()).unwrap_or(u32::MAX);
            self.note(SessionHappened::Revoked { how, count, replicated: *replicated });
        }
    }

    pub(super) fn take_event(&mut self) -> Option<Box<SessionEvent>> {
        let Noted { what, session, user, refused } = *self.noted.take()?;
        let why = refused.map(|(code, why)| SessionHappened::Refused(why.unwrap_or(code.facts().1)));
        let name = |rules: &Rules, text: &str| rules.log_name(text.as_bytes());
        Some(Box::new(SessionEvent {
            what: what.or(why)?,
            session: session.map(|id| name(&self.rules, &id.to_string())),
            user: user.map(|user| name(&self.rules, user.as_str())),
            client: self.client.ip,
        }))
    }

    fn noted(&mut self) -> &mut Noted {
        self.noted.get_or_insert_default()
    }
}
