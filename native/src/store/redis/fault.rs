//! What can go wrong between us and a Redis server, by what is to be done about it.

use redis::{ServerErrorKind, Value};

/// Why a call got no answer that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The slot belongs to this server now.
    Moved(String),
    /// The key, or its place, is at this server while its slot moves.
    Ask(String),
    /// Some of the keys are here and some are not, or the server is not (or no longer) what we take it for.
    Again,
    /// The server does not know the script.
    NoScript,
    /// No connection, or it was lost: whether the call was performed is not known.
    Down,
    /// No answer in time: whether the call was performed is not known.
    TimedOut,
    /// An answer that no repetition changes.
    Refused(String),
}

/// The fault in a reply, if it is one.
pub fn fault(reply: &Value) -> Option<Fault> {
    let Value::ServerError(error) = reply else { return None };
    let detail = error.details().unwrap_or_default();
    Some(match error.kind() {
        Some(ServerErrorKind::Moved) => target(detail).map_or(Fault::Again, Fault::Moved),
        Some(ServerErrorKind::Ask) => target(detail).map_or(Fault::Again, Fault::Ask),
        Some(
            ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::ReadOnly,
        ) => Fault::Again,
        Some(ServerErrorKind::NoScript) => Fault::NoScript,
        _ if detail.contains("non local key") => Fault::Again,
        _ => Fault::Refused(format!("{} {detail}", error.code())),
    })
}

/// `3999 127.0.0.1:6381`: the address after the slot.
fn target(detail: &str) -> Option<String> {
    detail.split_whitespace().nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;

    fn read(line: &str) -> Option<Fault> {
        fault(&parse_redis_value(line.as_bytes()).unwrap())
    }

    #[test]
    fn a_redirection_names_its_server_and_the_rest_is_told_apart() {
        assert_eq!(read("-MOVED 3999 127.0.0.1:6381\r\n"), Some(Fault::Moved("127.0.0.1:6381".into())));
        assert_eq!(read("-ASK 3999 127.0.0.1:6381\r\n"), Some(Fault::Ask("127.0.0.1:6381".into())));
        for again in [
            "-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
            "-CLUSTERDOWN The cluster is down\r\n",
            "-READONLY You can't write against a read only replica.\r\n",
            "-LOADING Redis is loading the dataset in memory\r\n",
            "-ERR Script attempted to access a non local key in a cluster node script: a, on @user_script:1.\r\n",
        ] {
            assert_eq!(read(again), Some(Fault::Again), "{again}");
        }
        assert_eq!(read("-NOSCRIPT No matching script.\r\n"), Some(Fault::NoScript));
        assert!(matches!(read("-OOM command not allowed\r\n"), Some(Fault::Refused(_))));
        assert_eq!(read("+OK\r\n"), None);
    }
}
