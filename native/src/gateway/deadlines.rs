//! The time limits of requests that wait, one list a core.
//!
//! A timer of the runtime's costs a lock, two places in its wheel and two readings of the clock, for a limit that hardly
//! any request meets. Here a request that waits notes its limit and its waker in a slab; while there are any, the list
//! is looked through each 10 ms. A limit is never met early; late by that time and what a coarse clock may be behind.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;

use super::clock::Tick;

/// How often limits are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The limits of one core.
#[derive(Default)]
pub struct Deadlines {
    waiting: RefCell<Slab<(Tick, Waker)>>,
    /// Told when there is something to look at again.
    filled: Notify,
    looking: Cell<bool>,
}

/// The time was up.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

impl Deadlines {
    /// What `work` gives, if it does within that time.
    pub async fn within<F: Future>(&self, time: Duration, mut work: Pin<&mut F>) -> Result<F::Output, Elapsed> {
        let mut limit = Limit { of: self, until: None, key: None, time };
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending if limit.is_over(cx) => Poll::Ready(Err(Elapsed)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Wakes those whose time is up. Runs as long as its core.
    pub async fn watch(self: &Rc<Deadlines>) {
        loop {
            if self.waiting.borrow().is_empty() {
                self.looking.set(false);
                self.filled.notified().await;
                self.looking.set(true);
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let now = Tick::now();
            self.waiting.borrow().iter().filter(|(_, (until, _))| *until <= now).for_each(|(_, (_, waker))| {
                waker.wake_by_ref();
            });
        }
    }
}

/// One limit; it begins at the first look.
struct Limit<'d> {
    of: &'d Deadlines,
    time: Duration,
    until: Option<Tick>,
    key: Option<usize>,
}

impl Limit<'_> {
    fn is_over(&mut self, cx: &Context<'_>) -> bool {
        let now = Tick::now();
        let until = *self.until.get_or_insert_with(|| now.after(self.time));
        if until <= now {
            return true;
        }
        let mut waiting = self.of.waiting.borrow_mut();
        match self.key.and_then(|key| waiting.get_mut(key)) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => {
                self.key = Some(waiting.insert((until, cx.waker().clone())));
                if !self.of.looking.get() {
                    self.of.filled.notify_one();
                }
            }
        }
        false
    }
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.of.waiting.borrow_mut().try_remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Instant;

    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn work_in_time_is_done_and_late_work_is_left() {
        LocalSet::new()
            .run_until(async {
                let deadlines = Rc::new(Deadlines::default());
                let watching = deadlines.clone();
                tokio::task::spawn_local(async move { watching.watch().await });
                for _ in 0..2 {
                    let at_once = deadlines.within(Duration::ZERO, pin!(async { 1 })).await;
                    assert_eq!(at_once, Ok(1), "what is done at once needs no time");
                    let soon = pin!(tokio::time::sleep(Duration::from_millis(20)));
                    assert_eq!(deadlines.within(Duration::from_secs(5), soon).await, Ok(()));
                    let began = Instant::now();
                    let late = deadlines.within(Duration::from_millis(50), pin!(std::future::pending::<()>())).await;
                    assert_eq!(late, Err(Elapsed));
                    let took = began.elapsed();
                    assert!(took >= Duration::from_millis(50) && took < Duration::from_millis(900), "{took:?}");
                    assert!(deadlines.waiting.borrow().is_empty());
                }
            })
            .await;
    }
}
