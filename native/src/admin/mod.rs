//! The admin side, on the control thread: is it alive, is it ready, what did it count, which gateways are live, how are
//! the origins. Only origins can be changed here.

mod metrics;
mod origins;

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use edgekeep_core::exchange::Secrets;
use edgekeep_core::metrics::TextFormat;
use http::header::{ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::checks::Checker;
use crate::gateway::{Gateway, Shared};
use crate::reports::Reports;

/// What the admin side speaks for.
pub struct Admin {
    pub shared: Shared,
    pub gateway: Arc<Gateway>,
    pub reports: Rc<Reports>,
    pub checker: Rc<Checker>,
    /// Needed for everything but health, when it is set. Without it nothing can be changed.
    pub token: Option<Secrets>,
}

/// Serves until the control thread ends.
pub async fn serve_admin(admin: Rc<Admin>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        };
        let admin = admin.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| answer(admin.clone(), request));
            let connection =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an admin connection ended early");
            }
        });
    }
}

impl Admin {
    fn admits(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return true };
        let presented = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        presented.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|presented| token.is_service(presented))
    }
}

async fn answer(admin: Rc<Admin>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if let Some(below) = request.uri().path().strip_prefix("/origins/") {
        return Ok(origins::change(&admin, &request, below));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET here\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" if admin.gateway.is_draining() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining\n".to_owned())
        }
        "/readyz" => match admin.reports.readiness() {
            Ok(()) => text(StatusCode::OK, "text/plain", "ready\n".to_owned()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n")),
        },
        _ if !admin.admits(&request) => unauthorized(),
        "/metrics" => {
            let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
            let format = TextFormat::negotiate(accept);
            let cells = admin.gateway.cells().await;
            text(StatusCode::OK, format.content_type(), metrics::exposition(&admin, &cells, format))
        }
        "/gateways" => text(StatusCode::OK, "application/json", admin.reports.to_json()),
        "/origins" => text(StatusCode::OK, "application/json", origins::list(&admin)),
        _ => text(StatusCode::NOT_FOUND, "text/plain", "/healthz /readyz /metrics /gateways /origins\n".to_owned()),
    })
}

fn unauthorized() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::UNAUTHORIZED, "text/plain", "the admin token is needed\n".to_owned());
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"edgekeep admin\""));
    response
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
