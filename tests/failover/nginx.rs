//! nginx across a failover: ab, wrk and curl are told everything, whole, by whichever half is live.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use guest_images::cache::Cache;
use load::random::Random;
use lockstep::cluster::{Cluster, Part};

use crate::disk_tools::{copy_sparse, debugfs};
use crate::machine::NGINX;
use crate::support::{on, one_live_copy, shut_down, wait_alone, wait_replicating};
use crate::tools::{Tool, have, until_disturbed};

const PORT: u16 = 80;
/// A file of these bytes is served besides the guest's own page.
const LARGE: &str = "large.bin";
const LARGE_BYTES: usize = 4 << 20;
/// Requests of each ab: with a new connection each, and on connections that stay.
const REQUESTS: [(&str, u64); 2] = [("ab", 1000), ("ab-keep-alive", 3000)];
/// Downloads of the large file on a connection of its own, after the fault.
const DOWNLOADS_AFTER: usize = 2;

#[test]
fn nginx_serves_ab_and_curl_through_a_failover() {
    const NAME: &str = "nginx_serves_ab_and_curl_through_a_failover";
    if !have("ab", "apache2-utils", NAME) || !have("curl", "curl", NAME) {
        return;
    }
    let wrk = have("wrk", "wrk", "wrk in nginx_serves_ab_and_curl_through_a_failover");
    on(&NGINX, NAME, || until_disturbed(|directory| kill_under_load(directory, wrk)));
}

/// Whether every client was at work when the primary was killed.
fn kill_under_load(directory: &Path, wrk: bool) -> anyhow::Result<bool> {
    let large = large_file();
    let mut cluster = start(directory, &large)?;
    let address = format!("http://127.0.0.1:{}/", cluster.port());
    let page = download(&mut cluster, "page", &address)?;
    ensure!(page.starts_with(b"<!doctype html>"), "{}", String::from_utf8_lossy(&page));

    let mut clients = start_ab(&cluster, &address)?;
    cluster.wait("ab to be at work", |_| {
        REQUESTS
            .iter()
            .zip(&clients)
            .try_fold(true, |all, (_, ab)| Ok(all & ab.said()?.contains("Completed")))
    })?;
    if wrk {
        clients.push(start_wrk(&cluster, &address)?);
    }
    clients.push(curl(&cluster, "large", &format!("{address}{LARGE}"))?);
    let arrived = directory.join("large.got");
    let arrived = || std::fs::metadata(&arrived).map_or(0, |data| data.len() as usize);
    cluster.wait("a part of the large file", |_| Ok(arrived() > 0))?;
    cluster.kill(Part::Primary)?;
    let mut in_time = arrived() < LARGE_BYTES;
    for client in &mut clients {
        in_time &= client.runs()?;
    }

    let said =
        clients.into_iter().map(|client| client.finish(&mut cluster)).collect::<Result<Vec<_>, _>>()?;
    for ((name, requests), said) in REQUESTS.iter().zip(&said) {
        check_ab(name, said, *requests, page.len() as u64)?;
    }
    if wrk {
        check_wrk(&said[REQUESTS.len()])?;
    }
    same(&std::fs::read(directory.join("large.got"))?, &large)?;
    for _ in 0..DOWNLOADS_AFTER {
        same(&download(&mut cluster, "large", &format!("{address}{LARGE}"))?, &large)?;
    }
    ensure!(download(&mut cluster, "page", &address)? == page, "the page is another one");
    wait_alone(&mut cluster, Part::Backup)?;
    one_live_copy(&mut cluster, Part::Backup, 2)?;
    shut_down(&mut cluster, Part::Backup, false)?;
    Ok(in_time)
}

