//! One HTTP/2 connection with several streams at a time.

use std::rc::Rc;

use anyhow::Context;
use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{AUTHORIZATION, COOKIE, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;

use crate::{Client, Load, Options};

/// Of a stream and of a connection: an answer never waits for the load to take it.
const WINDOW: u32 = 16 * 1024 * 1024;

/// Connections here stay on the thread of the load.
#[derive(Clone)]
struct Here;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

pub fn request(options: &Options, client: &Client) -> anyhow::Result<Request<Empty<Bytes>>> {
    let uri = format!("https://{}{}", options.address, options.path);
    let mut request = Request::get(uri).header(USER_AGENT, "edgekeep-load").header("accept", "*/*");
    for (name, value) in &options.headers {
        request = request.header(name, value);
    }
    if let Some(token) = &client.token {
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
        // A thousand tokens in turn would only push each other out of the connection's table.
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    if let Some(cookie) = &client.cookie {
        request = request.header(COOKIE, cookie);
    }
    Ok(request.body(Empty::new())?)
}

pub async fn drive(load: Rc<Load>, streams: usize) -> anyhow::Result<()> {
    let socket = load.connector.connect().await?;
    let mut builder = Builder::new(Here);
    builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (client, connection) = builder.handshake(TokioIo::new(socket)).await?;
    let connection = tokio::task::spawn_local(connection);
    let mut tasks = Vec::with_capacity(streams);
    for _ in 0..streams {
        tasks.push(tokio::task::spawn_local(stream(Rc::clone(&load), client.clone())));
    }
    for task in tasks {
        task.await??;
    }
    connection.abort();
    Ok(())
}

async fn stream(load: Rc<Load>, mut client: SendRequest<Empty<Bytes>>) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    while let Some(due) = load.pace.next().await {
        client.ready().await?;
        let request = load.http2[load.turn(load.http2.len())].clone();
        let answer = client.send_request(request).await.context("no answer")?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        let mut length = 0;
        kept.clear();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            length += data.remaining();
            if load.expected.body.is_some() {
                kept.extend_from_slice(&data);
            }
        }
        load.expected.check(status, length, &kept)?;
        load.answered(due);
    }
    Ok(())
}
