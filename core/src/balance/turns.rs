//! What one core keeps of one list of origins between two choices: whose turn it is, and for a long list how many of it
//! are available, so that a choice among twenty thousand costs what one among sixty-four does.

use super::choice::{FULL_SCAN, Load};
use super::origin::{Admin, Origin, Standing};
use super::round_robin::RoundRobin;
use crate::units::{Millis, Ratio, Timestamp};

/// So old the census of a long list may be: a panic begins and ends as much later there.
const CENSUS_FOR: Millis = Millis(100);

/// One core's notes about one list of origins.
#[derive(Debug, Default)]
pub struct Turns {
    pub(super) round_robin: RoundRobin,
    census: Option<(Timestamp, Census)>,
    /// Room for the candidates of one choice, kept so that choosing allocates nothing.
    pub(super) loads: Vec<(usize, Load)>,
}

impl Turns {
    /// Fits the notes to a list; one of another length starts over.
    pub(super) fn fit(&mut self, origins: &[Origin]) {
        if self.round_robin.len() != origins.len() {
            self.round_robin.fit(origins.len());
            self.census = None;
        }
    }

    /// How the list stands now; a long one, a moment ago.
    pub(super) fn census(&mut self, origins: &[Origin], now: Timestamp) -> Census {
        if origins.len() <= FULL_SCAN {
            return Census::of(origins, now);
        }
        match self.census {
            // A clock that was set back must not keep it for ever.
            Some((at, census)) if now >= at && now.since(at) < CENSUS_FOR => census,
            _ => {
                let census = Census::of(origins, now);
                self.census = Some((now, census));
                census
            }
        }
    }
}

/// How many origins of a list may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Census {
    /// Those that the operator left in.
    ready: u32,
    available: u32,
    /// Those left in that refuse connections.
    refused: u32,
}

impl Census {
    pub fn of(origins: &[Origin], now: Timestamp) -> Census {
        let mut census = Census { ready: 0, available: 0, refused: 0 };
        for origin in origins {
            let standing = origin.state.standing(now);
            let ready = origin.state.admin() == Admin::Ready;
            census.ready += u32::from(ready);
            census.available += u32::from(standing.is_available());
            census.refused += u32::from(ready && standing == Standing::Refused);
        }
        census
    }

    /// Whether too few of the origins that the operator left in are available.
    pub fn panics(self, threshold: Ratio) -> bool {
        self.ready > 0 && f64::from(self.available) < threshold.0 * f64::from(self.ready)
    }

    /// Whether the list has origins that are left in, and every one of them refuses connections.
    pub fn only_refuse(self) -> bool {
        self.ready > 0 && self.refused == self.ready
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::origin::{Check, OriginId};
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn list(count: usize) -> Vec<Origin> {
        let origin = |index: usize| Origin {
            id: OriginId::new(&format!("o{index}")),
            url: String::new(),
            weight: 1,
            max_connections: None,
            state: Arc::default(),
        };
        (0..count).map(origin).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_short_list_is_counted_each_time_and_a_long_one_each_100_ms() {
        for (count, late) in [(FULL_SCAN, false), (FULL_SCAN + 1, true)] {
            let (origins, mut turns) = (list(count), Turns::default());
            turns.fit(&origins);
            let before = turns.census(&origins, NOW);
            origins[0].state.set_check(Check::Down, NOW);
            assert_eq!(turns.census(&origins, NOW + Millis(99)) == before, late);
            let after = turns.census(&origins, NOW + Millis(100));
            assert_eq!(after.available as usize, count - 1);
            assert_eq!(turns.census(&origins, NOW - Millis(60_000)), after, "a clock set back counts anew");
            origins[0].state.set_check(Check::Up, NOW);
            assert_eq!(turns.census(&origins, NOW - Millis(120_000)), before);
        }
    }
}
