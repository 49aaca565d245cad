//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub const USAGE: &str = "\
Usage: keswick-load --connect HOST:PORT --path PATH [option...]

Puts load on a server and prints one JSON object with what came of it. Every connection answers one request first;
then the word `ready` is printed, and the run begins with the next line (or the end) of standard input.

    --mode MODE         h1: keep-alive HTTP/1.1 (default)
                        h2: HTTP/2, many requests on each connection
                        handshake: HTTP/1.1 with a new connection and a full handshake for each request
    --connections N     connections at the same time (64)
    --streams N         requests at the same time on each HTTP/2 connection (1)
    --seconds S         begin no request after that time (10)
    --requests N        make at most so many requests
    --method METHOD     (GET)
    --path PATH         with the query, if any
    --header 'K: V'     may be given many times
    --body TEXT         (empty)
    --expect STATUS     any other status is an error (200)
    --cert FILE         client certificate, PEM
    --key FILE          its private key, PEM
    --ca FILE           verify the server against these certificates; without it the server is not verified

The exit status is 1 if a single request failed: such a run measures nothing.";

#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Http1,
    Http2,
    Handshake,
}

pub struct Options {
    pub connect: String,
    pub mode: Mode,
    pub connections: usize,
    pub streams: usize,
    pub time: Duration,
    pub requests: u64,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub expect: u16,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca: Option<PathBuf>,
}

impl Options {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            connect: String::new(),
            mode: Mode::Http1,
            connections: 64,
            streams: 1,
            time: Duration::from_secs(10),
            requests: u64::MAX,
            method: "GET".into(),
            path: String::new(),
            headers: Vec::new(),
            body: String::new(),
            expect: 200,
            cert: None,
            key: None,
            ca: None,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--connect" => options.connect = value,
                "--mode" => {
                    options.mode = match value.as_str() {
                        "h1" => Mode::Http1,
                        "h2" => Mode::Http2,
                        "handshake" => Mode::Handshake,
                        _ => return Err(format!("--mode {value}: write h1, h2 or handshake")),
                    }
                }
                "--connections" => options.connections = positive(&name, &value)?,
                "--streams" => options.streams = positive(&name, &value)?,
                "--seconds" => {
                    options.time = Duration::try_from_secs_f64(number(&name, &value)?)
                        .map_err(|_| format!("{name} {value}: this is no length of time"))?
                }
                "--requests" => options.requests = number(&name, &value)?,
                "--method" => options.method = value,
                "--path" => options.path = value,
                "--header" => {
                    let (key, value) = value.split_once(':').ok_or_else(|| format!("{name} {value}: no colon"))?;
                    options.headers.push((key.trim().into(), value.trim().into()));
                }
                "--body" => options.body = value,
                "--expect" => options.expect = number(&name, &value)?,
                "--cert" => options.cert = Some(value.into()),
                "--key" => options.key = Some(value.into()),
                "--ca" => options.ca = Some(value.into()),
                _ => return Err(format!("{name} is not an option")),
            }
        }
        if options.connect.is_empty() || !options.path.starts_with('/') {
            return Err("--connect HOST:PORT and --path /PATH must be given".into());
        }
        if options.streams > 1 && options.mode != Mode::Http2 {
            return Err("--streams is for --mode h2".into());
        }
        Ok(options)
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} {value}: this is not a number it takes"))
}

fn positive(name: &str, value: &str) -> Result<usize, String> {
    match number(name, value)? {
        0 => Err(format!("{name} must be at least 1")),
        n => Ok(n),
    }
}
