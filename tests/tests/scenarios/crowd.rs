//! A crowd of well-behaved clients, and the books that they keep: what was answered, and so must still be true after
//! whatever happened to the store meanwhile.
//!
//! Each request goes to either of two gateways over the store. A client repeats what was answered 503, as its `Retry-After` asks, and nothing else. It never meets a 401 for a
//! session that lives, and never gets in with one whose end was answered 204.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use edgekeep_tests::{Answer, Deployment, Entry, Request, SERVICE_TOKEN, Session, eventually, fresh_address};
use serde_json::json;

/// Longer than any outage that these scenarios make.
const OUTAGE: Duration = Duration::from_secs(60);
/// How long a revocation that was answered 202 may take to reach everybody once the store is well again.
const CONTINUED: Duration = Duration::from_secs(20);
const CLIENTS: usize = 6;
const USERS_OF_A_CLIENT: usize = 5;
const USER_AGENT: &str = "a well-behaved client";

/// What all clients together were answered.
#[derive(Default)]
pub struct Books {
    alive: Vec<Held>,
    /// Ended, answered 204.
    ended: Vec<Held>,
    /// Ended, answered 202, or 503 and then not there any more: not yet promised.
    pending: Vec<Held>,
    /// Refused though nobody ended them, with the refusal.
    lost: Vec<String>,
    /// How many revocations were answered 202.
    pub unreplicated_ends: u64,
    /// How many requests were answered 503.
    pub refused: u64,
    /// The longest time until a repeated request was answered.
    pub longest: Duration,
    answered: u64,
}

#[derive(Clone)]
struct Held {
    user: String,
    session: Session,
}

/// The users of a crowd, so that a scenario can aim at their slots.
pub fn users(name: &str) -> impl Iterator<Item = String> {
    (0..CLIENTS).flat_map(move |client| (0..USERS_OF_A_CLIENT).map(move |user| user_of(name, client, user)))
}

fn user_of(name: &str, client: usize, user: usize) -> String {
    format!("{name}-{client}-{user}")
}

/// Lets the crowd live at both gateways, while `meanwhile` happens.
pub fn during(d: &Deployment, name: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<Books> {
    let entries = [d.entry(), d.second()?];
    let over = AtomicBool::new(false);
    let clients = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let mut client =
                    Client { d, entries, name, number, chance: number as u64 + 1, books: Books::default() };
                let over = &over;
                scope.spawn(move || client.live_until(over).map(|()| client.books))
            })
            .collect();
        // Everybody has sessions before it begins.
        thread::sleep(Duration::from_secs(1));
        let happened = meanwhile();
        over.store(true, Ordering::Release);
        let books: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| Err(anyhow!("a client broke"))))
            .collect();
        happened.map(|()| books)
    })?;
    let mut all = Books::default();
    for books in clients {
        let books = books?;
        all.alive.extend(books.alive);
        all.ended.extend(books.ended);
        all.pending.extend(books.pending);
        all.lost.extend(books.lost);
        all.unreplicated_ends += books.unreplicated_ends;
        all.refused += books.refused;
        all.longest = all.longest.max(books.longest);
        all.answered += books.answered;
    }
    Ok(all)
}

impl Books {
    /// Takes stock, once the store is well again and with the gateways that ran all the time: everything that was
    /// promised is so. Returns how many sessions were lost.
    pub fn settle(mut self, d: &Deployment, allowed_losses: u64) -> Result<u64> {
        let entries = [d.entry(), d.second()?];
        let mut auditor = Client { d, entries, name: "audit", number: 0, chance: 1, books: Books::default() };
        ensure!(!self.ended.is_empty() && !self.alive.is_empty(), "a crowd that did nothing proves nothing");
        for held in &self.ended {
            auditor.is_out(held).with_context(|| format!("an end that was answered 204, of {}", held.user))?;
        }
        for held in &self.pending {
            eventually("an end that was answered 202 comes true", CONTINUED, || Ok(auditor.is_out(held).is_ok()))?;
        }
        let mut survivors = Vec::new();
        for mut held in std::mem::take(&mut self.alive) {
            match auditor.refresh(&mut held)? {
                Some(refusal) => self.lost.push(refusal),
                None => survivors.push(held),
            }
        }
        let of = |user: &str| survivors.iter().filter(|held| held.user == user).collect::<Vec<_>>();
        for user in survivors.iter().map(|held| held.user.as_str()).collect::<BTreeSet<_>>() {
            let listed = auditor.listed(user)?;
            for held in of(user) {
                ensure!(listed.contains(&held.session.id), "a live session of {user} is missing in the index");
            }
        }
        let Books { ended, pending, lost, refused, longest, answered, .. } = &self;
        eprintln!(
            "{answered} answers, {refused} times 503, longest repetition {longest:?}: {} live, {} ended, {} ended without \
             a promise, {} lost of {allowed_losses} that may be",
            survivors.len(),
            ended.len(),
            pending.len(),
            lost.len()
        );
        ensure!(lost.len() as u64 <= allowed_losses, "lost, though replicated:\n{}", lost.join("\n"));
        Ok(lost.len() as u64)
    }
}

