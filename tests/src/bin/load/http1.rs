//! One HTTP/1.1 connection, or one after another: requests are bytes made before the run, and an answer's end is read
//! from its head.

use std::rc::Rc;

use anyhow::{Context, bail, ensure};
use edgekeep_tests::wire::{Body, Head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::connect::Socket;
use crate::{Client, Load, Options};

/// As much of an answer as is read at once: a large body is counted, not kept.
const BUFFER: usize = 64 * 1024;

pub fn request(options: &Options, client: &Client) -> Vec<u8> {
    let method = if options.upload > 0 { "POST" } else { "GET" };
    let mut head = format!(
        "{method} {} HTTP/1.1\r\nhost: {}\r\nuser-agent: edgekeep-load\r\naccept: */*\r\n",
        options.path, options.address
    );
    let mut add = |name: &str, value: &str| head.extend([name, ": ", value, "\r\n"]);
    for (name, value) in &options.headers {
        add(name, value);
    }
    if let Some(token) = &client.token {
        add("authorization", &format!("Bearer {token}"));
    }
    if let Some(cookie) = &client.cookie {
        add("cookie", cookie);
    }
    if options.upload > 0 {
        add("content-length", &options.upload.to_string());
    }
    if options.new_connections {
        add("connection", "close");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

pub async fn drive(load: Rc<Load>) -> anyhow::Result<()> {
    let mut socket = None;
    let mut buffer = Vec::with_capacity(BUFFER);
    while let Some(due) = load.pace.next().await {
        let open = match socket.take() {
            Some(open) => open,
            None => load.connector.connect().await?,
        };
        let open = socket.insert(open);
        open.write_all(&load.http1[load.turn(load.http1.len())]).await.context("cannot send")?;
        if !load.upload.is_empty() {
            open.write_all(&load.upload).await.context("cannot send")?;
        }
        open.flush().await.context("cannot send")?;
        let close = read_answer(open, &mut buffer, &load).await?;
        load.answered(due);
        if close {
            if !load.new_connections {
                load.reconnects.set(load.reconnects.get() + 1);
            }
            // Whoever closes first keeps the port for a minute: that is the side that said it would close.
            buffer.clear();
            let _ = open.read_buf(&mut buffer).await;
            socket = None;
        }
    }
    Ok(())
}

/// Whether the server closes the connection after this answer.
async fn read_answer<S: Socket>(socket: &mut S, buffer: &mut Vec<u8>, load: &Load) -> anyhow::Result<bool> {
    buffer.clear();
    let head = loop {
        ensure!(socket.read_buf(buffer).await? > 0, "the connection closed where an answer was due");
        if let Some(head) = Head::parse(buffer)? {
            break head;
        }
    };
    let Body::Length(length) = head.body else {
        bail!("a chunked answer: every peer here is expected to say its length");
    };
    let keep = load.expected.body.is_some();
    let mut begin = head.len;
    let mut have = buffer.len() - head.len;
    while have < length {
        if !keep {
            buffer.clear();
            begin = 0;
        }
        let read = socket.read_buf(buffer).await?;
        ensure!(read > 0, "the connection closed inside an answer's body");
        have += read;
    }
    ensure!(have == length, "more bytes than the answer has");
    load.expected.check(head.status, length, &buffer[begin..])?;
    Ok(head.close || load.new_connections)
}
