//! Listening sockets: one per core and address with SO_REUSEPORT, so that cores share nothing when they accept.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted, per socket.
const BACKLOG: i32 = 4096;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", reason(.error))]
pub struct ListenError {
    address: SocketAddr,
    error: std::io::Error,
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "the port is taken by another process".to_owned(),
        std::io::ErrorKind::PermissionDenied => "not permitted (ports below 1024 need a privilege)".to_owned(),
        std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address".to_owned(),
        _ => error.to_string(),
    }
}

/// For each of `cores` a socket on every address.
pub fn bind(addresses: &[SocketAddr], cores: usize) -> Result<Vec<Vec<TcpListener>>, ListenError> {
    let mut sets: Vec<Vec<TcpListener>> = (0..cores.max(1)).map(|_| Vec::new()).collect();
    for address in addresses {
        let failed = |error| ListenError { address: *address, error };
        // With SO_REUSEPORT a second process of the same user would silently share the port: ask without it first.
        drop(socket(*address, false).map_err(failed)?);
        for set in &mut sets {
            set.push(socket(*address, cores > 1).map_err(failed)?);
        }
    }
    Ok(sets)
}

/// One listening socket of its own, for the admin side.
pub fn bind_one(address: SocketAddr) -> Result<TcpListener, ListenError> {
    socket(address, false).map_err(|error| ListenError { address, error })
}

fn socket(address: SocketAddr, shared: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_even_when_its_owner_shares_it() {
        let first = bind(&["127.0.0.1:0".parse().unwrap()], 1).unwrap();
        let taken = first[0][0].local_addr().unwrap();
        let error = bind(&[taken], 2).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on {taken}: the port is taken by another process"));
    }
}
