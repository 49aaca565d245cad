//! A load program for benchmarks: as many lanes as asked for, each of which makes one request after the other until
//! the time or the number of requests is used up. It runs on one thread, so that it can be given one processor.

mod options;
mod tls;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use options::{Mode, Options, USAGE};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outgoing = Request<Full<Bytes>>;

/// How long it may take to open the lanes, and how long the answers to the last requests.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(report) => {
            println!("{}", report.json());
            ExitCode::from(u8::from(!report.errors.is_empty()))
        }
        Err(failure) => {
            eprintln!("keswick-load: {failure}");
            ExitCode::from(2)
        }
    }
}

async fn run(options: Options) -> Result<Report, Failure> {
    let target = Arc::new(Target { connector: tls::connector(&options)?, request: request(&options)?, options });
    let options = &target.options;

    let lanes = tokio::time::timeout(GRACE, open(&target)).await??;
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;

    let cpu = cpu_seconds();
    let begin = Instant::now();
    let left = Arc::new(AtomicU64::new(options.requests));
    let mut tasks = JoinSet::new();
    for lane in lanes {
        tasks.spawn(lane.work(target.clone(), begin + options.time, left.clone()));
    }
    let mut report = Report::default();
    let end = tokio::time::Instant::from_std(begin + options.time + GRACE);
    loop {
        match tokio::time::timeout_at(end, tasks.join_next()).await {
            Ok(Some(part)) => report.add(part?),
            Ok(None) => break,
            Err(_) => {
                report.errors.insert("timeout".into(), tasks.len() as u64);
                break;
            }
        }
    }
    report.seconds = begin.elapsed().as_secs_f64();
    report.cpu_seconds = cpu_seconds() - cpu;
    Ok(report)
}

/// All lanes; each has made one request.
async fn open(target: &Arc<Target>) -> Result<Vec<Lane>, Failure> {
    let mut lanes = Vec::new();
    for _ in 0..target.options.connections {
        let lane = Lane::open(target).await?;
        lanes.extend((1..target.options.streams).map(|_| lane.share()).collect::<Vec<_>>());
        lanes.push(lane);
    }
    for lane in &mut lanes {
        let (status, _) = lane.ask(&target.request).await?;
        if status != target.options.expect {
            return Err(format!("the first answer has status {status}").into());
        }
    }
    Ok(lanes)
}

struct Target {
    options: Options,
    connector: TlsConnector,
    request: Outgoing,
}

fn request(options: &Options) -> Result<Outgoing, Failure> {
    let mut request = Request::builder().method(options.method.as_str());
    if options.mode == Mode::Http2 {
        request = request.uri(format!("https://{}{}", options.connect, options.path));
    } else {
        request = request.uri(&options.path).header(header::HOST, &options.connect);
    }
    if options.mode == Mode::Handshake {
        request = request.header(header::CONNECTION, "close");
    }
    for (name, value) in &options.headers {
        request = request.header(name, value);
    }
    Ok(request.body(Full::from(options.body.clone()))?)
}

/// What makes one request at a time: a connection, a share of one, or a new connection for each request.
enum Lane {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
    Handshake(Arc<Target>),
}

impl Lane {
    async fn open(target: &Arc<Target>) -> Result<Self, Failure> {
        Ok(match target.options.mode {
            Mode::Http1 => Self::Http1(http1_connection(target).await?),
            Mode::Http2 => {
                let io = TokioIo::new(connect(target).await?);
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Self::Http2(sender)
            }
            Mode::Handshake => Self::Handshake(target.clone()),
        })
    }

    /// One more lane on the same HTTP/2 connection.
    fn share(&self) -> Self {
        match self {
            Self::Http2(sender) => Self::Http2(sender.clone()),
            _ => unreachable!("only HTTP/2 has streams, the options say so"),
        }
    }

    /// Make one request; the status and the length of the answer's body.
    async fn ask(&mut self, request: &Outgoing) -> Result<(u16, usize), Failure> {
        let response: Response<Incoming> = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request.clone()).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request.clone()).await?
            }
            Self::Handshake(target) => http1_connection(target).await?.send_request(request.clone()).await?,
        };
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes().len()))
    }

    async fn work(mut self, target: Arc<Target>, deadline: Instant, left: Arc<AtomicU64>) -> Report {
        let mut report = Report::default();
        loop {
            let begin = Instant::now();
            if begin >= deadline
                || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_err()
            {
                return report;
            }
            match self.ask(&target.request).await {
                Ok((status, bytes)) => {
                    report.latencies.push(u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX));
                    report.bytes += bytes as u64;
                    if status != target.options.expect {
                        *report.errors.entry(status.to_string()).or_default() += 1;
                    }
                }
                Err(failure) => {
                    eprintln!("keswick-load: {failure}");
                    *report.errors.entry("connection".into()).or_default() += 1;
                    return report;
                }
            }
        }
    }
}

async fn http1_connection(target: &Target) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
    let (sender, connection) = http1::handshake(TokioIo::new(connect(target).await?)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn connect(target: &Target) -> Result<TlsStream<TcpStream>, Failure> {
    let stream = TcpStream::connect(&target.options.connect).await?;
    stream.set_nodelay(true)?;
    Ok(target.connector.connect(ServerName::try_from("localhost")?, stream).await?)
}

#[derive(Default)]
struct Report {
    /// Microseconds, one for each answer.
    latencies: Vec<u32>,
    /// By status, or `connection` and `timeout` where there was none.
    errors: BTreeMap<String, u64>,
    /// Of all answers' bodies.
    bytes: u64,
    seconds: f64,
    /// Of this program, to tell whether it was the bottleneck.
    cpu_seconds: f64,
}

impl Report {
    fn add(&mut self, part: Self) {
        self.latencies.extend(part.latencies);
        for (kind, count) in part.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.bytes += part.bytes;
    }

    fn json(&self) -> String {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let errors: Vec<_> = self.errors.iter().map(|(kind, count)| format!("\"{kind}\": {count}")).collect();
        let percentiles: Vec<_> = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)]
            .iter()
            .map(|(name, part)| format!("\"{name}\": {}", percentile(&latencies, *part)))
            .collect();
        format!(
            "{{\"requests\": {}, \"errors\": {{{}}}, \"bytes\": {}, \"seconds\": {:.6}, \"cpu_seconds\": {:.6}, \
             \"latency_us\": {{{}}}}}",
            latencies.len(),
            errors.join(", "),
            self.bytes,
            self.seconds,
            self.cpu_seconds,
            percentiles.join(", "),
        )
    }
}

fn percentile(sorted: &[u32], part: f64) -> u32 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// The time this program's one thread has had a processor; 0 where the system does not tell.
fn cpu_seconds() -> f64 {
    let schedstat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    schedstat.split_whitespace().next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}
