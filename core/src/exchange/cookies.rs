//! Session cookies on answers: `__Host-` names, so that no subdomain and no plain connection can plant them.

use crate::http::{ACCESS_COOKIE, HeaderEdits, REFRESH_COOKIE};

const ATTRIBUTES: &str = "Path=/; Secure; HttpOnly; SameSite=Lax";

/// Both tokens as cookies, each for as long as it is good (seconds).
pub fn set(head: &mut HeaderEdits, access: (&str, u64), refresh: (&str, u64)) {
    for (name, (value, max_age)) in [(ACCESS_COOKIE, access), (REFRESH_COOKIE, refresh)] {
        head.add("set-cookie", format!("{name}={value}; Max-Age={max_age}; {ATTRIBUTES}"));
    }
}

/// Asks the client to forget both, also where a script of the same host planted one in a partition of its own: a
/// browser sends that beside ours, and two values of one cookie let nobody in.
pub fn clear(head: &mut HeaderEdits) {
    for name in [ACCESS_COOKIE, REFRESH_COOKIE] {
        for partition in ["", "; Partitioned"] {
            head.add("set-cookie", format!("{name}=; Max-Age=0; {ATTRIBUTES}{partition}"));
        }
    }
}
