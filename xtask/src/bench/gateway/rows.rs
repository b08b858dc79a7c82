//! What is measured: a row is one way in which clients ask, with the peers that can be asked so.

use anyhow::ensure;

/// How clients reach a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Plain,
    /// HTTP/1.1 over TLS.
    Tls,
    /// HTTP/2 over TLS.
    Http2,
}

#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    pub transport: Transport,
    /// The length of every answer's body; `None`: that of a small call.
    pub answer: Option<usize>,
    /// Bytes that every request uploads.
    pub upload: usize,
    pub new_connections: bool,
    /// Of the peer. With more than one it, the load and the origins share both cores.
    pub threads: usize,
    pub peers: &'static [&'static str],
}

/// Streams on each connection of the HTTP/2 row; there are fewer connections in return.
pub const STREAMS: usize = 8;

/// The name of the row that the targets are about, but for one target of each other row.
pub const MAIN: &str = "small";

/// What the others are compared with: HAProxy doing what it can of our full job.
pub const REFERENCE: &str = "haproxy";

pub const PEERS: [&str; 9] =
    ["full", "token", "none", REFERENCE, "envoy", "nginx", "bare", "full-at-scale", "any-at-scale"];

const SMALL: Row = Row {
    name: MAIN,
    what: "small answers over kept connections, HTTP/1.1",
    transport: Transport::Plain,
    answer: None,
    upload: 0,
    new_connections: false,
    threads: 1,
    peers: &["full", REFERENCE],
};

/// The row of large configurations.
pub const SCALE: &str = "scale";

pub const ROWS: [Row; 10] = [
    Row { peers: &["full", "token", "none", REFERENCE, "envoy", "nginx", "bare"], ..SMALL },
    Row {
        name: "tls",
        what: "small answers over kept connections, HTTP/1.1 over TLS",
        transport: Transport::Tls,
        ..SMALL
    },
    Row {
        name: "http2",
        what: "small answers over kept connections, 8 streams on each, HTTP/2 over TLS",
        transport: Transport::Http2,
        peers: &["full", REFERENCE, "envoy"],
        ..SMALL
    },
    Row { name: "body-64k", what: "answers of 64 KiB", answer: Some(64 << 10), ..SMALL },
    Row { name: "body-1m", what: "answers of 1 MiB", answer: Some(1 << 20), ..SMALL },
    Row { name: "upload-64k", what: "uploads of 64 KiB, small answers", upload: 64 << 10, ..SMALL },
    Row {
        name: "new-connection",
        what: "a connection for every request, small answers",
        new_connections: true,
        ..SMALL
    },
    Row {
        name: "tls-handshake",
        what: "a connection and a full TLS handshake for every request, small answers",
        transport: Transport::Tls,
        new_connections: true,
        ..SMALL
    },
    Row {
        name: "two-threads",
        what: "as the first row, with two threads; peer, load and origins share both cores",
        threads: 2,
        ..SMALL
    },
    Row {
        name: SCALE,
        what: "as the first row, beside 1,000 pools of 20 origins and 5,000 routes",
        peers: &["full", "full-at-scale", "none", "any-at-scale", REFERENCE],
        ..SMALL
    },
];

/// The rows of these names, in their order here; all without names.
pub fn select(names: &[String]) -> anyhow::Result<Vec<Row>> {
    let known = ROWS.map(|row| row.name);
    for name in names {
        ensure!(known.contains(&name.as_str()), "--rows {name}: not one of {}", known.join(", "));
    }
    let selected = |row: &Row| names.is_empty() || names.iter().any(|name| name == row.name);
    Ok(ROWS.into_iter().filter(selected).collect())
}

impl Row {
    /// How the load asks, but for the rate.
    pub fn way_of_asking(&self, connections: usize, authority: &str) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |more: &[&str]| arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let connections = match self.transport {
            Transport::Http2 => connections.div_ceil(STREAMS),
            Transport::Plain | Transport::Tls => connections,
        };
        add(&["--connections", &connections.to_string()]);
        if self.transport != Transport::Plain {
            add(&["--authority", authority]);
        }
        if self.transport == Transport::Http2 {
            add(&["--http2-streams", &STREAMS.to_string()]);
        }
        if self.upload > 0 {
            add(&["--upload", &self.upload.to_string()]);
        }
        if self.new_connections {
            add(&["--new-connections"]);
        }
        arguments
    }

    /// What the load accepts as an answer to a good token, where it is told apart by its length alone.
    pub fn expected_length(&self) -> Vec<String> {
        self.answer.map(|length| ["--expect-length".to_owned(), length.to_string()]).into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_name_and_keep_their_order() {
        let names = |chosen: &[&str]| {
            let chosen: Vec<String> = chosen.iter().map(|name| (*name).to_owned()).collect();
            select(&chosen).map(|rows| rows.iter().map(|row| row.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["tls", "small"]).unwrap(), ["small", "tls"]);
        assert_eq!(names(&[]).unwrap().len(), ROWS.len());
        let error = names(&["tsl"]).unwrap_err().to_string();
        assert!(error.contains("tsl") && error.contains("body-64k"), "{error}");
    }

    #[test]
    fn every_row_has_what_it_is_compared_with() {
        for row in ROWS {
            assert!(row.peers.contains(&REFERENCE) && row.peers.contains(&"full"), "{}", row.name);
            assert!(row.peers.iter().all(|peer| PEERS.contains(peer)), "{}", row.name);
        }
    }

    #[test]
    fn http2_has_as_many_requests_under_way_as_the_others() {
        let http2 = ROWS.iter().find(|row| row.transport == Transport::Http2).unwrap();
        let arguments = http2.way_of_asking(64, "authority.pem").join(" ");
        assert!(arguments.contains("--connections 8 ") && arguments.contains("--http2-streams 8"), "{arguments}");
    }
}
