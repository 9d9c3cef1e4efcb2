//! The server, the way to it, and what proves it.

use std::fmt;

use chisel_ssh::Fingerprint;
use proto::v1::TunnelSpec;
use runtime::{
    proxy::Proxy,
    secret::{ExposeSecret as _, SecretString, same},
};

use crate::server::Server;

/// How a spec says [`Via::Direct`].
const NO_PROXY: &str = "none";

/// What a session depends on: if one of these changes, the session is made anew.
#[derive(Clone)]
pub struct Link {
    /// The server.
    pub server: Server,
    /// User name, empty for none.
    pub user: String,
    /// Password, empty for none.
    pub password: SecretString,
    /// The pinned host key.
    pub fingerprint: Option<Fingerprint>,
    /// Extra roots for TLS, PEM.
    pub ca_pem: Vec<u8>,
    /// The owner accepts a link that proves nothing.
    pub allow_insecure: bool,
    /// `Host` header, when it is not the server's own.
    pub hostname: Option<String>,
    /// Name in the TLS handshake, when it is neither.
    pub tls_server_name: Option<String>,
    /// Any certificate is taken.
    pub any_certificate: bool,
    /// How the server is reached.
    pub proxy: Via,
    /// Further headers of the upgrade request.
    pub headers: Vec<(String, SecretString)>,
}

/// How the server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// As the variables of this process say.
    Environment,
    /// Directly, whatever they say.
    Direct,
    /// Through this proxy.
    Proxy(Proxy),
}

impl Link {
    pub(super) fn read(spec: &TunnelSpec) -> Result<Self, (String, String)> {
        let server = Server::parse(&spec.server).map_err(|bad| (String::new(), bad.to_string()))?;
        let refuse = |reason: String| (server.to_string(), reason);
        let fingerprint = match spec.fingerprint.trim() {
            "" => None,
            text => Some(
                text.parse::<Fingerprint>()
                    .map_err(|bad| refuse(format!("tunnel.fingerprint: {bad}")))?,
            ),
        };
        // chisel splits at the first colon, so a password may hold more of them.
        let (user, password) = spec
            .credentials
            .split_once(':')
            .unwrap_or((&spec.credentials, ""));
        let proxy = match spec.proxy.trim() {
            "" => Via::Environment,
            NO_PROXY => Via::Direct,
            url => Via::Proxy(Proxy::parse(url).map_err(|bad| refuse(format!("tunnel.proxy: {bad}")))?),
        };
        let text = |text: &str| (!text.trim().is_empty()).then(|| text.trim().to_owned());
        let link = Self {
            hostname: text(&spec.hostname),
            tls_server_name: text(&spec.tls_server_name),
            any_certificate: spec.tls_skip_verify_i_know_it_is_insecure,
            proxy,
            headers: spec
                .headers
                .iter()
                .map(|header| (header.name.clone(), SecretString::from(header.value.clone())))
                .collect(),
            user: user.to_owned(),
            password: SecretString::from(password),
            fingerprint,
            ca_pem: spec.ca_pem.to_vec(),
            allow_insecure: spec.allow_insecure,
            server: server.clone(),
        };
        link.trusted().map_err(refuse)?;
        Ok(link)
    }

    /// Credentials leave the pod only over verified TLS, or over chisel with a matching fingerprint.
    fn trusted(&self) -> Result<(), String> {
        // Through a proxy elsewhere, this machine's address means that one's.
        let elsewhere = matches!(&self.proxy, Via::Proxy(proxy) if !proxy.is_loopback());
        let verified = self.server.tls() && !self.any_certificate;
        if verified || self.server.loopback() && !elsewhere || self.allow_insecure {
            return Ok(());
        }
        let server = &self.server;
        if self.any_certificate && self.server.tls() && self.fingerprint.is_none() {
            return Err(format!(
                "{server} may show any certificate and no fingerprint is pinned, so anybody between could read the \
                 credentials: name its CA in tunnel.ca_file, or set tunnel.fingerprint, or tunnel.allow_insecure: true"
            ));
        }
        match &self.fingerprint {
            Some(Fingerprint::Sha256(_)) => Ok(()),
            // A short prefix of MD5 can be hit by trying keys, so it proves nothing without TLS.
            Some(Fingerprint::Md5Prefix(_)) => Err(format!(
                "{server} has no TLS and its fingerprint is a prefix of MD5, which proves nothing: set \
                 tunnel.fingerprint to the SHA-256 form the server prints at its start, or tunnel.allow_insecure: true"
            )),
            None => Err(format!(
                "{server} has no TLS and no fingerprint is pinned, so anybody between could read the credentials: use \
                 wss://, or set tunnel.fingerprint, or tunnel.allow_insecure: true"
            )),
        }
    }
}

impl Link {
    /// Whether both lead the same way to the same server as the same user, whatever proves it.
    pub fn same_ends(&self, other: &Self) -> bool {
        let password = |link: &Self| link.password.expose_secret().as_bytes().to_vec();
        self.server == other.server
            && self.user == other.user
            && same(&password(self), &password(other))
            && self.hostname == other.hostname
            && self.tls_server_name == other.tls_server_name
            && self.proxy == other.proxy
            && self.headers.len() == other.headers.len()
            && self
                .headers
                .iter()
                .zip(&other.headers)
                .all(|((name, value), (other, theirs))| {
                    name == other
                        && same(
                            value.expose_secret().as_bytes(),
                            theirs.expose_secret().as_bytes(),
                        )
                })
    }

    /// Whether a session with a server of this key may go on under this link.
    pub fn accepts(&self, shown: &str) -> bool {
        match &self.fingerprint {
            None => true,
            Some(pinned @ Fingerprint::Sha256(_)) => pinned.to_string() == shown,
            // What was seen is the other kind of hash, so a new session has to show.
            Some(Fingerprint::Md5Prefix(_)) => false,
        }
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        self.same_ends(other)
            && self.fingerprint == other.fingerprint
            && self.ca_pem == other.ca_pem
            && self.any_certificate == other.any_certificate
            && self.allow_insecure == other.allow_insecure
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("server", &self.server.to_string())
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
