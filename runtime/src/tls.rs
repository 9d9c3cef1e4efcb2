//! TLS as a client, with one provider for the whole process.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Why no TLS session came about.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The extra roots are not PEM certificates.
    #[error("the CA file holds no readable PEM certificate: {0}")]
    Roots(String),
    /// There is nothing to trust.
    #[error("no root certificates: the image has none and no CA file is set")]
    NoRoots,
    /// The provider and the protocol versions do not fit.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    /// The host is neither a name nor an address.
    #[error("{host:?} is not a host name")]
    Name {
        /// What was given.
        host: String,
        /// Why it is none.
        source: InvalidDnsNameError,
    },
    /// The handshake failed, for example because the certificate is not trusted.
    #[error("TLS handshake with {host} failed: if the peer has a private CA, set its CA file")]
    Handshake {
        /// The peer.
        host: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The peer does not answer.
    #[error("TLS handshake with {host} did not end within {timeout:?}")]
    Timeout {
        /// The peer.
        host: String,
        /// How long was waited.
        timeout: Duration,
    },
}

/// Makes aws-lc-rs the provider of the process; later calls change nothing.
pub fn install_provider() {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
}

/// A client configuration that trusts the system's roots and those in `extra_roots_pem`, and offers `alpn`.
///
/// # Errors
/// When the extra roots are not readable, or when there are no roots at all.
pub fn client_config(extra_roots_pem: Option<&[u8]>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(pem) = extra_roots_pem {
        let mut added = 0_usize;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| TlsError::Roots(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| TlsError::Roots(error.to_string()))?;
            added += 1;
        }
        if added == 0 {
            return Err(TlsError::Roots("no certificate in it".to_owned()));
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The TLS handshake with `host` over an open connection.
///
/// # Errors
/// When the peer is not trusted or does not answer within `timeout`.
pub async fn connect(
    tcp: TcpStream,
    host: &str,
    config: Arc<ClientConfig>,
    timeout: Duration,
) -> Result<TlsStream<TcpStream>, TlsError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare).map_err(|source| TlsError::Name {
        host: host.to_owned(),
        source,
    })?;
    let handshake = TlsConnector::from(config).connect(name, tcp);
    match tokio::time::timeout(timeout, handshake).await {
        Ok(result) => result.map_err(|source| TlsError::Handshake {
            host: host.to_owned(),
            source,
        }),
        Err(_) => Err(TlsError::Timeout {
            host: host.to_owned(),
            timeout,
        }),
    }
}

/// A connection with or without TLS.
#[derive(Debug)]
pub enum MaybeTls {
    /// In clear.
    Plain(TcpStream),
    /// Encrypted; boxed because it is many times larger.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for MaybeTls {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_that_are_none_are_refused() {
        for pem in [
            "",
            "not pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(
                matches!(client_config(Some(pem.as_bytes()), &[]), Err(TlsError::Roots(_))),
                "{pem:?}"
            );
        }
    }
}
