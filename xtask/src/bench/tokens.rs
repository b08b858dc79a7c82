//! The tokens that peers verify: HS256, of the shape and length of ours, under a secret made for the run.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Tokens in turn: enough that no peer answers from one hot entry.
pub const COUNT: usize = 1000;

pub const ISSUER: &str = "edgekeep";
pub const AUDIENCE: &str = "app";

/// A good token's remaining life in seconds: longer than any run.
const LIFE: i64 = 4 * 3600;

/// Signs as our core does: header `alg typ kid`, claims `iss sub aud client_id iat exp jti sid gen`.
pub struct Signer {
    /// The secret as text, since that is what HAProxy's and Hono's configuration takes.
    pub secret: String,
    /// RFC 7638 thumbprint of the key.
    pub kid: String,
}

impl Signer {
    pub fn generate() -> anyhow::Result<Signer> {
        let secret = random_text()?;
        let thumbprint = Sha256::digest(format!(r#"{{"k":"{}","kty":"oct"}}"#, URL_SAFE_NO_PAD.encode(&secret)));
        Ok(Signer { secret, kid: URL_SAFE_NO_PAD.encode(thumbprint) })
    }

    /// A token for user number `user` that expires `life` seconds from now; negative: it has expired.
    pub fn sign(&self, user: usize, life: i64) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
        let header = json!({ "alg": "HS256", "typ": "at+jwt", "kid": self.kid });
        let claims = json!({
            "iss": ISSUER,
            "sub": user_id(user),
            "aud": AUDIENCE,
            "client_id": AUDIENCE,
            "iat": now + life.min(0) - 1,
            "exp": now + life,
            "jti": random_uuid()?,
            "sid": random_uuid()?,
            "gen": 0,
        });
        let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes())?;
        mac.update(signed.as_bytes());
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())))
    }

    /// [`COUNT`] good tokens, one a user.
    pub fn sign_all(&self) -> anyhow::Result<Tokens> {
        Ok(Tokens((0..COUNT).map(|user| self.sign(user, LIFE)).collect::<Result<_, _>>()?))
    }

    pub fn sign_expired(&self) -> anyhow::Result<String> {
        self.sign(0, -3600)
    }
}

/// Good tokens, to be sent in turn.
pub struct Tokens(pub Vec<String>);

impl Tokens {
    /// Writes them one a line, as the load reads them.
    pub fn write(&self, path: PathBuf) -> anyhow::Result<PathBuf> {
        std::fs::write(&path, self.0.join("\n")).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// The first token.
    pub fn first(&self) -> anyhow::Result<&str> {
        Ok(self.0.first().context("there are no tokens")?)
    }
}

/// `token` with one character of its signature changed.
pub fn tampered(token: &str) -> String {
    // Ten from the end: the last character's low bits may not belong to the signature.
    let at = token.len() - 10;
    let changed = if &token[at..=at] == "A" { "B" } else { "A" };
    format!("{}{changed}{}", &token[..at], &token[at + 1..])
}

pub fn user_id(user: usize) -> String {
    format!("user-{user:06}")
}

/// 32 random bytes as text.
pub fn random_text() -> anyhow::Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random::<32>()?))
}

fn random_uuid() -> anyhow::Result<String> {
    Ok(uuid::Builder::from_random_bytes(random()?).into_uuid().to_string())
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok().context("the system gives no random bytes")?;
    Ok(bytes)
}
