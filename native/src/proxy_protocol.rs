//! The PROXY protocol, version 2: the header in which a TCP proxy says whose connection it passes on.
//!
//! The format is <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>, section 2.2.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// How the text form of version 1 begins.
const VERSION_1: &[u8] = b"PROXY ";

/// Signature, version and command, family, and the length of what follows.
const FIXED: usize = 16;

/// Addresses take at most 216 bytes; the rest is for the notes (TLV) of proxies that have a lot to say.
const LONGEST: usize = 4096;

/// The note with a CRC32C of the whole header.
const CHECKSUM: u8 = 0x03;

/// Whether a connection begins with a header of either version.
pub fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(&SIGNATURE) || bytes.starts_with(VERSION_1)
}

/// Who has to send the header, and in what time.
pub struct ProxyProtocol {
    networks: Vec<Network>,
    longest: Duration,
}

impl ProxyProtocol {
    pub fn new(networks: &[String], seconds: f64) -> Result<Self, String> {
        let longest = Duration::try_from_secs_f64(seconds).ok().filter(|longest| !longest.is_zero());
        let Some(longest) = longest else {
            return Err("the time for a PROXY header has to be a number of seconds above zero".to_owned());
        };
        if networks.is_empty() {
            return Err("no network is named from which PROXY headers are to come".to_owned());
        }
        let networks = networks.iter().map(|text| Network::parse(text)).collect::<Result<_, _>>()?;
        Ok(Self { networks, longest })
    }

    pub fn expects_from(&self, peer: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(peer))
    }

    /// Reads the header and not a byte more. The address of the client, or None when the proxy speaks for itself or
    /// says nothing about it. An error is in words.
    pub async fn read_from(&self, stream: &mut TcpStream) -> Result<Option<IpAddr>, String> {
        match tokio::time::timeout(self.longest, read_header(stream)).await {
            Ok(header) => client(&header?),
            Err(_) => Err("timed out before the PROXY header was complete".to_owned()),
        }
    }
}

async fn read_header(stream: &mut TcpStream) -> Result<Vec<u8>, String> {
    let mut header = vec![0; FIXED];
    let mut filled = 0;
    while filled < FIXED {
        let count = stream.read(&mut header[filled..]).await.map_err(|error| error.to_string())?;
        if count == 0 {
            return Err(ENDED.to_owned());
        }
        filled += count;
        let known = filled.min(SIGNATURE.len());
        if header[..known] != SIGNATURE[..known] {
            let reason = if header.starts_with(VERSION_1) {
                "a PROXY header of version 1, and only version 2 is taken"
            } else {
                "no PROXY header of version 2, which is required from this address"
            };
            return Err(reason.to_owned());
        }
    }
    let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if length > LONGEST {
        return Err(format!("the PROXY header announces {length} bytes, and at most {LONGEST} are taken"));
    }
    header.resize(FIXED + length, 0);
    stream.read_exact(&mut header[FIXED..]).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ENDED.to_owned(),
        _ => error.to_string(),
    })?;
    Ok(header)
}

const ENDED: &str = "the connection was closed before the PROXY header was complete";

/// Whom a whole header names.
fn client(header: &[u8]) -> Result<Option<IpAddr>, String> {
    let (version, command) = (header[12] >> 4, header[12] & 15);
    if version != 2 {
        return Err(format!("bad PROXY header: the version is {version}, not 2"));
    }
    match command {
        // LOCAL, such as a health check: whatever else is there means nothing.
        0 => return Ok(None),
        1 => {}
        _ => return Err(format!("bad PROXY header: there is no command {command}")),
    }
    let block = &header[FIXED..];
    let short = || "bad PROXY header: it is too short for its addresses".to_owned();
    let (address, notes): (IpAddr, _) = match header[13] {
        0x11 => (Ipv4Addr::from(*block.first_chunk::<4>().ok_or_else(short)?).into(), block.get(12..)),
        0x21 => (Ipv6Addr::from(*block.first_chunk::<16>().ok_or_else(short)?).into(), block.get(36..)),
        // Unspecified, datagrams and Unix sockets: no address that means something here.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => return Ok(None),
        family => return Err(format!("bad PROXY header: there is no address family 0x{family:02x}")),
    };
    let notes = notes.ok_or_else(short)?;
    check_notes(header, header.len() - notes.len())?;
    Ok(Some(address.to_canonical()))
}

/// Walks over the notes from `start` on: type, length, value. All are passed over but the checksum.
fn check_notes(header: &[u8], start: usize) -> Result<(), String> {
    let mut rest = &header[start..];
    while !rest.is_empty() {
        let cut_off = || "bad PROXY header: a TLV goes on past its end".to_owned();
        let (&[kind, high, low], after) = rest.split_first_chunk().ok_or_else(cut_off)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, after) = after.split_at_checked(length).ok_or_else(cut_off)?;
        if kind == CHECKSUM {
            let place = header.len() - after.len() - length..header.len() - after.len();
            let blanked = header.iter().enumerate().map(|(at, byte)| if place.contains(&at) { 0 } else { *byte });
            if value != crc32c(blanked).to_be_bytes() {
                return Err("bad PROXY header: its checksum does not fit".to_owned());
            }
        }
        rest = after;
    }
    Ok(())
}

/// Bit by bit: a header is short, and seldom has a checksum.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    })
}

/// A CIDR network of at least one bit, or a single address.
struct Network {
    base: IpAddr,
    length: u32,
}

impl Network {
    fn parse(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text:?} is neither an IP address nor a network such as 10.0.0.0/8 or fd00::/8");
        let (base, length) = match text.split_once('/') {
            None => (text, None),
            Some((base, length)) => (base, Some(length)),
        };
        let base: IpAddr = base.parse().map_err(|_| malformed())?;
        let whole = width(base);
        let length = match length {
            None => whole,
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().ok().filter(|length| *length <= whole).ok_or_else(malformed)?
            }
            Some(_) => return Err(malformed()),
        };
        // Peers have their IPv4 address, so that networks have theirs.
        let canonical = base.to_canonical();
        let shorter = whole - width(canonical);
        let network = match length.checked_sub(shorter) {
            Some(length) => Self { base: canonical, length },
            None => Self { base, length },
        };
        if network.length == 0 {
            return Err(format!(
                "{text:?} is every address there is, and whoever sends a PROXY header can claim any: name the networks \
                 of the proxies"
            ));
        }
        let first = network.bits(network.base) << network.beyond();
        if first != number(network.base) {
            return Err(format!("{text:?} is not a network: its address has bits beyond the length"));
        }
        Ok(network)
    }

    fn contains(&self, address: IpAddr) -> bool {
        width(address) == width(self.base) && self.bits(address) == self.bits(self.base)
    }

    /// The bits of an address that count.
    fn bits(&self, address: IpAddr) -> u128 {
        number(address) >> self.beyond()
    }

    fn beyond(&self) -> u32 {
        width(self.base) - self.length
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
