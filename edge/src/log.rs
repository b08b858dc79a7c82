//! The Worker's log. Never holds a token, a key or a session's id.

use edgekeep_core::exchange::SessionEvent;
use serde_json::json;

/// What happened to a session, as one JSON line; core has named session and user so that a log may.
pub fn event(event: &SessionEvent) {
    let line = line(event);
    #[cfg(target_arch = "wasm32")]
    worker::console_log!("{line}");
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{line}");
}

fn line(event: &SessionEvent) -> String {
    let mut line = json!({ "event": event.name() });
    let mut say = |name: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            line[name] = value;
        }
    };
    say("how", event.how().map(Into::into));
    say("session", event.session.as_deref().map(Into::into));
    say("user", event.user.as_deref().map(Into::into));
    say("count", event.count().map(Into::into));
    say("replicated", event.replicated().map(Into::into));
    say("client", event.client.map(|ip| ip.to_string().into()));
    line.to_string()
}

/// Something that the operator should see.
pub fn error(text: &str) {
    #[cfg(target_arch = "wasm32")]
    worker::console_error!("{text}");
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use edgekeep_core::exchange::SessionHappened;

    use super::*;

    #[test]
    fn an_event_is_one_line_of_json_with_what_is_known() {
        let event = SessionEvent {
            what: SessionHappened::Refused("session_ended"),
            session: Some("0011".into()),
            user: None,
            client: "192.0.2.9".parse().ok(),
        };
        let line: serde_json::Value = serde_json::from_str(&line(&event)).unwrap();
        let expected = json!({
            "event": "session_refused", "how": "session_ended", "session": "0011", "client": "192.0.2.9",
        });
        assert_eq!(line, expected);
    }
}
