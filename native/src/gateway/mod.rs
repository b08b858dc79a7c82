//! The gateway: one thread, runtime and set of sockets per core (`worker`), its clients (`connection`, `http2`), one loop
//! per request (`service`), and the bodies, heads, sockets and origin connections that it works with. Answers that go on
//! are looked after by `streams`. No framework stands on this path.

mod batch;
pub mod clock;
mod connection;
mod deadlines;
mod download;
mod head;
mod http2;
pub mod listen;
pub mod origin;
mod patience;
mod proxy_protocol;
mod service;
mod socket;
mod streams;
mod tunnel;
mod upload;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use edgekeep_core::metrics::Cells;
use rustix::process::{Resource, getrlimit};
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use worker::{Shared, Waiting};

use listen::{ListenError, Sockets};
use worker::Message;

/// The running cores.
pub struct Gateway {
    cores: Vec<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    draining: AtomicBool,
}

struct Core {
    messages: mpsc::UnboundedSender<Message>,
}

/// Why the gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("the system gives no randomness: {0}")]
    Seed(getrandom::Error),
}

impl Gateway {
    /// Starts one thread per core, each with its handles on the listening sockets.
    pub fn start(shared: &Shared, sockets: &Sockets) -> Result<Gateway, StartError> {
        let threads = cores(shared.rules.load().config.server.threads);
        let (mut cores, mut threads_started) = (Vec::new(), Vec::new());
        let places = Arc::new(Semaphore::new(places()));
        for (number, listeners) in sockets.for_cores(threads)?.into_iter().enumerate() {
            let (messages, receiver) = mpsc::unbounded_channel();
            let shared = shared.clone();
            let (seed, places) = (seed().map_err(StartError::Seed)?, places.clone());
            let run = move || {
                if let Err(error) = worker::run(shared, listeners, places, seed, receiver) {
                    tracing::error!(%error, "a core stopped");
                }
            };
            let thread =
                std::thread::Builder::new().name(format!("core-{number}")).spawn(run).map_err(StartError::Thread)?;
            cores.push(Core { messages });
            threads_started.push(thread);
        }
        Ok(Gateway { cores, threads: Mutex::new(threads_started), draining: AtomicBool::new(false) })
    }

    /// What all cores counted, each on its own.
    pub async fn cells(&self) -> Vec<Cells> {
        let mut cells = Vec::new();
        for core in &self.cores {
            let (answer, copy) = oneshot::channel();
            if core.messages.send(Message::Cells(answer)).is_ok()
                && let Ok(copy) = copy.await
            {
                cells.push(copy);
            }
        }
        cells
    }

    /// Tells the cores to stop accepting and to finish what is in flight, at most for so long.
    pub fn drain(&self, within: Duration, waiting: Waiting) {
        self.draining.store(true, Ordering::Release);
        for core in &self.cores {
            let _ = core.messages.send(Message::Drain(within, waiting));
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Waits until the cores have drained. Blocks.
    pub fn join(&self) {
        let threads = self.threads.lock().map(|mut threads| std::mem::take(&mut *threads)).unwrap_or_default();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// How many clients may be connected at once, over all cores: three of four files. Whoever takes the last one, by doing
/// nothing but connecting, would leave none for the way to the origins: nobody is answered then, and checks find every
/// origin down.
fn places() -> usize {
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    files.map_or(Semaphore::MAX_PERMITS, |files| (files / 4 * 3).clamp(1, Semaphore::MAX_PERMITS))
}

/// How many cores a gateway runs; 0: all.
pub fn cores(threads: u32) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads as usize,
    }
}

/// 32 bytes of the system's randomness.
pub fn seed() -> Result<[u8; 32], getrandom::Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    Ok(seed)
}
