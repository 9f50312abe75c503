//! Where a listener binds: `http://host[:port]`, `https://host[:port]` or `unix:/path`.

use std::fmt;
use std::path::{Path, PathBuf};

/// A listener's address. `Display` gives back the syntax it is written in, port included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port.
    Tcp {
        /// Whether connections speak TLS.
        scheme: Scheme,
        /// A host name or an IP address; an IPv6 address stands without its brackets.
        host: String,
        /// The port; 0 lets the system choose.
        port: u16,
    },
    /// A Unix domain socket at this path.
    Unix(PathBuf),
}

/// What is spoken on a TCP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP; port 80 when none is given.
    Http,
    /// HTTP over TLS; port 443 when none is given.
    Https,
}

impl Address {
    /// What an address may look like, for messages.
    pub(crate) const WANTED: &str = "http://host[:port], https://host[:port] with a port below \
                                     65535, or unix:/path";

    /// Reads an address; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = strip_prefix_no_case(text, "unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        let (scheme, rest) = if let Some(rest) = strip_prefix_no_case(text, "http://") {
            (Scheme::Http, rest)
        } else {
            (Scheme::Https, strip_prefix_no_case(text, "https://")?)
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split_port(rest)?;
        let port = match port {
            Some(port) => parse_port(port)?,
            None if scheme == Scheme::Http => 80,
            None => 443,
        };
        valid_host(host).then(|| Self::Tcp { scheme, host: host.to_owned(), port })
    }

    /// Whether connections speak TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tcp { scheme: Scheme::Https, .. })
    }

    /// The TCP port, if there is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { port, .. } => Some(*port),
            Self::Unix(_) => None,
        }
    }

    /// The host to bind, without brackets, if this is a TCP address.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Tcp { host, .. } => Some(host),
            Self::Unix(_) => None,
        }
    }

    /// The socket's path, if this is a Unix domain socket.
    pub fn unix_path(&self) -> Option<&Path> {
        match self {
            Self::Tcp { .. } => None,
            Self::Unix(path) => Some(path),
        }
    }

    /// The same address on another port. A Unix socket becomes plain HTTP on every interface, since
    /// who asks for a port wants TCP.
    pub fn with_port(&self, port: u16) -> Self {
        match self {
            Self::Tcp { scheme, host, .. } => {
                Self::Tcp { scheme: *scheme, host: host.clone(), port }
            }
            Self::Unix(_) => Self::Tcp { scheme: Scheme::Http, host: "0.0.0.0".to_owned(), port },
        }
    }

    /// The same address on another host; `None` if the host can't be one.
    pub(crate) fn with_host(&self, host: &str) -> Option<Self> {
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let (scheme, port) = match self {
            Self::Tcp { scheme, port, .. } => (*scheme, *port),
            Self::Unix(_) => (Scheme::Http, 8080),
        };
        valid_host(host).then(|| Self::Tcp { scheme, host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { scheme, host, port } => {
                let scheme = if *scheme == Scheme::Https { "https" } else { "http" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
        }
    }
}

fn strip_prefix_no_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Splits `host[:port]` and `[v6][:port]`; the host comes without its brackets.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        return if rest.is_empty() {
            Some((host, None))
        } else {
            Some((host, Some(rest.strip_prefix(':')?)))
        };
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some((host, port)) => Some((host, Some(port))),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port < u16::MAX)
}

fn valid_host(host: &str) -> bool {
    if host.contains(':') {
        return host.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_and_prints() {
        let cases = [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://0.0.0.0", "http://0.0.0.0:80"),
            ("HTTPS://Example.org/", "https://Example.org:443"),
            ("https://[::1]:8443", "https://[::1]:8443"),
            ("http://localhost:0", "http://localhost:0"),
            ("http://h:65534", "http://h:65534"),
            ("unix:/tmp/server.sock", "unix:/tmp/server.sock"),
        ];
        for (text, printed) in cases {
            let address = Address::parse(text).expect(text);
            assert_eq!(address.to_string(), printed);
            assert_eq!(Address::parse(printed).as_ref(), Some(&address));
        }
    }

    #[test]
    fn anything_else_is_no_address() {
        for text in [
            "",
            "8080",
            "localhost:8080",
            "ftp://h:1",
            "http://",
            "http://:80",
            "http://h:65535",
            "http://h:99999",
            "http://h:+1",
            "http://h:",
            "http://h:8a",
            "http://h/x",
            "unix:",
            "unix:relative",
            "http://[::1",
            "http://[zz]:1",
            "http://a b:1",
            "http://::1:80",
            "é",
        ] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }
}
