//! The table of refusals, and what is let in.

use super::*;
use crate::Entropy;
use crate::token::{EdgeRole, sign_access};
use serde_json::{Value, json};
use wasm_bindgen_test::wasm_bindgen_test;

const NOW: Timestamp = Timestamp(1_750_000_000_000);
const LIFE: Millis = Millis::from_secs(900);
const BOTH: [KeyAlgorithm; 2] = [KeyAlgorithm::EdDsa, KeyAlgorithm::Hs256];

fn ring(algorithm: KeyAlgorithm) -> KeyRing {
    KeyRing::generate(algorithm, &mut Entropy::for_tests(1), NOW)
}

fn verifier(ring: &KeyRing) -> Verifier {
    Verifier::new(ring, "edgekeep", "app", Millis::ZERO)
}

fn claims() -> AccessClaims {
    AccessClaims {
        iss: "edgekeep".into(),
        sub: UserId::new("42").unwrap(),
        aud: "app".into(),
        client_id: "web".into(),
        iat: NOW,
        exp: NOW + LIFE,
        jti: "j-1".into(),
        sid: SessionId([7; 16]),
        generation: 3,
    }
}

fn good_header(ring: &KeyRing) -> Value {
    let key = ring.current_access().unwrap();
    json!({ "typ": "at+jwt", "alg": key.algorithm().name(), "kid": key.kid() })
}

fn good_claims() -> Value {
    serde_json::to_value(claims()).unwrap()
}

/// Any header and claims as text, under a good signature of the current key.
fn signed(ring: &KeyRing, header: &str, claims: &str) -> String {
    let mut token = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
    ring.current_access().unwrap().sign(&mut token).unwrap();
    token
}

fn refused(ring: &KeyRing, token: &str) -> TokenError {
    verifier(ring).verify(token, NOW).unwrap_err()
}

fn refused_header(ring: &KeyRing, edit: impl FnOnce(&mut Value)) -> TokenError {
    let mut header = good_header(ring);
    edit(&mut header);
    refused(ring, &signed(ring, &header.to_string(), &good_claims().to_string()))
}

fn verified_claims(ring: &KeyRing, edit: impl FnOnce(&mut Value)) -> Result<AccessClaims, TokenError> {
    let mut claims = good_claims();
    edit(&mut claims);
    verifier(ring).verify(&signed(ring, &good_header(ring).to_string(), &claims.to_string()), NOW)
}

fn refused_claims(ring: &KeyRing, edit: impl FnOnce(&mut Value)) -> TokenError {
    verified_claims(ring, edit).unwrap_err()
}

