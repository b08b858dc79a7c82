//! How one value of the configuration is read and written. Everything that may stand in the file is a [`Setting`]; a
//! section is a table of them, written once with `section!` and from then on read, defaulted and written alike.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{Errors, found, nearest};

/// A value that can stand in the configuration.
pub(super) trait Setting: Sized {
    /// What may stand there, for errors.
    fn allowed() -> String;

    /// Reads the value at `path`; `None` after at least one error was added.
    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<Self>;

    fn write(&self) -> Value;

    /// Reads the key of a table; the default when it is left out or wrong.
    fn take(table: &mut Table<'_>, key: &str, default: Self) -> Self {
        let path = table.path(key);
        match table.value(key) {
            Some(value) => Self::read(value, &path, table.errors).unwrap_or(default),
            None => default,
        }
    }

    /// Writes the key into a table, if it has a value.
    fn put(&self, key: &str, map: &mut Map<String, Value>) {
        map.insert(key.to_owned(), self.write());
    }
}

/// A table while it is read: it knows which keys were asked for, so that the others can be refused.
pub(super) struct Table<'t> {
    path: String,
    map: &'t Map<String, Value>,
    asked: Vec<String>,
    pub(super) errors: &'t mut Errors,
}

impl<'t> Table<'t> {
    pub(super) fn open(value: &'t Value, path: &str, errors: &'t mut Errors) -> Option<Table<'t>> {
        let Value::Object(map) = value else {
            errors.add(path, found(value), "a table");
            return None;
        };
        Some(Table { path: path.to_owned(), map, asked: Vec::new(), errors })
    }

    pub(super) fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(super) fn value(&mut self, key: &str) -> Option<&'t Value> {
        self.asked.push(key.to_owned());
        self.map.get(key)
    }

    /// A key that must be there. The placeholder only lets the reading go on: there is an error by then.
    pub(super) fn required<T: Setting>(&mut self, key: &str, placeholder: T) -> T {
        if !self.has(key) {
            self.errors.add(self.path(key), "nothing", T::allowed());
        }
        T::take(self, key, placeholder)
    }

    /// A value that must lie in a range; any error about it names the range.
    pub(super) fn within<T>(&mut self, key: &str, value: T, range: &RangeInclusive<T>) -> T
    where
        T: Setting + PartialOrd + Display + Clone,
    {
        let path = self.path(key);
        let allowed = format!("{} to {}", range.start(), range.end());
        if let Some(error) = self.errors.0.iter_mut().find(|error| error.path == path) {
            error.allowed = allowed;
        } else if !range.contains(&value) {
            self.errors.add(path, found(&value.write()), allowed);
            // What follows may rely on the range, say for a table's size.
            return range.start().clone();
        }
        value
    }

    /// Refuses the keys that nobody asked for.
    pub(super) fn close(self) {
        for key in self.map.keys().filter(|key| !self.asked.contains(key)) {
            let allowed = match nearest(key, &self.asked) {
                Some(near) => format!("{near} (the nearest key)"),
                None => self.asked.join(" | "),
            };
            self.errors.add(self.path(key), "an unknown key", allowed);
        }
    }
}

/// `section.key`, and `section."odd key"`.
pub(super) fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let key = if plain { key.to_owned() } else { super::error::quoted(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// A key's name from a field's: `r#type` stands for `type`.
pub(super) fn key_of(field: &'static str) -> &'static str {
    field.strip_prefix("r#").unwrap_or(field)
}

/// A table with fixed keys, each on a line: `key: Type = default;` may be left out, `key: Type => placeholder;` must be
/// there, and `within a..=b` bounds the value.
macro_rules! table {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$doc:meta])* $field:ident: $type:ty $(= $default:expr)? $(=> $placeholder:expr)? $(, within $range:expr)?;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl $crate::config::setting::Setting for $name {
            fn allowed() -> String {
                "a table".to_owned()
            }

            fn read(
                value: &serde_json::Value,
                path: &str,
                errors: &mut $crate::config::error::Errors,
            ) -> Option<$name> {
                let mut table = $crate::config::setting::Table::open(value, path, errors)?;
                $(
                    let key = $crate::config::setting::key_of(stringify!($field));
                    $(let $field = <$type as $crate::config::setting::Setting>::take(&mut table, key, $default);)?
                    $(let $field = table.required::<$type>(key, $placeholder);)?
                    $(let $field = table.within(key, $field, &$range);)?
                )*
                table.close();
                Some($name { $($field),* })
            }

            fn write(&self) -> serde_json::Value {
                let mut map = serde_json::Map::new();
                $(
                    let key = $crate::config::setting::key_of(stringify!($field));
                    $crate::config::setting::Setting::put(&self.$field, key, &mut map);
                )*
                serde_json::Value::Object(map)
            }
        }
    };
}

