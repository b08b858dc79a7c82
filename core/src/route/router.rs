//! The most specific route of a request.
//!
//! matchit walks a radix tree, so a lookup costs the length of the path and not the number of routes. It knows neither
//! hosts nor methods, and refuses `/{a}` beside `/{rest..}`; so there is a small table for each (host, method) pair,
//! and in it one tree for the patterns of fixed length and one for each depth at which a `{rest..}` stands. The best
//! of their answers wins.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use thiserror::Error;

use super::path::CanonicalPath;
use super::pattern::{Pattern, Segment};
use crate::config::RouteConfig;

/// The longest DNS name (RFC 1035 §2.3.4); no configured host is longer.
const MAX_HOST: usize = 253;

/// All routes, ready to be asked. Immutable.
pub struct Router {
    any_host: Methods,
    hosts: HashMap<String, Methods>,
    /// By route: the name in `{name..}`, for a match of zero segments.
    rests: Vec<Option<String>>,
}

/// Two routes that nothing tells apart: one shape, the same host, a method in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("routes {first} and {second} have equal rank and match one request")]
pub struct AmbiguousRoutes {
    pub first: usize,
    pub second: usize,
}

/// Which route a request falls under, and its path parameters.
#[derive(Clone, Debug)]
pub struct RouteMatch<'m> {
    /// The route's place in the list that the router was made from.
    pub index: usize,
    params: matchit::Params<'m, 'm>,
    rest: Option<&'m str>,
}

impl RouteMatch<'_> {
    /// A parameter's decoded value: one segment for `{name}`; for `{name..}` zero or more, without slashes around them.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).or_else(|| (self.rest == Some(name)).then_some(""))
    }
}

impl Router {
    /// Fails with the first pair of routes of equal rank that match one request.
    pub fn new(routes: &[RouteConfig]) -> Result<Router, AmbiguousRoutes> {
        if let Some(&pair) = ambiguous_routes(routes.iter().enumerate()).first() {
            return Err(pair);
        }
        // A route's place in this order decides between the answers of several trees.
        let mut order: Vec<usize> = (0..routes.len()).collect();
        order.sort_by_cached_key(|&index| routes.get(index).map(precedence));
        let mut places = vec![0; routes.len()];
        for (place, &index) in order.iter().enumerate() {
            if let Some(slot) = places.get_mut(index) {
                *slot = place;
            }
        }
        let mut router = Router { any_host: Methods::default(), hosts: HashMap::new(), rests: Vec::new() };
        for ((index, route), place) in routes.iter().enumerate().zip(places) {
            let methods = match &route.host {
                None => &mut router.any_host,
                Some(host) => router.hosts.entry(host.as_str().to_owned()).or_default(),
            };
            let entry = Entry { index, place };
            // An insertion fails only for what `Pattern` and the check above have ruled out.
            let clash = |_| AmbiguousRoutes { first: index, second: index };
            if route.methods.is_empty() {
                methods.any.insert(&route.path, entry).map_err(clash)?;
            }
            for method in &route.methods {
                let table = methods.by_method.entry(method.as_str().to_owned()).or_default();
                table.insert(&route.path, entry).map_err(clash)?;
            }
            router.rests.push(route.path.rest().map(str::to_owned));
        }
        Ok(router)
    }

