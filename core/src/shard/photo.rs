//! Photo shards: one a month, by the UTC instant of the upload, `shard_{year}_{month}` as the original named them.
//!
//! The month is always UTC's. Month borders taken from a local clock are how partitioned tables lose rows, so an
//! instant's offset is applied before its month is read.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate};
use thiserror::Error;

use super::map::{ShardMap, ShardName};
use crate::units::{Millis, Timestamp};

/// The most months that one range may cover: a hundred years.
pub const MAX_MONTHS: usize = 1200;
/// The most sub-shards of one month.
pub const MAX_SUB_SHARDS: u16 = 1024;

/// A UTC calendar month of the years 0–9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: u16,
    number: u8,
}

/// A photo shard: a month, or one of a hot month's sub-shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhotoShard {
    pub month: Month,
    pub sub: Option<u16>,
}

/// Which instants are accepted (`[shards.photos]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhotoRules {
    /// Everything before this month is refused.
    pub from: Month,
    /// An instant may lie this far in the future (clocks differ).
    pub max_future: Millis,
}

/// Why an instant or a range has no shard: the client's fault, 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PhotoError {
    #[error("must be an RFC 3339 instant or YYYY-MM")]
    Format,
    #[error("lies before the first month that is kept")]
    TooEarly,
    #[error("lies too far in the future")]
    TooLate,
    #[error("the range ends before it begins")]
    Reversed,
    #[error("the range covers more than {MAX_MONTHS} months")]
    TooLong,
}

impl Month {
    /// `None` unless the year has at most four digits and the month is 1–12.
    pub const fn new(year: u16, number: u8) -> Option<Month> {
        if year <= 9999 && number >= 1 && number <= 12 { Some(Month { year, number }) } else { None }
    }

    /// From `YYYY-MM`, exactly seven characters.
    pub fn parse(text: &str) -> Option<Month> {
        let (year, number) = text.split_once('-')?;
        if year.len() != 4 || number.len() != 2 {
            return None;
        }
        Month::new(digits(year)?, digits(number)? as u8)
    }

    pub const fn year(self) -> u16 {
        self.year
    }

    /// 1–12.
    pub const fn number(self) -> u8 {
        self.number
    }

    /// `None` after December 9999.
    pub const fn next(self) -> Option<Month> {
        if self.number == 12 { Month::new(self.year + 1, 1) } else { Month::new(self.year, self.number + 1) }
    }

    /// The month of an instant; `None` after the year 9999.
    pub fn of(instant: Timestamp) -> Option<Month> {
        Month::of_millis(i64::try_from(instant.0).ok()?)
    }

    fn of_millis(millis: i64) -> Option<Month> {
        let date = DateTime::from_timestamp_millis(millis)?;
        Month::new(u16::try_from(date.year()).ok()?, date.month() as u8)
    }

    /// The first millisecond, in milliseconds since the Unix epoch (negative before 1970).
    fn start(self) -> i64 {
        NaiveDate::from_ymd_opt(i32::from(self.year), u32::from(self.number), 1)
            .and_then(|date| date.and_hms_opt(0, 0, 0))
            .map_or(i64::MAX, |instant| instant.and_utc().timestamp_millis())
    }
}

impl fmt::Display for Month {
    /// `YYYY-MM`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.number)
    }
}

impl PhotoShard {
    /// Reads `shard_2026_3`, `shard_2026_03` and either with a sub-shard's number.
    pub fn parse(name: &str) -> Option<PhotoShard> {
        let mut parts = name.strip_prefix("shard_")?.split('_');
        let (year, number) = (parts.next()?, parts.next()?);
        if year.len() != 4 || number.len() > 2 {
            return None;
        }
        let month = Month::new(digits(year)?, digits(number)? as u8)?;
        let sub = match parts.next() {
            None => None,
            Some(text) if text == "0" || !text.starts_with('0') => Some(digits(text)?),
            Some(_) => return None,
        };
        if parts.next().is_some() || sub.is_some_and(|sub| sub >= MAX_SUB_SHARDS) {
            return None;
        }
        Some(PhotoShard { month, sub })
    }
}

impl fmt::Display for PhotoShard {
    /// `shard_2026_3`, month unpadded as in the original.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard_{:04}_{}", self.month.year, self.month.number)?;
        match self.sub {
            Some(sub) => write!(f, "_{sub}"),
            None => Ok(()),
        }
    }
}

impl PhotoRules {
    /// The month of an upload given as an RFC 3339 instant or as `YYYY-MM`.
    ///
    /// A whole month is refused as too late only when even its first instant is.
    pub fn month(&self, text: &str, now: Timestamp) -> Result<Month, PhotoError> {
        let (month, instant) = read(text)?;
        if month < self.from {
            return Err(PhotoError::TooEarly);
        }
        if instant > self.latest(now) {
            return Err(PhotoError::TooLate);
        }
        Ok(month)
    }

