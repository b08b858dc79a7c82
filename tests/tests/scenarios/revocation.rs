//! How soon a revocation is seen, by the mode of a route: the bounds that the README names.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgekeep_tests::{Deployment, Kind, eventually};
use serde_json::json;

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        a_strict_route_sees_a_revocation_at_once,
        a_session_route_sees_a_revocation_within_its_bound,
        a_token_route_sees_a_revocation_when_the_token_expires,
    ]
}

fn a_strict_route_sees_a_revocation_at_once(d: &Deployment) -> Result<()> {
    for round in 0..10 {
        let session = d.login(&format!("strict-{round}"))?;
        // Known to every cache on the way.
        d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
        ensure!(d.is_let_in(&session.access)?, "the session is good before");
        d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
        d.get("/echo/account/x").bearer(&session.access).send()?.problem(401, "session_ended")?;
    }
    Ok(())
}

fn a_session_route_sees_a_revocation_within_its_bound(d: &Deployment) -> Result<()> {
    // At the edge the region tells the Worker (edge.notify); without that word, KV forgets after 60 s.
    let bound = match d.kind {
        Kind::NativeEmbedded => Duration::from_secs(1),
        Kind::EdgeBesideRegion => Duration::from_secs(60),
    };
    for by_service in [false, true] {
        let user = format!("session-route-{by_service}");
        let session = d.login(&user)?;
        d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
        if by_service {
            d.service("DELETE", &format!("/v1/users/{user}/sessions")).send()?.expect(204)?;
        } else {
            d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
        }
        let revoked = Instant::now();
        eventually("the revocation is seen", bound, || {
            let answer = d.get("/echo/x").bearer(&session.access).send()?;
            if answer.status == 200 {
                std::thread::sleep(Duration::from_millis(100));
                return Ok(false);
            }
            answer.problem(401, "session_ended")?;
            Ok(true)
        })?;
        ensure!(revoked.elapsed() < bound + Duration::from_secs(2), "seen after {:?}", revoked.elapsed());
    }
    Ok(())
}

fn a_token_route_sees_a_revocation_when_the_token_expires(d: &Deployment) -> Result<()> {
    let session = d.login_with(&json!({ "user_id": "token-route", "access_ttl": 2 }))?;
    d.service("DELETE", "/v1/users/token-route/sessions").send()?.expect(204)?;
    d.get("/echo/token/x").bearer(&session.access).send()?.expect(200)?;
    eventually("the token expires", Duration::from_secs(4), || {
        Ok(d.get("/echo/token/x").bearer(&session.access).send()?.status == 401)
    })?;
    d.get("/echo/token/x").bearer(&session.access).send()?.problem(401, "expired_token")?;
    Ok(())
}
