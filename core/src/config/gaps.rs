//! What a configuration leaves out that nobody may miss until a request comes for it.

use super::{Config, ShardName, ShardRule, YearMonth};
use crate::Timestamp;
use crate::shard::Month;

impl Config {
    /// The months from `shards.photos.from` to this one whose photos have no pool, each run of them as its first and last
    /// month. None where no route asks for photos.
    pub fn photo_gaps(&self, now: Timestamp) -> Vec<(Month, Month)> {
        let YearMonth { year, month } = self.shards.photos.from;
        let asked = self.routes.iter().any(|route| matches!(route.shard, ShardRule::Photo(_)));
        let (Some(first), Some(last), true) = (Month::new(year, month), Month::of(now), asked) else {
            return Vec::new();
        };
        let has_pool = |month: Month| {
            let shard = ShardName::Photo { year: month.year(), month: month.number(), part: None };
            self.pool_of(shard).is_some()
        };
        let months = std::iter::successors(Some(first), |month| month.next()).take_while(|month| *month <= last);
        let mut gaps: Vec<(Month, Month)> = Vec::new();
        for month in months.filter(|month| !has_pool(*month)) {
            match gaps.last_mut() {
                Some((_, end)) if end.next() == Some(month) => *end = month,
                _ => gaps.push((month, month)),
            }
        }
        gaps
    }
}

#[cfg(test)]
#[cfg(feature = "toml")]
mod tests {
    use wasm_bindgen_test::wasm_bindgen_test;

    use super::*;

    /// The start of March 2026.
    const NOW: Timestamp = Timestamp(1_772_323_200_000);

    fn gaps(pools: &[&str], route: &str, from: &str) -> Vec<String> {
        let mut text = format!(
            "[shards.photos]\nfrom = \"{from}\"\n[[routes]]\npath = \"/{{month}}\"\nshard = \"{route}\"\n\
             [[pools]]\nshard = \"shard_0\"\norigins = [{{ id = \"user\", url = \"http://127.0.0.1:1\" }}]\n"
        );
        for (number, pool) in pools.iter().enumerate() {
            text += &format!(
                "[[pools]]\nshard = \"{pool}\"\norigins = [{{ id = \"o{number}\", url = \"http://127.0.0.1:1\" }}]\n"
            );
        }
        let config = Config::from_toml(&text).unwrap();
        config.photo_gaps(NOW).iter().map(|(first, last)| format!("{first} to {last}")).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn months_without_a_pool_are_listed_in_runs_up_to_this_month() {
        let some = ["shard_2025_3", "shard_2025_11", "shard_2026_*"];
        assert_eq!(
            gaps(&some, "photo:month", "2025-02"),
            ["2025-02 to 2025-02", "2025-04 to 2025-10", "2025-12 to 2025-12"]
        );
        assert_eq!(gaps(&["shard_2026_1"], "photo:month", "2026-01"), ["2026-02 to 2026-03"]);
        // A part of a month is not the month.
        assert_eq!(gaps(&["shard_2026_3_0"], "photo:month", "2026-03"), ["2026-03 to 2026-03"]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn nothing_is_missing_where_one_pool_has_all_or_nobody_asks() {
        assert_eq!(gaps(&["shard_*"], "photo:month", "1970-01"), [""; 0]);
        assert_eq!(gaps(&[], "user", "2020-01"), [""; 0]);
        assert_eq!(gaps(&[], "photo:month", "2026-04"), [""; 0]);
    }
}
