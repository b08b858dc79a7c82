//! The PROXY protocol: what a proxy that passes bytes on says of its client, before anything of that client comes. Whom
//! to believe is decided before; a header that is no header, or takes too long, ends the connection.

use std::net::IpAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A header of version 2 with room for all that proxies are known to add; one of version 1 has at most 107 bytes, which
/// its parser sees to.
const LONGEST: usize = 1024;

/// Who is at the proxy's other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proxied {
    /// None: the proxy speaks for itself, as in its health checks, or its client has no address.
    pub ip: Option<IpAddr>,
    /// The proxy says that its client came over TLS.
    pub secure: bool,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the PROXY header is none, or is longer than {LONGEST} bytes")]
    Malformed,
}

/// Reads the header and not a byte more.
pub async fn read(stream: &mut TcpStream) -> Result<Proxied, HeaderError> {
    let mut header = vec![0; LONGEST];
    let mut taken = 0;
    loop {
        let more = stream.peek(&mut header[taken..]).await?;
        if more == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        match ProxyHeader::parse(&header[..taken + more], ParseConfig::default()) {
            Ok((parsed, length)) => {
                let proxied = Proxied {
                    ip: parsed.proxied_address().map(|address| address.source.ip().to_canonical()),
                    secure: parsed.ssl().is_some_and(|ssl| ssl.client_ssl()),
                };
                stream.read_exact(&mut header[taken..length]).await?;
                return Ok(proxied);
            }
            // What came so far belongs to it. It is taken, so that the next look waits for more.
            Err(Error::BufferTooShort) if taken + more < LONGEST => {
                stream.read_exact(&mut header[taken..taken + more]).await?;
                taken += more;
            }
            Err(_) => return Err(HeaderError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use proxy_header::{ProxiedAddress, SslInfo, Tlv};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What is read of these pieces, sent one after the other, and what then still comes.
    fn read_of(pieces: Vec<Vec<u8>>) -> Result<(Proxied, Vec<u8>), HeaderError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            sender.set_nodelay(true).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let sending = async {
                for piece in pieces {
                    // The reader may have given up.
                    let _ = sender.write_all(&piece).await;
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                drop(sender);
            };
            let reading = async {
                let proxied = read(&mut stream).await?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await?;
                Ok((proxied, rest))
            };
            tokio::join!(sending, reading).1
        })
    }

    fn from(ip: &str) -> Proxied {
        Proxied { ip: ip.parse().ok(), secure: false }
    }

    fn addresses() -> ProxiedAddress {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        ProxiedAddress::stream(at("[2001:db8::7]:4711"), at("[2001:db8::1]:443"))
    }

    fn v2(header: &ProxyHeader<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        header.encode_v2(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn both_versions_name_the_client_and_leave_what_follows() {
        let one = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\nGET".to_vec();
        assert_eq!(read_of(vec![one.clone()]).unwrap(), (from("192.0.2.7"), b"GET".to_vec()));
        let two = [v2(&ProxyHeader::with_address(addresses())), b"GET".to_vec()].concat();
        assert_eq!(read_of(vec![two.clone()]).unwrap(), (from("2001:db8::7"), b"GET".to_vec()));
        for whole in [one, two] {
            let bytes: Vec<Vec<u8>> = whole.iter().map(|byte| vec![*byte]).collect();
            let (proxied, rest) = read_of(bytes).unwrap();
            assert!(proxied.ip.is_some() && rest == b"GET", "byte by byte: {proxied:?} {rest:?}");
        }
    }

    #[test]
    fn a_proxy_may_speak_for_itself() {
        let nobody = Proxied { ip: None, secure: false };
        assert_eq!(read_of(vec![v2(&ProxyHeader::with_local())]).unwrap().0, nobody);
        assert_eq!(read_of(vec![b"PROXY UNKNOWN\r\n".to_vec()]).unwrap().0, nobody);
    }

    #[test]
    fn a_proxy_says_that_its_client_came_over_tls() {
        let mut header = ProxyHeader::with_address(addresses());
        header.append_tlv(Tlv::Ssl(SslInfo::new(true, false, false, 0)));
        assert!(read_of(vec![v2(&header)]).unwrap().0.secure);
    }

    #[test]
    fn what_is_no_header_or_has_no_end_is_refused() {
        let endless = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let malformed: [Vec<u8>; 4] = [
            b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 99999\r\n".to_vec(),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x01\x00".to_vec(),
            endless,
        ];
        for bytes in malformed {
            let refused = read_of(vec![bytes.clone()]);
            assert!(matches!(refused, Err(HeaderError::Malformed | HeaderError::Io(_))), "{bytes:?}: {refused:?}");
        }
        let mut longest = ProxyHeader::with_address(addresses());
        let room = LONGEST - v2(&longest).len() - 3;
        longest.append_tlv(Tlv::Noop(room));
        assert_eq!(v2(&longest).len(), LONGEST);
        assert_eq!(read_of(vec![v2(&longest)]).unwrap().0, from("2001:db8::7"));
        let mut longer = ProxyHeader::with_address(addresses());
        longer.append_tlv(Tlv::Noop(room + 1));
        assert!(matches!(read_of(vec![v2(&longer)]), Err(HeaderError::Malformed)));
    }
}