    /// The months that hold instants of `from..to`, in order. Each end is an RFC 3339 instant or `YYYY-MM` (its first
    /// instant). An empty range has none.
    ///
    /// `to` may lie in the future as long as the last month of the range does not begin too far in it, so that "this
    /// month" can be asked for as `from=2026-03&to=2026-04`.
    pub fn months(&self, from: &str, to: &str, now: Timestamp) -> Result<Vec<Month>, PhotoError> {
        let ((first, start), (_, end)) = (read(from)?, read(to)?);
        if first < self.from {
            return Err(PhotoError::TooEarly);
        }
        if end < start {
            return Err(PhotoError::Reversed);
        }
        if end == start {
            return Ok(Vec::new());
        }
        let last = Month::of_millis(end - 1).ok_or(PhotoError::TooLate)?;
        if last.start() > self.latest(now) {
            return Err(PhotoError::TooLate);
        }
        let mut months = vec![first];
        let mut month = first;
        while month < last {
            if months.len() == MAX_MONTHS {
                return Err(PhotoError::TooLong);
            }
            month = month.next().ok_or(PhotoError::TooLate)?;
            months.push(month);
        }
        Ok(months)
    }

    fn latest(&self, now: Timestamp) -> i64 {
        i64::try_from((now + self.max_future).0).unwrap_or(i64::MAX)
    }
}

impl ShardMap {
    /// The photo shards that hold instants of `from..to`, in order of time, a hot month's sub-shards in order of their
    /// numbers. See [`PhotoRules::months`].
    pub fn shards_for_range(
        &self,
        rules: &PhotoRules,
        from: &str,
        to: &str,
        now: Timestamp,
    ) -> Result<Vec<ShardName>, PhotoError> {
        let months = rules.months(from, to, now)?;
        Ok(months.into_iter().flat_map(|month| self.photo_shards(month)).collect())
    }
}

/// A month and its first instant, or an instant and its month.
fn read(text: &str) -> Result<(Month, i64), PhotoError> {
    if let Some(month) = Month::parse(text) {
        return Ok((month, month.start()));
    }
    let instant = DateTime::parse_from_rfc3339(text).map_err(|_| PhotoError::Format)?.to_utc();
    // Read from the date, not from the milliseconds: in those a leap second belongs to the next month.
    let month = u16::try_from(instant.year()).ok().and_then(|year| Month::new(year, instant.month() as u8));
    let month = month.ok_or(if instant.year() < 0 { PhotoError::TooEarly } else { PhotoError::TooLate })?;
    Ok((month, instant.timestamp_millis()))
}

