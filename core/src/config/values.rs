//! Values with a form of their own: durations, sizes, shares, rates, networks, months and the places of secrets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Number, Value};

use super::error::{Errors, found};
use super::setting::{Setting, Table, Text};
use crate::route::{CanonicalPath, Pattern};
use crate::{ByteSize, Millis, Percent, Ratio};

/// The longest duration, ten years: sums with an instant stay far from any overflow.
pub(super) const MAX_DURATION: Millis = Millis(3650 * 86_400_000);
/// The largest size, one tebibyte.
pub(super) const MAX_SIZE: ByteSize = ByteSize(1 << 40);
const MAX_TEXT: usize = 4096;

impl Text for Millis {
    fn allowed() -> String {
        "a duration such as \"15m\" or \"500ms\": a whole number with ms, s, m, h or d, at most 3650d".to_owned()
    }

    fn parse(text: &str) -> Option<Millis> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        scaled(text, &units).map(Millis).filter(|span| *span <= MAX_DURATION)
    }
}

impl std::str::FromStr for Millis {
    type Err = String;

    /// As in the configuration; the error says what is allowed.
    fn from_str(text: &str) -> Result<Millis, String> {
        <Millis as Text>::parse(text).ok_or_else(<Millis as Text>::allowed)
    }
}

impl Text for ByteSize {
    fn allowed() -> String {
        "a size such as \"64KiB\": a whole number with B, KiB, MiB or GiB, at most 1024GiB".to_owned()
    }

    fn parse(text: &str) -> Option<ByteSize> {
        let units = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
        scaled(text, &units).map(ByteSize).filter(|size| *size <= MAX_SIZE)
    }
}

/// A whole number and its unit.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, size) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*size)
}

macro_rules! share {
    ($type:ident, $max:literal, $allowed:literal) => {
        impl Setting for $type {
            fn allowed() -> String {
                $allowed.to_owned()
            }

            fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<$type> {
                let read = value.as_f64().filter(|share| (0.0..=$max).contains(share)).map($type);
                if read.is_none() {
                    errors.add(path, found(value), Self::allowed());
                }
                read
            }

            fn write(&self) -> Value {
                Number::from_f64(self.0).map_or(Value::Null, Value::Number)
            }
        }
    };
}

share!(Ratio, 1.0, "a number from 0 to 1");
share!(Percent, 100.0, "a number from 0 to 100");

/// Text without control characters, not empty.
impl Text for String {
    fn allowed() -> String {
        "a text of 1 to 4096 bytes, without control characters".to_owned()
    }

    fn parse(text: &str) -> Option<String> {
        let good = (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control);
        good.then(|| text.to_owned())
    }
}

impl Text for SocketAddr {
    fn allowed() -> String {
        "an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"".to_owned()
    }

    fn parse(text: &str) -> Option<SocketAddr> {
        text.parse().ok()
    }
}

impl Text for http::Method {
    fn allowed() -> String {
        "a method in upper case, such as \"GET\"".to_owned()
    }

    fn parse(text: &str) -> Option<http::Method> {
        let upper = text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_');
        http::Method::from_bytes(text.as_bytes()).ok().filter(|_| upper)
    }
}

impl Setting for Pattern {
    fn allowed() -> String {
        "a path such as \"/users/{id}\" or \"/files/{rest..}\"".to_owned()
    }

    /// The error says which rule of patterns was broken.
    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<Pattern> {
        match value.as_str().map(Pattern::parse) {
            Some(Ok(pattern)) => return Some(pattern),
            Some(Err(reason)) => errors.add(path, found(value), format!("{}: {reason}", Self::allowed())),
            None => errors.add(path, found(value), Self::allowed()),
        }
        None
    }

    fn write(&self) -> Value {
        Value::String(self.to_string())
    }
}

/// `server.api_prefix`: nothing, or a plain path without a slash at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiPrefix(String);

impl ApiPrefix {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApiPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Text for ApiPrefix {
    fn allowed() -> String {
        "\"\", or a path such as \"/auth\" of letters, digits and -._~, without a slash at its end".to_owned()
    }

    fn parse(text: &str) -> Option<ApiPrefix> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~/".contains(&b));
        let path = CanonicalPath::parse(text).is_ok() && !text.ends_with('/');
        (text.is_empty() || plain && path).then(|| ApiPrefix(text.to_owned()))
    }
}

