//! `/metrics`, as the documents speak of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, Kind, root};

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    // Over Redis a gateway has every metric.
    let name = "every_metric_that_a_document_names_is_there";
    vec![Scenario::shared(name, every_metric_that_a_document_names_is_there).only(Kind::NativeRedis)]
}

fn every_metric_that_a_document_names_is_there(d: &Deployment) -> Result<()> {
    let gateway = *d.gateways()?.first().context("a gateway")?;
    let text = gateway.admin("/metrics").send()?.expect(200)?.text();
    let there: BTreeSet<&str> = text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let mut named = 0;
    for path in documents()? {
        let document = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for name in metrics_in(&document) {
            ensure!(there.contains(name), "{} names {name}, which /metrics has not:\n{text}", path.display());
            named += 1;
        }
    }
    ensure!(named >= 5, "only {named} names were found in the documents");
    Ok(())
}

fn documents() -> Result<Vec<PathBuf>> {
    let mut documents = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    for entry in fs::read_dir(root().join("docs"))? {
        documents.push(entry?.path());
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    Ok(documents)
}

/// Words that begin as our metrics do.
fn metrics_in(document: &str) -> impl Iterator<Item = &str> {
    let words = document.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("edgekeep_"))
}