fn digits(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::hash::{HashKind, ShardKey};
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const RULES: PhotoRules = PhotoRules { from: Month { year: 2020, number: 1 }, max_future: Millis::from_secs(3600) };

    fn at(text: &str) -> Timestamp {
        Timestamp(DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis() as u64)
    }

    fn shard_of(text: &str) -> Result<String, PhotoError> {
        let month = RULES.month(text, at("2030-01-01T00:00:00Z"))?;
        Ok(PhotoShard { month, sub: None }.to_string())
    }

    fn names(map: &ShardMap, from: &str, to: &str) -> Result<Vec<String>, PhotoError> {
        let shards = map.shards_for_range(&RULES, from, to, at("2030-01-01T00:00:00Z"))?;
        Ok(shards.iter().map(ToString::to_string).collect())
    }

    fn map() -> ShardMap {
        ShardMap::first(HashKind::Siphash24, ShardKey(std::array::from_fn(|i| i as u8)), 1, BTreeMap::new())
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_month_is_the_one_in_utc_at_every_border() {
        let cases = [
            ("2024-02-29T23:59:59.999Z", "shard_2024_2"),
            ("2024-03-01T00:00:00Z", "shard_2024_3"),
            ("2023-02-28T23:59:59.999999Z", "shard_2023_2"),
            ("2023-03-01T00:00:00+00:00", "shard_2023_3"),
            ("2024-12-31T23:59:59.999Z", "shard_2024_12"),
            ("2025-01-01T00:00:00Z", "shard_2025_1"),
            ("2025-01-01T00:30:00+01:00", "shard_2024_12"),
            ("2024-12-31T23:30:00-01:00", "shard_2025_1"),
            ("2024-03-01T05:29:59+05:30", "shard_2024_2"),
            ("2024-03-01T05:30:00+05:30", "shard_2024_3"),
            ("2024-02-29T10:00:00-14:00", "shard_2024_3"),
            // Central Europe's clock change, and a leap second.
            ("2024-03-31T23:30:00+02:00", "shard_2024_3"),
            ("2026-06-30T23:59:60Z", "shard_2026_6"),
            ("2026-03", "shard_2026_3"),
            ("2026-12", "shard_2026_12"),
        ];
        for (text, shard) in cases {
            assert_eq!(shard_of(text).as_deref(), Ok(shard), "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_neither_an_instant_nor_a_month_is_refused() {
        for text in [
            "",
            "2026",
            "2026-3",
            "2026-13",
            "2026-00",
            "2026-03-01",
            "2026-02-30T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-03-01T00:00:00",
            "now",
            "02026-03",
            "+026-03",
            "2026-+3",
            "2026-03-01T25:00:00Z",
        ] {
            assert_eq!(shard_of(text), Err(PhotoError::Format), "{text:?}");
        }
        assert_eq!(shard_of("0000-01-01T00:00:00+01:00"), Err(PhotoError::TooEarly));
        assert_eq!(shard_of("9999-12-31T23:59:59-01:00"), Err(PhotoError::TooLate));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn instants_outside_the_window_are_refused_exactly_at_its_edges() {
        let now = at("2026-03-31T23:30:00Z");
        let month = |text| RULES.month(text, now);
        assert_eq!(month("2019-12-31T23:59:59.999Z"), Err(PhotoError::TooEarly));
        assert_eq!(month("2020-01-01T00:00:00Z"), Ok(RULES.from));
        assert_eq!(month("2019-12"), Err(PhotoError::TooEarly));
        assert_eq!(month("1969-07-20T20:17:00Z"), Err(PhotoError::TooEarly));
        assert!(month("2026-04-01T00:30:00Z").is_ok());
        assert_eq!(month("2026-04-01T00:30:00.001Z"), Err(PhotoError::TooLate));
        assert!(month("2026-04").is_ok());
        assert_eq!(month("2026-05"), Err(PhotoError::TooLate));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_range_is_half_open_ordered_and_bounded() {
        let map = map();
        let list = |from, to| names(&map, from, to);
        assert_eq!(list("2024-11", "2025-02").unwrap(), ["shard_2024_11", "shard_2024_12", "shard_2025_1"]);
        assert_eq!(list("2024-11", "2024-12-01T00:00:00Z").unwrap(), ["shard_2024_11"]);
        assert_eq!(list("2024-11", "2024-12-01T00:00:00.001Z").unwrap(), ["shard_2024_11", "shard_2024_12"]);
        assert_eq!(list("2024-11-30T23:59:59.999Z", "2024-12-01T00:00:00Z").unwrap(), ["shard_2024_11"]);
        assert!(list("2024-11", "2024-11").unwrap().is_empty());
        assert_eq!(list("2024-11", "2024-10"), Err(PhotoError::Reversed));
        assert_eq!(list("2019-12", "2024-10"), Err(PhotoError::TooEarly));
        assert_eq!(list("2029-12", "2030-02").unwrap(), ["shard_2029_12", "shard_2030_1"]);
        assert_eq!(list("2029-12", "2030-03"), Err(PhotoError::TooLate));

        let ancient = PhotoRules { from: Month::new(0, 1).unwrap(), ..RULES };
        let now = at("2030-01-01T00:00:00Z");
        assert_eq!(ancient.months("1900-01", "2000-01", now).unwrap().len(), MAX_MONTHS);
        assert_eq!(ancient.months("1900-01", "2000-02", now), Err(PhotoError::TooLong));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_hot_month_is_split_by_the_keyed_hash_of_the_path() {
        let month = Month::parse("2026-03").unwrap();
        let cold = map();
        assert_eq!(cold.place_photo(month, "/photos/2026-03/ü").as_str(), "shard_2026_3");
        let hot = cold.with_sub_shards(month, 4).unwrap();
        // 0x3507401b35031ab9 mod 4, a published vector.
        assert_eq!(hot.place_photo(month, "/photos/2026-03/ü").as_str(), "shard_2026_3_1");
        let list = names(&hot, "2026-03", "2026-05").unwrap();
        assert_eq!(list, ["shard_2026_3_0", "shard_2026_3_1", "shard_2026_3_2", "shard_2026_3_3", "shard_2026_4"]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn padded_and_unpadded_names_are_read_and_the_unpadded_one_is_written() {
        for (name, written) in [
            ("shard_2026_3", "shard_2026_3"),
            ("shard_2026_03", "shard_2026_3"),
            ("shard_2026_03_7", "shard_2026_3_7"),
            ("shard_2026_12_0", "shard_2026_12_0"),
        ] {
            assert_eq!(PhotoShard::parse(name).unwrap().to_string(), written);
        }
        for name in [
            "shard_2026",
            "shard_0",
            "shard_2026_13",
            "shard_2026_003",
            "shard_2026_3_",
            "shard_2026_3_01",
            "shard_2026_3_1024",
            "shard_2026_3_1_1",
            "shard_26_3",
            "shard_2026_x",
        ] {
            assert_eq!(PhotoShard::parse(name), None, "{name}");
        }
    }
}
