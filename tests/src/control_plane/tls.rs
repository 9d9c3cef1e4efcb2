//! A certificate authority of our own and one certificate of it, for API, front and chisel.
//!
//! Kept in the folder, so that a control plane that starts again there is the one its agents and people trust.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// The authority and what it signed.
#[derive(Clone, Debug)]
pub struct Authority {
    ca_pem: String,
    dir: PathBuf,
}

impl Authority {
    /// Reads what is in the folder, or makes it for `localhost`, the loopback addresses and `host`.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(dir: &Path, host: &str) -> Result<Self> {
        let made_for = fs::read_to_string(dir.join("tls.host")).ok();
        if made_for.as_deref() != Some(host) {
            make(dir, host).context("making a certificate")?;
        }
        let ca_pem = fs::read_to_string(dir.join("ca.crt")).context("reading ca.crt")?;
        Ok(Self {
            ca_pem,
            dir: dir.to_owned(),
        })
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Where the authority's certificate is.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Where the servers' certificate is.
    pub fn cert_file(&self) -> PathBuf {
        self.dir.join("tls.crt")
    }

    /// Where the servers' key is.
    pub fn key_file(&self) -> PathBuf {
        self.dir.join("tls.key")
    }

    /// A server's side of TLS.
    ///
    /// # Errors
    /// When the files are not what they should be.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>> {
        let certs = CertificateDer::pem_file_iter(self.cert_file())?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(self.key_file())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(certs, key)?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

fn make(dir: &Path, host: &str) -> Result<()> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name
        .push(DnType::CommonName, "reference control plane");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !names.iter().any(|name| name == host) {
        names.push(host.to_owned());
    }
    let mut leaf = CertificateParams::new(names)?;
    leaf.distinguished_name.push(DnType::CommonName, host);
    leaf.use_authority_key_identifier_extension = true;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &ca)?;

    fs::write(dir.join("ca.crt"), ca.pem())?;
    fs::write(dir.join("tls.crt"), leaf.pem())?;
    write_secret(&dir.join("tls.key"), &key.serialize_pem())?;
    // Written last: without it the others are made again.
    fs::write(dir.join("tls.host"), host)?;
    Ok(())
}

/// Writes a file that only its owner can read.
pub(super) fn write_secret(path: &Path, content: &str) -> Result<()> {
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_folder_gives_the_same_authority_until_the_host_changes() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path(), "127.0.0.1").unwrap();
        first.server_config(&[b"h2"]).unwrap();
        let second = Authority::open(dir.path(), "127.0.0.1").unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        let third = Authority::open(dir.path(), "other.example").unwrap();
        assert_ne!(first.ca_pem(), third.ca_pem());
    }
}
