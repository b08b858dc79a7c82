//! `cargo xtask bench edge`: what admitting a request costs in a Worker, here and at the peers.
//!
//! Ours is asked through `/v1/authorize/…`, as a proxy with forward-auth would: the same code that a deployment runs,
//! with no endpoint of its own for benchmarks. Beside it are Hono's `jwt`, jose, and an empty Worker as the floor. All
//! run in one workerd process, each behind a socket of its own, and only one is under load at a time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use serde::Deserialize;

use super::install::{self, EdgePeers};
use super::machine::PROXY_CORE;
use super::ours::{Ours, Region};
use super::peer::{Peer, Refused};
use super::process::{self, Running, free_address};
use super::report::{Report, Size};
use super::rounds::{Load, interleave};
use super::tokens::{self, Signer};
use super::{Options, root, run_dir};

const WORKERS: [&str; 4] = ["ours", "hono", "jose", "empty"];

/// The peers' compatibility date; ours has the one in `wrangler.toml`.
const COMPATIBILITY_DATE: &str = "2026-01-01";

const VOID: &str = r#"(name = "void.js", esModule = embed "void.js")"#;

/// Below it stands the path that our Worker is asked about: a `token` route of its configuration.
const AUTHORIZE: &str = "/v1/authorize/bench";

pub fn run(options: &Options) -> anyhow::Result<()> {
    let selection = options.selection(&WORKERS)?;
    let binaries = install::build("edgekeep-tests", &["load"])?;
    let packages = EdgePeers::install()?;
    let dir = run_dir("edge")?;
    let signer = Signer::generate()?;
    let tokens = signer.sign_all()?;
    let tokens_file = tokens.write(dir.join("tokens"))?;

    let mut workers = Vec::new();
    let mut missing = Vec::new();
    let mut sizes = Vec::new();
    for name in selection {
        let worker = match name {
            "ours" => match Worker::ours(&dir, &mut sizes) {
                Err(error) if !options.asked_by_name() => {
                    missing.push(format!("{name}: {error:#}"));
                    continue;
                }
                ours => ours?,
            },
            _ => Worker::peer(name, &packages, &signer, &dir, &mut sizes)?,
        };
        workers.push(worker);
    }

    let workerd = start_workerd(&packages, &workers, &dir)?;
    let mut peers = Vec::new();
    for worker in &workers {
        let (tokens, tokens_file) = match &worker.region {
            Some(region) => (&region.tokens, region.tokens.write(dir.join("ours.tokens"))?),
            None => (&tokens, tokens_file.clone()),
        };
        let peer = Peer {
            name: worker.name,
            what: worker.what,
            version: worker.version.clone(),
            process: Rc::clone(&workerd),
            address: worker.address,
            path: worker.path.to_owned(),
            headers: worker.headers(),
            tokens: tokens_file,
            body: None,
        };
        let refused = match worker.name {
            "empty" => Vec::new(),
            "ours" => vec![
                Refused { why: "no token", token: None },
                Refused { why: "a changed signature", token: Some(tokens::tampered(tokens.first()?)) },
            ],
            _ => vec![
                Refused { why: "no token", token: None },
                Refused { why: "a changed signature", token: Some(tokens::tampered(tokens.first()?)) },
                Refused { why: "an expired token", token: Some(signer.sign_expired()?) },
            ],
        };
        peer.prove(tokens.first()?, &refused)?;
        peers.push(peer);
    }

    let connections = vec!["--connections".to_owned(), options.connections.to_string()];
    let load = Load { binary: binaries.join("load"), origins: None, arguments: connections };
    let peers: Vec<&Peer> = peers.iter().collect();
    let samples = interleave(&peers, options.rounds, |peer| load.measure(peer, options))?;
    let mut report = Report::new("edge", "ours", options, &peers, samples)?;
    report.missing = missing;
    report.sizes = sizes;
    report.print(options.json)
}

