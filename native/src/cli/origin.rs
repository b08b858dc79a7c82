//! `edgekeep origin`: what a running gateway thinks of its origins, and the operator's word on one of them.

#![allow(clippy::print_stdout, reason = "the answer of these commands is their output")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use edgekeep_core::Millis;
use edgekeep_core::config::AdminConfig;
use http::{Method, StatusCode};
use serde_json::Value;

use super::ask::{AdminSide, PATIENCE, reachable};
use super::settings::Settings;
use super::{Failure, files};

/// How often `drain` looks whether the origin is empty.
const GLANCE: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub enum Origin {
    /// Every origin with its state, and why it is not up
    List(Gateway),
    /// Send no new clients there, and return when nothing is in flight there any more
    ///
    /// Clients whose cookie names the origin stay: when they must not, set it to maintenance afterwards. Exit status 3: the
    /// time was over, and the origin drains on.
    Drain(Drain),
    /// Send nothing there, whatever happens; what is in flight ends by itself
    Maintenance(One),
    /// Use it again
    Ready(One),
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Gateway {
    /// The gateway's configuration: names its admin side and the token
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its admin side; the token is read from EDGEKEEP_ADMIN_TOKEN
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

#[derive(Args)]
pub struct One {
    /// The origin's id; of one that has a name, ID@ADDRESS means that address alone
    id: String,
    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Args)]
pub struct Drain {
    #[command(flatten)]
    one: One,
    /// How long to wait until it is empty; 0s: not at all
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    wait: Millis,
}

/// An origin that is drained has still requests when the time is over.
#[derive(Debug, thiserror::Error)]
#[error("origin {id} has {in_flight} requests in flight still, after {waited}; it drains on")]
pub struct StillBusy {
    id: String,
    in_flight: u64,
    waited: Millis,
}

pub fn run(command: &Origin) -> Result<(), Failure> {
    let gateway = match command {
        Origin::List(gateway) => gateway,
        Origin::Drain(Drain { one, .. }) | Origin::Maintenance(one) | Origin::Ready(one) => &one.gateway,
    };
    let admin = match (&gateway.config, gateway.admin) {
        (Some(file), _) => AdminSide::of(&Settings::read(file)?)?,
        (None, Some(at)) => {
            let token = AdminConfig::default().token;
            AdminSide { at: reachable(at), token: files::configured(&token, "--admin", &PathBuf::new())? }
        }
        (None, None) => return Err("give --config FILE or --admin ADDRESS".into()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        match command {
            Origin::List(_) => print!("{}", table(&origins(&admin).await?)),
            Origin::Drain(drain) => return drain_until_empty(&admin, &drain.one.id, drain.wait).await,
            Origin::Maintenance(one) => set(&admin, &one.id, "maintenance").await?,
            Origin::Ready(one) => set(&admin, &one.id, "ready").await?,
        }
        Ok(())
    })
}

async fn drain_until_empty(admin: &AdminSide, id: &str, wait: Millis) -> Result<(), Failure> {
    let began = Instant::now();
    set(admin, id, "drain").await?;
    if wait == Millis::ZERO {
        return Ok(());
    }
    loop {
        // One that is gone from the configuration gets nothing either.
        let in_flight = in_flight_at(&origins(admin).await?, id);
        if in_flight == 0 {
            println!("{id} is empty");
            return Ok(());
        }
        if began.elapsed() >= Duration::from_millis(wait.0) {
            return Err(StillBusy { id: id.to_owned(), in_flight, waited: wait }.into());
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// Requests at an origin: at all its addresses, or at the one that is meant.
fn in_flight_at(rows: &[Value], id: &str) -> u64 {
    let is_meant = |row: &&Value| {
        let of = row["id"].as_str().unwrap_or_default();
        of == id || of.split_once('@').is_some_and(|(configured, _)| configured == id)
    };
    rows.iter().filter(is_meant).filter_map(|row| row["in_flight"].as_u64()).sum()
}

async fn set(admin: &AdminSide, id: &str, what: &str) -> Result<(), Failure> {
    let named = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@:".contains(&b));
    if !named {
        let allowed = "an origin's id, of letters, digits and -_., or ID@ADDRESS for one address of its name";
        return Err(format!("ID: found {id:?}, allowed: {allowed}").into());
    }
    let document = call(admin, Method::POST, &format!("/origins/{id}/{what}")).await?;
    rows_of(admin, &document)?.iter().for_each(say);
    Ok(())
}

async fn origins(admin: &AdminSide) -> Result<Vec<Value>, Failure> {
    rows_of(admin, &call(admin, Method::GET, "/origins").await?)
}

fn rows_of(admin: &AdminSide, document: &Value) -> Result<Vec<Value>, Failure> {
    let rows = document["origins"].as_array().cloned();
    rows.ok_or_else(|| format!("{} has no list of origins: is it an edgekeep?", admin.at).into())
}

async fn call(admin: &AdminSide, method: Method, path: &str) -> Result<Value, Failure> {
    let at = admin.at;
    let answer = tokio::time::timeout(PATIENCE, admin.call(method, path)).await;
    let (status, body) = answer
        .map_err(|_| format!("no answer from the admin side at {at} within {PATIENCE:?}"))?
        .map_err(|error| format!("cannot ask the admin side at {at}: {error}"))?;
    match status {
        StatusCode::OK => Ok(serde_json::from_slice(&body)?),
        StatusCode::UNAUTHORIZED => Err("admin.token: the running gateway has another one".into()),
        _ => Err(String::from_utf8_lossy(&body).trim().to_owned().into()),
    }
}

fn say(row: &Value) {
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    println!("{} is set to {}; state {}, {} in flight", text("id"), text("set_to"), text("state"), row["in_flight"]);
}

fn table(rows: &[Value]) -> String {
    const COLUMNS: [&str; 7] = ["pool", "id", "state", "in_flight", "weight", "url", "reason"];
    let cell = |row: &Value, name: &str| match &row[name] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| COLUMNS.map(|name| cell(row, name))));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Origin,
    }

    fn typed(line: &str) -> Result<Origin, clap::Error> {
        Line::try_parse_from(std::iter::once("origin").chain(line.split(' '))).map(|line| line.command)
    }

    #[test]
    fn a_gateway_is_named_by_its_file_or_its_address() {
        assert!(typed("list --admin 127.0.0.1:9090").is_ok());
        assert!(typed("ready a --config a.toml").is_ok());
        assert!(typed("ready a").is_err());
        assert!(typed("ready --config a.toml").is_err());
        assert!(typed("list --config a.toml --admin 127.0.0.1:9090").is_err());
    }

    #[test]
    fn the_time_to_wait_is_a_duration_as_in_the_file() {
        let wait = |line: &str| match typed(line) {
            Ok(Origin::Drain(drain)) => drain.wait,
            _ => panic!("{line}"),
        };
        assert_eq!(wait("drain a --config a.toml"), Millis::from_secs(300));
        assert_eq!(wait("drain a --config a.toml --wait 1500ms"), Millis(1500));
        let refused = typed("drain a --config a.toml --wait 5").err().unwrap().to_string();
        assert!(refused.contains("a duration such as"), "{refused}");
    }

    #[test]
    fn an_origin_is_empty_when_all_its_addresses_are() {
        let row = |id: &str, in_flight: u64| json!({ "id": id, "in_flight": in_flight });
        let rows = [row("a@10.0.0.1", 1), row("a@2001:db8::1", 2), row("ab", 4), row("b", 8)];
        assert_eq!(["a", "a@2001:db8::1", "ab", "b", "gone"].map(|id| in_flight_at(&rows, id)), [3, 2, 4, 8, 0]);
    }

    #[test]
    fn the_list_is_a_table_without_trailing_blanks() {
        let rows = [
            json!({ "pool": "shard_0", "id": "a", "state": "up", "in_flight": 12, "weight": 1, "url": "http://a", "reason": null }),
            json!({ "pool": "spare", "id": "long", "state": "down", "in_flight": 0, "weight": 3, "url": "http://b",
                    "reason": "status 500, expected 200" }),
        ];
        assert_eq!(
            table(&rows),
            "pool     id    state  in_flight  weight  url       reason\n\
             shard_0  a     up     12         1       http://a\n\
             spare    long  down   0          3       http://b  status 500, expected 200\n"
        );
    }
}