/// A table in which every key has a default.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$doc:meta])* $field:ident: $type:ty = $default:expr $(, within $range:expr)?;)*
    }) => {
        $crate::config::setting::table! {
            $(#[$meta])* $name { $($(#[$doc])* $field: $type = $default $(, within $range)?;)* }
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $($field: $default),* }
            }
        }
    };
}

/// A closed choice, written as text.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant),* }

        impl $name {
            /// As the configuration writes it.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::setting::Text for $name {
            fn allowed() -> String {
                [$($text),*].join(" | ")
            }

            fn parse(text: &str) -> Option<$name> {
                match text { $($text => Some($name::$variant),)* _ => None }
            }
        }
    };
}

pub(super) use {choice, section, table};

/// A value written as text; its `Display` is what `parse` reads.
pub(super) trait Text: Sized + Display {
    /// Whether the text may be a secret or carry one, so that errors don't repeat it.
    const QUIET: bool = false;
    fn allowed() -> String;
    fn parse(text: &str) -> Option<Self>;
}

impl<T: Text> Setting for T {
    fn allowed() -> String {
        T::allowed()
    }

    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<T> {
        let parsed = value.as_str().and_then(T::parse);
        if parsed.is_none() {
            let found = if T::QUIET { super::error::found_quietly(value) } else { found(value) };
            errors.add(path, found, T::allowed());
        }
        parsed
    }

    fn write(&self) -> Value {
        Value::String(self.to_string())
    }
}

impl Setting for bool {
    fn allowed() -> String {
        "true | false".to_owned()
    }

    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<bool> {
        let read = value.as_bool();
        if read.is_none() {
            errors.add(path, found(value), Self::allowed());
        }
        read
    }

    fn write(&self) -> Value {
        Value::Bool(*self)
    }
}

macro_rules! whole_number {
    ($($type:ty),*) => {$(
        impl Setting for $type {
            fn allowed() -> String {
                format!("a whole number from 0 to {}", <$type>::MAX)
            }

            fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<$type> {
                let read = value.as_u64().and_then(|number| number.try_into().ok());
                if read.is_none() {
                    errors.add(path, found(value), Self::allowed());
                }
                read
            }

            fn write(&self) -> Value {
                Value::from(*self)
            }
        }
    )*};
}

whole_number!(u16, u32, u64);

/// Left out: there is none.
impl<T: Setting> Setting for Option<T> {
    fn allowed() -> String {
        T::allowed()
    }

    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<Option<T>> {
        T::read(value, path, errors).map(Some)
    }

    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::write)
    }

    fn put(&self, key: &str, map: &mut Map<String, Value>) {
        if let Some(value) = self {
            value.put(key, map);
        }
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn allowed() -> String {
        format!("a list, each entry: {}", T::allowed())
    }

    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<Vec<T>> {
        let Value::Array(values) = value else {
            errors.add(path, found(value), Self::allowed());
            return None;
        };
        // Every entry is read, so that every error is found, before one that failed drops the list.
        let read: Vec<Option<T>> =
            values.iter().enumerate().map(|(i, value)| T::read(value, &format!("{path}[{i}]"), errors)).collect();
        read.into_iter().collect()
    }

    fn write(&self) -> Value {
        Value::Array(self.iter().map(T::write).collect())
    }
}