#[wasm_bindgen_test(unsupported = test)]
fn what_was_signed_is_what_is_verified() {
    for algorithm in BOTH {
        let ring = ring(algorithm);
        let token = sign_access(&ring, &claims()).unwrap();
        assert_eq!(verifier(&ring).verify(&token, NOW), Ok(claims()));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn an_edge_with_public_keys_only_verifies() {
    let ring = ring(KeyAlgorithm::EdDsa);
    let token = sign_access(&ring, &claims()).unwrap();
    let edge = verifier(&ring.edge_export(EdgeRole::BesideRegion));
    assert_eq!(edge.verify(&token, NOW), Ok(claims()));
}

#[wasm_bindgen_test(unsupported = test)]
fn next_current_and_retired_keys_all_verify() {
    let mut entropy = Entropy::for_tests(9);
    for algorithm in BOTH {
        let old = ring(KeyAlgorithm::EdDsa);
        let published = old.publish_next(algorithm, &mut entropy, NOW).unwrap();
        let promoted = published.promote_next(NOW).unwrap();
        let (before, after) = (sign_access(&old, &claims()).unwrap(), sign_access(&promoted, &claims()).unwrap());
        assert!(verifier(&published).verify(&after, NOW).is_ok());
        assert!(verifier(&promoted).verify(&after, NOW).is_ok());
        assert!(verifier(&promoted).verify(&before, NOW).is_ok());
        assert_eq!(verifier(&old).verify(&after, NOW), Err(TokenError::UnknownKey));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn what_is_no_token_is_refused_by_its_form() {
    let ring = ring(KeyAlgorithm::Hs256);
    let token = sign_access(&ring, &claims()).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, body) = signed.split_once('.').unwrap();
    let cases = [
        (String::new(), TokenError::Parts),
        ("a".to_owned(), TokenError::Parts),
        ("a.b".to_owned(), TokenError::Parts),
        (signed.to_owned(), TokenError::Parts),
        (format!("{token}.x"), TokenError::Parts),
        (format!("{token}."), TokenError::Parts),
        (format!("Bearer {token}"), TokenError::Character),
        (format!("{token}="), TokenError::Character),
        (format!("{token}\n"), TokenError::Character),
        (token.replace('.', "+"), TokenError::Character),
        (format!("{token}ä"), TokenError::Character),
        ("..".to_owned(), TokenError::Malformed(Part::Header, Fault::Json)),
        (format!(".{body}.{signature}"), TokenError::Malformed(Part::Header, Fault::Json)),
        (format!("{header}..{signature}"), TokenError::Signature),
        (format!("{signed}."), TokenError::Signature),
        (format!("{signed}.A"), TokenError::Malformed(Part::Signature, Fault::Base64)),
        (format!("{signed}.{}", "A".repeat(2000)), TokenError::Signature),
        (format!("{signed}.{}", &signature[..40]), TokenError::Signature),
        (format!("{signed}.{signature}AAA"), TokenError::Signature),
        // The last of 43 characters has two bits that 32 bytes leave over.
        (format!("{signed}.{}B", "A".repeat(42)), TokenError::Malformed(Part::Signature, Fault::Base64)),
        (format!("{signed}.{}A", "A".repeat(42)), TokenError::Signature),
    ];
    for (token, expected) in cases {
        assert_eq!(refused(&ring, &token), expected, "{token}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_token_of_8_kib_is_read_and_one_byte_more_is_not() {
    for algorithm in BOTH {
        let ring = ring(algorithm);
        let base = good_claims().to_string();
        let mut sizes = Vec::new();
        for padding in 5_500..6_000 {
            let padded = format!("{},\"pad\":\"{}\"}}", &base[..base.len() - 1], "x".repeat(padding));
            let token = signed(&ring, &good_header(&ring).to_string(), &padded);
            if (MAX_TOKEN - 1..=MAX_TOKEN + 2).contains(&token.len()) {
                let expected = if token.len() <= MAX_TOKEN { Ok(claims()) } else { Err(TokenError::TooLong) };
                assert_eq!(verifier(&ring).verify(&token, NOW), expected);
                sizes.push(token.len());
            }
        }
        assert!(sizes.iter().any(|size| *size <= MAX_TOKEN) && sizes.iter().any(|size| *size > MAX_TOKEN));
    }
    let exact = "a".repeat(MAX_TOKEN);
    assert_eq!(refused(&ring(KeyAlgorithm::Hs256), &exact), TokenError::Parts);
    assert_eq!(refused(&ring(KeyAlgorithm::Hs256), &(exact + "a")), TokenError::TooLong);
}

#[wasm_bindgen_test(unsupported = test)]
fn changing_any_single_character_refuses_the_token() {
    for algorithm in BOTH {
        let ring = ring(algorithm);
        let (verifier, token) = (verifier(&ring), sign_access(&ring, &claims()).unwrap());
        let mut reasons = Vec::new();
        for (place, old) in token.char_indices() {
            let new = if old == 'A' { "B" } else { "A" };
            let mut tampered = token.clone();
            tampered.replace_range(place..=place, new);
            reasons.push(verifier.verify(&tampered, NOW).unwrap_err());
        }
        assert!(reasons.contains(&TokenError::Signature), "{algorithm:?}");
        assert!(!reasons.contains(&TokenError::Expired), "no claim is read before the signature");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_algorithm_is_the_keys_and_never_the_tokens() {
    for algorithm in BOTH {
        let ring = ring(algorithm);
        for alg in ["none", "None", "HS384", "RS256", "ES256", "eddsa", "Ed25519", ""] {
            assert_eq!(refused_header(&ring, |header| header["alg"] = json!(alg)), TokenError::Algorithm, "{alg}");
        }
        assert_eq!(refused_header(&ring, |header| header["alg"] = Value::Null), TokenError::Algorithm);
        let other = if algorithm == KeyAlgorithm::EdDsa { "HS256" } else { "EdDSA" };
        assert_eq!(refused_header(&ring, |header| header["alg"] = json!(other)), TokenError::Algorithm);
        let no_alg = json!({"typ": "at+jwt", "kid": ring.current_access().unwrap().kid()}).to_string();
        assert_eq!(refused(&ring, &signed(&ring, &no_alg, &good_claims().to_string())), TokenError::Algorithm);
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn an_unsigned_token_is_refused() {
    let ring = ring(KeyAlgorithm::EdDsa);
    let mut header = good_header(&ring);
    header["alg"] = json!("none");
    let claims = BASE64URL.encode(good_claims().to_string());
    let token = format!("{}.{claims}.", BASE64URL.encode(header.to_string()));
    assert_eq!(refused(&ring, &token), TokenError::Algorithm);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_public_key_is_no_hmac_secret() {
    let ring = ring(KeyAlgorithm::EdDsa);
    let Material::EdDsa { public, .. } = &ring.access_keys()[0].material else { panic!("not EdDSA") };
    for alg in ["HS256", "EdDSA"] {
        let mut header = good_header(&ring);
        header["alg"] = json!(alg);
        let (header, claims) = (BASE64URL.encode(header.to_string()), BASE64URL.encode(good_claims().to_string()));
        let message = format!("{header}.{claims}");
        let tag = BASE64URL.encode(Hs256::from_array(public.x()).tag(&[message.as_bytes()]));
        let expected = if alg == "HS256" { TokenError::Algorithm } else { TokenError::Signature };
        assert_eq!(refused(&ring, &format!("{message}.{tag}")), expected);
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn each_header_rule_has_its_refusal() {
    let ring = ring(KeyAlgorithm::EdDsa);
    let cases: [(&str, Value, TokenError); 12] = [
        ("crit", json!(["exp"]), TokenError::Critical),
        ("crit", json!([]), TokenError::Critical),
        ("crit", json!(null), TokenError::Critical),
        ("b64", json!(false), TokenError::Unencoded),
        ("b64", json!(true), TokenError::Unencoded),
        ("typ", json!("JWT"), TokenError::Type),
        ("typ", json!("at+jwt2"), TokenError::Type),
        ("typ", json!("application/application/at+jwt"), TokenError::Type),
        ("typ", json!(7), TokenError::Type),
        ("kid", json!("other"), TokenError::UnknownKey),
        ("kid", json!(""), TokenError::UnknownKey),
        ("kid", json!(["a"]), TokenError::NoKeyId),
    ];
    for (name, value, expected) in cases {
        assert_eq!(refused_header(&ring, |header| header[name] = value.clone()), expected, "{name}: {value}");
    }
    for (name, expected) in [("typ", TokenError::Type), ("kid", TokenError::NoKeyId), ("alg", TokenError::Algorithm)] {
        let found = refused_header(&ring, |header| drop(header.as_object_mut().unwrap().remove(name)));
        assert_eq!(found, expected, "no {name}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_type_is_compared_as_a_media_type() {
    let ring = ring(KeyAlgorithm::Hs256);
    for typ in ["at+jwt", "AT+JWT", "application/at+jwt", "Application/At+Jwt"] {
        let mut header = good_header(&ring);
        header["typ"] = json!(typ);
        let token = signed(&ring, &header.to_string(), &good_claims().to_string());
        assert_eq!(verifier(&ring).verify(&token, NOW), Ok(claims()), "{typ}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_key_that_the_token_brings_is_not_used() {
    let (ours, theirs) =
        (ring(KeyAlgorithm::EdDsa), KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(66), NOW));
    let jwks: Value = serde_json::from_str(&theirs.public_jwks()).unwrap();
    let mut header = good_header(&ours);
    header["jwk"] = jwks["keys"][0].clone();
    header["jku"] = json!("https://attacker.example/jwks.json");
    header["x5u"] = json!("https://attacker.example/x5u.pem");
    let (header, claims_text) = (header.to_string(), good_claims().to_string());
    assert_eq!(refused(&ours, &signed(&theirs, &header, &claims_text)), TokenError::Signature);
    assert_eq!(verifier(&ours).verify(&signed(&ours, &header, &claims_text), NOW), Ok(claims()));
}

#[wasm_bindgen_test(unsupported = test)]
fn each_claim_is_needed_and_has_one_form() {
    let ring = ring(KeyAlgorithm::Hs256);
    let wrong: [(Claim, Vec<Value>); 9] = [
        (Claim::Iss, vec![json!(1), json!(["edgekeep"]), Value::Null]),
        (Claim::Sub, vec![json!(42), json!(""), json!("a\u{0}"), json!("x".repeat(129)), Value::Null]),
        (Claim::Aud, vec![json!(1), json!({"app": 1}), json!(["app", 1]), Value::Null]),
        (Claim::ClientId, vec![json!(""), json!("x".repeat(129)), json!("a\nb"), json!(1)]),
        (Claim::Iat, vec![json!("1750000000"), json!(-1), json!(1.5), Value::Null]),
        (Claim::Exp, vec![json!("1750000900"), json!(-1), json!(1.75e9), json!(true), Value::Null]),
        (Claim::Jti, vec![json!(""), json!("x".repeat(129)), json!(7)]),
        (Claim::Sid, vec![json!("x"), json!("07070707070707070707070707070707"), json!(1)]),
        (Claim::Gen, vec![json!(-1), json!(4_294_967_296_u64), json!("3"), json!(0.5)]),
    ];
    for (claim, values) in wrong {
        let name = claim.name();
        let gone = refused_claims(&ring, |claims| drop(claims.as_object_mut().unwrap().remove(name)));
        assert_eq!(gone, TokenError::Missing(claim));
        for value in values {
            let found = refused_claims(&ring, |claims| claims[name] = value.clone());
            assert_eq!(found, TokenError::BadClaim(claim), "{name}: {value}");
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn issuer_and_audience_must_be_ours() {
    let ring = ring(KeyAlgorithm::Hs256);
    assert_eq!(refused_claims(&ring, |claims| claims["iss"] = json!("Edgekeep")), TokenError::Issuer);
    for aud in [json!("App"), json!(""), json!([]), json!(["other", "app2"])] {
        assert_eq!(refused_claims(&ring, |claims| claims["aud"] = aud.clone()), TokenError::Audience, "{aud}");
    }
    assert_eq!(verified_claims(&ring, |token| token["aud"] = json!(["other", "app"])), Ok(claims()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_token_expires_at_exp_to_the_millisecond_and_leeway_moves_it() {
    let ring = ring(KeyAlgorithm::EdDsa);
    let (token, exp) = (sign_access(&ring, &claims()).unwrap(), NOW + LIFE);
    let strict = verifier(&ring);
    assert!(strict.verify(&token, Timestamp(exp.0 - 1)).is_ok());
    assert_eq!(strict.verify(&token, exp), Err(TokenError::Expired));
    let lenient = Verifier::new(&ring, "edgekeep", "app", Millis::from_secs(10));
    assert!(lenient.verify(&token, Timestamp(exp.0 + 9_999)).is_ok());
    assert_eq!(lenient.verify(&token, Timestamp(exp.0 + 10_000)), Err(TokenError::Expired));
}

#[wasm_bindgen_test(unsupported = test)]
fn expired_is_said_only_of_a_token_that_is_good_otherwise() {
    let ring = ring(KeyAlgorithm::Hs256);
    let old = |name: &'static str, value: Value| {
        refused_claims(&ring, |claims| {
            claims["exp"] = json!(1);
            claims["iat"] = json!(0);
            claims[name] = value;
        })
    };
    assert_eq!(old("gen", json!(0)), TokenError::Expired);
    assert_eq!(old("iss", json!("x")), TokenError::Issuer);
    assert_eq!(old("aud", json!("x")), TokenError::Audience);
    assert_eq!(old("sid", json!("x")), TokenError::BadClaim(Claim::Sid));
    let token = sign_access(&ring, &claims()).unwrap();
    let late = NOW + LIFE + LIFE;
    assert_eq!(verifier(&ring).verify(&token[..token.len() - 3], late), Err(TokenError::Signature));
}

#[wasm_bindgen_test(unsupported = test)]
fn the_future_is_allowed_for_a_minute_and_nbf_to_the_second() {
    let ring = ring(KeyAlgorithm::Hs256);
    let seconds = NOW.seconds();
    let ahead = verified_claims(&ring, |claims| claims["iat"] = json!(seconds + 60)).unwrap();
    assert_eq!(ahead.iat, NOW + Millis::from_secs(60));
    assert_eq!(refused_claims(&ring, |claims| claims["iat"] = json!(seconds + 61)), TokenError::IssuedInFuture);
    assert!(verified_claims(&ring, |claims| claims["nbf"] = json!(seconds)).is_ok());
    assert_eq!(refused_claims(&ring, |claims| claims["nbf"] = json!(seconds + 1)), TokenError::NotYet);
    assert_eq!(refused_claims(&ring, |claims| claims["nbf"] = json!("x")), TokenError::BadClaim(Claim::Nbf));
    assert!(verified_claims(&ring, |claims| claims["exp"] = json!(u64::MAX)).is_ok());
}

#[wasm_bindgen_test(unsupported = test)]
fn a_name_that_stands_twice_is_refused_in_header_and_claims() {
    let ring = ring(KeyAlgorithm::Hs256);
    let (header, body) = (good_header(&ring).to_string(), good_claims().to_string());
    let with = |text: &str, more: &str| format!("{},{more}}}", &text[..text.len() - 1]);
    for more in [r#""alg":"HS256""#, r#""typ":"at+jwt""#, r#""x":1,"x":1"#, r#""k\u0069d":"a""#] {
        let found = refused(&ring, &signed(&ring, &with(&header, more), &body));
        assert_eq!(found, TokenError::Malformed(Part::Header, Fault::Duplicate), "{more}");
    }
    for more in [r#""sub":"42""#, r#""exp":9999999999"#, r#""x":1,"x":1"#, r#""\u0073id":"a""#] {
        let found = refused(&ring, &signed(&ring, &header, &with(&body, more)));
        assert_eq!(found, TokenError::Malformed(Part::Claims, Fault::Duplicate), "{more}");
    }
    assert!(verifier(&ring).verify(&signed(&ring, &header, &with(&body, r#""x":{"y":[1,{}]}"#)), NOW).is_ok());
}

#[wasm_bindgen_test(unsupported = test)]
fn what_is_not_one_json_object_is_refused() {
    let ring = ring(KeyAlgorithm::Hs256);
    let (header, body) = (good_header(&ring).to_string(), good_claims().to_string());
    let nested = format!("{{\"x\":{}", "[".repeat(2000));
    for text in ["", "null", "[]", "\"a\"", "{", "{}x", &format!("{body} {{}}"), "{\"a\"}", "\u{feff}{}", &nested] {
        let found = refused(&ring, &signed(&ring, &header, text));
        assert_eq!(found, TokenError::Malformed(Part::Claims, Fault::Json), "{text}");
        let found = refused(&ring, &signed(&ring, text, &body));
        assert_eq!(found, TokenError::Malformed(Part::Header, Fault::Json), "{text}");
    }
    let mut token = format!("{}.{}", BASE64URL.encode(&header), BASE64URL.encode(b"{\"iss\":\"\xff\"}"));
    ring.current_access().unwrap().sign(&mut token).unwrap();
    assert_eq!(refused(&ring, &token), TokenError::Malformed(Part::Claims, Fault::Json));
}

#[wasm_bindgen_test(unsupported = test)]
fn random_bytes_and_random_edits_never_panic_and_never_get_in() {
    const ALPHABET: &[u8; 66] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=";
    let ring = ring(KeyAlgorithm::Hs256);
    let (verifier, token) = (verifier(&ring), sign_access(&ring, &claims()).unwrap());
    for seed in 0..3000 {
        let mut entropy = Entropy::for_tests(seed);
        let mut bytes = token.clone().into_bytes();
        for _ in 0..=entropy.below(4) {
            let place = entropy.below(bytes.len() as u64) as usize;
            match entropy.below(3) {
                0 => drop(bytes.remove(place)),
                1 => bytes.insert(place, ALPHABET[entropy.below(66) as usize]),
                _ => bytes[place] = ALPHABET[entropy.below(66) as usize],
            }
        }
        let edited = String::from_utf8(bytes).unwrap();
        assert!(edited == token || verifier.verify(&edited, NOW).is_err(), "seed {seed}");
        let noise = String::from_utf8_lossy(&entropy.bytes::<64>()).into_owned();
        let _ = (RawHeader::read(&noise), RawClaims::read(&noise));
    }
}
