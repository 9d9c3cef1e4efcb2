//! The way to the server, up to where chisel begins: proxy, TCP, TLS.
//!
//! The key of our own certificate is this container's secret, so its file is mounted here and its path is a setting
//! of this process, not of agent-core. The files are read at each connection, so that a renewed certificate is used
//! by the next one.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use runtime::{
    proxy::{self, Proxy, ProxyEnv, ProxyError},
    tls::{self, ClientOptions, MaybeTls, TlsError},
};

use crate::{
    spec::{Link, Via},
    timing::Timing,
};

/// A certificate chain and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Larger files are no certificate and no key; a chain of ten takes 20 KiB.
const MAX_PEM: u64 = 1024 * 1024;

/// Why the server was not reached.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// A file of our identity.
    #[error("cannot read {path} (--client-cert-file, --client-key-file)")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TCP, or the proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

/// Connects to servers; what it was set up with comes from this process and not from a spec.
#[derive(Default)]
pub struct Outbound {
    identity: Option<IdentityFiles>,
    proxies: ProxyEnv,
    /// The last TLS configuration and the identity it was made with.
    made: Mutex<Option<Made>>,
}

struct Made {
    link: TlsOf,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    config: Arc<rustls::ClientConfig>,
}

/// What of a link a TLS configuration depends on.
#[derive(PartialEq)]
struct TlsOf {
    ca_pem: Vec<u8>,
    any_certificate: bool,
}

impl fmt::Debug for Outbound {
    // The last identity holds the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound")
            .field("identity", &self.identity)
            .field("proxies", &self.proxies)
            .finish_non_exhaustive()
    }
}

impl Outbound {
    /// With a certificate of our own, or none, and with the proxies that the variables name.
    pub fn new(identity: Option<IdentityFiles>, proxies: ProxyEnv) -> Self {
        Self {
            identity,
            proxies,
            made: Mutex::default(),
        }
    }

    /// The proxy on the way to the server of `link`.
    pub fn proxy<'a>(&'a self, link: &'a Link) -> Option<&'a Proxy> {
        match &link.proxy {
            Via::Proxy(proxy) => Some(proxy),
            Via::Direct => None,
            Via::Environment => {
                let server = &link.server;
                self.proxies.for_peer(server.tls(), server.host(), server.port())
            }
        }
    }

    /// Connects; each step has its own timeout.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub async fn connect(&self, link: &Link, timing: &Timing) -> Result<MaybeTls, OutboundError> {
        let server = &link.server;
        // Before anything is dialled: what is wrong with our own files is told even while the server is away.
        let config = server.tls().then(|| self.tls(link)).transpose()?;
        let tcp = proxy::tcp(self.proxy(link), server.host(), server.port(), timing.dial).await?;
        let Some(config) = config else {
            return Ok(MaybeTls::Plain(tcp));
        };
        let name = server_name(link);
        let tls = tls::connect(tcp, name, config, timing.tls).await?;
        Ok(MaybeTls::Tls(Box::new(tls)))
    }

    /// The TLS configuration of this moment. It is made anew when the identity's files have changed.
    ///
    /// # Errors
    /// When a PEM text cannot be read.
    pub fn tls(&self, link: &Link) -> Result<Arc<rustls::ClientConfig>, OutboundError> {
        let identity = self
            .identity
            .as_ref()
            .map(|files| Ok::<_, OutboundError>((read(&files.certificate)?, read(&files.key)?)))
            .transpose()?;
        let of = TlsOf {
            ca_pem: link.ca_pem.clone(),
            any_certificate: link.any_certificate,
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*made
            && made.link == of
            && made.identity == identity
        {
            return Ok(Arc::clone(&made.config));
        }
        let config = tls::client_config_with(ClientOptions {
            extra_roots_pem: (!of.ca_pem.is_empty()).then_some(of.ca_pem.as_slice()),
            alpn: &[],
            identity: identity
                .as_ref()
                .map(|(certificate, key)| (certificate.as_slice(), key.as_slice())),
            insecure_any_certificate: of.any_certificate,
        })?;
        *made = Some(Made {
            link: of,
            identity,
            config: Arc::clone(&config),
        });
        Ok(config)
    }
}

/// As in chisel: the name that is set for TLS, else the one that is set for HTTP, else the server's own.
fn server_name(link: &Link) -> &str {
    match (&link.tls_server_name, &link.hostname) {
        (Some(name), _) => name,
        (None, Some(name)) => match name.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.contains(':') => {
                host
            }
            _ => name,
        },
        (None, None) => link.server.host(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, OutboundError> {
    let read = fs::metadata(path).and_then(|meta| {
        if meta.len() > MAX_PEM {
            Err(io::Error::other("it is too large for a certificate or a key"))
        } else {
            fs::read(path)
        }
    });
    read.map_err(|source| OutboundError::Identity {
        path: path.to_owned(),
        source,
    })
}