    /// The route for a request: the most specific pattern whose host and methods apply; of one pattern, a route with a
    /// host before one without, then one with methods before one without.
    ///
    /// `host` is the request's authority, in any case, with or without a port. For a CORS preflight give the method of
    /// `Access-Control-Request-Method`: the question is about the request that will follow.
    pub fn find<'m>(&'m self, method: &str, host: Option<&str>, path: &'m CanonicalPath<'_>) -> Option<RouteMatch<'m>> {
        let path = path.without_trailing_slash();
        let mut best: Option<(Entry, matchit::Params<'m, 'm>)> = None;
        for methods in [Some(&self.any_host), self.methods_of(host)].into_iter().flatten() {
            for table in [Some(&methods.any), methods.by_method.get(method)].into_iter().flatten() {
                table.best(path, &mut best);
            }
        }
        let (entry, params) = best?;
        let rest = self.rests.get(entry.index).and_then(|name| name.as_deref());
        Some(RouteMatch { index: entry.index, params, rest })
    }

    fn methods_of(&self, host: Option<&str>) -> Option<&Methods> {
        if self.hosts.is_empty() {
            return None;
        }
        let name = without_port(host?);
        let mut buffer = [0; MAX_HOST];
        let lower = buffer.get_mut(..name.len())?;
        lower.copy_from_slice(name.as_bytes());
        lower.make_ascii_lowercase();
        self.hosts.get(std::str::from_utf8(lower).ok()?)
    }

    /// How many trees one lookup can ask at most.
    #[cfg(test)]
    fn trees_per_lookup(&self) -> usize {
        let depth = |methods: &Methods| {
            methods.any.trees() + methods.by_method.values().map(Table::trees).max().unwrap_or_default()
        };
        depth(&self.any_host) + self.hosts.values().map(depth).max().unwrap_or_default()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("routes", &self.rests.len()).finish_non_exhaustive()
    }
}

/// Every pair of routes that nothing tells apart; the index beside a route is the one reported.
pub fn ambiguous_routes<'r>(routes: impl Iterator<Item = (usize, &'r RouteConfig)>) -> Vec<AmbiguousRoutes> {
    let mut seen = HashMap::new();
    let mut pairs: Vec<AmbiguousRoutes> = Vec::new();
    for (second, route) in routes {
        let shape = route.path.shape();
        let host = route.host.as_ref().map(|host| host.as_str());
        let methods = route.methods.iter().map(|method| Some(method.as_str()));
        let any = route.methods.is_empty().then_some(None);
        for method in methods.chain(any) {
            let first = *seen.entry((shape.clone(), host, method)).or_insert(second);
            let pair = AmbiguousRoutes { first, second };
            let known = || pairs.iter().rev().take_while(|p| p.second == second).any(|p| *p == pair);
            if first != second && !known() {
                pairs.push(pair);
            }
        }
    }
    pairs
}

fn precedence(route: &RouteConfig) -> (Vec<u8>, Reverse<bool>, Reverse<bool>) {
    (route.path.rank(), Reverse(route.host.is_some()), Reverse(!route.methods.is_empty()))
}

