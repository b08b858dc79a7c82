//! What the running gateways say of themselves, for commands that must know it before they change something, and calls to
//! the admin side of one.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use edgekeep_core::config::StoreKind;
use edgekeep_core::token::LiveGateway;
use http::header::{AUTHORIZATION, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::settings::Settings;
use super::{Failure, files};
use crate::store::Store;

/// Longer than a busy gateway's admin side takes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Every gateway that is live now: by the store where several share one, by the gateway's admin side where the store is
/// embedded. None: nobody runs.
pub fn live_gateways(settings: &Settings) -> Result<Vec<LiveGateway>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        match settings.config.store.kind {
            StoreKind::Embedded => tokio::time::timeout(PATIENCE, by_admin(settings))
                .await
                .map_err(|_| format!("admin.listen: no answer within {PATIENCE:?}"))?,
            StoreKind::Redis => by_store(settings).await,
        }
    })
}

async fn by_store(settings: &Settings) -> Result<Vec<LiveGateway>, Failure> {
    if let Some(refused) = settings.refused().into_iter().find(|line| line.starts_with("store.kind")) {
        return Err(refused.into());
    }
    let store = settings.store(&settings.live()?)?;
    let rows = store.reports().await;
    store.close();
    let rows = rows.ok_or("store: does not answer, so nobody can say which gateways are live")?;
    Ok(rows.iter().map(|(id, report)| LiveGateway::read(id, report)).collect())
}

async fn by_admin(settings: &Settings) -> Result<Vec<LiveGateway>, Failure> {
    let admin = AdminSide::of(settings)?;
    let at = admin.at;
    let (status, body) = match admin.call(Method::GET, "/gateways").await {
        Ok(answer) => answer,
        Err(error) if is_refused(&error) => {
            let path = settings.path(&settings.config.store.path);
            if Store::is_open_elsewhere(&path) {
                let shown = path.display();
                return Err(format!("a gateway has {shown} open, and none answers at admin.listen {at}").into());
            }
            return Ok(Vec::new());
        }
        Err(error) => return Err(format!("admin.listen: cannot ask {at}: {error}").into()),
    };
    match status {
        StatusCode::OK => read(&body),
        StatusCode::UNAUTHORIZED => Err("admin.token: the running gateway has another one".into()),
        status => Err(format!("admin.listen: {at} answers {status} to /gateways: is it an edgekeep?").into()),
    }
}

fn is_refused(error: &Failure) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The admin side of one gateway.
pub struct AdminSide {
    pub at: SocketAddr,
    pub token: Option<String>,
}

impl AdminSide {
    /// That of the gateway which runs with this configuration.
    pub fn of(settings: &Settings) -> Result<AdminSide, Failure> {
        let admin = &settings.config.admin;
        let token = files::configured(&admin.token, "admin.token", &settings.base)?;
        Ok(AdminSide { at: reachable(admin.listen), token })
    }

    /// One call, within a local task set. An `io::Error` is one of the connection.
    pub async fn call(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failure> {
        let stream = TcpStream::connect(self.at).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.at.to_string());
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }
}

fn read(body: &[u8]) -> Result<Vec<LiveGateway>, Failure> {
    let document: Value = serde_json::from_slice(body)?;
    let rows = document["gateways"].as_array().ok_or("admin.listen: /gateways has no list of gateways")?;
    let one = |row: &Value| LiveGateway::read(row["id"].as_str().unwrap_or_default(), &row["report"].to_string());
    Ok(rows.iter().map(one).collect())
}

/// Where to reach what listens on every address.
pub fn reachable(mut at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() {
        at.set_ip(if at.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgekeep_core::config::Config;

    fn settings(folder: &std::path::Path) -> Settings {
        let mut config = Config::minimal("http://127.0.0.1:9001").unwrap();
        // A port that was free a moment ago.
        config.admin.listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        config.store.path = "edgekeep.redb".to_owned();
        Settings { config, base: folder.to_owned() }
    }

    #[test]
    fn where_no_gateway_runs_there_is_nobody_to_wait_for() {
        let folder = tempfile::tempdir().unwrap();
        assert!(live_gateways(&settings(folder.path())).unwrap().is_empty());
        drop(redb::Database::create(folder.path().join("edgekeep.redb")).unwrap());
        assert!(live_gateways(&settings(folder.path())).unwrap().is_empty());
    }

    #[test]
    fn a_gateway_that_runs_and_cannot_be_asked_is_not_overlooked() {
        let folder = tempfile::tempdir().unwrap();
        let _open = redb::Database::create(folder.path().join("edgekeep.redb")).unwrap();
        let refused = live_gateways(&settings(folder.path())).unwrap_err().to_string();
        assert!(refused.contains("edgekeep.redb open, and none answers at admin.listen 127.0.0.1:"), "{refused}");
    }
}
