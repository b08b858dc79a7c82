//! The scripts, each atomic on the keys of one user: their texts and the hashes that Redis knows them by.

use std::sync::LazyLock;

use edgekeep_core::session::{NewSession, Rotate};
use redis::{Cmd, ToRedisArgs, Value, cmd};

use super::state::{self, bytes};

/// A Lua script and its SHA-1, by which EVALSHA names it.
pub struct Script {
    text: &'static str,
    sha: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub static $name: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!(concat!("scripts/", $file))));)*

        /// All of them, to be loaded when a connection begins.
        pub fn all() -> Vec<&'static Script> {
            vec![$(&$name),*]
        }
    };
}

scripts! {
    CREATE = "create.lua";
    ROTATE = "rotate.lua";
    REPLACE = "replace.lua";
    CONFIRM = "confirm.lua";
    REVOKE = "revoke.lua";
    REVOKE_ALL = "revoke_all.lua";
    REPORT = "report.lua";
}

impl Script {
    fn new(text: &'static str) -> Script {
        Script { text, sha: redis::Script::new(text).get_hash().to_owned() }
    }

    pub fn load(&self) -> Cmd {
        let mut load = cmd("SCRIPT");
        load.arg("LOAD").arg(self.text);
        load
    }

    /// `whole` sends the text, for a server that does not know the hash.
    pub fn call(&self, keys: &[String], args: &[Vec<u8>], whole: bool) -> Cmd {
        let mut call = if whole { cmd("EVAL") } else { cmd("EVALSHA") };
        call.arg(if whole { self.text } else { self.sha.as_str() }).arg(keys.len());
        keys.iter().for_each(|key| {
            call.arg(key);
        });
        args.iter().for_each(|arg| {
            call.arg(arg.as_slice());
        });
        call
    }
}

/// What `create.lua` is told, beside its keys.
pub fn create_arguments(new: &NewSession, dead_mark: u64, known: &[String]) -> Vec<Vec<u8>> {
    let mut args = vec![
        arg(new.record_json()),
        arg(new.id.to_string()),
        arg(new.created_at.0),
        arg(new.absolute.0),
        arg(new.idle.0),
        arg(new.max_per_user),
        arg(u8::from(new.evict_oldest)),
        arg(dead_mark),
        arg(known.len()),
    ];
    args.extend(known.iter().map(arg));
    for (field, value) in state::whole(&new.refresh_state(0)) {
        args.push(arg(field));
        args.push(value);
    }
    // For the choice of the oldest, which no reply needs.
    args.extend([arg("created"), arg(new.created_at.0)]);
    args
}

/// What `rotate.lua` is told, beside its keys.
pub fn rotate_arguments(rotate: &Rotate) -> [Vec<u8>; 6] {
    [
        arg(rotate.presented),
        arg(rotate.now.0),
        state::packed(rotate.now).to_vec(),
        arg(rotate.key_id),
        rotate.device.map(|device| device.0.to_vec()).unwrap_or_default(),
        arg(rotate.idle_ttl.0),
    ]
}

/// What a script answered: a word, and what follows it.
pub struct Answer {
    word: Vec<u8>,
    pub rest: Vec<Value>,
}

impl Answer {
    pub fn read(value: Value) -> Option<Answer> {
        let Value::Array(values) = value else { return None };
        let mut values = values.into_iter();
        let word = bytes(&values.next()?)?.to_vec();
        Some(Answer { word, rest: values.collect() })
    }

    pub fn is(&self, word: &str) -> bool {
        self.word == word.as_bytes()
    }

    /// What follows as texts.
    pub fn texts(&self) -> Vec<String> {
        self.rest.iter().filter_map(|value| String::from_utf8(bytes(value)?.to_vec()).ok()).collect()
    }
}

/// An argument as Redis gets it.
pub fn arg(value: impl ToRedisArgs) -> Vec<u8> {
    value.to_redis_args().into_iter().next().unwrap_or_default()
}
