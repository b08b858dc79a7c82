//! Who gets in: the credential, the token, the session, in that order, and nothing that a cookie could be tricked into.

use std::sync::Arc;

use super::rules::KeysTurn;
use super::{Awaiting, Context, Decided, Exchange, Freshness, Identity, Purpose, SessionAnswer, Site, Step};
use crate::config::{Algorithm, AuthMode, OnStoreDown};
use crate::http::{Cookie, Csrf, Problem, ProblemCode, check_csrf, lines_of};
use crate::session::{Found, NearEntry, Ticket};
use crate::token::{AccessClaims, TokenError};

/// A session being loaded, and what may serve instead when the store is down.
#[derive(Debug)]
pub(super) struct Pending {
    ticket: Ticket,
    unverified: Option<NearEntry>,
    freshness: Freshness,
}

/// What the request shows.
enum Credential {
    None,
    Token { token: String, from_cookie: bool },
}

impl Exchange {
    /// Checks the credential as `mode` asks and goes on with the purpose.
    pub(super) fn admit(&mut self, mode: AuthMode, cx: &mut Context<'_>) -> Decided {
        if mode == AuthMode::None {
            self.note_own_token(cx);
            return self.admitted(cx);
        }
        let (token, from_cookie) = match self.credential(cx) {
            Ok(Credential::Token { token, from_cookie }) => (token, from_cookie),
            Ok(Credential::None) if mode == AuthMode::Optional => {
                self.note_own_token(cx);
                return self.admitted(cx);
            }
            Ok(Credential::None) => {
                return Err(Problem::new(
                    ProblemCode::MissingCredential,
                    "send an access token as a bearer token or in Edgekeep's cookie",
                ));
            }
            Err(problem) => {
                self.attempt = Some(false);
                return Err(problem);
            }
        };
        self.attempt = Some(false);
        let claims = match self.live.tokens.verify(self.rules.verifier(), &token, cx.now) {
            Ok(claims) => claims,
            Err(TokenError::UnknownKey) => {
                return self.wait_for_keys(cx).ok_or_else(|| self.token_refused(TokenError::UnknownKey, from_cookie));
            }
            Err(error) => return Err(self.token_refused(error, from_cookie)),
        };
        if from_cookie {
            self.check_cross_site(cx)?;
        }
        self.identity = Some(Identity { claims: claims.clone(), from_cookie });
        match mode {
            AuthMode::Session => self.check_session(&claims, cx),
            AuthMode::Strict => Ok(self.load_session(&claims, Freshness::Primary, None)),
            AuthMode::None | AuthMode::Optional | AuthMode::Token => self.token_admitted(cx),
        }
    }

    /// After the authority's keys came, or did not: the same decision once more. It asks at most once in 30 s.
    pub(super) fn admit_again(&mut self, cx: &mut Context<'_>) -> Decided {
        let mode = self.mode();
        self.admit(mode, cx)
    }

    fn mode(&self) -> AuthMode {
        match &self.purpose {
            Purpose::Route { index, .. } => self.rules.config.routes.get(*index).map_or(AuthMode::Strict, |r| r.auth),
            Purpose::Authorize(original) => original.mode,
            Purpose::Own(_) | Purpose::Unknown => AuthMode::Strict,
        }
    }

    /// A key that is unknown at the edge may be a new one. One request asks the authority, and those that come meanwhile
    /// wait for what it learns: nobody is refused before that call has ended.
    fn wait_for_keys(&mut self, cx: &Context<'_>) -> Option<Step> {
        let config = &self.rules.config;
        if self.rules.site != Site::EdgeBesideRegion || config.session.algorithm != Algorithm::EdDSA {
            return None;
        }
        let turn = self.live.keys_turn(cx.now, config.store.timeout)?;
        self.awaiting = Awaiting::Keys(turn);
        Some(match turn {
            KeysTurn::Ask => Step::LoadKeys,
            KeysTurn::Wait(until) => Step::AwaitKeys { until },
        })
    }

