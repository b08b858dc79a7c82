//! How soon a revocation is seen, by the mode of a route: the bounds that the README names.

use std::time::Duration;

use anyhow::{Result, ensure};
use edgekeep_tests::{Deployment, Kind, eventually};
use serde_json::json;

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::shared![
        a_strict_route_sees_a_revocation_at_once,
        a_token_route_sees_a_revocation_when_the_token_expires,
    ];
    let name = "a_session_route_sees_a_revocation_within_its_bound";
    let bound = a_session_route_sees_a_revocation_within_its_bound;
    all.push(Scenario::shared(name, bound).natively());
    // A minute's wait.
    all.push(Scenario::shared(name, bound).only(Kind::EdgeBesideRegion).long());
    all
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
    // At the edge a positive answer is believed for 60 s from before it was given; a second for the last look.
    let bound = match d.kind {
        Kind::NativeEmbedded | Kind::NativeRedis => Duration::from_secs(1),
        Kind::EdgeBesideRegion => Duration::from_secs(61),
    };
    let by_user = d.login("ended-by-the-user")?;
    let by_service = d.login("ended-by-the-service")?;
    let sessions = [&by_user, &by_service];
    for session in sessions {
        d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
    }
    d.delete("/v1/sessions/current").bearer(&by_user.access).send()?.expect(204)?;
    d.service("DELETE", "/v1/users/ended-by-the-service/sessions").send()?.expect(204)?;
    eventually("both revocations are seen", bound, || {
        for session in sessions {
            let answer = d.get("/echo/x").bearer(&session.access).send()?;
            if answer.status == 200 {
                return Ok(false);
            }
            answer.problem(401, "session_ended")?;
        }
        Ok(true)
    })
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
