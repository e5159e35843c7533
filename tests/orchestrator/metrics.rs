//! Metrics of a running job: who may read them, what they say, and that a real Prometheus understands them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::http::{ask, get};
use crate::job::JobFolder;
use crate::process::{Running, program, run};
use crate::proteins::fasta;

/// Some seconds of work on two devices; tests that need no more stop it.
fn job() -> JobFolder {
    JobFolder::new(fasta(301, 600, 20..200))
        .simulating("latency_us_per_batch=150000")
        .set("telemetry.prometheus", "127.0.0.1:0")
}

/// Where a job says that its metrics are.
fn address(running: &mut Running) -> SocketAddr {
    running.wait_for("/metrics");
    let text = running.stderr();
    let (_, url) = text.split_once("http://").unwrap();
    url.split_once("/metrics").unwrap().0.parse().unwrap()
}

fn stop(mut running: Running) {
    running.signal(Signal::TERM);
    running.finish().expect(75);
}

/// The value of a metric by its name and labels as written.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn metrics_are_served_while_a_job_runs_and_only_they() {
    let job = job();
    let mut running = job.start_into("results");
    let address = address(&mut running);
    assert!(address.ip().is_loopback());
    running.wait_for("segment committed");
    let answer = ask(address, "GET", "/metrics").unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    let text = answer.body;
    assert_eq!(value(&text, "virnucpro_records"), Some(600.0));
    assert_eq!(value(&text, "virnucpro_device_state{device=\"sim:1\",state=\"ready\"}"), Some(1.0));
    let tokens = value(&text, "virnucpro_tokens_computed_total").unwrap();
    let by_device =
        |device| value(&text, &format!("virnucpro_device_tokens_total{{device=\"{device}\"}}")).unwrap();
    assert!(tokens > 0.0);
    assert_eq!(by_device("sim:0") + by_device("sim:1"), tokens);
    // The same figures as `status` tells, a moment later.
    let status = run(program(["status", "--json"]).arg(job.at("results"))).expect(0).stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert!(status["snapshot"]["tokens_computed"].as_f64().unwrap() >= tokens);
    for (method, path, expected) in [
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/../run.json", 404),
        ("POST", "/metrics", 405),
    ] {
        assert_eq!(ask(address, method, path).unwrap().status, expected, "{method} {path}");
    }
    // What is no HTTP is told so, and does no harm.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"\x00\x01\xff nonsense\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    let head = ask(address, "HEAD", "/metrics").unwrap();
    assert_eq!((head.status, &*head.body), (200, ""));
    stop(running);
    assert!(TcpStream::connect(address).is_err(), "nothing is served after the end");
}

#[test]
fn nothing_is_served_unless_it_is_wanted() {
    let job = JobFolder::new(fasta(302, 20, 20..60));
    let finished = job.run_into("results").expect(0);
    assert!(!finished.stderr.contains("metrics"), "{}", finished.stderr);
}

#[test]
fn a_port_that_is_taken_is_no_reason_to_stop() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let job = JobFolder::new(fasta(303, 20, 20..60)).set("telemetry.prometheus", address);
    job.run_into("results").expect(0).says(["metrics cannot be served; the run goes on without"]);
}

#[test]
fn an_address_that_others_reach_is_served_with_a_warning() {
    let job = JobFolder::new(fasta(304, 20, 20..60)).set("telemetry.prometheus", "0.0.0.0:0");
    job.run_into("results").expect(0).says(["WARN anyone who reaches this address can read the metrics"]);
}

#[test]
fn readers_that_say_nothing_are_let_go() {
    let job = job();
    let mut running = job.start_into("results");
    let address = address(&mut running);
    run(program(["pause"]).arg(job.at("results"))).expect(0);
    let idle: Vec<TcpStream> =
        (0..actors::bounds::SCRAPERS).map(|_| TcpStream::connect(address).unwrap()).collect();
    // All places are taken: who comes now is turned away at once, or once the others have arrived.
    let deadline = Instant::now() + Duration::from_secs(4);
    while ask(address, "GET", "/metrics").is_some() {
        assert!(Instant::now() < deadline, "more readers than places");
    }
    // The silent ones lose their places after some seconds, and others are heard.
    running.wait_until("there are places again", |_| ask(address, "GET", "/metrics").is_some());
    drop(idle);
    stop(running);
}

/// A program that these tests can use, but do not need; says that it is not there.
fn is_installed(name: &str) -> bool {
    let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("skipped: `{name}` is not installed (Debian: apt-get install prometheus)");
    }
    found.is_ok()
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    if !is_installed("promtool") {
        return;
    }
    let job = job();
    let mut running = job.start_into("results");
    let address = address(&mut running);
    running.wait_for("segment committed");
    let text = get(address, "/metrics");
    stop(running);
    let mut command = Command::new("promtool");
    let mut promtool =
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn a_real_prometheus_reads_the_metrics() {
    if !is_installed("prometheus") {
        return;
    }
    // It takes its time to start on a busy machine.
    let job = job().simulating("latency_us_per_batch=1000000");
    let mut running = job.start_into("results");
    let target = address(&mut running);
    let config = format!(
        "global:\n  scrape_interval: 250ms\n  scrape_timeout: 250ms\nscrape_configs:\n  - job_name: virnucpro\n    \
         static_configs:\n      - targets: ['{target}']\n"
    );
    let config = job.write("prometheus.yml", config);
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", job.at("prometheus").display()))
        .arg(format!("--web.listen-address={free}"))
        .arg("--log.level=warn");
    let mut prometheus = Running::start(&mut command);
    prometheus.wait_until("it is ready", |_| {
        TcpStream::connect(free).is_ok()
            && ask(free, "GET", "/-/ready").is_some_and(|answer| answer.status == 200)
    });
    let query = |query: &str| -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer: Value =
            serde_json::from_str(&get(free, &format!("/api/v1/query?query={encoded}"))).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    };
    let number = |result: &Value| result["value"][1].as_str().unwrap().parse::<f64>().unwrap();
    prometheus.wait_until("it has read some batches", |_| {
        query("virnucpro_tokens_computed_total").first().is_some_and(|result| number(result) > 0.0)
    });
    assert_eq!(number(&query("up{job=\"virnucpro\"}")[0]), 1.0);
    assert_eq!(number(&query("virnucpro_records")[0]), 600.0);
    assert_eq!(query("virnucpro_device_tokens_total").len(), 2);
    assert_eq!(query("virnucpro_device_state{state=\"ready\"} == 1").len(), 2);
    let info = &query("virnucpro_run_info")[0]["metric"];
    assert_eq!(
        (info["model"].as_str(), info["version"].as_str()),
        (Some("sim"), Some(env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(info["job"], "virnucpro", "the label `job` is Prometheus's own");
    prometheus.wait_until("there is a rate", |_| {
        query("sum(rate(virnucpro_device_compute_seconds_total[10s]))")
            .first()
            .is_some_and(|r| number(r) > 0.0)
    });
    // What it knows of the names: help and type.
    let metadata: Value =
        serde_json::from_str(&get(free, "/api/v1/metadata?metric=virnucpro_tokens_computed_total")).unwrap();
    let known = &metadata["data"]["virnucpro_tokens_computed_total"][0];
    assert_eq!(known["type"], "counter", "{metadata}");
    assert!(known["help"].as_str().unwrap().starts_with("Tokens computed"), "{metadata}");
    drop(prometheus);
    stop(running);
}