    /// `Authorization` wins over cookies. A scheme other than Bearer is not ours: it counts as no credential.
    fn credential(&self, cx: &Context<'_>) -> Result<Credential, Problem> {
        if let Some(value) = cx.head.header("authorization") {
            if lines_of(cx.head, "authorization") > 1 {
                // An origin that gets the token might read the other one.
                return Err(Problem::new(ProblemCode::InvalidToken, "more than one Authorization line"));
            }
            return Ok(match bearer(value) {
                Some(token) => Credential::Token { token: token.to_owned(), from_cookie: false },
                None => Credential::None,
            });
        }
        match &self.cookies.access {
            Cookie::Absent => Ok(Credential::None),
            Cookie::Value(token) => Ok(Credential::Token { token: token.clone(), from_cookie: true }),
            Cookie::Conflict => Err(conflicting_cookies()),
        }
    }

    fn token_refused(&mut self, error: TokenError, from_cookie: bool) -> Problem {
        let mut problem = if error == TokenError::Expired {
            // Plainly expired: neither a success nor a failure.
            self.attempt = None;
            Problem::new(ProblemCode::ExpiredToken, "refresh it")
        } else {
            Problem::new(ProblemCode::InvalidToken, format!("the access token {error}"))
        };
        // An expired token has a refresh token beside it. One of an unknown key may be good: keys are replaced while
        // clients go on, at the edge they are asked for only now and then, and a gateway may have an old file. When it is
        // not, the refresh that follows says so and clears both.
        problem.clear_cookies = from_cookie && !matches!(error, TokenError::Expired | TokenError::UnknownKey);
        problem
    }

    pub(super) fn check_cross_site(&self, cx: &Context<'_>) -> Result<(), Problem> {
        let original = match &self.purpose {
            Purpose::Authorize(original) => Some(original),
            _ => None,
        };
        let rules = Csrf {
            allowed: &self.rules.config.session.csrf_origins,
            scheme: self.client.scheme,
            host: &self.client.host,
            method: original.map_or(Some(cx.head.method()), |original| original.method.as_deref()),
            upgrade: cx.head.header("upgrade").is_some(),
        };
        if check_csrf(cx.head, &rules) {
            return Ok(());
        }
        Err(Problem::new(
            ProblemCode::CrossSite,
            "a request from another site neither uses nor sets this browser's cookies",
        ))
    }

    /// `session`: the near cache answers, or the store is asked.
    fn check_session(&mut self, claims: &Arc<AccessClaims>, cx: &mut Context<'_>) -> Decided {
        let found = self.live.near.find(claims.sid, &claims.sub, cx.now);
        cx.local.metrics.near(matches!(found, Found::Verified(_)));
        match found {
            Found::Verified(entry) if !self.is_behind(&entry, claims) => {
                if entry.expires_at <= cx.now {
                    return Err(self.session_ended());
                }
                self.token_admitted(cx)
            }
            Found::Unverified(entry) => Ok(self.load_session(claims, Freshness::Cached, Some(entry))),
            Found::Verified(_) | Found::Nothing => Ok(self.load_session(claims, Freshness::Cached, None)),
        }
    }

    /// At the edge a generation that the authority has not been told of is a miss, so that it gets to know it.
    fn is_behind(&self, entry: &NearEntry, claims: &AccessClaims) -> bool {
        self.rules.site == Site::EdgeBesideRegion && entry.generation < claims.generation
    }

    fn load_session(&mut self, claims: &AccessClaims, freshness: Freshness, unverified: Option<NearEntry>) -> Step {
        let ticket = self.live.near.begin(claims.sid, &claims.sub);
        self.awaiting = Awaiting::Session(Pending { ticket, unverified, freshness });
        Step::Session { id: claims.sid, user: claims.sub.clone(), generation: claims.generation, freshness }
    }