/// So many events in a span of time: `100/1m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// At least 1.
    pub count: u32,
    /// Never zero.
    pub per: Millis,
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.per)
    }
}

impl Text for RateLimit {
    fn allowed() -> String {
        "a count and a duration, neither of them 0, such as \"100/1m\"".to_owned()
    }

    fn parse(text: &str) -> Option<RateLimit> {
        let (count, per) = text.split_once('/')?;
        let digits = count.bytes().all(|b| b.is_ascii_digit());
        let count = count.parse().ok().filter(|count| digits && *count > 0)?;
        let per = <Millis as Text>::parse(per).filter(|per| *per > Millis::ZERO)?;
        Some(RateLimit { count, per })
    }
}

/// A network (RFC 4632): `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Reads an address with or without a prefix length; bits after the prefix must be 0.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) if bits.bytes().all(|b| b.is_ascii_digit()) => (address, Some(bits.parse().ok()?)),
            Some(_) => return None,
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        let network = Network { address, bits };
        (bits <= width && network.masked(address) == as_bits(address)).then_some(network)
    }

    /// Whether an address lies in the network. An IPv4 address that came through an IPv6 socket counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = if self.address.is_ipv4() { address.to_canonical() } else { address };
        address.is_ipv4() == self.address.is_ipv4() && self.masked(address) == as_bits(self.address)
    }

    fn masked(&self, address: IpAddr) -> u128 {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        let free = u32::from(width - self.bits.min(width));
        as_bits(address).checked_shr(free).and_then(|kept| kept.checked_shl(free)).unwrap_or(0)
    }
}

fn as_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Text for Network {
    fn allowed() -> String {
        "an address or a network such as \"10.0.0.0/8\", with no bits set after its prefix".to_owned()
    }

    fn parse(text: &str) -> Option<Network> {
        Network::parse(text)
    }
}

/// A calendar month, UTC: `2020-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct YearMonth {
    /// 1970–9999
    pub year: u16,
    /// 1–12
    pub month: u8,
}

impl fmt::Display for YearMonth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl Text for YearMonth {
    fn allowed() -> String {
        "a month such as \"2020-01\", from \"1970-01\" on".to_owned()
    }

    fn parse(text: &str) -> Option<YearMonth> {
        let (year, month) = text.split_once('-')?;
        let digits = |text: &str, width| text.len() == width && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return None;
        }
        let (year, month) = (year.parse().ok()?, month.parse().ok()?);
        (year >= 1970 && (1..=12).contains(&month)).then_some(YearMonth { year, month })
    }
}

/// Where a secret is found: `<key>_env` names an environment variable, `<key>_file` a file. At most one is given; the
/// secret itself never stands in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretSource {
    pub env: Option<String>,
    pub file: Option<String>,
}

impl SecretSource {
    pub(super) fn from_env(name: &str) -> SecretSource {
        SecretSource { env: Some(name.to_owned()), file: None }
    }
}

/// The name of an environment variable. Errors don't show it: a secret may have been written in its place.
struct Variable(String);

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Text for Variable {
    const QUIET: bool = true;

    fn allowed() -> String {
        "the name of an environment variable: letters, digits and _, not the secret itself".to_owned()
    }

    fn parse(text: &str) -> Option<Variable> {
        let start = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let good = start && text.len() <= 256 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        good.then(|| Variable(text.to_owned()))
    }
}

/// The path of a file with a secret in it; as quiet as [`Variable`].
struct SecretFile(String);

impl fmt::Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Text for SecretFile {
    const QUIET: bool = true;

    fn allowed() -> String {
        "a file's path, not the secret itself".to_owned()
    }

    fn parse(text: &str) -> Option<SecretFile> {
        <String as Text>::parse(text).map(SecretFile)
    }
}

impl Setting for SecretSource {
    fn allowed() -> String {
        "its _env or its _file key".to_owned()
    }

    /// A secret has no key of its own.
    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<SecretSource> {
        errors.add(path, super::error::found_quietly(value), Self::allowed());
        None
    }

    fn write(&self) -> Value {
        Value::Null
    }

