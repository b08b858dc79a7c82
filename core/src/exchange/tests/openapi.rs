//! The OpenAPI document beside what runs: the same paths, the same methods, and nothing answered that it does not name.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use super::request::request;
use super::*;
use crate::route::OwnPath;
use wasm_bindgen_test::wasm_bindgen_test;

/// Every path of the document. What is in braces stands for anything.
const TEMPLATES: [&str; 19] = [
    "/v1/sessions",
    "/v1/sessions/refresh",
    "/v1/sessions/current",
    "/v1/sessions/{id}",
    "/v1/users/{id}/sessions",
    "/oauth/token",
    "/oauth/revoke",
    "/oauth/introspect",
    "/.well-known/jwks.json",
    "/openapi.json",
    "/v1/authorize",
    "/v1/authorize/{path}",
    "/v1/edge/validate",
    "/v1/edge/confirm",
    "/v1/edge/shard-map",
    "/v1/edge/tombstones",
    "/v1/shards/users/{id}",
    "/v1/shards/photos",
    "",
];

/// Where the document tells of an own path. A new own path does not compile until it has its place here.
fn template(own: &OwnPath<'_>) -> &'static str {
    let place = match own {
        OwnPath::Sessions => 0,
        OwnPath::SessionsRefresh => 1,
        OwnPath::SessionsCurrent => 2,
        OwnPath::Session(_) => 3,
        OwnPath::UserSessions(_) => 4,
        OwnPath::OauthToken => 5,
        OwnPath::OauthRevoke => 6,
        OwnPath::OauthIntrospect => 7,
        OwnPath::Jwks => 8,
        OwnPath::OpenApi => 9,
        OwnPath::Authorize { below: None } => 10,
        OwnPath::Authorize { below: Some(_) } => 11,
        OwnPath::EdgeValidate => 12,
        OwnPath::EdgeConfirm => 13,
        OwnPath::EdgeShardMap => 14,
        OwnPath::EdgeTombstones => 15,
        OwnPath::ShardOfUser(_) => 16,
        OwnPath::ShardsOfPhotos => 17,
        // A spelling, and no path of its own.
        OwnPath::Refused(_) => 18,
    };
    TEMPLATES[place]
}

fn documented() -> Value {
    serde_json::from_slice(&crate::exchange::openapi::document("")).unwrap()
}

/// Follows `$ref` until something stands there itself.
fn resolved<'d>(document: &'d Value, mut at: &'d Value) -> &'d Value {
    while let Some(link) = at["$ref"].as_str() {
        let pointer = link.strip_prefix('#').unwrap_or_else(|| panic!("{link} leads out of the document"));
        at = document.pointer(pointer).unwrap_or_else(|| panic!("{link} leads nowhere"));
    }
    at
}

fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if !matches!(method.as_str(), "parameters" | "summary" | "description") {
                found.push((path.as_str(), method.as_str(), operation));
            }
        }
    }
    found
}