    pub(super) fn loaded(&mut self, pending: &Pending, answer: SessionAnswer, cx: &mut Context<'_>) -> Decided {
        let Some(claims) = self.identity.as_ref().map(|identity| identity.claims.clone()) else {
            return Err(super::unexpected());
        };
        match answer {
            SessionAnswer::Loaded(mut session)
                if session.live && session.user == claims.sub && session.expires_at > cx.now =>
            {
                if self.rules.site == Site::EdgeBesideRegion {
                    session.generation = session.generation.max(claims.generation);
                }
                self.live.near.fill(&pending.ticket, &session);
                self.token_admitted(cx)
            }
            SessionAnswer::Loaded(_) | SessionAnswer::Missing => Err(self.session_ended()),
            SessionAnswer::Unavailable => {
                let allowed = self.rules.config.session.on_store_down == OnStoreDown::AllowCached
                    && pending.freshness == Freshness::Cached;
                match pending.unverified {
                    Some(entry) if allowed && entry.expires_at > cx.now => self.token_admitted(cx),
                    // It presented a credential and was not admitted, whoever's fault that is.
                    _ => {
                        self.identity = None;
                        Err(self.store_unavailable())
                    }
                }
            }
        }
    }

    pub(super) fn store_unavailable(&self) -> Problem {
        let (code, what) = match self.rules.site {
            Site::Native => (ProblemCode::StoreUnavailable, "the session store"),
            Site::EdgeBesideRegion => (ProblemCode::AuthorityUnavailable, "the session authority"),
        };
        Problem::new(code, format!("{what} did not answer; trying again is safe")).retry_after(1)
    }

    fn session_ended(&mut self) -> Problem {
        let mut problem = Problem::new(ProblemCode::SessionEnded, "log in again");
        if let Some(identity) = self.identity.take() {
            self.note_about(Some(identity.claims.sid), Some(&identity.claims.sub));
            problem.clear_cookies = identity.from_cookie;
        }
        problem
    }

    fn token_admitted(&mut self, cx: &mut Context<'_>) -> Decided {
        self.attempt = Some(true);
        // At the edge a check of the session is what tells the authority of a generation: `is_behind` asks for it.
        let told =
            self.rules.site == Site::EdgeBesideRegion && matches!(self.mode(), AuthMode::Session | AuthMode::Strict);
        let seen = self.identity.as_ref().map(|identity| (identity.claims.sid, identity.claims.generation));
        self.confirm = seen.filter(|_| !told);
        self.admitted(cx)
    }

    /// Goes on with what the request is for.
    fn admitted(&mut self, cx: &mut Context<'_>) -> Decided {
        match &self.purpose {
            Purpose::Route { .. } => self.place(cx),
            Purpose::Authorize(_) => Ok(self.authorized()),
            Purpose::Own(_) => self.own_admitted(cx),
            Purpose::Unknown => Err(super::unexpected()),
        }
    }

    /// Where nobody is asked for a token, one is the application's own affair, unless it is ours or says so: that never
    /// passes, nor hides behind another line.
    pub(super) fn note_own_token(&mut self, cx: &Context<'_>) {
        let verifier = self.rules.verifier();
        let mut own = false;
        cx.head.each_header("authorization", &mut |line| {
            let mut look = |part: &[u8]| {
                own |= bearer(part.trim_ascii())
                    .is_some_and(|token| verifier.names_our_key(token) || self.rules.secrets.is_service(token));
            };
            // A shell may have joined several lines with commas; no token has one.
            if line.contains(&b',') {
                line.split(|b| *b == b',').for_each(look);
            } else {
                look(line);
            }
        });
        self.forward.drop_authorization = own;
    }
}

pub(super) fn conflicting_cookies() -> Problem {
    let mut problem = Problem::new(ProblemCode::InvalidToken, "two different values of one session cookie");
    problem.clear_cookies = true;
    problem
}

/// The token of `Authorization: Bearer …`; the scheme compares without regard to case (RFC 9110 §11.1). What is no text
/// is a token too, and a bad one: an origin may read it in another way.
pub(super) fn bearer(value: &[u8]) -> Option<&str> {
    let end = value.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(value.len());
    let (scheme, token) = value.split_at(end);
    scheme.eq_ignore_ascii_case(b"bearer").then(|| std::str::from_utf8(token).unwrap_or_default().trim())
}
