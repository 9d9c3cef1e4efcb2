//! The certificate of the HTTPS door: made anew at each start, known by its digest.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use runtime::secret;
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// What a caller may call this door: the loopback, and the name of the target that leads here.
const NAMES: [&str; 4] = ["localhost", "127.0.0.1", "::1", "kubernetes-api"];

/// No certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Key or certificate.
    #[error("the certificate of the HTTPS door cannot be made")]
    Make(#[from] rcgen::Error),
    /// TLS does not take it.
    #[error("TLS does not take the certificate of the HTTPS door")]
    Tls(#[from] rustls::Error),
}

/// A certificate of our own, ready for use.
#[derive(Clone, Debug)]
pub struct OwnCertificate {
    /// TLS with it, offering h2 and HTTP/1.1.
    pub config: Arc<ServerConfig>,
    /// Hex SHA-256 of the certificate in DER form, by which a caller may know us.
    pub sha256: String,
    /// The certificate, for a caller who wants to trust it by file.
    pub pem: String,
}

/// Makes one.
///
/// # Errors
/// See [`CertificateError`].
pub fn make() -> Result<OwnCertificate, CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "k8s-proxy");
    let certificate = params.self_signed(&key)?;
    let der = certificate.der().clone();
    let sha256 = secret::hex(&secret::sha256(&der));
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![der], private)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(OwnCertificate {
        config: Arc::new(config),
        sha256,
        pem: certificate.pem(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_its_own_certificate() {
        let (first, second) = (make().unwrap(), make().unwrap());
        assert_eq!(first.sha256.len(), 64);
        assert_ne!(first.sha256, second.sha256);
        assert!(first.pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
