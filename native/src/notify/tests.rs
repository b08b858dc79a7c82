//! Against Workers that are real servers on the loopback, over http and https.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use edgekeep_core::config::Config;
use edgekeep_core::exchange::{InForce, Live, Secrets, Site};
use edgekeep_core::shard::{HashKind, ShardKey, ShardMap};
use edgekeep_core::token::{KeyAlgorithm, KeyRing};
use edgekeep_core::{Millis, SessionId, Timestamp};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;

/// What a Worker saw: path, credential, number of tombstones.
type Seen = Rc<RefCell<Vec<(String, String, usize)>>>;

/// A Worker that answers with these statuses in turn, and then 204.
#[derive(Clone)]
struct Playing {
    seen: Seen,
    statuses: Rc<RefCell<VecDeque<u16>>>,
}

impl Playing {
    fn new(statuses: &[u16]) -> Playing {
        Playing { seen: Seen::default(), statuses: Rc::new(RefCell::new(statuses.iter().copied().collect())) }
    }

    async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(worker.clone().converse(socket));
            }
        });
        address
    }

    async fn converse(self, socket: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request: Request<hyper::body::Incoming>| {
            let worker = self.clone();
            async move {
                let (head, body) = request.into_parts();
                let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                let count = body["tombstones"].as_array().unwrap().len();
                let credential = head.headers["x-edgekeep-edge"].to_str().unwrap().to_owned();
                worker.seen.borrow_mut().push((head.uri.path().to_owned(), credential, count));
                let status = worker.statuses.borrow_mut().pop_front().unwrap_or(204);
                let mut response = Response::new(Full::new(Bytes::new()));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
    }

    fn seen(&self) -> Vec<(String, String, usize)> {
        self.seen.borrow().clone()
    }
}

fn rules(urls: &[String]) -> Arc<ArcSwap<Rules>> {
    let mut config = Config::minimal("http://127.0.0.1:1").unwrap();
    config.edge.notify = urls.iter().map(|url| WebUrl::parse(url).unwrap()).collect();
    let mut entropy = Entropy::for_tests(1);
    let keys = KeyRing::generate(KeyAlgorithm::Hs256, &mut entropy, Timestamp(0));
    let live = Live::new(&config, &mut entropy);
    let map = ShardMap::first(HashKind::Siphash24, ShardKey([1; 16]), 1, BTreeMap::new());
    let secrets = Secrets::new(None, Some("new, old"), None);
    let rules = Rules::new(config, Site::Native, keys, Some(map), secrets, InForce::default(), &live).unwrap();
    Arc::new(ArcSwap::from_pointee(rules))
}

fn sessions(count: u32, until: Timestamp) -> Vec<Tombstone> {
    (0..count).map(|n| Tombstone::Session { id: SessionId(u128::from(n).to_be_bytes()), until }).collect()
}

fn later() -> Timestamp {
    now() + Millis::from_secs(900)
}

async fn with_posting<T>(rules: &Arc<ArcSwap<Rules>>, play: impl AsyncFnOnce(Notifier) -> T) -> T {
    let (notifier, revocations) = channel();
    let posting = tokio::task::spawn_local(revocations.post(rules.clone(), Entropy::for_tests(2)));
    let played = play(notifier).await;
    posting.abort();
    played
}

async fn settled(notifier: &Notifier) -> Counted {
    tokio::time::timeout(Duration::from_secs(10), notifier.settled()).await.unwrap();
    notifier.counted()
}

#[tokio::test(flavor = "current_thread")]
async fn every_worker_is_told_with_the_credential_in_calls_that_it_takes() {
    let played = async {
        let (one, other) = (Playing::new(&[]), Playing::new(&[]));
        let urls = [format!("http://{}", one.listen().await), format!("http://{}/below/", other.listen().await)];
        with_posting(&rules(&urls), async |notifier| {
            notifier.tell(sessions(1500, later()));
            notifier.tell(Vec::new());
            assert_eq!(settled(&notifier).await, Counted { posted: 3000, pending: 0, dropped: 0 });
        })
        .await;
        for (worker, path) in [(one, "/v1/edge/tombstones"), (other, "/below/v1/edge/tombstones")] {
            let seen = worker.seen();
            assert!(seen.iter().all(|(to, credential, _)| to == path && credential == "new"), "{seen:?}");
            assert_eq!(seen.iter().map(|(.., count)| count).sum::<usize>(), 1500);
            assert!(seen.len() == 2 && seen[0].2 < 1000, "64 KiB at a time: {seen:?}");
        }
    };
    LocalSet::new().run_until(played).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_refusal_is_tried_again_with_all_that_came_meanwhile_and_holds_up_nobody_else() {
    let played = async {
        let (failing, well) = (Playing::new(&[503, 403, 500]), Playing::new(&[]));
        let urls = [format!("http://{}", failing.listen().await), format!("http://{}", well.listen().await)];
        with_posting(&rules(&urls), async |notifier| {
            notifier.tell(sessions(1, later()));
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!((well.seen().len(), failing.seen().len()), (1, 1));
            notifier.tell(sessions(2, later()));
            assert_eq!(settled(&notifier).await, Counted { posted: 6, pending: 0, dropped: 0 });
        })
        .await;
        let counts: Vec<usize> = failing.seen().iter().map(|(.., count)| *count).collect();
        assert_eq!(counts, [1, 3, 3, 3]);
    };
    LocalSet::new().run_until(played).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_worker_that_is_down_is_told_when_it_is_up_and_expired_tombstones_are_given_up() {
    let played = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        with_posting(&rules(&[format!("http://{address}")]), async |notifier| {
            notifier.tell(sessions(5, now() + Millis(300)));
            notifier.tell(sessions(2, later()));
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!(notifier.counted().pending, 7 - notifier.counted().dropped);
            let worker = Playing::new(&[]);
            let listener = TcpListener::bind(address).await.unwrap();
            let serving = worker.clone();
            tokio::task::spawn_local(async move {
                let (socket, _) = listener.accept().await.unwrap();
                serving.converse(socket).await;
            });
            assert_eq!(settled(&notifier).await, Counted { posted: 2, pending: 0, dropped: 5 });
            assert_eq!(worker.seen().len(), 1);
        })
        .await;
    };
    LocalSet::new().run_until(played).await;
}

#[tokio::test(flavor = "current_thread")]
async fn what_waits_is_bounded_and_the_data_path_never_waits() {
    let (notifier, revocations) = channel();
    for _ in 0..CHANNEL + 10 {
        notifier.tell(sessions(1, later()));
    }
    assert_eq!(notifier.counted(), Counted { posted: 0, pending: CHANNEL as u64, dropped: 10 });
    drop(revocations);
    let played = async {
        // Nobody listens there.
        with_posting(&rules(&["http://127.0.0.1:1".to_owned()]), async |notifier| {
            for _ in 0..3 {
                notifier.tell(sessions(50_000, later()));
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            let expected = Counted { posted: 0, pending: MOST_WAITING as u64, dropped: 50_000 };
            assert_eq!(notifier.counted(), expected);
        })
        .await;
    };
    LocalSet::new().run_until(played).await;
}

#[test]
fn what_falls_out_while_a_call_is_under_way_takes_nothing_with_it() {
    let counts = Arc::<Counts>::default();
    let queue = Queue { waiting: RefCell::default(), gone: Cell::new(0), came: Notify::new(), counts };
    queue.push(&sessions(MOST_WAITING as u32, later()));
    let (_, up_to) = queue.batch(usize::MAX).unwrap();
    assert_eq!(up_to, 1_000);
    queue.push(&sessions(600, later()));
    queue.taken(up_to);
    assert_eq!(queue.waiting.borrow().len(), MOST_WAITING - 400, "of the call, 600 had fallen out");
    queue.push(&sessions(5_000, later()));
    let before = queue.waiting.borrow().len();
    queue.taken(up_to);
    assert_eq!(queue.waiting.borrow().len(), before);
}

#[tokio::test(flavor = "current_thread")]
async fn a_worker_that_a_reload_removed_is_told_no_longer() {
    let played = async {
        let (removed, kept) = (Playing::new(&[503; 50]), Playing::new(&[]));
        let urls = [format!("http://{}", removed.listen().await), format!("http://{}", kept.listen().await)];
        let rules = rules(&urls);
        with_posting(&rules, async |notifier| {
            notifier.tell(sessions(1, later()));
            tokio::time::sleep(Duration::from_millis(100)).await;
            rules.store(self::rules(&urls[1..]).load_full());
            assert_eq!(settled(&notifier).await, Counted { posted: 1, pending: 0, dropped: 1 });
            notifier.tell(sessions(1, later()));
            assert_eq!(settled(&notifier).await, Counted { posted: 2, pending: 0, dropped: 1 });
            let calls = removed.seen().len();
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert_eq!(removed.seen().len(), calls);
        })
        .await;
    };
    LocalSet::new().run_until(played).await;
}

#[tokio::test(flavor = "current_thread")]
async fn https_is_spoken_with_who_shows_a_trusted_certificate_for_its_name_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Certified::new("an authority of the tests", None);
    let trusted = Certified::new("localhost", Some(&authority));
    let strange = Certified::new("localhost", Some(&Certified::new("an authority nobody trusts", None)));
    let misnamed = Certified::new("other.example", Some(&authority));
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, authority.certificate.pem()).unwrap();
    let played = async {
        for (shown, why) in [(&trusted, None), (&strange, Some("UnknownIssuer")), (&misnamed, Some("other.example"))] {
            let worker = Playing::new(&[]);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let (acceptor, serving) = (shown.acceptor(), worker.clone());
            tokio::task::spawn_local(async move {
                let (socket, _) = listener.accept().await.unwrap();
                if let Ok(socket) = acceptor.accept(socket).await {
                    serving.converse(socket).await;
                }
            });
            let (url, roots) = (WebUrl::parse(&format!("https://localhost:{port}")).unwrap(), roots.clone());
            let mut client =
                Client::trusting(&url, move || rustls_native_certs::load_certs_from_paths(Some(&roots), None));
            let body = json!({ "tombstones": [] }).to_string();
            let outcome = client.post("/auth", Some("credential"), body).await;
            match why {
                None => {
                    outcome.unwrap();
                    assert_eq!(worker.seen(), [("/auth/v1/edge/tombstones".to_owned(), "credential".to_owned(), 0)]);
                }
                Some(why) => {
                    let error = outcome.unwrap_err().to_string();
                    assert!(error.contains(why), "{error}");
                    assert!(worker.seen().is_empty(), "nothing is sent to a stranger");
                }
            }
        }
    };
    LocalSet::new().run_until(played).await;
}

/// A certificate with its key, signed by an authority or by itself.
struct Certified {
    certificate: rcgen::Certificate,
    key: rcgen::KeyPair,
    parameters: rcgen::CertificateParams,
}

impl Certified {
    fn new(name: &str, issuer: Option<&Certified>) -> Certified {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![name.replace(' ', "-")]).unwrap();
        // Authorities are told apart by it.
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        if issuer.is_none() {
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        let certificate = match issuer {
            Some(issuer) => {
                let issuer = rcgen::Issuer::from_params(&issuer.parameters, &issuer.key);
                parameters.signed_by(&key, &issuer).unwrap()
            }
            None => parameters.self_signed(&key).unwrap(),
        };
        Certified { certificate, key, parameters }
    }

    fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        use tokio_rustls::rustls::crypto::aws_lc_rs;
        use tokio_rustls::rustls::{ServerConfig, pki_types::PrivateKeyDer};
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.der().clone()], key)
            .unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    }
}

#[test]
fn the_wait_doubles_up_to_a_quarter_of_a_minute() {
    let pauses = |chance| [0, 1, 2, 5, 6, 40].map(|failures| pause(failures, chance).as_millis());
    assert_eq!(pauses(0.0), [250, 500, 1_000, 8_000, 15_000, 15_000]);
    assert_eq!(pauses(1.0), [200, 400, 800, 6_400, 12_000, 12_000]);
}
