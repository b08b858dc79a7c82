//! Origins whose name changes its addresses while the gateway runs (`balance.resolve_interval`), by a name server that a
//! scenario commands.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, Dns, Gateway, Kind, Origin, Ports, Written, eventually};

use crate::scenario::Scenario;

const NAME: &str = "app.internal";
const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 11, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 11, 2);
const THREE: Ipv4Addr = Ipv4Addr::new(127, 0, 11, 3);

/// Longer than the interval of one second.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn scenarios() -> Vec<Scenario> {
    let all = crate::shared![
        every_address_of_a_name_is_a_member,
        addresses_come_and_go_and_what_is_in_flight_ends,
        a_name_that_is_not_found_keeps_what_it_had,
        a_client_stays_with_its_address_while_there_is_one,
        an_address_that_comes_later_is_warmed_up,
        a_reload_forgets_no_address,
        an_origin_is_drained_with_all_its_addresses,
    ];
    // A store has no part in it.
    all.into_iter().map(|scenario| scenario.only(Kind::NativeEmbedded)).collect()
}

/// Origins on three addresses and one port, named by these.
struct World {
    gateway: Gateway,
    dns: Dns,
    rest: String,
}

fn start(addresses: &[Ipv4Addr]) -> Result<World> {
    start_with("", addresses)
}

fn start_with(balance: &str, addresses: &[Ipv4Addr]) -> Result<World> {
    let (dns, port) = (Dns::start()?, Ports::free()?);
    for (name, address) in [("one", ONE), ("two", TWO), ("three", THREE)] {
        Origin::named_at(name, address, port)?;
    }
    dns.set(NAME, addresses);
    let rest = format!(
        "[balance]\nresolve_interval = \"1s\"\nresolver = \"{}\"\n{balance}\n[[pools]]\nshard = \"shard_0\"\n\
         origins = [{{ id = \"a\", url = \"http://{NAME}:{port}\" }}]\n\n\
         [[routes]]\npath = \"/{{rest..}}\"\nauth = \"none\"\n",
        dns.address
    );
    let gateway = Gateway::start(tempfile::tempdir()?, Written { server: "", rest: &rest })?;
    Ok(World { gateway, dns, rest })
}

/// Who answers some requests.
fn who(gateway: &Gateway) -> Result<BTreeSet<String>> {
    (0..6).map(|_| Ok(name_of(&gateway.get("/x").send()?.expect(200)?.text()))).collect()
}

