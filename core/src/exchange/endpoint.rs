//! Where an origin is connected to: what makes one connection to it as good as another.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use crate::config::{OriginUrl, PoolConfig, PoolTls, Scheme};

/// Connections of equal endpoints are kept together and used for each other's requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub url: OriginUrl,
    /// One of those that the URL's name has; none: the URL has an address, or its name is resolved when it is connected to.
    pub address: Option<IpAddr>,
    /// Of a pool that says whom it trusts or what it shows.
    pub tls: Option<PoolTls>,
}

impl Eq for Endpoint {}

impl Hash for Endpoint {
    /// Endpoints that differ in their pools' TLS alone are few.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.url.host.hash(state);
        self.url.port.hash(state);
        self.address.hash(state);
    }
}

impl Endpoint {
    pub fn new(url: &OriginUrl, address: Option<IpAddr>, pool: &PoolConfig) -> Endpoint {
        let tls = if url.scheme == Scheme::Https { pool.tls.clone() } else { None };
        Endpoint { url: url.clone(), address, tls }
    }

    pub fn is_encrypted(&self) -> bool {
        self.url.scheme == Scheme::Https
    }

    /// What is dialled: a name, or an address without brackets.
    pub fn host(&self) -> String {
        self.address.map_or_else(|| self.url.host.as_str().to_owned(), |address| address.to_string())
    }

    /// The name that its certificate must have.
    pub fn certified_name(&self) -> &str {
        let named = self.tls.as_ref().and_then(|tls| tls.server_name.as_ref());
        named.unwrap_or(&self.url.host).as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn endpoint(url: &str, tls: &str) -> Endpoint {
        let text = format!("[[pools]]\nshard = \"shard_0\"\n{tls}\norigins = [{{ id = \"a\", url = \"{url}\" }}]");
        let pool = &Config::from_toml(&text).unwrap().pools[0];
        Endpoint::new(&pool.origins[0].url, None, pool)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_certificate_is_for_the_host_unless_the_pool_names_another() {
        assert_eq!(endpoint("https://a.internal", "").certified_name(), "a.internal");
        assert_eq!(endpoint("https://[::1]:8443", "").certified_name(), "::1");
        let named = endpoint("https://10.0.0.7", "tls = { server_name = \"origin.internal\" }");
        assert_eq!((named.certified_name(), named.host().as_str()), ("origin.internal", "10.0.0.7"));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_differs_in_trust_or_address_is_connected_to_on_its_own() {
        let (one, other) = (endpoint("https://a.internal", "tls = { ca = \"x\" }"), endpoint("https://a.internal", ""));
        assert_ne!(one, other);
        assert_ne!(one, Endpoint { address: "10.0.0.7".parse().ok(), ..one.clone() });
        assert_eq!(endpoint("http://a.internal", "tls = { ca = \"x\" }"), endpoint("http://a.internal", ""));
    }
}
