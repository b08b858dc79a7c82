//! Bad input is answered with what is wrong about it, and never with a secret, a panic or a stack trace.

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Answer, Deployment, SERVICE_TOKEN, fresh_address};
use serde_json::{Value, json};

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        a_body_that_is_not_json,
        an_unknown_field_is_named,
        a_bad_user_id_is_named,
        a_bad_device_info_is_named,
        other_bad_fields_are_named,
        a_bad_refresh_request_is_named,
        a_bad_user_id_in_a_path,
        headers_over_the_limit,
        a_method_that_does_not_apply,
        noise_is_refused_and_survived,
    ]
}

/// 400, and the detail names the field.
fn names(answer: &Answer, field: &str) -> Result<()> {
    let document = answer.problem(400, "bad_request")?;
    let detail = document["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(field), "the detail does not name {field}: {detail}");
    Ok(())
}

fn a_body_that_is_not_json(d: &Deployment) -> Result<()> {
    let deep = "[".repeat(60_000);
    let deep_object = format!("{{\"user_id\":\"x\",\"device_info\":{}", "{\"a\":".repeat(10_000));
    let long_number = format!("{{\"user_id\":{}}}", "9".repeat(10_000));
    for body in [
        "",
        "{",
        "user_id=x",
        "[]",
        "null",
        "42",
        "\"x\"",
        "{\"user_id\":\"x\"} x",
        "{'user_id':'x'}",
        &deep,
        &deep_object,
    ] {
        let answer = d.post("/v1/sessions").bearer(SERVICE_TOKEN).text("application/json", body).send()?;
        answer.problem(400, "bad_request").with_context(|| body.chars().take(40).collect::<String>())?;
    }
    for body in [b"\xff\xfe{}".as_slice(), b"{\"user_id\":\"\xff\"}", b"{\"user_id\":\"\xed\xa0\x80\"}", &[0; 100]] {
        let answer = d.post("/v1/sessions").bearer(SERVICE_TOKEN).bytes("application/json", body).send()?;
        answer.problem(400, "bad_request")?;
    }
    let answer = d.post("/v1/sessions").bearer(SERVICE_TOKEN).text("application/json", &long_number).send()?;
    names(&answer, "user_id")
}

fn an_unknown_field_is_named(d: &Deployment) -> Result<()> {
    for field in ["admin", "userId", "user_ID", "session_id", "scope", ""] {
        let answer = d.create(&json!({ "user_id": "x", field: true })).send()?;
        names(&answer, field)?;
        names(&answer, "unknown")?;
    }
    // A very long name is not repeated whole.
    let answer = d.create(&json!({ "user_id": "x", "n".repeat(5000): true })).send()?;
    names(&answer, "nnnn")?;
    ensure!(answer.body.len() < 1000, "{answer}");
    Ok(())
}

fn a_bad_user_id_is_named(d: &Deployment) -> Result<()> {
    names(&d.create(&json!({})).send()?, "user_id")?;
    let forty: Value = serde_json::from_str(&"9".repeat(40))?;
    let exponent: Value = serde_json::from_str("1e3")?;
    let fraction: Value = serde_json::from_str("42.0")?;
    let long = "x".repeat(129);
    // 65 letters of two bytes each: what counts is bytes.
    let wide = "ö".repeat(65);
    for user_id in [
        json!(null),
        json!(true),
        json!([]),
        json!(["x"]),
        json!({ "id": 1 }),
        json!(""),
        json!(long),
        json!(wide),
        json!("a\u{0}b"),
        json!("a\nb"),
        json!("a\u{7f}"),
        forty,
        exponent,
        fraction,
    ] {
        let answer = d.create(&json!({ "user_id": user_id })).send()?;
        names(&answer, "user_id").with_context(|| user_id.to_string())?;
    }
    // The longest that is still good.
    d.login(&"y".repeat(128))?;
    d.login(&"ö".repeat(64))?;
    Ok(())
}

fn a_bad_device_info_is_named(d: &Deployment) -> Result<()> {
    // 4 KiB of compact JSON, and one byte more.
    let of =
        |bytes: usize| json!({ "user_id": "device", "device_info": { "x": "x".repeat(bytes - "{\"x\":\"\"}".len()) } });
    d.login_with(&of(4096))?;
    names(&d.create(&of(4097)).send()?, "device_info")?;
    for bad in [json!(null), json!("phone"), json!([]), json!(1), json!(true)] {
        names(&d.create(&json!({ "user_id": "device", "device_info": bad })).send()?, "device_info")?;
    }
    Ok(())
}

fn other_bad_fields_are_named(d: &Deployment) -> Result<()> {
    for bad in [json!(null), json!(1), json!(""), json!("x".repeat(129)), json!("a\u{0}"), json!(["app"])] {
        names(&d.create(&json!({ "user_id": "x", "client_id": bad })).send()?, "client_id")?;
    }
    for bad in [json!(null), json!(0), json!(-1), json!(901), json!(1.5), json!("15m"), json!(true)] {
        names(&d.create(&json!({ "user_id": "x", "access_ttl": bad })).send()?, "access_ttl")?;
    }
    Ok(())
}

fn a_bad_refresh_request_is_named(d: &Deployment) -> Result<()> {
    let refresh =
        |body: &str| d.post("/v1/sessions/refresh").from(fresh_address()).text("application/json", body).send();
    names(&refresh("{}")?, "refresh_token")?;
    names(&refresh("{\"refresh_token\":1}")?, "refresh_token")?;
    names(&refresh("{\"refresh_token\":null}")?, "refresh_token")?;
    names(&refresh("{\"refresh_token\":\"x\",\"user_id\":\"x\"}")?, "user_id")?;
    refresh("{")?.problem(400, "bad_request")?;
    // Nothing at all is a missing credential, as is an absent cookie.
    refresh("")?.problem(401, "missing_credential")?;
    Ok(())
}

fn a_bad_user_id_in_a_path(d: &Deployment) -> Result<()> {
    let long = "x".repeat(129);
    d.service("GET", &format!("/v1/users/{long}/sessions")).send()?.problem(400, "bad_identity")?;
    d.service("GET", &format!("/v1/shards/users/{long}")).send()?.problem(400, "bad_identity")?;
    for id in ["%00", "%0A", "%ff", "%zz", "%"] {
        let answer = d.service("GET", &format!("/v1/users/{id}/sessions")).send()?;
        ensure!(answer.status == 400, "{answer}");
    }
    Ok(())
}

fn headers_over_the_limit(d: &Deployment) -> Result<()> {
    // server.max_header_bytes = "64KiB"; a Worker's platform has its own limit, 128 KiB (docs/parity.md).
    let one = d.get("/echo/open/x").header("x-large", &"x".repeat(140 * 1024)).send()?;
    ensure!(one.status == 431, "one long header: {one}");
    let mut many = d.get("/echo/open/x");
    for number in 0..1000 {
        many = many.header(&format!("x-many-{number}"), &"x".repeat(140));
    }
    let many = many.send()?;
    ensure!(many.status == 431, "many headers: {many}");
    let target = d.get(&format!("/echo/open/{}", "x".repeat(140 * 1024))).send()?;
    ensure!(matches!(target.status, 414 | 431), "a long target: {target}");
    // Half the limit is fine.
    d.get("/echo/open/x").header("x-large", &"x".repeat(32 * 1024)).send()?.expect(200)?;
    Ok(())
}

fn a_method_that_does_not_apply(d: &Deployment) -> Result<()> {
    for (method, path) in [
        ("PUT", "/v1/sessions"),
        ("GET", "/v1/sessions/refresh"),
        ("POST", "/v1/sessions/current"),
        ("POST", "/v1/users/x/sessions"),
        ("POST", "/.well-known/jwks.json"),
    ] {
        d.request(method, path).bearer(SERVICE_TOKEN).send()?.problem(405, "method_not_allowed")?;
    }
    Ok(())
}

fn noise_is_refused_and_survived(d: &Deployment) -> Result<()> {
    // A fixed seed: the same noise in every run.
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut draw = move |most: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % most as u64) as usize
    };
    let alphabet: Vec<char> = "abcXYZ019-._~%/=+{}[]\":,;é\u{1F600} ".chars().collect();
    for round in 0..60 {
        let length = draw(300);
        let noise: String = (0..length).filter_map(|_| alphabet.get(draw(alphabet.len()))).collect();
        let header: String = noise.chars().filter(char::is_ascii_graphic).collect();
        for answer in [
            d.create(&json!({ "user_id": noise, "x": noise })).send()?,
            d.post("/v1/sessions").bearer(SERVICE_TOKEN).text("application/json", &noise).send()?,
            d.post("/v1/sessions/refresh").from(fresh_address()).json(&json!({ "refresh_token": noise })).send()?,
            d.get("/echo/x").bearer(&header).send()?,
            d.get("/echo/x").header("cookie", &format!("__Host-edgekeep-at={header}")).send()?,
        ] {
            ensure!((400..500).contains(&answer.status), "round {round}, {noise:?}: {answer}");
        }
    }
    d.login("after the noise")?;
    Ok(())
}