/// The name in an authority: no port, no root dot (`app.example.:443` is `app.example`).
fn without_port(authority: &str) -> &str {
    let name = match authority.strip_prefix('[') {
        Some(literal) => literal.split_once(']').map_or(literal, |(address, _)| address),
        None => authority.split_once(':').map_or(authority, |(name, _)| name),
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[derive(Default)]
struct Methods {
    any: Table,
    by_method: HashMap<String, Table>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    index: usize,
    /// Smaller wins.
    place: usize,
}

/// The routes of one host and one method.
#[derive(Default)]
struct Table {
    fixed: Option<matchit::Router<Entry>>,
    /// By the number of segments before `{rest..}`.
    rest: BTreeMap<usize, matchit::Router<Entry>>,
}

impl Table {
    fn insert(&mut self, pattern: &Pattern, entry: Entry) -> Result<(), matchit::InsertError> {
        let Some(rest) = pattern.rest() else {
            return self.fixed.get_or_insert_default().insert(spelled(pattern.segments()), entry);
        };
        let before = pattern.segments().split_last().map_or(&[][..], |(_, before)| before);
        let tree = self.rest.entry(before.len()).or_default();
        // matchit's catch-all wants at least one segment; zero segments are the prefix itself.
        let prefix = spelled(before);
        let slash = if prefix.ends_with('/') { "" } else { "/" };
        tree.insert(format!("{prefix}{slash}{{*{rest}}}"), entry)?;
        tree.insert(prefix, entry)
    }

    fn best<'m>(&'m self, path: &'m str, best: &mut Option<(Entry, matchit::Params<'m, 'm>)>) {
        for tree in self.fixed.iter().chain(self.rest.values()) {
            if let Ok(found) = tree.at(path)
                && best.as_ref().is_none_or(|(entry, _)| found.value.place < entry.place)
            {
                *best = Some((*found.value, found.params));
            }
        }
    }

    #[cfg(test)]
    fn trees(&self) -> usize {
        usize::from(self.fixed.is_some()) + self.rest.len()
    }
}

/// Segments in matchit's spelling. Literals hold no braces (`Pattern` refuses them), so nothing needs escaping.
fn spelled(segments: &[Segment]) -> String {
    if segments.is_empty() {
        return "/".to_owned();
    }
    segments.iter().fold(String::new(), |text, segment| match segment {
        Segment::Literal(literal) => text + "/" + literal,
        Segment::Parameter(name) | Segment::Rest(name) => text + "/{" + name + "}",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entropy;
    use crate::config::HostName;
    use wasm_bindgen_test::wasm_bindgen_test;

    /// `GET,HEAD app.example /path`, methods and host as `-` where there are none.
    fn route(line: &str) -> RouteConfig {
        let mut parts = line.split(' ');
        let mut next = || parts.next().filter(|part| *part != "-");
        let methods = next().map_or(Vec::new(), |list| list.split(',').map(|m| m.parse().unwrap()).collect());
        let host = next().map(|host| HostName::parse(host).unwrap());
        let path = Pattern::parse(next().unwrap()).unwrap();
        RouteConfig { path, host, methods, ..RouteConfig::everything() }
    }

    fn router(lines: &[&str]) -> Router {
        Router::new(&lines.iter().map(|line| route(line)).collect::<Vec<_>>()).unwrap()
    }

    fn find(router: &Router, method: &str, host: Option<&str>, path: &str) -> Option<usize> {
        router.find(method, host, &CanonicalPath::parse(path).unwrap()).map(|found| found.index)
    }

    fn get(router: &Router, path: &str) -> Option<usize> {
        find(router, "GET", None, path)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_literal_wins_over_a_parameter_and_a_parameter_over_the_rest() {
        let router =
            router(&["- - /{rest..}", "- - /users/{id}", "- - /users/me", "- - /users/{rest..}", "- - /{a}/me"]);
        for (path, index) in [
            ("/", 0),
            ("/other", 0),
            ("/users", 3),
            ("/users/me", 2),
            ("/users/42", 1),
            ("/users/42/x", 3),
            ("/other/me", 4),
            ("/other/you", 0),
        ] {
            assert_eq!(get(&router, path), Some(index), "{path}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_first_segment_that_differs_decides() {
        let router = router(&["- - /a/{x}/{y}", "- - /{x}/b/c", "- - /a/{rest..}", "- - /{x}/{y}/c/{rest..}"]);
        assert_eq!(get(&router, "/a/b/c"), Some(0));
        assert_eq!(get(&router, "/a/b/c/d"), Some(2));
        assert_eq!(get(&router, "/z/b/c"), Some(1));
        assert_eq!(get(&router, "/z/y/c/d"), Some(3));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn parameters_are_looked_up_by_the_names_of_the_route_that_matched() {
        let router = router(&["GET - /users/{id}/{rest..}", "POST - /users/{user}/{more..}", "- - /p/{a}/{b}/{c}/{d}"]);
        let path = CanonicalPath::parse("/users/a%20b/x/y/").unwrap();
        let found = router.find("GET", None, &path).unwrap();
        assert_eq!((found.param("id"), found.param("rest"), found.param("user")), (Some("a b"), Some("x/y"), None));
        let found = router.find("POST", None, &path).unwrap();
        assert_eq!((found.param("user"), found.param("more")), (Some("a b"), Some("x/y")));
        let path = CanonicalPath::parse("/p/1/2/3/4").unwrap();
        let found = router.find("GET", None, &path).unwrap();
        assert_eq!(["a", "b", "c", "d"].map(|name| found.param(name)), ["1", "2", "3", "4"].map(Some));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_rest_of_zero_segments_is_the_prefix_with_and_without_its_slash() {
        let router = router(&["- - /{all..}", "- - /account/{rest..}"]);
        for path in ["/account", "/account/"] {
            let path = CanonicalPath::parse(path).unwrap();
            let found = router.find("GET", None, &path).unwrap();
            assert_eq!((found.index, found.param("rest"), found.param("all")), (1, Some(""), None));
        }
        let root = CanonicalPath::parse("/").unwrap();
        assert_eq!(router.find("GET", None, &root).unwrap().param("all"), Some(""));
        assert_eq!(get(&router, "/accounts"), Some(0));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn no_spelling_slips_past_a_strict_route() {
        let router = router(&["- - /account/{rest..}", "- - /{rest..}", "- - /vault"]);
        for (raw, index) in [("/%61ccount/x", 0), ("/account/", 0), ("/accoun%74", 0), ("/vault/", 2), ("/%76ault", 2)]
        {
            assert_eq!(get(&router, raw), Some(index), "{raw}");
        }
        for raw in [
            "//account",
            "/a/../account",
            "/a/%2e%2e/account",
            "/account%2fx",
            "/account%5cx",
            "/%2561ccount",
            "/account%00",
            "/account%zz",
            "/./account",
            "/account//x",
        ] {
            assert!(CanonicalPath::parse(raw).is_err(), "{raw}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn where_host_or_methods_do_not_apply_the_next_route_does() {
        let router = router(&[
            "- - /{rest..}",
            "GET,HEAD - /public/{rest..}",
            "- app.example /public/{rest..}",
            "GET app.example /public/{rest..}",
            "- app.example /only",
            "POST - /only",
        ]);
        assert_eq!(get(&router, "/public/x"), Some(1));
        assert_eq!(find(&router, "POST", None, "/public/x"), Some(0));
        assert_eq!(find(&router, "get", None, "/public/x"), Some(0));
        assert_eq!(find(&router, "GET", Some("app.example"), "/public/x"), Some(3));
        assert_eq!(find(&router, "HEAD", Some("app.example"), "/public/x"), Some(2));
        assert_eq!(find(&router, "GET", Some("other.example"), "/public/x"), Some(1));
        assert_eq!(find(&router, "POST", Some("app.example"), "/only"), Some(4));
        assert_eq!(find(&router, "POST", None, "/only"), Some(5));
        assert_eq!(find(&router, "GET", None, "/only"), Some(0));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_host_compares_without_case_port_and_root_dot() {
        let router = router(&["- app.example /x", "- [::1] /x", "- - /{rest..}"]);
        for (host, index) in [
            ("app.example", 0),
            ("APP.Example:8443", 0),
            ("app.example.", 0),
            ("app.example.:80", 0),
            ("[::1]:8080", 1),
            ("[::1]", 1),
            ("xapp.example", 2),
            ("app.example.evil", 2),
            ("", 2),
            (":", 2),
        ] {
            assert_eq!(find(&router, "GET", Some(host), "/x"), Some(index), "{host}");
        }
        assert_eq!(find(&router, "GET", Some(&"a".repeat(9000)), "/x"), Some(2));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn nothing_matches_where_no_route_is() {
        let router = router(&["- - /a", "POST - /b"]);
        assert_eq!((get(&router, "/"), get(&router, "/b"), get(&router, "/a/b")), (None, None, None));
        assert_eq!(get(&Router::new(&[]).unwrap(), "/"), None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn routes_that_nothing_tells_apart_are_refused() {
        let pairs = |lines: &[&str]| {
            let routes: Vec<_> = lines.iter().map(|line| route(line)).collect();
            let pairs: Vec<_> =
                ambiguous_routes(routes.iter().enumerate()).iter().map(|p| (p.first, p.second)).collect();
            assert_eq!(Router::new(&routes).is_err(), !pairs.is_empty());
            pairs
        };
        assert_eq!(pairs(&["- - /a/{x}", "- - /a/{y}"]), [(0, 1)]);
        assert_eq!(pairs(&["- - /{x..}", "- - /{y..}"]), [(0, 1)]);
        assert_eq!(pairs(&["GET,HEAD - /a", "GET,HEAD - /a"]), [(0, 1)]);
        assert_eq!(pairs(&["GET - /a", "POST - /a", "PUT,POST,GET - /a"]), [(1, 2), (0, 2)]);
        assert_eq!(pairs(&["- a.example /a", "- A.EXAMPLE /a"]), [(0, 1)]);
        assert_eq!(pairs(&["- a.example /a", "- b.example /a", "- - /a", "GET - /a", "GET a.example /a"]), []);
        assert_eq!(pairs(&["GET - /a", "POST - /a", "- - /a", "- - /{x}", "- - /{x..}", "- - /a/{x..}"]), []);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn five_thousand_routes_are_asked_in_a_handful_of_trees() {
        let mut lines: Vec<String> = (0..2500).map(|i| format!("- - /service{i}/items/{{id}}")).collect();
        lines.extend((0..1500).map(|i| format!("GET,POST - /tenant{i}/{{rest..}}")));
        lines.extend((0..999).map(|i| format!("- host{i}.example /a/{{b}}/{{rest..}}")));
        lines.push("- - /{rest..}".to_owned());
        let router = router(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(router.trees_per_lookup() <= 5, "{}", router.trees_per_lookup());
        assert_eq!(get(&router, "/service1234/items/9"), Some(1234));
        assert_eq!(get(&router, "/tenant77/x/y"), Some(2577));
        assert_eq!(find(&router, "GET", Some("HOST998.example:1"), "/a/b/c"), Some(4998));
        assert_eq!(get(&router, "/elsewhere"), Some(4999));
    }

    /// The rule itself, over all routes: what `find` must equal.
    fn slow_find(routes: &[RouteConfig], method: &str, host: Option<&str>, path: &CanonicalPath<'_>) -> Option<usize> {
        let path = path.without_trailing_slash();
        let parts: Vec<&str> = path.split('/').skip(1).filter(|part| !part.is_empty()).collect();
        let matches = |route: &RouteConfig| {
            let mut parts = parts.iter();
            for segment in route.path.segments() {
                match segment {
                    Segment::Rest(_) => return true,
                    Segment::Literal(text) if parts.next() == Some(&text.as_str()) => {}
                    Segment::Parameter(_) if parts.next().is_some() => {}
                    _ => return false,
                }
            }
            parts.next().is_none()
        };
        let applies = |route: &&RouteConfig| {
            matches(route)
                && route.host.as_ref().is_none_or(|h| Some(h.as_str()) == host)
                && (route.methods.is_empty() || route.methods.iter().any(|m| m.as_str() == method))
        };
        let best = routes.iter().filter(applies).min_by_key(|route| precedence(route))?;
        routes.iter().position(|route| std::ptr::eq(route, best))
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_trees_agree_with_the_rule_on_random_routes_and_paths() {
        const PARTS: [&str; 7] = ["a", "ab", "abc", "b", "{x}", "{x}", "a"];
        let mut matched = 0;
        for seed in 0..300 {
            let mut entropy = Entropy::for_tests(seed);
            let mut routes: Vec<RouteConfig> = Vec::new();
            for _ in 0..30 {
                let mut path = String::new();
                for depth in 0..entropy.below(4) {
                    let part = PARTS[entropy.below(7) as usize].replace('x', &format!("x{depth}_{seed}"));
                    path = path + "/" + &part;
                }
                let rest = entropy.below(3) == 0 || path.is_empty();
                let path = if rest { path + "/{rest..}" } else { path };
                let methods = ["-", "-", "GET", "GET,POST"][entropy.below(4) as usize];
                let host = ["-", "-", "h.example"][entropy.below(3) as usize];
                routes.push(route(&format!("{methods} {host} {path}")));
                if !ambiguous_routes(routes.iter().enumerate()).is_empty() {
                    routes.pop();
                }
            }
            let router = Router::new(&routes).unwrap();
            for _ in 0..100 {
                let mut path = String::from("/");
                for _ in 0..entropy.below(5) {
                    path = path + PARTS[entropy.below(4) as usize] + "/";
                }
                if entropy.below(2) == 0 && path.len() > 1 {
                    path.pop();
                }
                let path = CanonicalPath::parse(&path).unwrap();
                let method = ["GET", "POST", "PUT"][entropy.below(3) as usize];
                let host = [None, Some("h.example")][entropy.below(2) as usize];
                let expected = slow_find(&routes, method, host, &path);
                let found = router.find(method, host, &path).map(|found| found.index);
                assert_eq!(found, expected, "seed {seed}: {method} {host:?} {path:?}");
                matched += usize::from(found.is_some());
            }
        }
        assert!(matched > 10_000, "{matched}");
    }
}
