//! Listening sockets: one per core and address with SO_REUSEPORT, so that cores share nothing when they accept; or those
//! that another process passed on, whose waiting connections are then nobody's loss.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that wait to be accepted, per socket.
const BACKLOG: i32 = 4096;
/// A peer that has vanished without a word is noticed after two minutes, also while nothing is sent: an upgraded
/// connection or a stream holds its origin's place as long.
pub const ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// Why there is nothing to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {}", reason(.error))]
    Address { address: SocketAddr, error: std::io::Error },
    #[error("{from} passed a socket on {address}, but server.listen is {listen} and admin.listen {admin}")]
    Foreign { from: &'static str, address: SocketAddr, listen: String, admin: SocketAddr },
    #[error("{from} passed a socket on {address} that does not listen")]
    Silent { from: &'static str, address: SocketAddr },
    #[error("a listening socket cannot be used: {0}")]
    Use(std::io::Error),
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "the port is taken by another process".to_owned(),
        std::io::ErrorKind::PermissionDenied => "not permitted (ports below 1024 need a privilege)".to_owned(),
        std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address".to_owned(),
        _ => error.to_string(),
    }
}

/// Sockets that another process opened.
#[derive(Default)]
pub struct Passed {
    /// Who, for messages.
    pub from: &'static str,
    pub sockets: Vec<TcpListener>,
}

/// What a gateway listens on. The cores have handles of their own on the clients' sockets.
pub struct Sockets {
    clients: Vec<(SocketAddr, Vec<TcpListener>)>,
    admin: TcpListener,
}

impl Sockets {
    /// Opens one socket for each core and address, and one for the admin side; where sockets were passed for an address,
    /// these and no others. A passed socket of another address is refused: whoever passed it means another gateway.
    pub fn open(
        listen: &[SocketAddr],
        admin: SocketAddr,
        cores: usize,
        passed: Passed,
    ) -> Result<Sockets, ListenError> {
        let mut clients: Vec<(SocketAddr, Vec<TcpListener>)> = listen.iter().map(|at| (*at, Vec::new())).collect();
        let mut admin_socket = None;
        for socket in passed.sockets {
            let (from, address) = (passed.from, socket.local_addr().map_err(ListenError::Use)?);
            if !SockRef::from(&socket).is_listener().map_err(ListenError::Use)? {
                return Err(ListenError::Silent { from, address });
            }
            if let Some((_, group)) = clients.iter_mut().find(|(at, _)| *at == address) {
                group.push(socket);
            } else if address == admin && admin_socket.is_none() {
                admin_socket = Some(socket);
            } else {
                let listen = listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(ListenError::Foreign { from, address, listen, admin });
            }
        }
        for (address, group) in clients.iter_mut().filter(|(_, group)| group.is_empty()) {
            *group = bind(*address, cores)?;
        }
        let admin = match admin_socket {
            Some(passed) => passed,
            None => bind_one(admin)?,
        };
        for socket in clients.iter().flat_map(|(_, group)| group).chain([&admin]) {
            socket.set_nonblocking(true).map_err(ListenError::Use)?;
            // What is accepted from it has it too.
            SockRef::from(socket).set_tcp_keepalive(&ALIVE).map_err(ListenError::Use)?;
        }
        Ok(Sockets { clients, admin })
    }

    /// For each core its handles. Every socket has a core that accepts from it. Where there are fewer sockets than
    /// cores, several cores accept from one: the first to come takes a connection.
    pub fn for_cores(&self, cores: usize) -> Result<Vec<Vec<TcpListener>>, ListenError> {
        let cores = cores.max(1);
        let mut sets: Vec<Vec<TcpListener>> = (0..cores).map(|_| Vec::new()).collect();
        for (_, group) in &self.clients {
            for (number, socket) in group.iter().cycle().take(group.len().max(cores)).enumerate() {
                sets[number % cores].push(socket.try_clone().map_err(ListenError::Use)?);
            }
        }
        Ok(sets)
    }

    pub fn for_admin(&self) -> Result<TcpListener, ListenError> {
        self.admin.try_clone().map_err(ListenError::Use)
    }

