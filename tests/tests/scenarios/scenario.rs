//! What a scenario is and where it plays: on a deployment that it shares, or on one of its own.

use anyhow::Result;
use edgekeep_tests::{Deployment, Kind, Setup, Stage, is_long};
use libtest_mimic::{Failed, Trial};

/// One story, with the name of its test.
pub struct Scenario {
    name: &'static str,
    play: Play,
    only: Option<Vec<Kind>>,
    except: Option<Kind>,
    long: bool,
}

#[derive(Clone, Copy)]
enum Play {
    /// On the deployment of a group of scenarios.
    Shared(&'static str, Setup, fn(&Deployment) -> Result<()>),
    Alone(Setup, fn(&Deployment) -> Result<()>),
}

impl Scenario {
    /// Leaves nothing behind that another scenario could see.
    pub fn shared(name: &'static str, play: fn(&Deployment) -> Result<()>) -> Scenario {
        Scenario::among("", Setup::default(), name, play)
    }

    /// The same, on a deployment that only the scenarios of this group share; the group stands in the test's name.
    pub fn among(
        group: &'static str,
        setup: Setup,
        name: &'static str,
        play: fn(&Deployment) -> Result<()>,
    ) -> Scenario {
        Scenario { name, play: Play::Shared(group, setup, play), only: None, except: None, long: false }
    }

    /// Kills something, or needs a deployment that nobody else uses.
    pub fn alone(name: &'static str, setup: Setup, play: fn(&Deployment) -> Result<()>) -> Scenario {
        Scenario { name, play: Play::Alone(setup, play), only: None, except: None, long: false }
    }

    /// Says something about one kind of deployment only.
    pub fn only(mut self, kind: Kind) -> Scenario {
        self.only = Some(vec![kind]);
        self
    }

    /// Says something about the native gateway only.
    pub fn natively(mut self) -> Scenario {
        self.only = Some(Kind::NATIVE.to_vec());
        self
    }

    /// Says something that one kind of deployment cannot do.
    pub fn except(mut self, kind: Kind) -> Scenario {
        self.except = Some(kind);
        self
    }

    /// Takes minutes: runs in the long form, with `EDGEKEEP_LONG`, or when ignored tests are asked for.
    pub fn long(mut self) -> Scenario {
        self.long = true;
        self
    }

    pub fn trial(&self, kind: Kind, stage: &Stage<(Kind, &'static str), Deployment>) -> Option<Trial> {
        if self.only.as_ref().is_some_and(|only| !only.contains(&kind)) || self.except == Some(kind) {
            return None;
        }
        let play = self.play;
        let stage = stage.clone();
        let group = match play {
            Play::Shared(group, ..) if !group.is_empty() => format!("{group}::"),
            _ => String::new(),
        };
        let trial = Trial::test(format!("{}::{group}{}", kind.name(), self.name), move || match play {
            Play::Shared(group, setup, scenario) => {
                let deployment = stage.of((kind, group), || Deployment::start(kind, setup))?;
                played(&deployment, scenario(&deployment))
            }
            Play::Alone(setup, scenario) => {
                let deployment = Deployment::start(kind, setup).map_err(|error| failed(&error))?;
                played(&deployment, scenario(&deployment))?;
                let faults = deployment.faults_in_logs().map_err(|error| failed(&error))?;
                if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
            }
        });
        Some(trial.with_ignored_flag(self.long && !is_long()))
    }
}

fn played(deployment: &Deployment, outcome: Result<()>) -> Result<(), Failed> {
    outcome.map_err(|error| format!("{error:#}\n{}", deployment.last_words()).into())
}

fn failed(error: &anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// Stops the shared deployments; what their logs should not hold.
pub fn close(stage: &Stage<(Kind, &'static str), Deployment>) -> Vec<String> {
    let mut faults = Vec::new();
    for ((kind, _), deployment) in stage.close() {
        match deployment.faults_in_logs() {
            Ok(found) => faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", kind.name()))),
            Err(error) => faults.push(format!("{}: the logs cannot be read: {error:#}", kind.name())),
        }
    }
    faults
}

/// Lists the functions of a file as scenarios under their own names.
#[macro_export]
macro_rules! shared {
    ($($scenario:ident),* $(,)?) => {
        vec![$($crate::scenario::Scenario::shared(stringify!($scenario), $scenario)),*]
    };
}
