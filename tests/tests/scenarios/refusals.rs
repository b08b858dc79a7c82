//! Every way not to get in: 401 with a problem document and a challenge, on every route that asks for a token.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use edgekeep_tests::{AccessKey, Deployment, Forged};
use serde_json::json;

use crate::scenario::Scenario;

/// One route of each mode that asks for a token.
const ASKING: [&str; 3] = ["/echo/token/x", "/echo/x", "/echo/account/x"];

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        no_token,
        a_malformed_token,
        a_tampered_token,
        an_unsigned_token,
        a_token_signed_with_a_public_key_as_its_secret,
        a_token_that_brings_its_own_key,
        another_issuers_token,
        another_audiences_token,
        a_token_of_another_type,
        a_token_with_critical_extensions,
        an_unknown_key_id,
        an_expired_token,
        a_token_from_the_future,
        a_token_without_a_claim,
        a_revoked_session,
        a_session_that_never_was,
        a_session_of_another_user,
        a_guest_gets_in_but_a_bad_token_does_not,
        a_refresh_token_is_no_access_token,
        an_access_token_is_no_refresh_token,
        a_forged_refresh_token,
        a_wrong_service_credential,
        the_calls_of_the_edge_are_closed_to_others,
    ]
}

fn refused(d: &Deployment, token: &str) -> Result<()> {
    refused_as(d, token, "invalid_token")
}

fn refused_as(d: &Deployment, token: &str, code: &str) -> Result<()> {
    for path in ASKING {
        let answer = d.get(path).bearer(token).send()?;
        let document = answer.problem(401, code)?;
        let detail = document["detail"].as_str().unwrap_or_default();
        let signature = token.rsplit('.').next().filter(|part| part.len() > 8).unwrap_or("no signature");
        ensure!(!answer.text().contains(signature), "the token is repeated: {detail}");
    }
    Ok(())
}

fn no_token(d: &Deployment) -> Result<()> {
    for path in ASKING {
        d.get(path).send()?.problem(401, "missing_credential")?;
        // Another scheme is not ours.
        d.get(path).basic("ada", "secret").send()?.problem(401, "missing_credential")?;
    }
    for (method, path) in [("GET", "/v1/sessions"), ("DELETE", "/v1/sessions/current"), ("DELETE", "/v1/sessions/x")] {
        d.request(method, path).send()?.problem(401, "missing_credential")?;
    }
    Ok(())
}

fn a_malformed_token(d: &Deployment) -> Result<()> {
    let good = d.login("malformed")?.access;
    let many_parts = format!("{good}.{good}");
    let long = format!("{good}{}", "A".repeat(9000));
    let padded = format!("{good}=");
    let two_parts = good.rsplit_once('.').context("a token has parts")?.0.to_owned();
    for token in ["", "x", ".", "..", "a.b.c", "%", &many_parts, &long, &padded, &two_parts, "{}.{}.{}"] {
        for path in ASKING {
            let answer = d.get(path).bearer(token).send()?;
            let code = if token.is_empty() { answer.json()?["code"].clone() } else { json!("invalid_token") };
            answer.problem(401, code.as_str().unwrap_or_default())?;
        }
    }
    Ok(())
}

fn a_tampered_token(d: &Deployment) -> Result<()> {
    let good = d.login("tampered")?.access;
    ensure!(d.is_let_in(&good)?, "the token is good before");
    let signature = good.rsplit('.').next().context("a signature")?;
    let promoted = Forged::from(&good)?.claim("sub", json!("admin")).with_signature(signature);
    refused(d, &promoted)?;
    let longer = Forged::from(&good)?.claim("exp", json!(4_000_000_000_u64)).with_signature(signature);
    refused(d, &longer)?;
    // One bit of the signature.
    let mut bytes = BASE64URL.decode(signature)?;
    if let Some(byte) = bytes.first_mut() {
        *byte ^= 1;
    }
    let start = good.len() - signature.len();
    refused(d, &format!("{}{}", good.get(..start).unwrap_or_default(), BASE64URL.encode(bytes)))
}

fn an_unsigned_token(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("unsigned")?.access)?;
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        let unsigned = good.clone().header("alg", json!(algorithm));
        refused(d, &unsigned.with_signature(""))?;
        refused(d, &unsigned.with_signature("AAAA"))?;
    }
    // With a signature that is good for another header.
    refused(d, &good.clone().header("alg", json!("none")).signed(&d.access_key()?))
}

