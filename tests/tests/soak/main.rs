//! The gateway's soak: every kind of traffic at once, with reloads all along, after which nothing may have grown. Ten
//! minutes with `EDGEKEEP_LONG`, half a minute without, or as many seconds as `EDGEKEEP_SOAK_SECONDS` says.

#![allow(clippy::print_stdout, reason = "figures, for whoever reads the run")]

use std::io::Write;
use std::net::Shutdown;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgekeep_tests::{Deployment, Framing, Kept, Kind, Setup, end_programs_with_us, eventually, holds, is_long, lock};
use libtest_mimic::{Arguments, Trial, run};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(30);
/// The first third fills caches, pools and the allocator's arenas.
const WARM: u32 = 3;
/// How often memory and files are looked at.
const LOOK: Duration = Duration::from_millis(500);
const RELOAD_EVERY: Duration = Duration::from_secs(3);
/// How much the memory may be above what it was when everything was warm: an allocator gives back late.
const MEMORY_FACTOR: f64 = 1.10;
const MEMORY_SLACK_KIB: f64 = 4096.0;
/// Files may be more by what the traffic of a moment holds.
const FILES_SLACK: usize = 24;
/// Small, so that it is full early.
const NEAR_CACHE: u32 = 500;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = end_programs_with_us() {
        eprintln!("a signal would leave programs behind: {error:#}");
    }
    let trials = Kind::NATIVE.into_iter().map(|kind| {
        Trial::test(format!("{}::nothing_grows", kind.name()), move || {
            let setup = Setup { near_cache: Some(NEAR_CACHE), roomy: true, roomy_limits: true, ..Setup::default() };
            let deployment = Deployment::start(kind, setup)?;
            nothing_grows(&deployment).map_err(|error| format!("{error:#}\n{}", deployment.last_words()))?;
            let faults = deployment.faults_in_logs()?;
            if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
        })
    });
    run(&arguments, trials.collect()).exit_code()
}

fn length() -> Result<Duration> {
    match std::env::var("EDGEKEEP_SOAK_SECONDS") {
        Ok(seconds) => Ok(Duration::from_secs(seconds.parse().context("EDGEKEEP_SOAK_SECONDS")?)),
        Err(_) => Ok(if is_long() { LONG } else { SHORT }),
    }
}

#[derive(Clone, Copy)]
struct Look {
    resident: u64,
    files: usize,
    threads: usize,
}

type Traffic = fn(&Deployment, &str, &mut u64) -> Result<()>;

/// One kind of traffic each, again and again, with an access token.
const TRAFFIC: [(&str, Traffic); 8] = [
    ("kept connections", kept),
    ("new connections", fresh),
    ("clients that leave", leaves),
    ("uploads", uploads),
    ("downloads", downloads),
    ("upgrades", upgrades),
    ("refusals", refusals),
    ("logins and logouts", logins),
];

fn nothing_grows(d: &Deployment) -> Result<()> {
    let length = length()?;
    let over = AtomicBool::new(false);
    let counts: [AtomicU64; TRAFFIC.len()] = std::array::from_fn(|_| AtomicU64::new(0));
    let tokens = (0..40).map(|n| Ok(d.login(&format!("soak-{n}"))?.access)).collect::<Result<Vec<String>>>()?;
    let begun = Instant::now();
    let failed = std::sync::Mutex::new(None);
    let looks = thread::scope(|scope| {
        for (number, (what, traffic)) in TRAFFIC.iter().enumerate() {
            let (over, counts, tokens, failed) = (&over, &counts, &tokens, &failed);
            scope.spawn(move || {
                let mut done = 0;
                for token in tokens.iter().cycle().skip(number * 5) {
                    if over.load(Ordering::Acquire) {
                        break;
                    }
                    if let Err(error) = traffic(d, token, &mut done) {
                        lock(failed).get_or_insert(error.context(*what));
                        over.store(true, Ordering::Release);
                    }
                    counts[number].store(done, Ordering::Relaxed);
                }
            });
        }
        let looks = watch(d, length, &over);
        over.store(true, Ordering::Release);
        looks
    });
    if let Some(error) = lock(&failed).take() {
        return Err(error);
    }
    let looks = looks?;
    for ((what, _), count) in TRAFFIC.iter().zip(&counts) {
        let count = count.load(Ordering::Relaxed);
        println!("{count:>9} {what}");
        ensure!(count > 0, "none of {what}");
    }
    let warm = looks.len() / WARM as usize;
    let quarter = (looks.len() - warm) / 4;
    ensure!(quarter >= 3, "too short for a judgement: {} looks", looks.len());
    let (early, late) = (median(&looks[warm..warm + quarter]), median(&looks[looks.len() - quarter..]));
    println!(
        "{}: {:?}; after the warm-up {} KiB resident, {} files, {} threads; at the end {} KiB, {} files, {} threads",
        d.kind.name(),
        begun.elapsed(),
        early.resident,
        early.files,
        early.threads,
        late.resident,
        late.files,
        late.threads
    );
    ensure!(
        late.resident as f64 <= early.resident as f64 * MEMORY_FACTOR + MEMORY_SLACK_KIB,
        "the memory grew by more than {MEMORY_FACTOR} and {MEMORY_SLACK_KIB} KiB"
    );
    ensure!(late.files <= early.files + FILES_SLACK, "files are left open");
    ensure!(late.threads <= early.threads, "threads are left");
    // When everybody has gone nothing is held for them: no lease, and no file beyond connections kept to origins.
    eventually("every lease has ended", Duration::from_secs(10), || {
        Ok(d.metric("edgekeep_origin_in_flight", None)? == 0.0)
    })
}

