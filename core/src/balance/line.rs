//! The queue of a list of origins whose `max_connections` are all taken: first come, first served, over all cores.
//!
//! Nothing is handed over. Whoever stands in front is called when a place was given back, chooses like anybody else, and
//! stays in front when another was faster. Nobody who comes later passes those who wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The requests that wait for one list of origins.
#[derive(Debug, Default)]
pub struct Line {
    waiting: Mutex<Waiting>,
    /// How many wait, to be read without the lock.
    length: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    line: VecDeque<Waiter>,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    called: bool,
    waker: Option<Waker>,
}

/// A place in a line. Dropping it leaves the line, and lets the next one look.
#[derive(Debug)]
pub struct Place {
    line: Arc<Line>,
    number: u64,
}

impl Line {
    /// How many wait now.
    pub fn length(&self) -> usize {
        self.length.load(Ordering::SeqCst)
    }

    /// A place at the end; `None` when `room` wait already. Who comes into an empty line is called at once: a place may
    /// have been given back since it was looked for.
    pub fn join(self: &Arc<Line>, room: usize) -> Option<Place> {
        let mut waiting = self.lock();
        if waiting.line.len() >= room {
            return None;
        }
        let number = waiting.next;
        waiting.next += 1;
        let called = waiting.line.is_empty();
        waiting.line.push_back(Waiter { number, called, waker: None });
        self.length.store(waiting.line.len(), Ordering::SeqCst);
        Some(Place { line: self.clone(), number })
    }

    /// A place at an origin of the list may be free.
    pub fn call(&self) {
        if self.length() == 0 {
            return;
        }
        let waker = self.lock().line.front_mut().and_then(Waiter::call);
        // Not under the lock: a waker may run anything.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Where a waiter stands: numbers ascend along the line.
    fn at(&self, number: u64) -> Option<usize> {
        self.line.binary_search_by_key(&number, |waiter| waiter.number).ok()
    }
}

impl Waiter {
    fn call(&mut self) -> Option<Waker> {
        self.called = true;
        self.waker.take()
    }
}

impl Place {
    /// Whether it is a place in this line.
    pub fn is_in(&self, line: &Arc<Line>) -> bool {
        Arc::ptr_eq(&self.line, line)
    }

    /// Whether nobody stands before it.
    pub fn is_first(&self) -> bool {
        self.line.lock().line.front().is_some_and(|first| first.number == self.number)
    }

    /// It looked in vain because it may not use every origin of the list: whoever stands behind may look.
    pub fn pass_on(&self) {
        let mut waiting = self.line.lock();
        let behind = waiting.at(self.number).and_then(|at| waiting.line.get_mut(at + 1));
        let waker = behind.and_then(Waiter::call);
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready when it is this one's turn to look; once for each call.
    pub fn poll_called(&self, cx: &Context<'_>) -> Poll<()> {
        let mut waiting = self.line.lock();
        let Some(own) = waiting.at(self.number).and_then(|at| waiting.line.get_mut(at)) else {
            return Poll::Ready(());
        };
        if std::mem::take(&mut own.called) {
            return Poll::Ready(());
        }
        own.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.line.lock();
        if let Some(at) = waiting.at(self.number) {
            waiting.line.remove(at);
        }
        self.line.length.store(waiting.line.len(), Ordering::SeqCst);
        drop(waiting);
        // More places may have been given back than were called out, and a call may have gone to the one that leaves.
        self.line.call();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_called(place: &Place) -> bool {
        place.poll_called(&Context::from_waker(Waker::noop())).is_ready()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_first_is_called_first_and_once() {
        let line = Arc::new(Line::default());
        let [first, second] = [line.join(2).unwrap(), line.join(2).unwrap()];
        assert!(line.join(2).is_none(), "the line is full");
        assert!(is_called(&first), "into an empty line: look at once");
        assert!(!is_called(&first) && !is_called(&second));
        line.call();
        line.call();
        assert!(!is_called(&second) && is_called(&first) && !is_called(&first));
        drop(first);
        assert!(is_called(&second), "more may be free than was called out");
        assert_eq!(line.length(), 1);
        drop(second);
        assert_eq!(line.length(), 0);
        line.call();
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_call_to_one_who_leaves_goes_on_to_the_next() {
        let line = Arc::new(Line::default());
        let [first, second, third] = [(); 3].map(|()| line.join(9).unwrap());
        let woken = Arc::new(Count::default());
        let waker = Waker::from(woken.clone());
        assert!(is_called(&first));
        assert!(second.poll_called(&Context::from_waker(&waker)).is_pending());
        drop(third);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "nobody passes the first");
        line.call();
        drop(first);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(is_called(&second));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn who_cannot_use_what_is_free_lets_the_next_one_look() {
        let line = Arc::new(Line::default());
        let [first, second, third] = [(); 3].map(|()| line.join(9).unwrap());
        assert!(is_called(&first) && !is_called(&second));
        first.pass_on();
        assert!(is_called(&second) && !is_called(&third) && !is_called(&first));
        second.pass_on();
        drop(second);
        assert!(is_called(&third) && is_called(&first), "there may be more for both");
        third.pass_on();
        drop(third);
        first.pass_on();
        assert_eq!(line.length(), 1);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_line_without_room_takes_nobody() {
        assert!(Arc::new(Line::default()).join(0).is_none());
    }
}