fn a_token_signed_with_a_public_key_as_its_secret(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("confused")?.access)?;
    let key = d.access_key()?;
    let public_text = BASE64URL.encode(key.public);
    // SubjectPublicKeyInfo of an Ed25519 key (RFC 8410 §4), as PEM files hold it.
    let mut info = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    info.extend(key.public);
    let pem_body = base64::engine::general_purpose::STANDARD.encode(&info);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{pem_body}\n-----END PUBLIC KEY-----\n");
    let secrets: [&[u8]; 6] = [&key.public, public_text.as_bytes(), &info, pem.as_bytes(), key.kid.as_bytes(), b""];
    for secret in secrets {
        refused(d, &good.signed_by_hmac(secret)?)?;
    }
    // The header says HS256, the signature is the right key's: the algorithm belongs to the key.
    refused(d, &good.clone().header("alg", json!("HS256")).signed(&key))?;
    refused(d, &good.clone().header("alg", json!("ES256")).signed(&key))
}

fn a_token_that_brings_its_own_key(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("own-key")?.access)?;
    let stranger = AccessKey::of_a_stranger();
    let jwk =
        json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64URL.encode(stranger.public), "kid": good.header["kid"] });
    refused(d, &good.clone().header("jwk", jwk).signed(&stranger))?;
    let address = json!("http://127.0.0.1:1/jwks.json");
    refused(d, &good.clone().header("jku", address.clone()).signed(&stranger))?;
    refused(d, &good.clone().header("x5u", address).signed(&stranger))?;
    refused(d, &good.signed(&stranger))
}

fn another_issuers_token(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("issuer")?.access)?;
    let key = d.access_key()?;
    for issuer in [json!("someone-else"), json!(""), json!("edgekeep "), json!(["edgekeep"]), json!(null)] {
        refused(d, &good.clone().claim("iss", issuer).signed(&key))?;
    }
    Ok(())
}

fn another_audiences_token(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("audience")?.access)?;
    let key = d.access_key()?;
    for audience in [json!("another-app"), json!(["another-app"]), json!([]), json!(1), json!("")] {
        refused(d, &good.clone().claim("aud", audience).signed(&key))?;
    }
    // One of several is enough (RFC 7519 §4.1.3).
    let several = good.claim("aud", json!(["another-app", "app"])).signed(&key);
    d.get("/echo/account/x").bearer(&several).send()?.expect(200)?;
    Ok(())
}

fn a_token_of_another_type(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("type")?.access)?;
    let key = d.access_key()?;
    for kind in [json!("JWT"), json!("id+jwt"), json!(""), json!(null), json!(["at+jwt"])] {
        refused(d, &good.clone().header("typ", kind).signed(&key))?;
    }
    Ok(())
}

fn a_token_with_critical_extensions(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("critical")?.access)?;
    let key = d.access_key()?;
    for critical in [json!(["exp"]), json!([]), json!(["b64"]), json!("exp")] {
        refused(d, &good.clone().header("crit", critical).signed(&key))?;
    }
    refused(d, &good.clone().header("b64", json!(false)).header("crit", json!(["b64"])).signed(&key))
}

fn an_unknown_key_id(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("key-id")?.access)?;
    let stranger = AccessKey::of_a_stranger();
    for kid in [json!("unknown"), json!(""), json!("../../etc/passwd"), json!("' OR 1=1 --"), json!(1), json!(null)] {
        refused(d, &good.clone().header("kid", kid.clone()).signed(&d.access_key()?))?;
        refused(d, &good.clone().header("kid", kid).signed(&stranger))?;
    }
    Ok(())
}

fn an_expired_token(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("expired")?.access)?;
    let key = d.access_key()?;
    let issued = good.claims["iat"].as_u64().context("iat")?;
    let expired = good.clone().claim("iat", json!(issued - 1000)).claim("exp", json!(issued - 1));
    refused_as(d, &expired.signed(&key), "expired_token")?;
    for bad in [json!("tomorrow"), json!(-1), json!(null)] {
        refused(d, &good.clone().claim("exp", bad).signed(&key))?;
    }
    Ok(())
}

fn a_token_from_the_future(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("future")?.access)?;
    let key = d.access_key()?;
    let issued = good.claims["iat"].as_u64().context("iat")?;
    refused(d, &good.clone().claim("iat", json!(issued + 600)).claim("exp", json!(issued + 900)).signed(&key))?;
    refused(d, &good.claim("nbf", json!(issued + 600)).signed(&key))
}

fn a_token_without_a_claim(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("without")?.access)?;
    let key = d.access_key()?;
    for claim in ["iss", "sub", "aud", "client_id", "iat", "exp", "jti", "sid", "gen"] {
        refused(d, &good.clone().without(claim).signed(&key)).with_context(|| format!("without {claim}"))?;
    }
    Ok(())
}

fn a_revoked_session(d: &Deployment) -> Result<()> {
    let session = d.login("revoked")?;
    ensure!(d.is_let_in(&session.access)?, "the session is good before");
    d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
    d.get("/echo/account/x").bearer(&session.access).send()?.problem(401, "session_ended")?;
    d.get("/v1/sessions").bearer(&session.access).send()?.problem(401, "session_ended")?;
    Ok(())
}

