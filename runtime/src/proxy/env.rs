//! Proxies from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in lower or upper case, as other programs
//! read them. Pure.

use std::net::IpAddr;

use super::{BadProxy, Proxy};
use crate::config::Env;

/// What the variables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

/// One entry of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    host: ExceptHost,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ExceptHost {
    Everything,
    /// The name itself (unless written with a dot in front) and everything below it; with its leading dot.
    Below(String, bool),
    Net(IpAddr, u8),
}

impl ProxyEnv {
    /// Reads the variables.
    ///
    /// # Errors
    /// The name of the variable that cannot be used, and why.
    pub fn read(env: &Env) -> Result<Self, (&'static str, BadProxy)> {
        // `HTTP_PROXY` in upper case is set by web servers from a request's header; nobody runs us as CGI, but who
        // does means no proxy by it.
        let cgi = env.get("REQUEST_METHOD").is_some();
        let first = |names: &[&'static str]| -> Result<Option<Proxy>, (&'static str, BadProxy)> {
            for name in names.iter().filter(|name| !(cgi && **name == "HTTP_PROXY")) {
                if let Some(text) = env.get(name) {
                    return Proxy::parse(text).map(Some).map_err(|bad| (*name, bad));
                }
            }
            Ok(None)
        };
        let exceptions = ["no_proxy", "NO_PROXY"]
            .iter()
            .find_map(|name| env.get(name))
            .unwrap_or_default();
        Ok(Self {
            https: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
            http: first(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?,
            exceptions: exceptions.split([',', ' ']).filter_map(Exception::read).collect(),
        })
    }

    /// The proxy for a peer; `tls` says whether TLS will be spoken to it. This machine is never reached through one.
    pub fn for_peer(&self, tls: bool, host: &str, port: u16) -> Option<&Proxy> {
        let bare = host
            .trim_matches(['[', ']'])
            .trim_end_matches('.')
            .to_ascii_lowercase();
        let ip = bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        if bare == "localhost" || bare.ends_with(".localhost") || ip.is_some_and(|ip| ip.is_loopback()) {
            return None;
        }
        if self.exceptions.iter().any(|entry| entry.matches(&bare, ip, port)) {
            return None;
        }
        if tls {
            self.https.as_ref()
        } else {
            self.http.as_ref()
        }
    }
}

impl Exception {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self {
                host: ExceptHost::Everything,
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address has colons of its own.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host.to_owned(), port.parse().ok())
            }
            _ => (text, None),
        };
        let bare = host.trim_matches(['[', ']']);
        let (address, bits) = match bare.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (bare, None),
        };
        let host = match address.parse::<IpAddr>() {
            Ok(ip) => {
                let ip = ip.to_canonical();
                let all = if ip.is_ipv4() { 32 } else { 128 };
                ExceptHost::Net(ip, bits.unwrap_or(all).min(all))
            }
            Err(_) => match bare.strip_prefix("*.").or_else(|| bare.strip_prefix('.')) {
                Some(name) => ExceptHost::Below(format!(".{name}"), false),
                None => ExceptHost::Below(format!(".{bare}"), true),
            },
        };
        Some(Self { host, port })
    }

    fn matches(&self, name: &str, ip: Option<IpAddr>, port: u16) -> bool {
        if self.port.is_some_and(|only| only != port) {
            return false;
        }
        match &self.host {
            ExceptHost::Everything => true,
            ExceptHost::Below(end, itself) => {
                name.ends_with(end.as_str()) || *itself && end.strip_prefix('.') == Some(name)
            }
            ExceptHost::Net(net, bits) => match (net, ip) {
                (IpAddr::V4(net), Some(IpAddr::V4(ip))) => {
                    let cut = |ip: u32| ip.checked_shr(32 - u32::from(*bits)).unwrap_or_default();
                    cut(net.to_bits()) == cut(ip.to_bits())
                }
                (IpAddr::V6(net), Some(IpAddr::V6(ip))) => {
                    let cut = |ip: u128| ip.checked_shr(128 - u32::from(*bits)).unwrap_or_default();
                    cut(net.to_bits()) == cut(ip.to_bits())
                }
                _ => false,
            },
        }
    }
}
