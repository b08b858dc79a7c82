//! Who waits while every origin of a pool is at `max_connections`: first come, first served, over all cores, for
//! `queue_timeout` at most, and no more than `queue_max` for each origin.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgekeep_tests::{Deployment, Own, Setup, Then, Visit, eventually};

use crate::scenario::Scenario;

/// `max_connections` of each of the two origins of a pool, which are one recorder. Each scenario has a pool of its own.
const PLACES: usize = 2;
/// `queue_max`, for each origin.
const QUEUE_MAX: usize = 3;
const QUEUE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Both origins and their queue.
const TAKEN_IN: usize = 2 * (PLACES + QUEUE_MAX);

static OWN: Own = Own {
    recorders: 6,
    server: "",
    balance: "queue_max = 3\nqueue_timeout = \"1500ms\"",
    sticky: "",
    text: r#"
[[pools]]
shard = "shard_2023_1"
origins = [
  { id = "narrow-0a", url = "http://127.0.0.1:<0>", max_connections = 2 },
  { id = "narrow-0b", url = "http://127.0.0.1:<0>", max_connections = 2 },
]

[[routes]]
path = "/narrow0/{rest..}"
auth = "none"
shard = "shard_2023_1"

[[pools]]
shard = "shard_2023_2"
origins = [
  { id = "narrow-1a", url = "http://127.0.0.1:<1>", max_connections = 2 },
  { id = "narrow-1b", url = "http://127.0.0.1:<1>", max_connections = 2 },
]

[[routes]]
path = "/narrow1/{rest..}"
auth = "none"
shard = "shard_2023_2"

[[pools]]
shard = "shard_2023_3"
origins = [
  { id = "narrow-2a", url = "http://127.0.0.1:<2>", max_connections = 2 },
  { id = "narrow-2b", url = "http://127.0.0.1:<2>", max_connections = 2 },
]

[[routes]]
path = "/narrow2/{rest..}"
auth = "none"
shard = "shard_2023_3"

[[pools]]
shard = "shard_2023_4"
origins = [
  { id = "narrow-3a", url = "http://127.0.0.1:<3>", max_connections = 2 },
  { id = "narrow-3b", url = "http://127.0.0.1:<3>", max_connections = 2 },
]

[[routes]]
path = "/narrow3/{rest..}"
auth = "none"
shard = "shard_2023_4"

[[pools]]
shard = "shard_2023_5"
origins = [
  { id = "narrow-4a", url = "http://127.0.0.1:<4>", max_connections = 1 },
  { id = "wide-4b", url = "http://127.0.0.1:<5>" },
]

[[routes]]
path = "/lopsided/{rest..}"
auth = "none"
shard = "shard_2023_5"
"#,
    native: "",
};

pub fn scenarios() -> Vec<Scenario> {
    let setup = Setup { own: Some(&OWN), ..Setup::default() };
    let scenario = |name, play| Scenario::among("queue", setup, name, play).natively();
    vec![
        scenario(
            "a_pool_takes_in_its_places_and_its_queue_and_no_more",
            a_pool_takes_in_its_places_and_its_queue_and_no_more,
        ),
        scenario("who_came_first_is_served_first", who_came_first_is_served_first),
        scenario("who_waits_too_long_gets_503", who_waits_too_long_gets_503),
        scenario("who_leaves_the_queue_makes_room_in_it", who_leaves_the_queue_makes_room_in_it),
        scenario(
            "a_retry_that_waits_holds_up_nobody_for_where_it_was_already",
            a_retry_that_waits_holds_up_nobody_for_where_it_was_already,
        ),
    ]
}

/// Answers when it is let go, and counts how many it has at once.
#[derive(Clone, Default)]
struct Busy {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    let_go: Arc<AtomicUsize>,
    served: Arc<Mutex<Vec<String>>>,
}

impl Busy {
    fn at(d: &Deployment, pool: usize) -> Result<Busy> {
        let busy = Busy::default();
        let script = busy.clone();
        d.recorder(pool)?.on(path(pool), move |visit: &mut Visit| script.serve(visit));
        Ok(busy)
    }

    fn serve(&self, visit: &mut Visit) -> Then {
        self.served.lock().unwrap_or_else(|e| e.into_inner()).push(visit.header("x-number").unwrap_or("?").to_owned());
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        while self.let_go.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        // One more each time, so that the order of those that wait is seen.
        std::thread::sleep(Duration::from_millis(30));
        self.now.fetch_sub(1, Ordering::SeqCst);
        visit.answer(200, b"served")
    }

    fn all_go(&self) {
        self.let_go.store(1, Ordering::SeqCst);
    }

