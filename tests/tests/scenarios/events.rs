//! The logs tell of every session's life, and name nobody.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{AccessKey, Deployment, Forged, GRACE_SECONDS, Session, Setup, eventually};

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    let name = "every_session_event_is_logged_and_no_id_is";
    let every = Scenario::alone(name, Setup::default(), every_session_event_is_logged_and_no_id_is);
    let name = "a_revocation_is_finished_and_told_although_its_client_left";
    // At the edge the platform decides what becomes of a Worker whose client has left.
    let left = Scenario::alone(name, Setup::default(), a_revocation_is_finished_and_told_although_its_client_left);
    vec![every, left.natively()]
}

fn every_session_event_is_logged_and_no_id_is(d: &Deployment) -> Result<()> {
    let user = "somebody-with-a-name";
    let (first, second) = (d.login(user)?, d.login(user)?);
    let next = Session::from(&d.refresh(&first.refresh, "phone")?.expect(200)?)?;
    d.refresh("AAAA", "phone")?.problem(401, "invalid_refresh_token")?;
    thread::sleep(Duration::from_millis(GRACE_SECONDS * 1000 + 600));
    d.refresh(&first.refresh, "thief")?.problem(401, "invalid_refresh_token")?;
    d.get("/echo/account/me").bearer(&next.access).send()?.problem(401, "session_ended")?;
    let forged = Forged::from(&second.access)?.signed(&AccessKey::of_a_stranger());
    d.get("/echo/account/me").bearer(&forged).send()?.problem(401, "invalid_token")?;
    d.delete("/v1/sessions/current").bearer(&second.access).send()?.expect(204)?;
    d.service("DELETE", &format!("/v1/users/{user}/sessions")).send()?.expect(204)?;
    // At the edge the region tells of what it did, the Worker of what it refused itself.
    eventually("the logs tell of all of it", Duration::from_secs(5), || {
        let told = d.session_events()?;
        let times = |event: &str| told.iter().filter(|line| line.contains(event)).count();
        Ok(times("\"session_created\"") == 2
            && times("\"session_refreshed\" how=\"rotated\"") == 1
            && times("\"session_refused\" how=\"malformed\"") == 1
            && times("\"session_refused\" how=\"session_ended\"") == 1
            && times("\"session_refused\" how=\"invalid_token\"") == 1
            && times("\"refresh_reuse\"") == 1
            && times("\"session_revoked\" how=\"one\"") == 1
            && times("\"session_revoked\" how=\"all\"") == 1)
    })
    .with_context(|| d.session_events().unwrap_or_default().join("\n"))?;
    for clear in [user, &first.id, &second.id] {
        ensure!(!d.session_events()?.iter().any(|line| line.contains(clear)), "{clear}");
    }
    Ok(())
}

fn a_revocation_is_finished_and_told_although_its_client_left(d: &Deployment) -> Result<()> {
    let users: Vec<String> = (0..20).map(|n| format!("left-{n}")).collect();
    let sessions = users.iter().map(|user| d.login(user)).collect::<Result<Vec<_>>>()?;
    for user in &users {
        drop(d.service("DELETE", &format!("/v1/users/{user}/sessions")).begin()?);
    }
    // A request whose client has left before it is looked at may come to nothing; none may come to half.
    let mut told = 0;
    eventually("the log tells of what ended and of nothing else", Duration::from_secs(5), || {
        let revoked = |line: &&String| line.contains("\"session_revoked\" how=\"all\"");
        told = d.session_events()?.iter().filter(revoked).count();
        let mut ended = 0;
        for session in &sessions {
            ended += usize::from(d.get("/echo/account/me").bearer(&session.access).send()?.status == 401);
        }
        // All of them may still wait to be looked at.
        Ok(ended == told && told > users.len() / 2)
    })
    .with_context(|| format!("{told} of {}\n{}", users.len(), d.session_events().unwrap_or_default().join("\n")))
}