fn name_of(body: &str) -> String {
    body.lines().next().unwrap_or_default().to_owned()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn every_address_of_a_name_is_a_member(_: &Deployment) -> Result<()> {
    let World { gateway, .. } = start(&[ONE, TWO])?;
    // From the first request on.
    ensure!(who(&gateway)? == names(&["one", "two"]));
    let metrics = gateway.metrics()?;
    for address in [ONE, TWO] {
        ensure!(metrics.contains(&format!("origin=\"a@{address}\"")), "{metrics}");
    }
    // The name stays what it is called by.
    let answer = gateway.get("/x").host("app.example").send()?.text();
    ensure!(answer.contains("host: app.example\r\n"), "{answer}");
    Ok(())
}

fn addresses_come_and_go_and_what_is_in_flight_ends(_: &Deployment) -> Result<()> {
    let World { gateway, dns, .. } = start(&[ONE])?;
    let mut open = gateway.get("/ws").header("connection", "upgrade").header("upgrade", "echo").open()?;
    open.echoes(b"before")?;
    dns.set(NAME, &[TWO, THREE]);
    eventually("the new addresses are used", PATIENCE, || Ok(who(&gateway)? == names(&["two", "three"])))?;
    open.echoes(b"at the address that is gone")?;
    let metrics = gateway.metrics()?;
    ensure!(!metrics.contains(&format!("a@{ONE}")), "{metrics}");
    dns.set(NAME, &[ONE, TWO, THREE]);
    // It is still the one that has something in flight, so that the others get the requests.
    eventually("it is back", PATIENCE, || {
        let metrics = gateway.metrics()?;
        let busy = metrics.lines().find(|line| line.contains("in_flight") && line.contains(&format!("a@{ONE}\"")));
        Ok(busy.is_some_and(|line| line.ends_with(" 1")))
    })?;
    open.echoes(b"and still")?;
    drop(open);
    eventually("it gets requests again", PATIENCE, || Ok(who(&gateway)?.contains("one")))
}

fn a_name_that_is_not_found_keeps_what_it_had(_: &Deployment) -> Result<()> {
    let World { gateway, dns, .. } = start(&[ONE, TWO])?;
    let told = || Ok::<_, anyhow::Error>(gateway.log()?.matches("an origin's name is not found").count());
    let broken: [fn(&Dns); 3] = [|dns| dns.fail(NAME), |dns| dns.forget(NAME), |dns| dns.set(NAME, &[])];
    for (before, broken) in broken.into_iter().enumerate() {
        broken(&dns);
        eventually("a warning", Duration::from_secs(20), || Ok(told()? > before))?;
        ensure!(who(&gateway)? == names(&["one", "two"]));
        dns.set(NAME, &[ONE, TWO, THREE]);
        eventually("it is found again", PATIENCE, || Ok(who(&gateway)?.contains("three")))?;
        dns.set(NAME, &[ONE, TWO]);
        eventually("as before", PATIENCE, || Ok(who(&gateway)? == names(&["one", "two"])))?;
    }
    ensure!(told()? == 3, "said {} times", told()?);
    Ok(())
}

fn a_client_stays_with_its_address_while_there_is_one(_: &Deployment) -> Result<()> {
    let World { gateway, dns, .. } = start(&[ONE])?;
    let first = gateway.get("/x").send()?.expect(200)?;
    let cookie = first.header("set-cookie").context("no sticky cookie")?;
    let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
    ensure!(cookie.starts_with("DAB_ROUTE="), "{cookie}");
    let with_cookie = || gateway.get("/x").header("cookie", &cookie).send();
    dns.set(NAME, &[ONE, TWO, THREE]);
    eventually("others get requests too", PATIENCE, || Ok(who(&gateway)?.len() == 3))?;
    for _ in 0..6 {
        let answer = with_cookie()?;
        ensure!(name_of(&answer.text()) == "one" && answer.header("set-cookie").is_none(), "{answer}");
    }
    dns.set(NAME, &[TWO, THREE]);
    eventually("it goes elsewhere, with another cookie", PATIENCE, || {
        let answer = with_cookie()?;
        Ok(name_of(&answer.text()) != "one" && answer.header("set-cookie").is_some())
    })
}

fn an_address_that_comes_later_is_warmed_up(_: &Deployment) -> Result<()> {
    let World { gateway, dns, .. } = start_with("slow_start = \"10m\"\n", &[ONE, TWO])?;
    let share = |name: &str| -> Result<usize> {
        let answers = (0..60).map(|_| Ok(name_of(&gateway.get("/x").send()?.expect(200)?.text()) == name));
        Ok(answers.collect::<Result<Vec<_>>>()?.into_iter().filter(|is| *is).count())
    };
    // Those that the gateway starts with are warm.
    ensure!(share("two")? == 30, "the first ones do not share evenly");
    dns.set(NAME, &[ONE, TWO, THREE]);
    eventually("the third is used", PATIENCE, || Ok(share("three")? > 0))?;
    // A tenth of its weight: 60 × 0.1 / 2.1.
    let share = share("three")?;
    ensure!((2..=4).contains(&share), "the third gets {share} of 60 from the first second on");
    Ok(())
}

fn a_reload_forgets_no_address(_: &Deployment) -> Result<()> {
    let World { gateway, dns, rest } = start(&[ONE, TWO])?;
    // Whatever was found must come from before.
    dns.fail(NAME);
    gateway.reload(Written { server: "", rest: &rest })?;
    eventually("it reads its file again", PATIENCE, || Ok(gateway.log()?.contains("reloaded")))?;
    ensure!(who(&gateway)? == names(&["one", "two"]));
    // A name that comes with a reload is resolved without waiting for the interval.
    dns.set("other.internal", &[THREE]);
    let rest = rest.replace(NAME, "other.internal").replace("resolve_interval = \"1s\"", "resolve_interval = \"1h\"");
    gateway.reload(Written { server: "", rest: &rest })?;
    eventually("the other name's address", PATIENCE, || {
        let answer = gateway.get("/x").send()?;
        Ok(answer.status == 200 && name_of(&answer.text()) == "three")
    })
}

fn an_origin_is_drained_with_all_its_addresses(_: &Deployment) -> Result<()> {
    let World { gateway, dns, .. } = start(&[ONE, TWO])?;
    let set_to = |word: &str| -> Result<Vec<String>> {
        let (status, said) = gateway.origin(&["list"])?;
        ensure!(status == 0, "{said}");
        let lines = said.lines().filter(|line| line.contains(&format!("  {word}  ")));
        Ok(lines.filter_map(|line| Some(line.split_whitespace().nth(1)?.to_owned())).collect())
    };
    let mut open = gateway.get("/ws").header("connection", "upgrade").header("upgrade", "echo").open()?;
    open.echoes(b"before")?;
    let busy = gateway.origin(&["drain", "a", "--wait", "1ms"])?;
    ensure!(busy.0 == 3 && busy.1.contains("a has 1 requests in flight"), "{busy:?}");
    ensure!(set_to("drain")? == [format!("a@{ONE}"), format!("a@{TWO}")]);
    gateway.get("/x").send()?.problem(503, "no_origin")?;
    // Nor does an address that comes later get anything.
    dns.set(NAME, &[ONE, TWO, THREE]);
    eventually("the third address", PATIENCE, || Ok(set_to("drain")?.len() == 3))?;
    drop(open);
    let empty = gateway.origin(&["drain", "a"])?;
    ensure!(empty.0 == 0 && empty.1.contains("a is empty"), "{empty:?}");
    // One address by itself.
    let one = gateway.origin(&["ready", &format!("a@{ONE}")])?;
    ensure!(one.0 == 0 && one.1.starts_with(&format!("a@{ONE} is set to ready; state up")), "{one:?}");
    ensure!(who(&gateway)? == names(&["one"]));
    let all = gateway.origin(&["ready", "a"])?;
    ensure!(all.0 == 0 && all.1.lines().count() == 3, "{all:?}");
    ensure!(who(&gateway)? == names(&["one", "two", "three"]));
    let unknown = gateway.origin(&["drain", "b"])?;
    ensure!(unknown.0 == 1 && unknown.1.contains("no origin has the id \"b\"; there are a"), "{unknown:?}");
    Ok(())
}
