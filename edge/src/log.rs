//! The Worker's log. Never holds a token, a key or a session's id.

/// Something that the operator should see.
pub fn error(text: &str) {
    #[cfg(target_arch = "wasm32")]
    worker::console_error!("{text}");
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{text}");
}