fn a_session_that_never_was(d: &Deployment) -> Result<()> {
    let good = Forged::from(&d.login("never")?.access)?;
    let forged = good.claim("sid", json!("7f2c1d1e-5b0a-4c3f-9d57-8f5f6d3a1b21")).signed(&d.access_key()?);
    for path in ["/echo/x", "/echo/account/x"] {
        d.get(path).bearer(&forged).send()?.problem(401, "session_ended")?;
    }
    Ok(())
}

fn a_session_of_another_user(d: &Deployment) -> Result<()> {
    let theirs = d.login("theirs")?;
    let forged = Forged::from(&theirs.access)?.claim("sub", json!("somebody-else")).signed(&d.access_key()?);
    // Known for its own user to every cache on the way, and still not the other's.
    d.get("/echo/x").bearer(&theirs.access).send()?.expect(200)?;
    for path in ["/echo/x", "/echo/account/x"] {
        d.get(path).bearer(&forged).send()?.problem(401, "session_ended")?;
    }
    ensure!(d.is_let_in(&theirs.access)?, "and its own user is not hurt");
    Ok(())
}

fn a_guest_gets_in_but_a_bad_token_does_not(d: &Deployment) -> Result<()> {
    let guest = d.get("/echo/optional/x").send()?.expect(200)?;
    ensure!(guest.echoed("x-edgekeep-user")?.is_empty() && guest.echoed("x-edgekeep-session")?.is_empty(), "{guest}");
    let session = d.login("optional")?;
    let known = d.get("/echo/optional/x").bearer(&session.access).send()?.expect(200)?;
    ensure!(known.echoed("x-edgekeep-user")? == ["optional"], "{known}");
    d.get("/echo/optional/x").bearer("a.b.c").send()?.problem(401, "invalid_token")?;
    Ok(())
}

fn a_refresh_token_is_no_access_token(d: &Deployment) -> Result<()> {
    refused(d, &d.login("wrong-kind")?.refresh)
}

fn an_access_token_is_no_refresh_token(d: &Deployment) -> Result<()> {
    let session = d.login("wrong-kind-2")?;
    d.refresh(&session.access, "")?.problem(401, "invalid_refresh_token")?;
    ensure!(d.is_let_in(&session.access)?, "a wrong call ended the session");
    Ok(())
}

fn a_forged_refresh_token(d: &Deployment) -> Result<()> {
    let session = d.login("forged-refresh")?;
    let good = BASE64URL.decode(&session.refresh)?;
    // Every part of it is under the tag: version, session, counter, key id, the tag itself.
    for at in [0, 1, 16, 18, 21, 22, good.len() - 1] {
        let mut forged = good.clone();
        if let Some(byte) = forged.get_mut(at) {
            *byte ^= 1;
        }
        d.refresh(&BASE64URL.encode(&forged), "")?.problem(401, "invalid_refresh_token")?;
    }
    for token in ["", "x", "....", &session.refresh[1..], &format!("{}A", session.refresh)] {
        d.refresh(token, "")?.problem(401, "invalid_refresh_token")?;
    }
    ensure!(d.refresh(&session.refresh, "")?.status == 200, "forgeries hurt the real one");
    Ok(())
}

fn a_wrong_service_credential(d: &Deployment) -> Result<()> {
    let create = json!({ "user_id": "nobody" });
    d.post("/v1/sessions").json(&create).send()?.problem(401, "missing_credential")?;
    d.post("/v1/sessions").bearer("wrong").json(&create).send()?.problem(401, "invalid_token")?;
    let user = d.login("not-a-service")?;
    d.post("/v1/sessions").bearer(&user.access).json(&create).send()?.problem(401, "invalid_token")?;
    d.get("/v1/users/nobody/sessions").send()?.problem(401, "missing_credential")?;
    d.get("/v1/shards/users/nobody").bearer("wrong").send()?.problem(401, "invalid_token")?;
    Ok(())
}

fn the_calls_of_the_edge_are_closed_to_others(d: &Deployment) -> Result<()> {
    let session = d.login("not-an-edge")?;
    let token = Forged::from(&session.access)?;
    let validate = json!({ "sid": session.id, "sub": token.claims["sub"], "gen": token.claims["gen"] });
    for (method, path, body) in [
        ("POST", "/v1/edge/validate", &validate),
        ("POST", "/v1/edge/confirm", &json!({ "sid": session.id, "gen": 1 })),
        ("GET", "/v1/edge/shard-map", &json!({})),
        ("POST", "/v1/edge/tombstones", &json!({ "tombstones": [] })),
    ] {
        for credential in [None, Some("wrong"), Some("")] {
            let mut request = d.request(method, path).bearer(&session.access).json(body);
            if let Some(credential) = credential {
                request = request.header("x-edgekeep-edge", credential);
            }
            let answer = request.send()?;
            ensure!(matches!(answer.status, 403 | 404), "{answer}");
            answer.problem(answer.status, if answer.status == 403 { "forbidden" } else { "not_found" })?;
        }
    }
    Ok(())
}
