//! A request's place on an origin: counted in when taken, counted out when dropped, whatever happens in between.
//!
//! Natively a lease is dropped with the response body. At the edge a future may never be dropped, so there leases are
//! put into [`Leases`] with a deadline, and those that ran out are given back by whoever comes next.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::origin::{Origin, OriginState};
use crate::units::Timestamp;

/// One request in flight. Dropping it gives the place back.
#[derive(Debug)]
pub struct Lease(Arc<OriginState>);

impl Origin {
    /// A place for one request; `None` when `max_connections` are taken. Never more are given out, whichever cores ask
    /// at once.
    pub fn lease(&self) -> Option<Lease> {
        self.state.enter(self.max_connections).then(|| Lease(Arc::clone(&self.state)))
    }
}

impl Lease {
    /// The origin it counts on.
    pub fn state(&self) -> &Arc<OriginState> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Leases that end at a deadline if nobody gives them back before.
#[derive(Debug, Default)]
pub struct Leases {
    /// By deadline and then by number, so that those that ran out stand in front.
    held: BTreeMap<(Timestamp, u64), Lease>,
    next: u64,
}

impl Leases {
    /// Keeps a lease until `deadline`. The answer gives it back early.
    pub fn hold(&mut self, lease: Lease, deadline: Timestamp) -> (Timestamp, u64) {
        let key = (deadline, self.next);
        self.next += 1;
        self.held.insert(key, lease);
        key
    }

    /// Gives a lease back. `false` when it had run out already.
    pub fn release(&mut self, key: (Timestamp, u64)) -> bool {
        self.held.remove(&key).is_some()
    }

    /// Gives back what ran out at `now` or before, and says how many did. To be called before each choice.
    pub fn expire(&mut self, now: Timestamp) -> usize {
        let mut count = 0;
        while let Some(entry) = self.held.first_entry() {
            if entry.key().0 > now {
                break;
            }
            entry.remove();
            count += 1;
        }
        count
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::origin::OriginId;
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn origin(max_connections: Option<u32>) -> Origin {
        Origin { id: OriginId::new("a"), url: String::new(), weight: 1, max_connections, state: Arc::default() }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_dropped_lease_gives_its_place_back() {
        let origin = origin(Some(2));
        let (one, two) = (origin.lease().unwrap(), origin.lease().unwrap());
        assert!(origin.lease().is_none());
        drop(one);
        assert_eq!(origin.state.in_flight(), 1);
        let three = origin.lease();
        assert!(three.is_some());
        drop((two, three));
        assert_eq!(origin.state.in_flight(), 0);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_reload_that_keeps_the_state_keeps_the_count() {
        let before = origin(None);
        let lease = before.lease().unwrap();
        let after = Origin { weight: 5, ..before.clone() };
        drop(before);
        assert_eq!(after.state.in_flight(), 1);
        drop(lease);
        assert_eq!(after.state.in_flight(), 0);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn leases_nobody_gives_back_end_at_their_deadline() {
        let origin = origin(None);
        let mut leases = Leases::default();
        let late = leases.hold(origin.lease().unwrap(), Timestamp(200));
        let soon = leases.hold(origin.lease().unwrap(), Timestamp(100));
        let same = leases.hold(origin.lease().unwrap(), Timestamp(100));
        assert_eq!((leases.expire(Timestamp(99)), origin.state.in_flight()), (0, 3));
        assert!(leases.release(same));
        assert!(!leases.release(same));
        assert_eq!((leases.expire(Timestamp(100)), origin.state.in_flight()), (1, 1));
        assert!(!leases.release(soon));
        assert!(leases.release(late));
        assert!(leases.is_empty());
        assert_eq!(origin.state.in_flight(), 0);
    }
}
