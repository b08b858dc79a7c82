//! Answers that go on: upgraded connections, and bodies or uploads that are not over at once. Each second a core looks
//! through its own, as core's `Stay` decides, and cuts those whose session has ended. That is within 5 s of a
//! revocation: at most 3 until the near cache knows it, one until the look, half a one for the store's answer.
//!
//! It also cuts those whose clients have left unnoticed: hyper does not look while bytes of theirs lie unread.
//!
//! An answer is listed when it turns out to go on, and costs nothing from then on but the look. Cutting it is cutting
//! the client's connection, which carries one answer at a time: the client sees that the answer is not complete.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use edgekeep_core::exchange::{Freshness, SessionAnswer, Stay};
use edgekeep_core::session::{NearCache, Ticket};
use edgekeep_core::{Timestamp, UserId};

use super::clock::now;
use super::service::session_answer;
use super::socket::Activity;
use super::worker::Worker;

/// How often they are looked through.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many questions to the store one core has under way, so that a flush of the near cache is no burst of as many as
/// there are streams.
const ASKERS: usize = 64;

/// One core's answers that go on.
#[derive(Default)]
pub struct Streams {
    open: RefCell<HashMap<u64, Open>>,
    next: Cell<u64>,
    /// What the store is to be asked, the urgent first.
    asks: RefCell<VecDeque<(u64, Ticket, UserId)>>,
    askers: Cell<usize>,
}

struct Open {
    /// None: it rests on nobody's session.
    stay: Option<Stay>,
    /// It has begun, over a connection that is for it alone.
    answers: bool,
    activity: Activity,
    /// Of the task that moves the answer.
    waker: Waker,
    asking: bool,
}

impl Streams {
    /// Lists an answer that goes on; its number is for `moved` and `ended`.
    pub fn list(&self, stay: Option<Stay>, activity: Activity, waker: Waker) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        self.open.borrow_mut().insert(number, Open { stay, answers: false, activity, waker, asking: false });
        number
    }

    /// Another task moves the answer from now on.
    pub fn moved(&self, number: u64, waker: &Waker) {
        if let Some(open) = self.open.borrow_mut().get_mut(&number)
            && !open.waker.will_wake(waker)
        {
            open.waker.clone_from(waker);
        }
    }

    /// The client gets it from now on, and is to get nothing else.
    pub fn answers(&self, number: u64) {
        if let Some(open) = self.open.borrow_mut().get_mut(&number) {
            open.answers = true;
        }
    }

    /// The answer is over.
    pub fn ended(&self, number: u64) {
        self.open.borrow_mut().remove(&number);
    }

    /// Cuts the answers whose clients have left.
    fn leave(&self) {
        self.open.borrow_mut().retain(|_, open| {
            let has_left = open.answers && open.activity.has_client_left();
            if has_left {
                open.activity.cut();
                open.waker.wake_by_ref();
            }
            !has_left
        });
    }

    /// Notes what the store is to be asked about; how many more askers are needed for it.
    fn look(&self, near: &NearCache, now: Timestamp) -> usize {
        let mut asks = self.asks.borrow_mut();
        for (number, open) in self.open.borrow_mut().iter_mut().filter(|(_, open)| !open.asking) {
            if let Some(stay) = &mut open.stay
                && let Some(question) = stay.look(near, now)
            {
                open.asking = true;
                let ask = (*number, question.ticket, stay.user().clone());
                if question.is_urgent {
                    asks.push_front(ask);
                } else {
                    asks.push_back(ask);
                }
            }
        }
        asks.len().min(ASKERS).saturating_sub(self.askers.get())
    }

    /// The next question, unless its answer ended meanwhile.
    fn next_ask(&self) -> Option<(u64, Ticket, UserId)> {
        let open = self.open.borrow();
        let mut asks = self.asks.borrow_mut();
        std::iter::from_fn(|| asks.pop_front()).find(|(number, ..)| open.contains_key(number))
    }

    /// What the store said of one; true when it was cut.
    fn answered(&self, number: u64, ticket: &Ticket, answer: &SessionAnswer, near: &NearCache) -> bool {
        let mut all = self.open.borrow_mut();
        let Some(open) = all.get_mut(&number) else { return false };
        open.asking = false;
        if open.stay.as_mut().is_none_or(|stay| stay.answered(ticket, answer, near, now())) {
            return false;
        }
        open.activity.cut();
        open.waker.wake_by_ref();
        all.remove(&number);
        true
    }
}

/// Looks through a core's open answers for as long as it runs.
pub async fn watch(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        worker.streams.leave();
        for _ in 0..worker.streams.look(&worker.live.near, now()) {
            worker.streams.askers.set(worker.streams.askers.get() + 1);
            tokio::task::spawn_local(ask(worker.clone()));
        }
    }
}

/// Asks the store until nothing is left to ask.
async fn ask(worker: Rc<Worker>) {
    let streams = &worker.streams;
    while let Some((number, ticket, user)) = streams.next_ask() {
        let answer = session_answer(worker.store.load(ticket.id(), &user, Freshness::Cached, now()).await);
        if streams.answered(number, &ticket, &answer, &worker.live.near) {
            worker.with_local(|local| local.metrics.streams_cut += 1);
        }
    }
    streams.askers.set(streams.askers.get() - 1);
}
