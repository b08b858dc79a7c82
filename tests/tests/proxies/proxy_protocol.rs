//! HAProxy that passes bytes on and says who the client is (`send-proxy`, `send-proxy-v2`), its checks included.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use edgekeep_tests::{Entry, Gateway, Origin, Ports, Program, Request, Written, eventually, local};

pub fn its_client_is_the_client() -> Result<()> {
    let origin = Origin::named("a")?;
    let rest = format!(
        "[[pools]]\nshard = \"shard_0\"\norigins = [{{ id = \"a\", url = \"http://{}\" }}]\n\n\
         [[routes]]\npath = \"/{{rest..}}\"\nauth = \"none\"\n",
        origin.address
    );
    let server = "proxy_protocol = true\ntrusted_proxies = [\"127.0.0.1\"]";
    let gateway = Gateway::start(tempfile::tempdir()?, Written { server, rest: &rest })?;
    for option in ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"] {
        let clients = local(Ports::free()?);
        let (file, log) = (gateway.folder().join("haproxy.cfg"), gateway.folder().join("haproxy.log"));
        let checks = "option httpchk\n  http-check send meth GET uri /of-a-check ver HTTP/1.1 hdr host h";
        fs::write(
            &file,
            format!(
                "defaults\n  timeout connect 2s\n  timeout client 10s\n  timeout server 10s\n\
                 listen clients\n  mode tcp\n  bind {clients}\n  {checks}\n  \
                 server edgekeep {} {option} check inter 100ms\n",
                gateway.entry.address
            ),
        )?;
        let mut command = Command::new("haproxy");
        let mut haproxy = Program::start("haproxy", command.arg("-db").arg("-f").arg(&file), &log, None)?;
        let entry = Entry { address: clients, behind_platform: false };
        let get = || Request::new(entry, "GET", "/x").from(Ipv4Addr::new(127, 0, 0, 77)).send();
        haproxy.wait_until(Duration::from_secs(10), || get().is_ok())?;
        let answer = get()?.expect(200)?;
        ensure!(answer.text().contains("x-forwarded-for: 127.0.0.77\r\n"), "{option}: {answer}");
        // HAProxy goes on to think well of it: its own checks say that they are of no client.
        std::thread::sleep(Duration::from_millis(500));
        eventually("a request after some checks", Duration::from_secs(5), || Ok(get()?.status == 200))?;
    }
    Ok(())
}