struct Client<'a> {
    d: &'a Deployment,
    entries: [Entry; 2],
    name: &'a str,
    number: usize,
    /// Different for each client and the same in every run.
    chance: u64,
    books: Books,
}

impl Client<'_> {
    fn live_until(&mut self, over: &AtomicBool) -> Result<()> {
        while !over.load(Ordering::Acquire) {
            match self.choose(20) {
                0..=4 => self.create()?,
                5..=10 => self.use_one()?,
                11..=15 => self.refresh_one()?,
                16..=17 => self.end_one()?,
                18 => self.end_all_of_a_user()?,
                _ => self.try_an_ended_one()?,
            }
        }
        Ok(())
    }

    fn create(&mut self) -> Result<()> {
        let user = user_of(self.name, self.number, self.choose(USERS_OF_A_CLIENT));
        let document = json!({ "user_id": user });
        let (answer, _) =
            self.patiently(|at| at.request("POST", "/v1/sessions").bearer(SERVICE_TOKEN).json(&document))?;
        let answer = answer.expect(201)?;
        self.d.note_secrets(&answer);
        self.books.alive.push(Held { user, session: Session::from(&answer)? });
        Ok(())
    }

    /// A live session gets in everywhere; on `token` routes whatever the store does.
    fn use_one(&mut self) -> Result<()> {
        let Some(at) = self.choose_one_alive() else { return Ok(()) };
        let Held { user, session } = self.books.alive[at].clone();
        let answer = self.request("GET", "/echo/token/x").bearer(&session.access).send()?;
        answer.expect(200).context("a token route asked the store")?;
        for path in ["/echo/x", "/echo/account/x"] {
            let (answer, _) = self.patiently(|client| client.request("GET", path).bearer(&session.access))?;
            if answer.status == 401 {
                self.books.lost.push(format!("{user}: {answer}"));
                self.books.alive.swap_remove(at);
                return Ok(());
            }
            answer.expect(200)?;
        }
        Ok(())
    }

    fn refresh_one(&mut self) -> Result<()> {
        let Some(at) = self.choose_one_alive() else { return Ok(()) };
        let mut held = self.books.alive.swap_remove(at);
        match self.refresh(&mut held)? {
            Some(refusal) => self.books.lost.push(refusal),
            None => self.books.alive.push(held),
        }
        Ok(())
    }

    /// The refusal, when there was one.
    fn refresh(&mut self, held: &mut Held) -> Result<Option<String>> {
        let document = json!({ "refresh_token": held.session.refresh });
        let (answer, _) = self.patiently(|client| {
            let request = client.request("POST", "/v1/sessions/refresh").header("user-agent", USER_AGENT);
            request.from(fresh_address()).json(&document)
        })?;
        if answer.status == 401 {
            return Ok(Some(format!("{}: {answer}", held.user)));
        }
        let answer = answer.expect(200)?;
        self.d.note_secrets(&answer);
        held.session = Session::from(&answer)?;
        Ok(None)
    }

    /// The user logs out.
    fn end_one(&mut self) -> Result<()> {
        let Some(at) = self.choose_one_alive() else { return Ok(()) };
        let held = self.books.alive.swap_remove(at);
        let access = held.session.access.clone();
        let (answer, repeated) =
            self.patiently(|client| client.request("DELETE", "/v1/sessions/current").bearer(&access))?;
        match answer.status {
            204 => self.books.ended.push(held),
            202 => self.ended_without_a_promise(&answer, vec![held])?,
            // The first attempt may have been performed though it was answered 503.
            401 if repeated => self.books.pending.push(held),
            401 => self.books.lost.push(format!("{}: {answer}", held.user)),
            _ => return answer.expect(204).map(|_| ()),
        }
        Ok(())
    }

    fn end_all_of_a_user(&mut self) -> Result<()> {
        let user = user_of(self.name, self.number, self.choose(USERS_OF_A_CLIENT));
        let target = format!("/v1/users/{user}/sessions");
        let (answer, _) = self.patiently(|client| client.request("DELETE", &target).bearer(SERVICE_TOKEN))?;
        let (gone, alive) = std::mem::take(&mut self.books.alive).into_iter().partition(|held| held.user == user);
        self.books.alive = alive;
        match answer.status {
            202 => self.ended_without_a_promise(&answer, gone)?,
            _ => {
                answer.expect(204)?;
                self.books.ended.extend(gone);
            }
        }
        Ok(())
    }

    fn ended_without_a_promise(&mut self, answer: &Answer, gone: Vec<Held>) -> Result<()> {
        ensure!(answer.json()?["replicated"] == false, "a 202 that does not say why: {answer}");
        self.books.unreplicated_ends += 1;
        self.books.pending.extend(gone);
        Ok(())
    }

    /// Also while the store is in trouble, nobody gets in with an ended session.
    fn try_an_ended_one(&mut self) -> Result<()> {
        let among = self.books.ended.len();
        if among == 0 {
            return Ok(());
        }
        let at = self.choose(among);
        let held = self.books.ended[at].clone();
        let answer = self.request("GET", "/echo/account/x").bearer(&held.session.access).send()?;
        self.books.answered += 1;
        match answer.status {
            503 => answer.problem(503, "store_unavailable").map(|_| ()),
            _ => answer.problem(401, "session_ended").map(|_| ()),
        }
    }

    /// Every way in is closed.
    fn is_out(&mut self, held: &Held) -> Result<()> {
        let session = &held.session;
        for path in ["/echo/account/x", "/echo/x"] {
            let (answer, _) = self.patiently(|client| client.request("GET", path).bearer(&session.access))?;
            answer.problem(401, "session_ended")?;
        }
        let mut copy = held.clone();
        ensure!(self.refresh(&mut copy)?.is_some(), "the refresh token still works");
        Ok(())
    }

    fn listed(&mut self, user: &str) -> Result<BTreeSet<String>> {
        let target = format!("/v1/users/{user}/sessions");
        let (answer, _) = self.patiently(|client| client.request("GET", &target).bearer(SERVICE_TOKEN))?;
        let list = answer.expect(200)?.json()?;
        let rows = list["sessions"].as_array().context("sessions")?;
        Ok(rows.iter().filter_map(|row| Some(row["session_id"].as_str()?.to_owned())).collect())
    }

    /// Repeats while the answer is 503; also whether it was repeated.
    fn patiently(&mut self, write: impl Fn(&Client<'_>) -> Request) -> Result<(Answer, bool)> {
        let begun = Instant::now();
        let mut repeated = false;
        self.choose(2);
        loop {
            let answer = write(self).send()?;
            self.books.answered += 1;
            if answer.status != 503 {
                if repeated {
                    self.books.longest = self.books.longest.max(begun.elapsed());
                }
                return Ok((answer, repeated));
            }
            answer.problem(503, "store_unavailable")?;
            ensure!(begun.elapsed() < OUTAGE, "the gateway does not recover: {answer}");
            self.books.refused += 1;
            repeated = true;
            thread::sleep(Duration::from_millis(100 + self.choose(200) as u64));
        }
    }

    fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.entries[usize::from(self.chance & 1024 != 0)], method, target)
    }

    fn choose_one_alive(&mut self) -> Option<usize> {
        let among = self.books.alive.len();
        (among > 0).then(|| self.choose(among))
    }

    /// A number below `among` (xorshift).
    fn choose(&mut self, among: usize) -> usize {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        usize::try_from(self.chance % among as u64).unwrap_or(0)
    }
}
