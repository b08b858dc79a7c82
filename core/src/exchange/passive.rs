//! What an attempt's end says of its origin: the one place where live traffic is judged.
//!
//! A client that leaves, or breaks off its upload, says nothing; nor does a kept connection that closed just then. An
//! answer below 500 is good, whatever the client thinks of it.

use std::sync::Arc;

use super::{Endpoint, Exchange, Failed, FailedStage, Live, Rules, Site};
use crate::balance::{Origin, Pool};
use crate::health::{EjectionRules, HealthLimits};
use crate::http::{Head, header_text};
use crate::{Millis, Timestamp};

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    Answered(u16),
    Failed(Failed),
}

impl Rules {
    /// An attempt at an origin ended, and it took the origin so long.
    pub(super) fn attempt_ended(&self, live: &Live, at: (usize, usize), ended: Ended, took: Millis, now: Timestamp) {
        let Some(pool) = self.pools.get(at.0).map(|rules| &rules.pool) else { return };
        let Some(origin) = pool.origins.get(at.1) else { return };
        let failed = match ended {
            Ended::Failed(Failed { stage: FailedStage::Unsent, .. }) => return,
            // A Worker's one timer runs while the client still sends what is not kept: nobody knows whose fault it is.
            Ended::Failed(failed) if failed.timed_out && !failed.replayable && self.site != Site::Native => return,
            Ended::Failed(Failed { stage, timed_out, .. }) => {
                if stage == FailedStage::Connect && !timed_out {
                    origin.state.refused(now);
                }
                origin.state.hurry();
                true
            }
            Ended::Answered(status) => {
                origin.state.connected(now);
                status >= 500
            }
        };
        let limits = HealthLimits::from(&self.config.health);
        if origin.state.attempt_ended(failed, took, &limits, now) && self.config.balance.ejection {
            live.ejections.eject(pool, origin, now, &EjectionRules::default());
        }
    }

    /// Every pool, for checks, metrics and the admin API.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter().map(|pool| &pool.pool)
    }

    /// Whom checks ask, where, and by which `Host`; none: the URL's own.
    pub fn check_targets(&self) -> impl Iterator<Item = (&Origin, &Arc<Endpoint>, Option<&Arc<str>>)> {
        self.pools.iter().flat_map(|pool| {
            let of = pool.pool.origins.iter().zip(&pool.endpoints);
            of.map(|(origin, endpoint)| (origin, endpoint, pool.host.as_ref()))
        })
    }
}

impl Exchange {
    /// The origin has had the whole request for so long. Only the shell knows when the last byte of a body left; to be
    /// told before `answered`, where there was one.
    pub fn waited(&mut self, span: Millis) {
        self.forward.waited = Some(span);
    }
}

/// How long an origin took: what the shell says, or since the request was sent. A body whose last byte left nobody knows
/// when counts as fast: a slow client is not the origin's fault.
pub(super) fn took(told: Option<Millis>, began: Timestamp, head: &dyn Head, now: Timestamp) -> Millis {
    let has_body = head.header("transfer-encoding").is_some()
        || header_text(head, "content-length").is_some_and(|length| length.trim() != "0");
    told.unwrap_or(if has_body { Millis::ZERO } else { now.since(began) })
}
