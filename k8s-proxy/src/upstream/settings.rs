//! Where the apiserver is, whom we trust there, and who we are.

use std::{fmt, sync::Arc};

use http::HeaderValue;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use url::Url;

use super::{Credential, TokenSource};

/// Why the apiserver's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not a server.
    #[error("{0:?} is not an http:// or https:// URL with a host")]
    Url(String),
    /// Certificates or keys that do not read.
    #[error("{what} is not readable PEM: {reason}")]
    Pem {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// TLS cannot be set up with them.
    #[error("TLS towards the apiserver cannot be set up: {0}")]
    Tls(String),
}

/// A client certificate.
#[derive(Clone)]
pub struct ClientCertificate {
    /// PEM chain.
    pub chain: Vec<u8>,
    /// PEM key.
    pub key: Vec<u8>,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate")
    }
}

/// What is known before TLS is set up.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The server.
    pub url: Url,
    /// PEM of its CA; the system's roots when absent.
    pub ca: Option<Vec<u8>>,
    /// Whether its certificate is not looked at; only when the owner says so by name.
    pub insecure: bool,
    /// Name in its certificate, when not its host.
    pub server_name: Option<String>,
    /// Our certificate.
    pub certificate: Option<ClientCertificate>,
    /// Our token.
    pub token: TokenSource,
}

/// Ready to connect.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) url: Url,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<Tls>,
    pub(super) credential: Credential,
}

#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) server_name: String,
    /// Offers `http/1.1`.
    pub(super) h1: Arc<ClientConfig>,
    /// Offers `h2` first.
    pub(super) h2: Arc<ClientConfig>,
}

impl Settings {
    /// Sets up TLS.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn new(parts: Parts) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::Url(parts.url.to_string());
        let host = parts.url.host_str().ok_or_else(wrong)?.to_owned();
        let port = parts.url.port_or_known_default().ok_or_else(wrong)?;
        let tls = match parts.url.scheme() {
            "http" => None,
            "https" => {
                let mut h1 = client_config(&parts)?;
                let mut h2 = h1.clone();
                h1.alpn_protocols = vec![b"http/1.1".to_vec()];
                h2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
                let server_name = parts.server_name.clone().unwrap_or_else(|| host.clone());
                Some(Tls {
                    server_name,
                    h1: Arc::new(h1),
                    h2: Arc::new(h2),
                })
            }
            _ => return Err(wrong()),
        };
        Ok(Self {
            host,
            port,
            tls,
            credential: Credential::new(parts.token),
            url: parts.url,
        })
    }

    /// The apiserver's address, for people.
    pub fn address(&self) -> &str {
        self.url.as_str()
    }

    pub(super) fn authority(&self) -> Result<HeaderValue, SettingsError> {
        let text = match self.url.port() {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        };
        HeaderValue::from_str(&text).map_err(|_| SettingsError::Url(self.url.to_string()))
    }
}

fn client_config(parts: &Parts) -> Result<ClientConfig, SettingsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let tls = |error: rustls::Error| SettingsError::Tls(error.to_string());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(tls)?;
    let builder = if parts.insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    } else {
        builder.with_root_certificates(roots(parts.ca.as_deref())?)
    };
    match &parts.certificate {
        None => Ok(builder.with_no_client_auth()),
        Some(certificate) => {
            let chain = certificates("the client certificate", &certificate.chain)?;
            let key =
                PrivateKeyDer::from_pem_slice(&certificate.key).map_err(|error| SettingsError::Pem {
                    what: "the client key",
                    reason: error.to_string(),
                })?;
            builder.with_client_auth_cert(chain, key).map_err(tls)
        }
    }
}

/// The cluster's own CA and no other when there is one: a public CA has no say about an apiserver.
fn roots(ca: Option<&[u8]>) -> Result<RootCertStore, SettingsError> {
    let mut store = RootCertStore::empty();
    let Some(pem) = ca else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(store);
    };
    for certificate in certificates("the CA of the apiserver", pem)? {
        store.add(certificate).map_err(|error| SettingsError::Pem {
            what: "the CA of the apiserver",
            reason: error.to_string(),
        })?;
    }
    Ok(store)
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| SettingsError::Pem {
        what,
        reason: error.to_string(),
    })?;
    if all.is_empty() {
        return Err(SettingsError::Pem {
            what,
            reason: "no certificate in it".to_owned(),
        });
    }
    Ok(all)
}

/// Accepts any certificate; used only when the owner asked for it by name.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
