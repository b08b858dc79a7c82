//! Logging. Whoever has something to say puts it into one bounded queue and goes on; one thread writes the queue to
//! standard error. A reader that is slow, or does not read at all, costs lines and never requests: what finds the queue
//! full is dropped and counted, and the count is said as soon as somebody reads again.
//!
//! Lines of requests come as small records (`access`) and become text in that thread, everything else as tracing's text.
//! One queue, so that what one core says stays in its order.

mod access;

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use edgekeep_core::config::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;

pub use access::{AccessLine, Request};

use access::Clock;

/// Lines that may wait; about 2 MiB.
const WAITING: usize = 16_384;
/// While there is something to write, how long the thread lets lines gather. A thread that waits in the queue has to be
/// woken for each line, which costs its sender more than the line.
const GATHER: Duration = Duration::from_millis(5);
/// Bytes that are written at once.
const BATCH: usize = 64 << 10;
/// How long a process that ends waits for its last lines to be read.
const LAST_LINES: Duration = Duration::from_secs(1);

/// One for the process, as tracing's subscriber is.
static QUEUE: OnceLock<Queue> = OnceLock::new();

struct Queue {
    lines: SyncSender<Line>,
    dropped: AtomicU64,
    /// The level lets lines of requests through.
    takes_access: bool,
}

enum Line {
    Text(Vec<u8>),
    Access(AccessLine),
    /// Nothing comes after it.
    End,
}

/// Sets up logging for the process. What waits is written out when the guard is dropped.
pub fn start(config: &LogConfig) -> Guard {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(config.level.to_string()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Sink).with_ansi(false);
    // A second start in one process (tests) keeps the first.
    let _ = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    let (lines, queue) = sync_channel(WAITING);
    let takes_access = tracing::enabled!(target: "access", tracing::Level::INFO);
    if QUEUE.set(Queue { lines, dropped: AtomicU64::new(0), takes_access }).is_err() {
        return Guard(None);
    }
    // The usual hook writes to standard error itself, and waits there for a reader.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    let format = config.format;
    let write = move || {
        if let Some(Queue { dropped, .. }) = QUEUE.get() {
            write_out(&queue, &mut std::io::stderr(), format, dropped);
        }
    };
    Guard(std::thread::Builder::new().name("log".to_owned()).spawn(write).ok())
}

/// Whether lines of requests are wanted at this level.
pub fn takes_access() -> bool {
    QUEUE.get().is_some_and(|queue| queue.takes_access)
}

/// Tells of a request.
pub fn access(line: AccessLine) {
    put(Line::Access(line));
}

/// How many lines nobody read in time, or no disk took.
pub fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
}

fn put(line: Line) {
    if let Some(queue) = QUEUE.get()
        && queue.lines.try_send(line).is_err()
    {
        queue.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where tracing writes: a line at a time.
struct Sink;

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        put(Line::Text(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps the log going.
pub struct Guard(Option<JoinHandle<()>>);

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(thread) = self.0.take() else { return };
        let begun = Instant::now();
        let mut ending = QUEUE.get().map(|queue| &queue.lines);
        while !thread.is_finished() && begun.elapsed() < LAST_LINES {
            if ending.is_some_and(|lines| lines.try_send(Line::End).is_ok()) {
                ending = None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Writes what comes until the end comes.
fn write_out(lines: &Receiver<Line>, out: &mut impl Write, format: LogFormat, dropped: &AtomicU64) {
    let mut clock = Clock::default();
    let mut text = Vec::with_capacity(BATCH + 4096);
    let mut told = 0;
    let mut ended = false;
    while !ended {
        let Ok(first) = lines.recv() else { return };
        let mut next = Some(first);
        while next.is_some() {
            while let Some(line) = next {
                match line {
                    Line::Text(line) => text.extend_from_slice(&line),
                    Line::Access(line) => line.write(format, &mut clock, &mut text),
                    Line::End => ended = true,
                }
                if text.len() >= BATCH {
                    dropped.fetch_add(write_all(out, &mut text), Ordering::Relaxed);
                }
                next = lines.try_recv().ok();
            }
            dropped.fetch_add(write_all(out, &mut text), Ordering::Relaxed);
            let count = dropped.load(Ordering::Relaxed);
            if count > told {
                access::write_dropped(format, &mut clock, count - told, &mut text);
                if write_all(out, &mut text) == 0 {
                    told = count;
                }
            }
            if ended {
                return;
            }
            std::thread::sleep(GATHER);
            next = lines.try_recv().ok();
        }
    }
}

/// All of it, also where standard error is in non-blocking mode. How many lines were lost: the disk is full, or nobody
/// will ever read them.
fn write_all(out: &mut impl Write, text: &mut Vec<u8>) -> u64 {
    let (mut rest, mut lost) = (text.as_slice(), 0);
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(GATHER),
            Ok(0) | Err(_) => {
                lost = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
                break;
            }
        }
    }
    text.clear();
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_order_and_those_that_were_dropped_are_told_of_after_what_waited() {
        let (sender, lines) = sync_channel(8);
        for text in ["first\n", "second\n"] {
            sender.send(Line::Text(text.as_bytes().to_vec())).unwrap();
        }
        sender.send(Line::Access(AccessLine::unread(None, 431))).unwrap();
        sender.send(Line::End).unwrap();
        let mut out = Vec::new();
        write_out(&lines, &mut out, LogFormat::Text, &AtomicU64::new(7));
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["first", "second"]);
        assert!(lines[2].ends_with(" INFO access: route=\"-\" status=431"), "{}", lines[2]);
        assert!(lines[3].ends_with(" WARN log: lines were dropped count=7"), "{}", lines[3]);
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted_and_told_of_when_there_is_room() {
        struct Disk(Vec<u8>, usize);
        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                if self.1 > 0 {
                    self.1 -= 1;
                    return Err(ErrorKind::StorageFull.into());
                }
                self.0.write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (sender, lines) = sync_channel(8);
        sender.send(Line::Text(b"lost\n".to_vec())).unwrap();
        sender.send(Line::Text(b"lost\n".to_vec())).unwrap();
        let dropped = AtomicU64::new(0);
        // The lines, and the first word of how many they were.
        let mut out = Disk(Vec::new(), 2);
        std::thread::scope(|scope| {
            let (out, dropped) = (&mut out, &dropped);
            scope.spawn(move || write_out(&lines, out, LogFormat::Text, dropped));
            std::thread::sleep(10 * GATHER);
            sender.send(Line::Text(b"kept\n".to_vec())).unwrap();
            sender.send(Line::End).unwrap();
        });
        let text = String::from_utf8(out.0).unwrap();
        assert!(text.starts_with("kept\n") && text.ends_with(" count=2\n"), "{text}");
        assert_eq!(dropped.into_inner(), 2);
    }

    #[test]
    fn a_writer_that_would_block_gets_the_whole_line_in_the_end() {
        struct Slow(Vec<u8>, bool);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.1 = !self.1;
                if self.1 {
                    return Err(ErrorKind::WouldBlock.into());
                }
                self.0.extend_from_slice(&bytes[..bytes.len().min(3)]);
                Ok(bytes.len().min(3))
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut out = Slow(Vec::new(), false);
        write_all(&mut out, &mut b"a whole line\n".to_vec());
        assert_eq!(out.0, b"a whole line\n");
    }
}