    fn holds(&self, count: usize) -> Result<()> {
        eventually(&format!("{count} at the origins"), PATIENCE, || Ok(self.now.load(Ordering::SeqCst) == count))
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

fn path(pool: usize) -> &'static str {
    ["/narrow0/x", "/narrow1/x", "/narrow2/x", "/narrow3/x"][pool]
}

fn waits(d: &Deployment, pool: usize, count: usize) -> Result<()> {
    let line = format!("edgekeep_queue_waiting{{pool=\"shard_2023_{}\"}} {count}", pool + 1);
    eventually(&line, PATIENCE, || {
        Ok(d.gateways()?[0].admin("/metrics").send()?.expect(200)?.text().lines().any(|found| found == line))
    })
}

fn a_pool_takes_in_its_places_and_its_queue_and_no_more(d: &Deployment) -> Result<()> {
    let (pool, path) = (0, path(0));
    let busy = Busy::at(d, pool)?;
    std::thread::scope(|scope| {
        let taken: Vec<_> = (0..TAKEN_IN).map(|_| scope.spawn(|| d.get(path).send())).collect();
        let beyond =
            busy.holds(2 * PLACES).and_then(|()| waits(d, pool, 2 * QUEUE_MAX)).and_then(|()| d.get(path).send());
        busy.all_go();
        for one in taken {
            one.join().map_err(|_| anyhow::anyhow!("a client panicked"))??.expect(200)?;
        }
        let beyond = beyond?;
        beyond.problem(503, "queue_full")?;
        ensure!(beyond.header("retry-after").is_some(), "{beyond}");
        Ok(())
    })?;
    let most = busy.most.load(Ordering::SeqCst);
    ensure!(most == 2 * PLACES, "{most} at once");
    waits(d, pool, 0)
}

fn who_came_first_is_served_first(d: &Deployment) -> Result<()> {
    let (pool, path) = (1, path(1));
    let busy = Busy::at(d, pool)?;
    std::thread::scope(|scope| {
        let mut taken = Vec::new();
        for number in 0..TAKEN_IN {
            taken.push(scope.spawn(move || d.get(path).header("x-number", &number.to_string()).send()));
            if number < 2 * PLACES {
                busy.holds(number + 1)?;
            } else {
                waits(d, pool, number + 1 - 2 * PLACES)?;
            }
        }
        busy.all_go();
        for one in taken {
            one.join().map_err(|_| anyhow::anyhow!("a client panicked"))??.expect(200)?;
        }
        anyhow::Ok(())
    })?;
    let served: Vec<usize> =
        busy.served.lock().unwrap_or_else(|e| e.into_inner()).iter().flat_map(|n| n.parse()).collect();
    // Places come free nearly at once: two that were called one after the other may arrive in either order.
    let out_of_order = served.iter().enumerate().filter(|(at, number)| at.abs_diff(**number) >= 2 * PLACES).count();
    ensure!(served.len() == TAKEN_IN && out_of_order == 0, "{served:?}");
    Ok(())
}

fn who_waits_too_long_gets_503(d: &Deployment) -> Result<()> {
    let path = path(2);
    let busy = Busy::at(d, 2)?;
    std::thread::scope(|scope| {
        let taken: Vec<_> = (0..2 * PLACES).map(|_| scope.spawn(|| d.get(path).send())).collect();
        let held = busy.holds(2 * PLACES);
        let began = Instant::now();
        let late = d.get(path).send();
        let took = began.elapsed();
        busy.all_go();
        for one in taken {
            one.join().map_err(|_| anyhow::anyhow!("a client panicked"))??.expect(200)?;
        }
        held?;
        late?.problem(503, "queue_full")?;
        println!("503 after {took:?}");
        ensure!(took >= QUEUE_TIMEOUT - Duration::from_millis(20), "after {took:?}");
        Ok(())
    })
}

fn who_leaves_the_queue_makes_room_in_it(d: &Deployment) -> Result<()> {
    let (pool, path) = (3, path(3));
    let busy = Busy::at(d, pool)?;
    std::thread::scope(|scope| {
        let taken: Vec<_> = (0..2 * PLACES).map(|_| scope.spawn(|| d.get(path).send())).collect();
        let left = busy.holds(2 * PLACES).and_then(|()| {
            let open = d.get(path).begin()?;
            waits(d, pool, 1)?;
            drop(open);
            waits(d, pool, 0)
        });
        busy.all_go();
        for one in taken {
            one.join().map_err(|_| anyhow::anyhow!("a client panicked"))??.expect(200)?;
        }
        left
    })?;
    ensure!(busy.served.lock().unwrap_or_else(|e| e.into_inner()).len() == 2 * PLACES, "who left was not sent on");
    Ok(())
}

fn a_retry_that_waits_holds_up_nobody_for_where_it_was_already(d: &Deployment) -> Result<()> {
    let busy = Busy::default();
    let (narrow, script) = (d.recorder(4)?, busy.clone());
    narrow.on("/lopsided/held", move |visit: &mut Visit| script.serve(visit));
    narrow.on("/lopsided/once", |visit| visit.answer(200, b"narrow"));
    d.recorder(5)?.on("/lopsided/once", |visit| {
        visit.body();
        Then::Reset
    });
    std::thread::scope(|scope| {
        // Until one of them is at the narrow origin, which has no place left then.
        let held: Vec<_> = (0..4).map(|_| scope.spawn(|| d.get("/lopsided/held").send())).collect();
        let full = busy.holds(1);
        let retry = scope.spawn(|| d.get("/lopsided/once").send());
        let others = full.and_then(|()| waits(d, 4, 1)).and_then(|()| {
            let began = Instant::now();
            for _ in 0..5 {
                d.get("/lopsided/other").send()?.expect(200)?;
            }
            Ok(began.elapsed())
        });
        busy.all_go();
        for one in held {
            one.join().map_err(|_| anyhow::anyhow!("a client panicked"))??.expect(200)?;
        }
        let retried = retry.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        let others = others?;
        println!("five requests beside a retry that waits: {others:?}");
        ensure!(others < QUEUE_TIMEOUT / 2, "held up for {others:?}");
        ensure!(retried.expect(200)?.text() == "narrow", "the retry did not get its place");
        Ok(())
    })
}
