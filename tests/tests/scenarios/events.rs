//! The gateway's log tells of every session's life, and names nobody.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use edgekeep_tests::{Deployment, GRACE_SECONDS, Session, Setup, eventually};

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    let setup = Setup::default();
    // At the edge the Worker's log tells of what the Worker refused itself.
    vec![
        Scenario::alone(
            "every_session_event_is_logged_and_no_id_is",
            setup,
            every_session_event_is_logged_and_no_id_is,
        )
        .natively(),
    ]
}

fn every_session_event_is_logged_and_no_id_is(d: &Deployment) -> Result<()> {
    let user = "somebody-with-a-name";
    let (first, second) = (d.login(user)?, d.login(user)?);
    let next = Session::from(&d.refresh(&first.refresh, "phone")?.expect(200)?)?;
    d.refresh("AAAA", "phone")?.problem(401, "invalid_refresh_token")?;
    thread::sleep(Duration::from_millis(GRACE_SECONDS * 1000 + 600));
    d.refresh(&first.refresh, "thief")?.problem(401, "invalid_refresh_token")?;
    d.get("/echo/account/me").bearer(&next.access).send()?.problem(401, "session_ended")?;
    d.delete("/v1/sessions/current").bearer(&second.access).send()?.expect(204)?;
    d.service("DELETE", &format!("/v1/users/{user}/sessions")).send()?.expect(204)?;
    eventually("the log tells of all of it", Duration::from_secs(5), || {
        let log = d.gateway_log()?;
        let told: Vec<&str> = log.lines().filter(|line| line.contains(" session: ")).collect();
        let times = |event: &str| told.iter().filter(|line| line.contains(event)).count();
        Ok(times("\"session_created\"") == 2
            && times("\"session_refreshed\" how=\"rotated\"") == 1
            && times("\"session_refused\" how=\"malformed\"") == 1
            && times("\"session_refused\" how=\"session_ended\"") >= 1
            && times("\"refresh_reuse\"") == 1
            && times("\"session_revoked\" how=\"one\"") == 1
            && times("\"session_revoked\" how=\"all\"") == 1)
    })?;
    let log = d.gateway_log()?;
    for clear in [user, &first.id, &second.id] {
        ensure!(!log.lines().filter(|line| line.contains(" session: ")).any(|line| line.contains(clear)), "{clear}");
    }
    Ok(())
}