/// One service of the workerd process.
struct Worker {
    name: &'static str,
    what: &'static str,
    version: String,
    path: &'static str,
    address: SocketAddr,
    /// What stands beside it and has issued its tokens; `None`: it is sent those signed for the peers.
    region: Option<Region>,
    /// Names of files in the run's folder; the first is the entry.
    modules: Vec<String>,
    compatibility_date: String,
    compatibility_flags: Vec<String>,
    text_bindings: BTreeMap<String, String>,
    /// Bindings behind which the `void` service stands, by the kind that workerd's schema calls them.
    void_bindings: Vec<(String, &'static str)>,
    /// Durable Object bindings: name and class.
    objects: Vec<(String, String)>,
}

impl Worker {
    fn peer(
        name: &'static str,
        packages: &EdgePeers,
        signer: &Signer,
        dir: &Path,
        sizes: &mut Vec<Size>,
    ) -> anyhow::Result<Worker> {
        let module = format!("{name}.js");
        let bundled = dir.join(&module);
        packages.bundle(&module, &bundled)?;
        sizes.push(Size::of(format!("{name}, script"), &bundled)?);
        let workerd = packages.version("workerd")?;
        let (what, version) = match name {
            "hono" => ("Hono's jwt middleware, with checks of typ, iss, aud and exp", packages.version("hono")?),
            "jose" => ("jwtVerify in a plain Worker, with checks of typ, iss, aud and exp", packages.version("jose")?),
            _ => ("an empty Worker: the floor", workerd.clone()),
        };
        let text_bindings =
            [("SECRET", signer.secret.as_str()), ("ISSUER", tokens::ISSUER), ("AUDIENCE", tokens::AUDIENCE)];
        Ok(Worker {
            name,
            what,
            version,
            path: "/",
            address: free_address()?,
            region: None,
            modules: vec![module],
            compatibility_date: COMPATIBILITY_DATE.to_owned(),
            compatibility_flags: Vec::new(),
            text_bindings: text_bindings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            void_bindings: Vec::new(),
            objects: Vec::new(),
        })
    }

    /// Our Worker as it ships, with the bindings of `wrangler.toml`, beside a region of its own.
    fn ours(dir: &Path, sizes: &mut Vec<Size>) -> anyhow::Result<Worker> {
        let dist = root().join("edge/dist");
        // What lies there already may be older than what is to be measured.
        let script = crate::edge::build_shipped()?;
        let ours = Ours::build()?;
        let region = ours.start_region(dir)?;
        let mut modules = vec!["ours.js".to_owned()];
        fs::copy(&script, dir.join("ours.js"))?;
        sizes.push(Size::of("ours, script".to_owned(), &script)?);
        for entry in fs::read_dir(&dist)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if path.extension().is_some_and(|extension| extension == "wasm") {
                fs::copy(&path, dir.join(name))?;
                modules.push(name.to_owned());
                sizes.push(Size::of("ours, wasm".to_owned(), &path)?);
            }
        }

        let wrangler: Wrangler = toml::from_str(&fs::read_to_string(root().join("wrangler.toml"))?)?;
        let mut text_bindings = wrangler.vars;
        text_bindings.extend(region.bindings.clone());
        let kv = wrangler.kv_namespaces.into_iter().map(|kv| (kv.binding, "kvNamespace"));
        let objects = wrangler.durable_objects.bindings.into_iter().map(|object| (object.name, object.class_name));
        Ok(Worker {
            name: "ours",
            what: "ours, a token route asked through /v1/authorize, verified-token cache off",
            version: ours.version,
            path: AUTHORIZE,
            address: free_address()?,
            region: Some(region),
            modules,
            compatibility_date: wrangler.compatibility_date,
            compatibility_flags: wrangler.compatibility_flags,
            text_bindings,
            // Without the data set: what would stand in for it here costs a second request, which the platform's does not.
            void_bindings: kv.collect(),
            objects: objects.collect(),
        })
    }

    /// What Cloudflare's front adds: our Worker knows its peer by this header alone, and believes the path below
    /// [`AUTHORIZE`] because that peer is trusted.
    fn headers(&self) -> Vec<(String, String)> {
        let client = ("cf-connecting-ip".to_owned(), "127.0.0.1".to_owned());
        if self.region.is_some() { vec![client] } else { Vec::new() }
    }

