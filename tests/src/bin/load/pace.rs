//! When the next request is due: at once, or at a fixed rate that does not wait for answers.
//!
//! At a fixed rate the requests that fall into one tick are due at its end, whether a connection is free then or not.
//! Latency counts from there, so a proxy that stalls is charged for every request that had to wait. tokio's own timers
//! tell milliseconds apart, which is longer than an answer takes here: the ticks are the kernel's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Short beside an answer's time, and long enough that waking for it costs little.
const TICK: Duration = Duration::from_micros(100);

pub struct Pace {
    /// Requests a second; `None`: each when the last one's answer was read.
    rate: Option<f64>,
    start: Instant,
    pub end: Instant,
    due: RefCell<VecDeque<Instant>>,
    idle: RefCell<VecDeque<Waker>>,
    over: Cell<bool>,
}

impl Pace {
    pub fn new(rate: Option<f64>, length: Duration) -> Pace {
        let start = Instant::now();
        Pace {
            rate,
            start,
            end: start + length,
            due: RefCell::default(),
            idle: RefCell::default(),
            over: Cell::new(false),
        }
    }

    /// The moment at which the request that the caller sends now was to be sent; `None`: there are no more.
    pub async fn next(&self) -> Option<Instant> {
        if self.rate.is_none() {
            let now = Instant::now();
            return (now < self.end).then_some(now);
        }
        poll_fn(|cx| match self.due.borrow_mut().pop_front() {
            Some(due) => Poll::Ready(Some(due)),
            None if self.over.get() => Poll::Ready(None),
            None => {
                self.idle.borrow_mut().push_back(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// Makes requests due until the end. At no rate there is nothing to do.
    pub async fn run(self: Rc<Pace>) -> anyhow::Result<()> {
        let Some(rate) = self.rate else { return Ok(()) };
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as _ };
        let every_tick = Itimerspec { it_interval: tick, it_value: tick };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every_tick)?;
        #[expect(deprecated, reason = "an OwnedFd stays open while it is registered; the other way is unsafe code")]
        let timer = AsyncFd::new(timer)?;
        let (mut ticks, mut made) = (0_u64, 0_u64);
        while self.start + TICK * u32::try_from(ticks).context("too long a run")? < self.end {
            let mut ready = timer.readable().await?;
            let mut passed = [0; 8];
            match rustix::io::read(timer.get_ref(), &mut passed) {
                Ok(_) => {}
                Err(Errno::AGAIN) => passed = [0; 8],
                Err(error) => return Err(error.into()),
            }
            ready.clear_ready();
            for _ in 0..u64::from_ne_bytes(passed) {
                ticks += 1;
                let since_start = TICK.as_secs_f64() * ticks as f64;
                let at = self.start + Duration::from_secs_f64(since_start);
                // A tick that is heard of late may lie behind the end.
                if at <= self.end {
                    self.make_due(at, &mut made, rate * since_start);
                }
            }
        }
        self.over.set(true);
        self.idle.borrow_mut().drain(..).for_each(Waker::wake);
        Ok(())
    }

    /// Makes as many requests due at `at` as are missing until `wanted` were made.
    fn make_due(&self, at: Instant, made: &mut u64, wanted: f64) {
        while (*made as f64) < wanted.floor() {
            *made += 1;
            self.due.borrow_mut().push_back(at);
            let idle = self.idle.borrow_mut().pop_front();
            if let Some(connection) = idle {
                connection.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_makes_requests_due_on_time_though_nobody_asked() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let pace = Rc::new(Pace::new(Some(1000.0), Duration::from_millis(50)));
            Rc::clone(&pace).run().await.unwrap();
            let mut due = Vec::new();
            while let Some(at) = pace.next().await {
                due.push(at);
            }
            assert!((49..=50).contains(&due.len()), "{}", due.len());
            for (at, number) in due.iter().zip(1..) {
                let late = at.duration_since(pace.start).abs_diff(Duration::from_millis(number));
                assert!(late <= TICK, "request {number} is due {late:?} off");
            }
        });
    }

    #[test]
    fn without_a_rate_requests_are_due_at_once_until_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            assert!(Pace::new(None, Duration::from_secs(60)).next().await.is_some());
            assert!(Pace::new(None, Duration::ZERO).next().await.is_none());
        });
    }
}