    fn take(table: &mut Table<'_>, key: &str, default: SecretSource) -> SecretSource {
        let (env_key, file_key) = (format!("{key}_env"), format!("{key}_file"));
        let both = table.has(&env_key) && table.has(&file_key);
        let env = <Option<Variable> as Setting>::take(table, &env_key, None);
        let file = <Option<SecretFile> as Setting>::take(table, &file_key, None);
        if both {
            let path = table.path(&file_key);
            table.errors.add(path, format!("{env_key} beside it"), format!("{env_key} | {file_key}, not both"));
        }
        match (env, file) {
            (None, None) => default,
            (env, file) => SecretSource { env: env.map(|v| v.0), file: file.map(|f| f.0) },
        }
    }

    fn put(&self, key: &str, map: &mut Map<String, Value>) {
        for (suffix, value) in [("env", &self.env), ("file", &self.file)] {
            if let Some(text) = value {
                map.insert(format!("{key}_{suffix}"), Value::String(text.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn parse<T: Text>(text: &str) -> Option<T> {
        T::parse(text)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_duration_is_a_whole_number_and_one_unit() {
        for (text, ms) in [("0s", 0), ("500ms", 500), ("15m", 900_000), ("30d", 2_592_000_000), ("24h", 86_400_000)] {
            assert_eq!(parse(text), Some(Millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "1.5s", "-1s", "+1s", "1 s", "1h30m", "1S", "5sec", "3651d", "99999999999999999999s"]
        {
            assert_eq!(parse::<Millis>(text), None, "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_size_is_a_whole_number_and_a_binary_unit() {
        assert_eq!(parse("64KiB"), Some(ByteSize(65_536)));
        assert_eq!(parse("0B"), Some(ByteSize(0)));
        for text in ["", "64", "64KB", "64kib", "1.5MiB", "1025GiB", "99999999999999GiB", "-1B"] {
            assert_eq!(parse::<ByteSize>(text), None, "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_printed_is_read_again() {
        for ms in [0, 1, 999, 1000, 1500, 60_000, 3_600_000, 86_400_000, 86_400_001] {
            assert_eq!(parse(&Millis(ms).to_string()), Some(Millis(ms)));
        }
        for bytes in [0, 1, 1023, 1024, 1025, 1 << 20, 1 << 30, 1 << 40] {
            assert_eq!(parse(&ByteSize(bytes).to_string()), Some(ByteSize(bytes)));
        }
        for text in ["100/1m", "1/1ms"] {
            assert_eq!(parse::<RateLimit>(text).unwrap().to_string(), text);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_rate_has_a_count_and_a_span() {
        assert_eq!(parse("100/1m"), Some(RateLimit { count: 100, per: Millis(60_000) }));
        for text in ["", "100", "100/", "/1m", "0/1m", "1/0s", "1/m", "-1/1m", "+1/1m", "1/1m/1m", "4294967296/1s"] {
            assert_eq!(parse::<RateLimit>(text), None, "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_network_contains_its_addresses_and_no_others() {
        let net = Network::parse("10.1.0.0/16").unwrap();
        assert!(net.contains("10.1.255.3".parse().unwrap()) && net.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert!(!net.contains("10.2.0.1".parse().unwrap()) && !net.contains("::1".parse().unwrap()));
        let one = Network::parse("::1").unwrap();
        assert!(one.contains("::1".parse().unwrap()) && !one.contains("::2".parse().unwrap()));
        let all = Network::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()) && !all.contains("2001:db8::1".parse().unwrap()));
        let all6 = Network::parse("::/0").unwrap();
        assert!(all6.contains("2001:db8::1".parse().unwrap()) && !all6.contains("1.2.3.4".parse().unwrap()));
        for text in ["", "10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "a/8", "10.0.0/8"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_month_has_four_and_two_digits() {
        assert_eq!(parse("2020-01"), Some(YearMonth { year: 2020, month: 1 }));
        for text in ["2020-1", "2020-13", "2020-00", "1969-12", "2020", "2020-01-01", "20200-1"] {
            assert_eq!(parse::<YearMonth>(text), None, "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_api_prefix_is_empty_or_a_plain_path() {
        for text in ["", "/auth", "/a/b-c_d~e"] {
            assert!(parse::<ApiPrefix>(text).is_some(), "{text}");
        }
        for text in ["/", "auth", "/auth/", "/a//b", "/a/../b", "/%61", "/a b", "/{x}"] {
            assert!(parse::<ApiPrefix>(text).is_none(), "{text}");
        }
    }
}