    /// Its entry in workerd's configuration.
    fn service(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        writeln!(out, "    (name = {}, worker = (", quoted(self.name))?;
        writeln!(out, "      compatibilityDate = {},", quoted(&self.compatibility_date))?;
        let flags: Vec<String> = self.compatibility_flags.iter().map(|flag| quoted(flag)).collect();
        writeln!(out, "      compatibilityFlags = [{}],", flags.join(", "))?;
        writeln!(out, "      modules = [")?;
        for module in &self.modules {
            let kind = if module.ends_with(".wasm") { "wasm" } else { "esModule" };
            writeln!(out, "        (name = {0}, {kind} = embed {0}),", quoted(module))?;
        }
        writeln!(out, "      ],\n      bindings = [")?;
        for (name, value) in &self.text_bindings {
            writeln!(out, "        (name = {}, text = {}),", quoted(name), quoted(value))?;
        }
        for (name, kind) in &self.void_bindings {
            writeln!(out, "        (name = {}, {kind} = \"void\"),", quoted(name))?;
        }
        for (name, class) in &self.objects {
            writeln!(out, "        (name = {}, durableObjectNamespace = {}),", quoted(name), quoted(class))?;
        }
        writeln!(out, "      ],")?;
        if !self.objects.is_empty() {
            writeln!(
                out,
                "      durableObjectStorage = (localDisk = \"objects\"),\n      durableObjectNamespaces = ["
            )?;
            for (_, class) in &self.objects {
                writeln!(out, "        (className = {0}, uniqueKey = {0}, enableSql = true),", quoted(class))?;
            }
            writeln!(out, "      ],")?;
        }
        writeln!(out, "    )),")?;
        Ok(out)
    }
}

/// What matters here of `wrangler.toml`.
#[derive(Deserialize)]
struct Wrangler {
    compatibility_date: String,
    #[serde(default)]
    compatibility_flags: Vec<String>,
    #[serde(default)]
    vars: BTreeMap<String, String>,
    #[serde(default)]
    kv_namespaces: Vec<Binding>,
    #[serde(default)]
    durable_objects: Objects,
}

#[derive(Deserialize)]
struct Binding {
    binding: String,
}

#[derive(Default, Deserialize)]
struct Objects {
    bindings: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    class_name: String,
}

/// All Workers in one process, pinned, each behind its own socket.
fn start_workerd(packages: &EdgePeers, workers: &[Worker], dir: &Path) -> anyhow::Result<Rc<Running>> {
    fs::copy(root().join("tests/peers/edge/void.js"), dir.join("void.js"))?;
    fs::create_dir_all(dir.join("objects"))?;
    let config = dir.join("workers.capnp");
    fs::write(&config, configuration(workers)?)?;
    let mut command = Command::new(packages.workerd()?);
    command.args(["serve", "--experimental"]).arg(&config).current_dir(dir);
    let mut workerd = Running::start("workerd", &command, PROXY_CORE, dir)?;
    for worker in workers {
        workerd.wait_for(worker.address)?;
    }
    Ok(Rc::new(workerd))
}

fn configuration(workers: &[Worker]) -> anyhow::Result<String> {
    let mut out = String::from("using Workerd = import \"/workerd/workerd.capnp\";\n\n");
    out.push_str("const config :Workerd.Config = (\n  services = [\n");
    for worker in workers {
        out.push_str(&worker.service()?);
    }
    let date = quoted(COMPATIBILITY_DATE);
    writeln!(out, "    (name = \"void\", worker = (compatibilityDate = {date}, modules = [{VOID}])),")?;
    // Loopback, where the region is, and nothing else.
    writeln!(out, "    (name = \"internet\", network = (allow = [\"local\"])),")?;
    // Objects kept in memory would have no SQLite.
    writeln!(out, "    (name = \"objects\", disk = (path = \"objects\", writable = true)),\n  ],\n  sockets = [")?;
    for worker in workers {
        let address = quoted(&worker.address.to_string());
        writeln!(out, "    (name = {0}, address = {address}, http = (), service = {0}),", quoted(worker.name))?;
    }
    out.push_str("  ],\n);\n");
    Ok(out)
}

/// A string in Cap'n Proto's text form, whose escapes are those of C.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

impl Size {
    fn of(what: String, path: &Path) -> anyhow::Result<Size> {
        let gzipped = process::run(Command::new("gzip").args(["--best", "--stdout"]).arg(path))?.stdout.len() as u64;
        Ok(Size { what, raw: fs::metadata(path)?.len(), gzipped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_the_configuration_cannot_end_its_quotes() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
    }
}
