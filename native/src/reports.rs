//! This gateway among the others: each second it reports its keys and the epoch of its shard map to the store under a
//! lease, and reads who else is live. A key file is taken up through here, so that nobody signs with a key that another
//! gateway lacks; core's roster decides, this performs.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use edgekeep_core::shard::ShardMap;
use edgekeep_core::token::{KeyRing, KeyRoster, LiveGateway, NotReady, TakingUp};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::gateway::{Shared, seed};

/// How often a gateway reports.
const EVERY: Duration = Duration::from_secs(1);
/// How long a report counts: a gateway that misses four in a row is not live any more.
const LEASE: Duration = Duration::from_secs(5);
/// The most exchanges that follow each other at once: ask, tell, and one more.
const AT_ONCE: usize = 3;

/// On the control thread only.
pub struct Reports {
    shared: Shared,
    roster: RefCell<KeyRoster>,
    /// Id and report of each live gateway, as the store last gave them.
    rows: RefCell<Vec<(String, String)>>,
    /// Held over an exchange or the taking up of a key file: they never mix.
    turn: Mutex<()>,
    was_ready: Cell<bool>,
}

impl Reports {
    /// `port` is the admin side's; it tells gateways of one host apart.
    pub fn new(shared: &Shared, port: u16) -> Result<Reports, getrandom::Error> {
        // New at each start: what an earlier process reported is its own until its lease ends.
        let run: String = seed()?.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let id = format!("{}-{port}-{run}", host());
        Ok(Reports {
            roster: RefCell::new(KeyRoster::new(&id, shared.rules.load().keys())),
            shared: shared.clone(),
            rows: RefCell::default(),
            turn: Mutex::default(),
            was_ready: Cell::new(false),
        })
    }

    /// Reports for ever.
    pub async fn run(&self) {
        loop {
            {
                let _turn = self.turn.lock().await;
                self.exchange_while_hurried().await;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Takes up other keys: `swap` makes every core use them. Refused, with everything left as it was, while another
    /// live gateway lacks a key that these sign with or signs with one that these lack.
    pub async fn take_up<E: From<String>>(
        &self,
        keys: &KeyRing,
        swap: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let _turn = self.turn.lock().await;
        self.roster.borrow_mut().take_up(keys);
        let refusal = loop {
            let next = self.roster.borrow().taking_up();
            match next {
                TakingUp::Exchange => self.exchange().await,
                TakingUp::Swap => break None,
                TakingUp::Refused(why) => break Some(why),
            };
        };
        let done = match refusal {
            Some(why) => Err(format!("session.keys: {why}").into()),
            None => swap(),
        };
        match &done {
            Ok(()) => self.roster.borrow_mut().taken_up(),
            Err(_) => self.roster.borrow_mut().left_as_it_was(),
        }
        self.exchange_while_hurried().await;
        done
    }

    async fn exchange_while_hurried(&self) {
        for _ in 0..AT_ONCE {
            if !self.exchange().await || !self.roster.borrow().is_hurried() {
                break;
            }
        }
    }

    /// One exchange; false when the store is unavailable.
    async fn exchange(&self) -> bool {
        let (id, report) = {
            let (rules, roster) = (self.shared.rules.load(), self.roster.borrow());
            let report = roster.report(rules.map().map(ShardMap::epoch), rules.admits_edge());
            (roster.id().to_owned(), report.to_json())
        };
        let answer = self.shared.store.exchange_reports(&id, &report, LEASE).await;
        let heard = answer.is_some();
        match answer {
            Some(rows) => {
                let live = rows.iter().map(|(id, report)| LiveGateway::read(id, report)).collect();
                self.roster.borrow_mut().heard(live);
                self.rows.replace(rows);
            }
            None => self.roster.borrow_mut().unheard(),
        }
        self.log_readiness();
        heard
    }

    fn log_readiness(&self) {
        match self.readiness() {
            Ok(()) if !self.was_ready.replace(true) => {
                tracing::info!("every live gateway's keys are known here: ready");
            }
            Err(why) if self.was_ready.replace(false) => tracing::warn!(%why, "not ready any more"),
            _ => {}
        }
    }

    /// Whether the keys allow requests. While the store is down it stays as it was.
    pub fn readiness(&self) -> Result<(), NotReady> {
        self.roster.borrow().readiness()
    }

    /// How many gateways are live, this one included.
    pub fn live(&self) -> usize {
        self.rows.borrow().len()
    }

    /// What the admin side says of them.
    pub fn to_json(&self) -> String {
        let gateways: Vec<Value> = self.rows.borrow().iter().map(|(id, report)| row(id, report)).collect();
        let not_ready = self.readiness().err().map(|why| why.to_string());
        json!({ "this": self.roster.borrow().id(), "not_ready": not_ready, "gateways": gateways }).to_string()
    }
}

/// A report with its id; one that is not JSON stands as the text that it is.
fn row(id: &str, report: &str) -> Value {
    json!({ "id": id, "report": serde_json::from_str(report).unwrap_or_else(|_| Value::from(report)) })
}

/// This machine's name, in characters that are good in a key of the store.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    let name = name.unwrap_or_default();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name: String = name.trim().chars().filter(|c| good(*c)).take(64).collect();
    if name.is_empty() { "gateway".to_owned() } else { name }
}
