//! Which members an origin has. One whose URL has an address is a member itself. One with a name is as many members as the
//! name has addresses, each with counts of its own: in flight, failures, health, and its clients' sticky cookies. Shells
//! resolve names; what follows from what they find is decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::endpoint::Endpoint;
use crate::balance::OriginId;
use crate::config::{Config, HostName, PoolConfig};

/// A name that has more addresses is used by the first of them.
const MOST: usize = 256;

/// What the names of origins were found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(BTreeMap<String, Vec<IpAddr>>);

impl Addresses {
    /// The names to resolve, each once. One that means this very machine is left to the connection, which tries all that it
    /// has: an origin listens on either loopback address.
    pub fn names(config: &Config) -> BTreeSet<&str> {
        let origins = config.pools.iter().flat_map(|pool| &pool.origins);
        origins.map(|origin| &origin.url.host).filter(|host| is_resolved(host)).map(HostName::as_str).collect()
    }

    /// A name has these addresses now. True when it had others before. None at all is no reason to send requests nowhere:
    /// what was known last stays.
    pub fn found(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let sorted: BTreeSet<IpAddr> = addresses.into_iter().map(|address| address.to_canonical()).collect();
        let found: Vec<IpAddr> = sorted.into_iter().take(MOST).collect();
        if found.is_empty() || self.0.get(name) == Some(&found) {
            return false;
        }
        self.0.insert(name.to_owned(), found);
        true
    }

    /// What a name has; empty when it was never found.
    pub fn of(&self, name: &str) -> &[IpAddr] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Without what no origin is called any longer.
    pub(super) fn named_in(mut self, config: &Config) -> Addresses {
        let names = Addresses::names(config);
        self.0.retain(|name, _| names.contains(name.as_str()));
        self
    }
}

fn is_resolved(host: &HostName) -> bool {
    host.ip().is_none() && !host.is_loopback()
}

