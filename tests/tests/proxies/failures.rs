//! When the proxy gets no answer that it understands: closed, and open again by itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::eventually;

use crate::stand::{Proxy, Stand};

/// Longer than the examples' two or three seconds, on a busy machine.
const AT_MOST: Duration = Duration::from_secs(12);

pub fn when_edgekeep_is_down_or_hangs_nothing_arrives(kind: Proxy) -> Result<()> {
    let s = Stand::start(kind)?;
    let session = s.login("patient")?;
    let everything_is_closed = || -> Result<()> {
        for path in ["/public/x", "/feed/x", "/account/x"] {
            let begun = Instant::now();
            s.get(path).bearer(&session.access).go()?.refused(503).with_context(|| path.to_owned())?;
            ensure!(begun.elapsed() < AT_MOST, "{path} took {:?}", begun.elapsed());
        }
        Ok(())
    };
    let it_is_open_again = || {
        eventually("the proxy lets through again", Duration::from_secs(20), || {
            Ok(s.get("/account/x").bearer(&session.access).go()?.passed().is_ok())
        })
    };
    it_is_open_again()?;
    s.kill_gateway()?;
    everything_is_closed().context("killed")?;
    s.start_gateway()?;
    it_is_open_again()?;
    s.freeze_gateway()?;
    everything_is_closed().context("stopped")?;
    s.thaw_gateway()?;
    it_is_open_again()
}

/// HAProxy goes on with the next rule when a script fails: that rule is what closes.
pub fn a_script_that_fails_lets_nobody_in(kind: Proxy) -> Result<()> {
    for broken in
        ["error(\"broken\")", "local nothing = nil; nothing.x = 1", "return", "txn:set_var(\"txn.edgekeep\", \"\")"]
    {
        let script =
            format!("core.register_action(\"edgekeep-authorize\", {{ \"http-req\" }}, function(txn) {broken} end, 1)");
        let script: &'static str = Box::leak(script.into_boxed_str());
        let s = Stand::start_with(kind, None, Some(("haproxy-edgekeep.lua", script)))?;
        let session = s.login("scripted")?;
        for path in ["/x", "/public/x", "/account/x"] {
            s.get(path).bearer(&session.access).go()?.refused(503).with_context(|| format!("{path} with {broken}"))?;
        }
    }
    Ok(())
}

/// Edgekeep's demo origin as the application: real data, kept and read through the proxy.
pub fn an_application_keeps_its_users_data(kind: Proxy) -> Result<()> {
    let s = Stand::start_before_demo(kind)?;
    let session = s.login("ada")?;
    let put = s.ask("PUT", "/users/ada/profile").bearer(&session.access);
    let written = put.json(r#"{"name":"Ada"}"#).go()?.answer;
    ensure!(matches!(written.status, 200 | 201 | 204), "{written}");
    let read = s.get("/users/ada/profile").cookie(&session.access).go()?.answer.expect(200)?;
    ensure!(read.text().contains("Ada") && read.origin().is_some(), "{read}");
    s.get("/users/ada/profile").go()?.answer.expect(401)?;
    let echo =
        s.get("/echo/x").bearer(&session.access).header("x-edgekeep-user", "mallory").go()?.answer.expect(200)?;
    ensure!(echo.echoed("x-edgekeep-user")? == ["ada"], "{echo}");
    ensure!(echo.echoed("authorization")?.is_empty(), "{echo}");
    Ok(())
}
