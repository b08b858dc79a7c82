//! Tokens that somebody made up: good signatures over bad claims, bad signatures over good ones.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

/// A key pair of a deployment.
pub struct AccessKey {
    pub kid: String,
    /// The public half, which anybody can read from the JWKS.
    pub public: [u8; 32],
    private: SigningKey,
}

impl AccessKey {
    /// The current one of a `keys.json`.
    pub(crate) fn current(keys: &Value) -> Result<AccessKey> {
        let all = keys["access"].as_array().context("no access keys")?;
        let current = all.iter().find(|key| key["state"] == "current").context("no current access key")?;
        let bytes = |name: &str| -> Result<[u8; 32]> {
            let text = current[name].as_str().with_context(|| format!("no {name} in the access key"))?;
            BASE64URL.decode(text)?.try_into().ok().with_context(|| format!("{name} is not 32 bytes"))
        };
        Ok(AccessKey {
            kid: current["kid"].as_str().context("no kid")?.to_owned(),
            public: bytes("x")?,
            private: SigningKey::from_bytes(&bytes("d")?),
        })
    }

    /// Somebody else's.
    pub fn of_a_stranger() -> AccessKey {
        let private = SigningKey::from_bytes(&[7; 32]);
        AccessKey { kid: "a-stranger's".to_owned(), public: *private.verifying_key().as_bytes(), private }
    }
}

/// A token being forged: start from a good one and change what is of interest.
#[derive(Clone, Debug)]
pub struct Forged {
    pub header: Value,
    pub claims: Value,
}

impl Forged {
    /// Header and claims of a token that was given out.
    pub fn from(token: &str) -> Result<Forged> {
        let mut parts =
            token.split('.').map(|part| -> Result<Value> { Ok(serde_json::from_slice(&BASE64URL.decode(part)?)?) });
        let header = parts.next().context("no header")??;
        let claims = parts.next().context("no claims")??;
        Ok(Forged { header, claims })
    }

    pub fn header(mut self, name: &str, value: Value) -> Forged {
        self.header[name] = value;
        self
    }

    pub fn claim(mut self, name: &str, value: Value) -> Forged {
        self.claims[name] = value;
        self
    }

    pub fn without(mut self, claim: &str) -> Forged {
        if let Some(claims) = self.claims.as_object_mut() {
            claims.remove(claim);
        }
        self
    }

    /// Signed as the deployment itself would.
    pub fn signed(&self, key: &AccessKey) -> String {
        let input = self.input();
        let signature = key.private.sign(input.as_bytes());
        format!("{input}.{}", BASE64URL.encode(signature.to_bytes()))
    }

    /// Algorithm confusion: HS256 with something public as its secret.
    pub fn signed_by_hmac(&self, secret: &[u8]) -> Result<String> {
        let forged = self.clone().header("alg", json!("HS256"));
        let input = forged.input();
        let mut mac = Hmac::<Sha256>::new_from_slice(secret)?;
        mac.update(input.as_bytes());
        Ok(format!("{input}.{}", BASE64URL.encode(mac.finalize().into_bytes())))
    }

    /// With this signature, whatever it is.
    pub fn with_signature(&self, signature: &str) -> String {
        format!("{}.{signature}", self.input())
    }

    fn input(&self) -> String {
        let part = |value: &Value| BASE64URL.encode(value.to_string());
        format!("{}.{}", part(&self.header), part(&self.claims))
    }
}
