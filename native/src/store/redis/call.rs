//! How a call finds its server: the primary of its slot, wherever that is by now, with redirections followed and what may
//! pass by itself repeated for a while.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{AsyncConnectionConfig, Cmd, Pipeline, Value, cmd};

use super::fault::{Fault, fault};
use super::node::{self, WAIT_MS, Written};
use super::script::Script;
use super::{Answered, Redis, Unavailable};

/// How long redirections and keys in motion are followed.
const RETRY_FOR: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(2);
pub(super) const RETRY_LAST: Duration = Duration::from_millis(200);

impl Redis {
    /// Performs a script at the slot's primary, wherever that is by now.
    pub(super) async fn script(
        &self,
        slot: u16,
        script: &Script,
        keys: &[String],
        args: &[Vec<u8>],
    ) -> Answered<Written> {
        let mut retry = Retry::new(self);
        let mut whole = false;
        let mut asking: Option<String> = None;
        loop {
            let call = script.call(keys, args, whole);
            let answered = match asking.take() {
                Some(address) => self.write_asking(&address, call).await,
                None => match self.topology.primary(slot) {
                    Some(node) => {
                        // It may wait for the group before it, and then be sent with its own.
                        let within = (self.login.timeout + Duration::from_millis(WAIT_MS)) * 2;
                        tokio::time::timeout(within, node.write(call)).await.unwrap_or(Err(Fault::TimedOut))
                    }
                    None => Err(Fault::Down),
                },
            };
            match answered {
                Ok(written) => return Ok(written),
                Err(Fault::NoScript) if !whole => whole = true,
                Err(Fault::Ask(address)) => {
                    retry.again(&Fault::Ask(address.clone())).await?;
                    asking = Some(address);
                }
                Err(fault) => retry.again(&fault).await?,
            }
        }
    }

    /// At the server that a slot is moving to, which takes this one call. Its own connection, for the WAIT.
    async fn write_asking(&self, address: &str, call: Cmd) -> Result<Written, Fault> {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(cmd("ASKING")).add_command(call);
        let wait = self.login.wait_replicas;
        if wait > 0 {
            pipeline.add_command(cmd("WAIT").arg(wait).arg(WAIT_MS).clone());
        }
        let connection = node::connect(address, &self.login, AsyncConnectionConfig::new(), &Pipeline::new())
            .await
            .map_err(|_| Fault::Down)?;
        let within = self.login.timeout + Duration::from_millis(WAIT_MS);
        let mut replies = node::send(connection, &pipeline, within).await?.into_iter();
        let _asking = replies.next();
        let reply = replies.next().ok_or(Fault::Down)?;
        if let Some(fault) = fault(&reply) {
            return Err(fault);
        }
        let replicated = match replies.next() {
            Some(Value::Int(count)) => count >= i64::from(wait),
            _ => wait == 0,
        };
        Ok(Written { reply, replicated })
    }

    /// Commands on the plain connection of the slot's primary.
    pub(super) async fn ask(&self, slot: u16, commands: &[Cmd]) -> Answered<(Vec<Value>, bool)> {
        self.commands(slot, commands, false).await
    }

    /// Commands on its feed. False beside the replies: they came another way, and their changes are not told.
    pub(super) async fn read(&self, slot: u16, commands: &[Cmd]) -> Answered<(Vec<Value>, bool)> {
        self.commands(slot, commands, true).await
    }

    async fn commands(&self, slot: u16, commands: &[Cmd], tracked: bool) -> Answered<(Vec<Value>, bool)> {
        let mut retry = Retry::new(self);
        let pipeline = joined(commands);
        loop {
            let answered = match self.topology.primary(slot) {
                Some(node) if tracked && node.is_fed() => {
                    node.read_tracked(&pipeline).await.map(|replies| (replies, true))
                }
                Some(node) => node.ask(&pipeline).await.map(|replies| (replies, false)),
                None => Err(Fault::Down),
            };
            let (mut replies, mut tracked) = match answered {
                Ok(answered) => answered,
                Err(fault) => {
                    retry.again(&fault).await?;
                    continue;
                }
            };
            let mut left = None;
            for (reply, command) in replies.iter_mut().zip(commands) {
                match fault(reply) {
                    None | Some(Fault::NoScript) => {}
                    Some(Fault::Ask(address)) => match self.command_asking(&address, command).await {
                        Ok(answer) => {
                            *reply = answer;
                            tracked = false;
                        }
                        Err(fault) => left = Some(fault),
                    },
                    Some(fault) => left = Some(fault),
                }
            }
            match left {
                None => return Ok((replies, tracked)),
                Some(fault) => retry.again(&fault).await?,
            }
        }
    }

    async fn command_asking(&self, address: &str, command: &Cmd) -> Result<Value, Fault> {
        self.counters.redirected.fetch_add(1, Ordering::Relaxed);
        let mut pipeline = Pipeline::new();
        pipeline.add_command(cmd("ASKING")).add_command(command.clone());
        let known = self.topology.node(address);
        let mut replies = match known.and_then(|node| node.plain()) {
            Some(connection) => node::send(connection, &pipeline, self.login.timeout).await?,
            None => {
                let config = AsyncConnectionConfig::new();
                let connection =
                    node::connect(address, &self.login, config, &Pipeline::new()).await.map_err(|_| Fault::Down)?;
                node::send(connection, &pipeline, self.login.timeout).await?
            }
        };
        let reply = replies.pop().ok_or(Fault::Down)?;
        match fault(&reply) {
            Some(fault) => Err(fault),
            None => Ok(reply),
        }
    }
}

/// Commands as one pipeline.
pub(super) fn joined(commands: &[Cmd]) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(commands.len());
    commands.iter().for_each(|command| {
        pipeline.add_command(command.clone());
    });
    pipeline
}

/// When a call is repeated, and until when.
struct Retry<'s> {
    store: &'s Redis,
    begun: Instant,
    pause: Duration,
}

impl<'s> Retry<'s> {
    fn new(store: &'s Redis) -> Retry<'s> {
        Retry { store, begun: Instant::now(), pause: RETRY_FIRST }
    }

    /// Waits a little before the next attempt, or says that there is none.
    async fn again(&mut self, fault: &Fault) -> Answered<()> {
        let counters = &self.store.counters;
        let within = match fault {
            Fault::Moved(_) | Fault::Ask(_) => {
                counters.redirected.fetch_add(1, Ordering::Relaxed);
                RETRY_FOR
            }
            Fault::Again | Fault::NoScript => RETRY_FOR,
            Fault::Down => self.store.login.timeout,
            // Its answer may come yet: who asked may ask again.
            Fault::TimedOut => Duration::ZERO,
            Fault::Refused(reason) => {
                tracing::error!(reason, "Redis refuses a call");
                Duration::ZERO
            }
        };
        if !matches!(fault, Fault::Ask(_) | Fault::NoScript) {
            self.store.topology.is_stale();
        }
        if self.begun.elapsed() + self.pause > within {
            return Err(Unavailable);
        }
        counters.retried.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_LAST);
        Ok(())
    }
}