    /// All, for whoever comes after.
    pub fn all(&self) -> impl Iterator<Item = &TcpListener> {
        self.clients.iter().flat_map(|(_, group)| group).chain([&self.admin])
    }
}

fn bind(address: SocketAddr, cores: usize) -> Result<Vec<TcpListener>, ListenError> {
    let failed = |error| ListenError::Address { address, error };
    // With SO_REUSEPORT a second process of the same user would silently share the port: ask without it first.
    drop(socket(address, false).map_err(failed)?);
    (0..cores.max(1)).map(|_| socket(address, cores > 1).map_err(failed)).collect()
}

/// One listening socket of its own.
pub fn bind_one(address: SocketAddr) -> Result<TcpListener, ListenError> {
    socket(address, false).map_err(|error| ListenError::Address { address, error })
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
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;

    /// Ports that were free a moment ago.
    fn free() -> (SocketAddr, SocketAddr) {
        let sockets = [0, 1].map(|_| bind_one("127.0.0.1:0".parse().unwrap()).unwrap());
        (sockets[0].local_addr().unwrap(), sockets[1].local_addr().unwrap())
    }

    fn open(listen: SocketAddr, admin: SocketAddr, cores: usize, sockets: Vec<TcpListener>) -> Result<Sockets, String> {
        let passed = Passed { from: "the test", sockets };
        Sockets::open(&[listen], admin, cores, passed).map_err(|error| error.to_string())
    }

    fn copies(sockets: &Sockets) -> Vec<TcpListener> {
        sockets.all().map(|socket| socket.try_clone().unwrap()).collect()
    }

    #[test]
    fn a_taken_port_is_named_even_when_its_owner_shares_it() {
        let (at, admin) = free();
        let _first = open(at, admin, 2, Vec::new()).unwrap();
        let (_, other) = free();
        let error = open(at, other, 2, Vec::new()).err().unwrap();
        assert_eq!(error, format!("cannot listen on {at}: the port is taken by another process"));
    }

    #[test]
    fn passed_sockets_are_used_and_nothing_else_is_opened() {
        let (at, admin) = free();
        let first = open(at, admin, 2, Vec::new()).unwrap();
        let second = open(at, admin, 4, copies(&first)).unwrap();
        assert_eq!(second.all().count(), 3);
        drop(first);
        // Whoever connected before is accepted by one of the cores.
        let waiting: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(at).unwrap()).collect();
        let mut accepted = 0;
        for (core, sockets) in second.for_cores(4).unwrap().iter().enumerate() {
            assert_eq!(sockets.len(), 1, "core {core}");
            for socket in sockets {
                loop {
                    match socket.accept() {
                        Ok(_) => accepted += 1,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
        assert_eq!(accepted, waiting.len());
    }

    #[test]
    fn a_client_that_vanishes_is_noticed() {
        let (at, admin) = free();
        let sockets = open(at, admin, 1, Vec::new()).unwrap();
        let _client = TcpStream::connect(at).unwrap();
        let socket = sockets.clients[0].1[0].try_clone().unwrap();
        socket.set_nonblocking(false).unwrap();
        let (accepted, _) = socket.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 4);
    }

    #[test]
    fn fewer_cores_accept_from_every_socket() {
        let (at, admin) = free();
        let first = open(at, admin, 5, Vec::new()).unwrap();
        let second = open(at, admin, 2, copies(&first)).unwrap();
        let sets = second.for_cores(2).unwrap();
        assert_eq!(sets.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn a_socket_of_another_gateway_is_refused_and_both_are_named() {
        let ((at, admin), (other, _)) = (free(), free());
        let foreign = bind_one(other).unwrap();
        let error = open(at, admin, 1, vec![foreign]).err().unwrap();
        let expected =
            format!("the test passed a socket on {other}, but server.listen is {at} and admin.listen {admin}");
        assert_eq!(error, expected);
    }

    #[test]
    fn a_socket_that_does_not_listen_is_refused() {
        let (at, admin) = free();
        let silent = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        silent.bind(&at.into()).unwrap();
        let error = open(at, admin, 1, vec![silent.into()]).err().unwrap();
        assert_eq!(error, format!("the test passed a socket on {at} that does not listen"));
    }
}