/// Looks at the process and lets it reload until the time is over.
fn watch(d: &Deployment, length: Duration, over: &AtomicBool) -> Result<Vec<Look>> {
    let process = d.gateway_process()?;
    let begun = Instant::now();
    let (mut looks, mut reloads) = (Vec::new(), 0_u32);
    while begun.elapsed() < length && !over.load(Ordering::Acquire) {
        thread::sleep(LOOK);
        let (resident, files) = holds(process)?;
        looks.push(Look { resident, files, threads: std::fs::read_dir(format!("/proc/{process}/task"))?.count() });
        if begun.elapsed() > RELOAD_EVERY * (reloads + 1) {
            reloads += 1;
            d.change_configuration(|text| {
                let more = "\n[[routes]]\npath = \"/more/{rest..}\"\nauth = \"none\"\nshard = \"any\"\n";
                if text.contains(more) { text.replace(more, "") } else { text + more }
            })?;
            let said = d.reload()?;
            ensure!(!said.contains("not reloaded"), "{said}");
        }
        if looks.len() % 60 == 0 {
            println!("{:>5.0?} {resident} KiB resident, {files} files", begun.elapsed());
        }
    }
    println!("{reloads} reloads");
    Ok(looks)
}

/// Each figure's own median: a moment's high does not count.
fn median(looks: &[Look]) -> Look {
    let of = |figure: fn(&Look) -> u64| {
        let mut figures: Vec<u64> = looks.iter().map(figure).collect();
        figures.sort_unstable();
        figures.get(figures.len() / 2).copied().unwrap_or_default()
    };
    let count = |figure| usize::try_from(of(figure)).unwrap_or(usize::MAX);
    Look {
        resident: of(|look| look.resident),
        files: count(|look| look.files as u64),
        threads: count(|look| look.threads as u64),
    }
}

fn kept(d: &Deployment, token: &str, done: &mut u64) -> Result<()> {
    let mut client = Kept::new(d.entry());
    for _ in 0..50 {
        let request = format!("GET /echo/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
        let (status, _) = client.ask(&request)?;
        ensure!(status == 200, "{status}");
        *done += 1;
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn fresh(d: &Deployment, token: &str, done: &mut u64) -> Result<()> {
    d.get("/echo/x").bearer(token).send()?.expect(200)?;
    *done += 1;
    thread::sleep(Duration::from_millis(5));
    Ok(())
}

fn leaves(d: &Deployment, token: &str, done: &mut u64) -> Result<()> {
    drop(d.get("/slow/300").bearer(token).begin()?);
    drop(d.get("/events/20").bearer(token).open()?);
    let mut socket = d.post("/echo/x").bearer(token).header("content-length", "100000").begin()?;
    socket.write_all(&[b'x'; 1000])?;
    socket.shutdown(Shutdown::Both)?;
    *done += 3;
    thread::sleep(Duration::from_millis(30));
    Ok(())
}

fn uploads(d: &Deployment, token: &str, done: &mut u64) -> Result<()> {
    for framing in [Framing::Chunked, Framing::ContentLength] {
        d.post("/stream/0").bearer(token).upload(200_000, framing).send()?.expect(200)?;
        *done += 1;
    }
    thread::sleep(Duration::from_millis(30));
    Ok(())
}

fn downloads(d: &Deployment, token: &str, done: &mut u64) -> Result<()> {
    d.get("/stream/300000?framing=chunked").bearer(token).send()?.expect(200)?;
    *done += 1;
    thread::sleep(Duration::from_millis(30));
    Ok(())
}

fn upgrades(d: &Deployment, token: &str, done: &mut u64) -> Result<()> {
    let request = d.get("/ws/x").bearer(token).header("connection", "upgrade").header("upgrade", "echo");
    let mut open = request.open()?;
    open.echoes(b"there and back")?;
    *done += 1;
    thread::sleep(Duration::from_millis(20));
    Ok(())
}

fn refusals(d: &Deployment, token: &str, done: &mut u64) -> Result<()> {
    d.get("/echo/x").send()?.expect(401)?;
    d.get("/echo/x").bearer(&format!("{token}x")).send()?.expect(401)?;
    d.get("/status/404").bearer(token).send()?.expect(404)?;
    d.get("/photos/2024-06/x").bearer(token).send()?.expect(502)?;
    // Long after the route gives up: a busy machine may be late.
    d.get("/slow/2000").bearer(token).send()?.expect(504)?;
    *done += 5;
    Ok(())
}

fn logins(d: &Deployment, _: &str, done: &mut u64) -> Result<()> {
    // A user each time: what is known of one must not stay for ever in the process.
    let session = d.login(&format!("soak-once-{done}"))?;
    d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
    let ended = d.delete("/v1/sessions/current").bearer(&session.access).send()?;
    if ended.status != 204 {
        bail!("{ended}");
    }
    *done += 1;
    thread::sleep(Duration::from_millis(10));
    Ok(())
}
