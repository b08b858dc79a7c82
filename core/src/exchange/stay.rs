//! How long an answer may go on. An upgraded connection or a stream outlives the check that let it in, so the shell
//! looks again every second or so and ends it with its session (DESIGN §4).
//!
//! On `session` and `strict` routes it rests on the session. On `token` and `optional` routes it rests on the token, and
//! once that has expired on the session too: who refreshes keeps the stream, and a revocation is seen when such a
//! route sees it, at the token's expiry. Where the store does not answer the stream goes on: nobody new gets in
//! meanwhile, and ending all that is open would make an outage of the store one of everything.

use std::sync::Arc;

use super::{Exchange, Purpose, SessionAnswer};
use crate::config::AuthMode;
use crate::session::{Found, Kept, NearCache, Ticket};
use crate::token::AccessClaims;
use crate::{Timestamp, UserId};

/// What an answer rests on that goes on after its head.
#[derive(Debug)]
pub struct Stay {
    claims: Arc<AccessClaims>,
    /// Until then nothing but the token counts.
    token_until: Timestamp,
    /// What the store last said. It needs no place in the near cache: a stream that stays is believed as long as an
    /// entry would be, however many sessions are validated meanwhile.
    seen: Option<Kept>,
}

/// What the store is to be asked.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub ticket: Ticket,
    /// It may well have ended. Otherwise the store's word was lost for all of a server's sessions at once, and whoever
    /// asks about them waits for a server that is likely to be gone: the others must not wait behind them.
    pub is_urgent: bool,
}

impl Exchange {
    /// What the answer rests on if it goes on for long; `None` where that is nobody's session.
    pub fn stay(&self) -> Option<Stay> {
        let Purpose::Route { index, .. } = &self.purpose else { return None };
        let claims = self.identity.as_ref()?.claims.clone();
        let token_until = match self.rules.config.routes.get(*index)?.auth {
            AuthMode::Session | AuthMode::Strict => Timestamp(0),
            AuthMode::Token | AuthMode::Optional | AuthMode::None => claims.exp + self.rules.config.session.leeway,
        };
        Some(Stay { claims, token_until, seen: None })
    }
}

impl Stay {
    /// A look at what is at hand: `None` when the answer may go on, or the ticket with which the store is to be asked.
    pub fn look(&mut self, near: &NearCache, now: Timestamp) -> Option<Question> {
        if now < self.token_until {
            return None;
        }
        let (id, user) = (self.claims.sid, &self.claims.sub);
        if self.seen.as_ref().is_some_and(|seen| near.holds(id, seen, now)) {
            return None;
        }
        match near.find(id, user, now) {
            // Beyond its limit it may have been refreshed: the store knows.
            Found::Verified(entry) if entry.expires_at > now => None,
            Found::Verified(_) | Found::Nothing => Some(Question { ticket: near.begin(id, user), is_urgent: true }),
            Found::Unverified(_) => Some(Question { ticket: near.begin(id, user), is_urgent: false }),
        }
    }

    /// Whose session it is.
    pub fn user(&self) -> &UserId {
        &self.claims.sub
    }

    /// What the store answered: whether the answer may go on.
    #[must_use]
    pub fn answered(&mut self, ticket: &Ticket, answer: &SessionAnswer, near: &NearCache, now: Timestamp) -> bool {
        match answer {
            SessionAnswer::Unavailable => true,
            SessionAnswer::Missing => false,
            SessionAnswer::Loaded(session) => {
                self.seen = near.keep(ticket, session);
                session.live && session.user == self.claims.sub && session.expires_at > now
            }
        }
    }
}