/// The members of a pool's origins: each with the index of its origin, its id and where it listens.
pub(super) fn members(pool: &PoolConfig, addresses: &Addresses) -> Vec<(usize, OriginId, Arc<Endpoint>)> {
    let mut members = Vec::new();
    for (at, origin) in pool.origins.iter().enumerate() {
        let host = &origin.url.host;
        let found = if is_resolved(host) { addresses.of(host.as_str()) } else { &[] };
        for address in found {
            let id = OriginId::new(&format!("{}@{address}", origin.id));
            members.push((at, id, Arc::new(Endpoint::new(&origin.url, Some(*address), pool))));
        }
        if found.is_empty() {
            members.push((at, OriginId::new(&origin.id), Arc::new(Endpoint::new(&origin.url, None, pool))));
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::super::rules::Live;
    use super::*;
    use crate::balance::Admin;
    use crate::{Entropy, Millis, Timestamp};
    use wasm_bindgen_test::wasm_bindgen_test;

    fn config() -> Config {
        let origins = [("a", "app.internal"), ("b", "10.0.0.9"), ("c", "localhost"), ("d", "app.internal:81")];
        let origins = origins.map(|(id, host)| format!("{{ id = \"{id}\", url = \"http://{host}\" }}"));
        let text = format!("[[pools]]\nshard = \"shard_0\"\norigins = [{}]", origins.join(", "));
        Config::from_toml(&text).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn shown(addresses: &Addresses) -> Vec<String> {
        let members = members(&config().pools[0], addresses);
        members.iter().map(|(at, id, endpoint)| format!("{at} {id} {}", endpoint.host())).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_name_is_as_many_members_as_it_has_addresses() {
        let mut addresses = Addresses::default();
        assert_eq!(Addresses::names(&config()), BTreeSet::from(["app.internal"]));
        assert_eq!(shown(&addresses), ["0 a app.internal", "1 b 10.0.0.9", "2 c localhost", "3 d app.internal"]);
        assert!(addresses.found("app.internal", [ip("10.0.0.2"), ip("10.0.0.1"), ip("2001:db8::1")]));
        let expected = [
            "0 a@10.0.0.1 10.0.0.1",
            "0 a@10.0.0.2 10.0.0.2",
            "0 a@2001:db8::1 2001:db8::1",
            "1 b 10.0.0.9",
            "2 c localhost",
            "3 d@10.0.0.1 10.0.0.1",
            "3 d@10.0.0.2 10.0.0.2",
            "3 d@2001:db8::1 2001:db8::1",
        ];
        assert_eq!(shown(&addresses), expected);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_member_that_comes_while_requests_do_has_its_slow_start() {
        let live = Live::new(&config(), &mut Entropy::from_seed([1; 32]));
        let warmth = |id: &str| live.origin(&OriginId::new(id)).warmth(Timestamp(1_000), Millis(10_000));
        assert_eq!(warmth("a@10.0.0.1"), 1000);
        live.open();
        assert_eq!((warmth("a@10.0.0.1"), warmth("a@10.0.0.2"), warmth("e")), (1000, 100, 100));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn only_other_addresses_are_a_change_and_none_are_no_addresses() {
        let mut addresses = Addresses::default();
        assert!(!addresses.found("n", []));
        assert!(addresses.found("n", [ip("10.0.0.1"), ip("10.0.0.2")]));
        assert!(!addresses.found("n", [ip("10.0.0.2"), ip("::ffff:10.0.0.1"), ip("10.0.0.2")]));
        assert!(!addresses.found("n", []));
        assert_eq!(addresses.of("n"), [ip("10.0.0.1"), ip("10.0.0.2")]);
        assert!(addresses.found("n", [ip("10.0.0.2")]));
        assert_eq!(addresses.of("n"), [ip("10.0.0.2")]);
        assert_eq!(addresses.named_in(&config()), Addresses::default());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_new_member_of_a_drained_origin_is_drained_and_one_that_is_gone_is_forgotten() {
        let live = Live::new(&config(), &mut Entropy::from_seed([7; 32]));
        let state = |id: &str| live.origin(&OriginId::new(id));
        state("a").set_admin(Admin::Drain, Timestamp(1));
        assert_eq!(state("a@10.0.0.1").admin(), Admin::Drain, "as the name before it was found");
        assert_eq!(state("a@10.0.0.2").admin(), Admin::Drain);
        state("a@10.0.0.2").set_admin(Admin::Ready, Timestamp(1));
        assert_eq!(state("a@10.0.0.3").admin(), Admin::Ready, "only some of them are drained");
        assert_eq!(state("ab@10.0.0.1").admin(), Admin::Ready, "another origin");
        let held = state("a@10.0.0.1");
        live.forget_members();
        assert_eq!(state("a@10.0.0.1").admin(), Admin::Drain, "a request has it still");
        drop(held);
        live.forget_members();
        state("a").set_admin(Admin::Ready, Timestamp(1));
        assert_eq!(state("a@10.0.0.1").admin(), Admin::Ready, "nobody knew it any longer");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_word_on_an_origin_counts_for_every_address_of_its_name() {
        let live = Live::new(&config(), &mut Entropy::from_seed([7; 32]));
        let state = |id: &str| live.origin(&OriginId::new(id));
        let say = |id: &str, word: Admin| live.set_admin(&OriginId::new(id), word, Timestamp(1));
        let (one, two, other) = (state("a@10.0.0.1"), state("a@10.0.0.2"), state("ab@10.0.0.1"));
        say("a", Admin::Drain);
        assert_eq!([&one, &two, &other].map(|state| state.admin()), [Admin::Drain, Admin::Drain, Admin::Ready]);
        assert_eq!(state("a@10.0.0.3").admin(), Admin::Drain, "one that comes later");
        drop((one, two));
        live.forget_members();
        assert_eq!(state("a@10.0.0.4").admin(), Admin::Drain, "nobody else is left who knew");
        say("a@10.0.0.4", Admin::Maintenance);
        assert_eq!([state("a@10.0.0.4").admin(), state("a").admin()], [Admin::Maintenance, Admin::Drain]);
        say("a", Admin::Ready);
        assert_eq!(state("a@10.0.0.4").admin(), Admin::Ready);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_name_has_so_many_members_and_no_more() {
        let many = |count: u32| (0..count).map(|at| IpAddr::from((0x0a00_0000 + at).to_be_bytes()));
        let mut addresses = Addresses::default();
        addresses.found("n", many(256));
        assert_eq!(addresses.of("n").len(), 256);
        assert!(!addresses.found("n", many(257)), "the first ones stay");
    }
}