fn links<'d>(value: &'d Value, found: &mut Vec<&'d Value>) {
    match value {
        Value::Object(members) => {
            if members.contains_key("$ref") {
                found.push(value);
            }
            members.values().for_each(|member| links(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| links(item, found)),
        _ => {}
    }
}

/// What an answer on an own path must be: an answer that the document names. Every test's answers are asked.
pub(super) fn must_be_documented(asked: &Request, answer: &Answer, prefix: &str) {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    let document = DOCUMENT.get_or_init(documented);
    let Some(own) = own_path(asked.path(), prefix) else { return };
    let path = template(&own);
    // What came from an authority is the authority's to answer for.
    if path.is_empty() || !answer.forwarded.is_empty() {
        return;
    }
    let what = format!("{} {path} → {}", asked.method(), answer.status);
    let operation = &document["paths"][path][asked.method().to_ascii_lowercase()];
    if operation.is_null() {
        let methods = operations(document).into_iter().filter(|(at, ..)| *at == path).map(|(_, method, _)| method);
        let methods: BTreeSet<String> = methods.map(str::to_ascii_uppercase).collect();
        let closed_here = answer.status == 404 && path.starts_with("/v1/edge/");
        assert!(answer.status == 405 || closed_here, "{what}");
        assert!(closed_here || sent(answer.header("allow").unwrap_or_default()) == methods, "{what}: {answer:?}");
        return;
    }
    let response = resolved(document, &operation["responses"][answer.status.to_string()]);
    assert!(response.is_object(), "{what} is not documented: {}", answer.text());
    for (name, header) in response["headers"].as_object().into_iter().flatten() {
        let header = resolved(document, header);
        let values = answer.values(&name.to_ascii_lowercase());
        assert!(header["required"] != true || !values.is_empty(), "{what}: no {name}");
        let text = &resolved(document, &header["schema"])["const"];
        assert!(text.is_null() || values.iter().all(|value| text == *value), "{what}: {name} is {values:?}");
    }
    // A shell leaves out the body of an answer to HEAD.
    if answer.text().is_empty() || asked.method() == "HEAD" {
        return;
    }
    let media = answer.header("content-type").unwrap_or_default();
    let schema = &response["content"][media]["schema"];
    assert!(schema.is_object(), "{what}: {media} is not documented");
    assert!(fits(document, schema, &answer.json()), "{what}: {} is not as documented", answer.text());
}

fn sent(list: &str) -> BTreeSet<String> {
    list.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

/// As much of JSON Schema as tells a missing or an unknown member: constants, types, members, items, alternatives.
fn fits(document: &Value, schema: &Value, value: &Value) -> bool {
    let schema = resolved(document, schema);
    if let Some(some) = schema["oneOf"].as_array() {
        return some.iter().filter(|schema| fits(document, schema, value)).count() == 1;
    }
    let typed = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.as_u64().is_some() || value.as_i64().is_some(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    let constant = schema.get("const").is_none_or(|constant| constant == value);
    let listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let required = schema["required"].as_array().into_iter().flatten();
    let complete = required.into_iter().all(|name| value.get(name.as_str().unwrap()).is_some());
    let members = value.as_object().into_iter().flatten().all(|(name, member)| match schema["properties"].get(name) {
        Some(schema) => fits(document, schema, member),
        None => schema["additionalProperties"] != false,
    });
    let items = value.as_array().into_iter().flatten().all(|item| fits(document, &schema["items"], item));
    typed && constant && listed && complete && members && items
}

#[wasm_bindgen_test(unsupported = test)]
fn the_document_has_every_own_path_with_its_methods_and_no_other() {
    let document = documented();
    let paths: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(paths, TEMPLATES.into_iter().filter(|path| !path.is_empty()).collect());
    for path in paths {
        let raw = path.replace("{id}", "x").replace("{path}", "x");
        let own = own_path(&raw, "").unwrap_or_else(|| panic!("{path} is not ours"));
        assert_eq!(template(&own), path);
        let methods = operations(&document).into_iter().filter(|(at, ..)| *at == path).map(|(_, method, _)| method);
        let methods: BTreeSet<String> = methods.map(str::to_ascii_uppercase).collect();
        assert_eq!(methods, sent(own::allowed_methods(&own)), "{path}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_document_is_whole() {
    let document = documented();
    let mut found = Vec::new();
    links(&document, &mut found);
    assert!(found.len() > 100);
    for link in found {
        resolved(&document, link);
    }
    let mut names = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        assert!(names.insert(operation["operationId"].as_str().unwrap()), "{method} {path}");
        for status in ["431", "500"] {
            assert!(operation["responses"][status].is_object(), "{method} {path}: any request may end with {status}");
        }
        let schemes = &document["components"]["securitySchemes"];
        for way in operation["security"].as_array().unwrap() {
            assert!(way.as_object().unwrap().keys().all(|scheme| schemes[scheme].is_object()), "{method} {path}");
        }
        for (_, response) in operation["responses"].as_object().unwrap() {
            for (_, link) in resolved(&document, response)["links"].as_object().into_iter().flatten() {
                let to = &link["operationId"];
                assert!(operations(&document).iter().any(|(.., operation)| operation["operationId"] == *to), "{to}");
            }
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_document_is_the_same_at_the_edge_and_natively_and_is_kept_by_its_tag() {
    let mut native = World::new();
    let answer = native.run(get("/openapi.json"));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
    assert_eq!(answer.json()["servers"], json!([{ "url": "/" }]));
    let edge = World::at_edge().run(get("/openapi.json"));
    assert_eq!((edge.status, edge.text(), edge.header("etag")), (200, answer.text(), answer.header("etag")));
    let tag = answer.header("etag").unwrap();
    for known in [tag.to_owned(), format!("\"x\", W/{tag}"), "*".to_owned()] {
        let again = native.run(get("/openapi.json").header("if-none-match", &known));
        assert_eq!((again.status, again.text().as_str(), again.header("etag")), (304, "", Some(tag)), "{known}");
    }
    assert_eq!(native.run(get("/openapi.json").header("if-none-match", "\"other\"")).status, 200);
    let head = native.run(request("HEAD", "/openapi.json"));
    assert_eq!((head.status, head.header("etag")), (200, Some(tag)));
    assert_eq!(native.run(post("/openapi.json")).header("allow"), Some("GET, HEAD"));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_prefix_moves_the_document_and_what_it_says_of_itself() {
    let mut world = World::with(json!({ "server": { "api_prefix": "/auth" } }));
    let answer = world.run(get("/auth/openapi.json"));
    assert_eq!(answer.json()["servers"], json!([{ "url": "/auth" }]));
    assert_ne!(answer.header("etag"), World::new().run(get("/openapi.json")).header("etag"));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_method_that_is_never_proxied_is_told_what_applies_instead() {
    let mut world = World::new();
    for (path, allow) in [
        ("/v1/users/42/sessions", "GET, DELETE"),
        ("/v1/authorize", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("/feed", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
    ] {
        let answer = world.run(request("TRACE", path));
        assert_eq!(answer.refused(405, "method_not_allowed").header("allow"), Some(allow), "{path}");
    }
}
