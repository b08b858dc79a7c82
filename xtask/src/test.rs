//! `cargo xtask test`: every suite, with its runner's own output, and one table and one line at the end.
//!
//! Nothing is passed over in silence: a suite that could not run counts as one failed test.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::process::tee;
use crate::suites::Suite;

#[derive(Args)]
pub struct Options {
    /// Also the suites that take long or need the network, and the long form of the others (`EDGEKEEP_LONG=1`).
    #[arg(long)]
    long: bool,
    /// The suites to run; all of them when none is named.
    #[arg(value_enum)]
    suites: Vec<Suite>,
}

/// What came of a suite.
#[derive(Default)]
pub struct Outcome {
    pub passed: u32,
    pub failed: u32,
    /// The tests that ran, by name.
    pub names: BTreeSet<String>,
    /// What the table should say beside the numbers.
    pub note: String,
}

impl Outcome {
    /// With what came of another runner of the same suite.
    pub fn and(mut self, other: Outcome) -> Outcome {
        self.passed += other.passed;
        self.failed += other.failed;
        self.names.extend(other.names);
        if self.note.is_empty() {
            self.note = other.note;
        }
        self
    }
}

impl Options {
    /// Runs the suites; what failed is in the table, and the closing line is the last.
    pub fn run(&self) -> ExitCode {
        let chosen: Vec<Suite> = match self.suites.as_slice() {
            [] => Suite::value_variants().iter().copied().filter(|suite| self.long || !suite.only_long()).collect(),
            named => named.to_vec(),
        };
        let rows: Vec<(Suite, Outcome, Duration)> = chosen.into_iter().map(|suite| self.run_one(suite)).collect();

        println!("\n{:<18} {:>7} {:>7} {:>7}", "suite", "passed", "failed", "seconds");
        for (suite, outcome, took) in &rows {
            let Outcome { passed, failed, note, .. } = outcome;
            println!("{:<18} {passed:>7} {failed:>7} {:>7.1}  {note}", suite.name(), took.as_secs_f64());
        }
        let passed: u32 = rows.iter().map(|(_, outcome, _)| outcome.passed).sum();
        let failed: u32 = rows.iter().map(|(_, outcome, _)| outcome.failed).sum();
        println!("\n{passed} passed, {failed} failed");
        if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn run_one(&self, suite: Suite) -> (Suite, Outcome, Duration) {
        println!("\n== {}", suite.name());
        let begun = Instant::now();
        let outcome = suite.run(self.long).unwrap_or_else(|error| {
            println!("{}: {error:#}", suite.name());
            let note = error.to_string().lines().next().unwrap_or_default().to_owned();
            Outcome { failed: 1, note, ..Outcome::default() }
        });
        (suite, outcome, begun.elapsed())
    }
}

/// Runs a test runner (libtest's or wasm-bindgen's: they print alike) and counts its tests. A runner that fails without
/// naming a failed test (it did not compile, it crashed) counts as one.
pub fn counted(command: &mut Command) -> Result<Outcome> {
    let (status, output) = tee(command)?;
    let mut outcome = read(&output);
    if !status.success() && outcome.failed == 0 {
        outcome.failed = 1;
        outcome.note = format!("the runner ended with {status}");
    }
    if status.success() && outcome.passed == 0 {
        outcome.note = "has no tests".into();
    }
    Ok(outcome)
}

fn read(output: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in output.lines() {
        if let Some(counts) = line.strip_prefix("test result: ") {
            outcome.passed += number_before(counts, " passed");
            outcome.failed += number_before(counts, " failed");
        } else if let Some((name, verdict)) = line.strip_prefix("test ").and_then(|test| test.split_once(" ... "))
            && !verdict.starts_with("ignored")
        {
            outcome.names.insert(name.trim_end_matches(" - should panic").to_owned());
        }
    }
    outcome
}

fn number_before(text: &str, word: &str) -> u32 {
    let before = text.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_runners_are_summed_and_ignored_tests_did_not_run() {
        let output = "\
running 2 tests
test units::tests::a ... ok
test units::tests::b ... FAILED
test units::tests::c - should panic ... ok
test units::tests::d ... ignored, slow

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

test result: ok. 40 passed; 0 failed; 0 ignored; 0 filtered out; finished in 0.25s
";
        let outcome = read(output);
        assert_eq!((outcome.passed, outcome.failed), (42, 1));
        let names: Vec<&str> = outcome.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["units::tests::a", "units::tests::b", "units::tests::c"]);
    }

    #[test]
    fn what_passing_tests_print_is_not_taken_for_tests_and_two_runners_are_one_suite() {
        let shown = "\
running 1 test
test a::simulation::b ... ok

successes:

---- a::simulation::b stdout ----
20000 thieves who wait: 5000 found out before they got anything;

successes:
    a::simulation::b

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 534 filtered out; finished in 1.23s
";
        let others = read("test c ... FAILED\ntest result: FAILED. 2 passed; 1 failed; 0 ignored\n");
        let outcome = others.and(read(shown));
        assert_eq!((outcome.passed, outcome.failed), (3, 1));
        let names: Vec<&str> = outcome.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["a::simulation::b", "c"]);
    }

    #[test]
    fn a_runner_that_breaks_before_its_tests_counts_as_a_failure() {
        let outcome = counted(crate::process::command("sh").args(["-c", "exit 101"])).unwrap();
        assert_eq!((outcome.passed, outcome.failed), (0, 1));
    }
}
