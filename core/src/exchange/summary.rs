//! What an access log tells of a request. Taking it down costs two counts; names and hashes are made where the line is
//! written, which need not be where requests are answered.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Exchange, Rules};
use crate::token::AccessClaims;

#[derive(Clone)]
pub struct Summary {
    rules: Arc<Rules>,
    route: Option<usize>,
    claims: Option<Arc<AccessClaims>>,
    /// As policy sees it.
    pub client: Option<IpAddr>,
    /// The status that was decided; 0: none was, because the client left before.
    pub status: u16,
}

impl Summary {
    /// The pattern of the route: never the raw path, which may hold what no log should.
    pub fn route(&self) -> &str {
        self.rules.route_name(self.route)
    }

    /// The user as logs may call them: a keyed hash.
    pub fn user(&self) -> Option<String> {
        self.claims.as_ref().map(|claims| self.rules.log_name(claims.sub.as_str().as_bytes()))
    }
}

impl Exchange {
    /// For the access log.
    pub fn summary(&self) -> Summary {
        Summary {
            rules: self.rules.clone(),
            route: self.route_index(),
            claims: self.identity.as_ref().map(|identity| identity.claims.clone()),
            client: self.client.ip,
            status: self.status,
        }
    }
}
