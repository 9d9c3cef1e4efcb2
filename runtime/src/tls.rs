//! TLS as a client, with one provider for the whole process.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{
    CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _,
};
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
    /// Our own certificate or its key cannot be used.
    #[error("the client certificate or its key cannot be used: {0}")]
    Identity(String),
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

/// What a client trusts and how it shows itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientOptions<'a> {
    /// PEM of roots beside the system's.
    pub extra_roots_pem: Option<&'a [u8]>,
    /// Protocols offered.
    pub alpn: &'a [&'a [u8]],
    /// PEM of our certificate chain, and of its key.
    pub identity: Option<(&'a [u8], &'a [u8])>,
    /// Takes any certificate. Whoever sits between reads and changes everything.
    pub insecure_any_certificate: bool,
}

/// A client configuration that trusts the system's roots and those in `extra_roots_pem`, and offers `alpn`.
///
/// # Errors
/// When the extra roots are not readable, or when there are no roots at all.
pub fn client_config(extra_roots_pem: Option<&[u8]>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_with(ClientOptions {
        extra_roots_pem,
        alpn,
        ..ClientOptions::default()
    })
}

/// The same with everything that can be said.
///
/// # Errors
/// When a PEM text is not readable, or when there are no roots at all and some are needed.
pub fn client_config_with(options: ClientOptions<'_>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?;
    let roots = roots(options.extra_roots_pem)?;
    let builder = if options.insecure_any_certificate {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else if roots.is_empty() {
        return Err(TlsError::NoRoots);
    } else {
        builder.with_root_certificates(roots)
    };
    let mut config = match options.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let unusable =
                |what: &str, error: &dyn std::fmt::Display| TlsError::Identity(format!("{what}: {error}"));
            let chain = CertificateDer::pem_slice_iter(certificate)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| unusable("certificate", &error))?;
            if chain.is_empty() {
                return Err(unusable("certificate", &"no certificate in it"));
            }
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| unusable("key", &error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable("certificate and key", &error))?
        }
    };
    config.alpn_protocols = options.alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn roots(extra_pem: Option<&[u8]>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    let Some(pem) = extra_pem else { return Ok(roots) };
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
    Ok(roots)
}

/// Takes any certificate, but no forged handshake: the peer does hold the key of what it shows.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
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

    #[test]
    fn an_identity_that_is_none_is_refused() {
        let made = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let other_key = other.signing_key.serialize_pem();
        let with = |certificate: &str, key: &str| {
            client_config_with(ClientOptions {
                identity: Some((certificate.as_bytes(), key.as_bytes())),
                insecure_any_certificate: true,
                ..ClientOptions::default()
            })
        };
        assert!(with(&certificate, &key).is_ok());
        for (certificate, key) in [("", key.as_str()), (&certificate, ""), (&certificate, &other_key)] {
            let error = with(certificate, key).unwrap_err();
            assert!(matches!(error, TlsError::Identity(_)), "{error}");
        }
    }
}