/// A pair whose disk holds the large file too.
fn start(directory: &Path, large: &[u8]) -> anyhow::Result<Cluster> {
    let mut options = NGINX.options(directory);
    let image = directory.join("root.img");
    let guest = Cache::new(None)?.find("nginx")?;
    copy_sparse(&guest.path(guest.manifest.disk.as_ref().context("nginx has a root disk")?), &image)?;
    let file = directory.join(LARGE);
    std::fs::write(&file, large)?;
    let write = ["cd /var/www".into(), format!("write {} {LARGE}", file.display())];
    let complaints = debugfs(&image, true, &write)?;
    options.vm_options.extend(["--disk-image".into(), image.display().to_string()]);
    options.guest_port = PORT;
    options.answers = answers;
    let mut cluster = Cluster::start(options, |_| {}).context(complaints)?;
    wait_replicating(&mut cluster, 1)?;
    Ok(cluster)
}

/// Bytes that nothing can guess or pack.
fn large_file() -> Vec<u8> {
    let mut random = Random::new(1);
    (0..LARGE_BYTES / 8).flat_map(|_| random.draw().to_le_bytes()).collect()
}

fn answers(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(b"HEAD / HTTP/1.0\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"HTTP/1.1 200")
}

/// Both kinds of ab.
fn start_ab(cluster: &Cluster, address: &str) -> anyhow::Result<Vec<Tool>> {
    let start = |(name, requests)| {
        let keep_alive = if name == "ab" { "" } else { "-k " };
        let line = format!("{keep_alive}-n {requests} -c 8 -s 60 {address}");
        Tool::start(cluster, name, "ab", &words(&line))
    };
    REQUESTS.into_iter().map(start).collect()
}

fn start_wrk(cluster: &Cluster, address: &str) -> anyhow::Result<Tool> {
    let line = format!("--threads 1 --connections 4 --duration 3s --timeout 60s {address}");
    Tool::start(cluster, "wrk", "wrk", &words(&line))
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(String::from).collect()
}

/// A download to `name`.got.
fn curl(cluster: &Cluster, name: &str, url: &str) -> anyhow::Result<Tool> {
    let into = cluster.directory().join(format!("{name}.got")).display().to_string();
    let line = format!("--silent --show-error --fail --no-buffer --max-time 120 --output {into} {url}");
    Tool::start(cluster, &format!("curl-{name}"), "curl", &words(&line))
}

fn download(cluster: &mut Cluster, name: &str, url: &str) -> anyhow::Result<Vec<u8>> {
    curl(cluster, name, url)?.finish(cluster)?;
    Ok(std::fs::read(cluster.directory().join(format!("{name}.got")))?)
}

fn same(found: &[u8], large: &[u8]) -> anyhow::Result<()> {
    let differs = found.iter().zip(large).position(|(found, expected)| found != expected);
    ensure!(
        found == large,
        "{} bytes of {} arrived, the first wrong one at {differs:?}",
        found.len(),
        large.len()
    );
    Ok(())
}

/// Every request was answered, none otherwise than the first, and each with the whole page.
fn check_ab(name: &str, said: &str, requests: u64, page_bytes: u64) -> anyhow::Result<()> {
    let number = |what: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.with_context(|| format!("{name} says no {what:?}:\n{said}"))
    };
    ensure!(number("Complete requests")? == requests, "{name}:\n{said}");
    ensure!(number("Failed requests")? == 0, "{name}:\n{said}");
    ensure!(number("Document Length")? == page_bytes, "{name}:\n{said}");
    ensure!(number("HTML transferred")? >= requests * page_bytes, "{name}:\n{said}");
    ensure!(!said.contains("Non-2xx"), "{name}:\n{said}");
    let told = said.lines().filter(|line| line.contains("per second") || line.contains("longest request"));
    println!("{name}: {}", told.map(str::trim).collect::<Vec<_>>().join("; "));
    Ok(())
}

/// wrk speaks of sockets and statuses only when there was something wrong with them.
fn check_wrk(said: &str) -> anyhow::Result<()> {
    let requests = said.lines().find(|line| line.contains("requests in")).context(said.to_string())?;
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "wrk:\n{said}");
    println!("wrk: {}", requests.trim());
    Ok(())
}
