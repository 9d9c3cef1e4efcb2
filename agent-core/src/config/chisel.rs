//! The block `tunnel` as far as it is about the chisel client itself: remotes in chisel's spelling, and how its
//! server is reached.

use runtime::{
    proxy::Proxy,
    secret::{ExposeSecret as _, SecretString, TokenFile},
};

use super::{TokenSource, read::Reader};

/// The word for no proxy, whatever the variables of tunnel-sidecar say.
pub(crate) const NO_PROXY: &str = "none";

/// What a user of chisel's command line would write there.
#[derive(Debug, Default)]
pub struct ChiselConfig {
    /// `R:2222:localhost:22`, `3000:db:5432`, `R:socks`, `53/udp` …
    pub remotes: Vec<String>,
    /// Where users of `R:socks` may go; none: SOCKS is off.
    pub socks_targets: Vec<String>,
    /// `Host` header.
    pub hostname: Option<String>,
    /// TLS server name.
    pub tls_server_name: Option<String>,
    /// Any certificate is taken.
    pub tls_skip_verify: bool,
    /// Proxy URL; the word `none` for no proxy.
    pub proxy: Option<TokenSource>,
    /// Further headers.
    pub headers: Vec<(String, SecretString)>,
    /// More of them, one `Name: value` a line.
    pub headers_file: Option<TokenFile>,
}

impl ChiselConfig {
    /// The proxy at this moment.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub(crate) fn proxy(&self) -> Result<Option<SecretString>, String> {
        let Some(source) = &self.proxy else {
            return Ok(None);
        };
        let text = source
            .read()
            .map_err(|reason| format!("tunnel.proxy_file: {reason}"))?;
        check_proxy(&text).map_err(|reason| format!("tunnel.proxy: {reason}"))?;
        Ok(Some(text))
    }

    /// All headers at this moment.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub(crate) fn headers(&self) -> Result<Vec<(String, SecretString)>, String> {
        let mut headers = self.headers.clone();
        let Some(file) = &self.headers_file else {
            return Ok(headers);
        };
        let text = TokenSource::File(file.clone())
            .read()
            .map_err(|reason| format!("tunnel.headers_file: {reason}"))?;
        for (number, line) in text.expose_secret().lines().enumerate() {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            // The line itself may be a secret, so only its number is told.
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| format!("tunnel.headers_file: line {} is no \"Name: value\"", number + 1))?;
            headers.push((name.trim().to_owned(), SecretString::from(value.trim())));
        }
        Ok(headers)
    }
}

fn check_proxy(text: &SecretString) -> Result<(), String> {
    match text.expose_secret() {
        NO_PROXY => Ok(()),
        url => Proxy::parse(url).map(|_| ()).map_err(|bad| bad.to_string()),
    }
}

pub(super) fn chisel(reader: &mut Reader<'_>) -> ChiselConfig {
    let proxy = match reader.path("tunnel.proxy_file") {
        Some(path) => Some(TokenSource::File(TokenFile::new(path))),
        None => reader.secret("tunnel.proxy").map(TokenSource::Value),
    };
    let headers = reader.pairs("tunnel.headers");
    let config = ChiselConfig {
        remotes: reader.texts("tunnel.remotes"),
        socks_targets: reader.texts("tunnel.socks_targets"),
        hostname: reader.text("tunnel.hostname"),
        tls_server_name: reader.text("tunnel.tls_server_name"),
        tls_skip_verify: reader.switch_or("tunnel.tls_skip_verify_i_know_it_is_insecure", false),
        proxy,
        headers: headers
            .into_iter()
            .map(|(name, value)| (name, SecretString::from(value)))
            .collect(),
        headers_file: reader.path("tunnel.headers_file").map(TokenFile::new),
    };
    if let Err(reason) = config.proxy() {
        reader.fault("tunnel.proxy", reason);
    }
    if let Err(reason) = config.headers() {
        reader.fault("tunnel.headers_file", reason);
    }
    config
}
