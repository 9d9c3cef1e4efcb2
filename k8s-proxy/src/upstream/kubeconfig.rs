//! A kubeconfig file, for running outside of a cluster: the current context, with token or client certificate.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use runtime::secret::{SecretString, TokenFile};
use serde::Deserialize;
use url::Url;

use super::{
    TokenSource,
    settings::{ClientCertificate, Parts},
};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawConfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: RawContext,
}

#[derive(Deserialize)]
struct RawContext {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: RawCluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawCluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: RawUser,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct RawUser {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    username: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

/// Reads the file at `path`. With `allow_insecure`, `insecure-skip-tls-verify` is obeyed.
///
/// # Errors
/// One sentence about the first thing that does not work.
pub fn read(path: &Path, allow_insecure: bool) -> Result<Parts, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    let base = path.parent().unwrap_or_else(|| Path::new("."));
    parse(&text, base, allow_insecure)
}

fn parse(text: &str, base: &Path, allow_insecure: bool) -> Result<Parts, String> {
    let raw: RawConfig =
        serde_saphyr::from_str(text).map_err(|error| format!("is no kubeconfig: {error}"))?;
    let current = &raw.current_context;
    let context = raw.contexts.into_iter().find(|context| context.name == *current);
    let context = context
        .ok_or_else(|| format!("has no context {current:?} (current-context)"))?
        .context;
    let cluster = raw
        .clusters
        .into_iter()
        .find(|cluster| cluster.name == context.cluster);
    let cluster = cluster
        .ok_or_else(|| format!("has no cluster {:?}", context.cluster))?
        .cluster;
    let user = raw
        .users
        .into_iter()
        .find(|user| user.name == context.user)
        .map(|user| user.user);
    let user = user.unwrap_or_default();
    if user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some() {
        return Err("uses exec, auth-provider or a password, which are not supported: use a token, tokenFile or client certificate".to_owned());
    }
    if cluster.proxy_url.is_some() {
        return Err("sets proxy-url, which is not supported".to_owned());
    }
    if cluster.insecure_skip_tls_verify && !allow_insecure {
        return Err(
            "sets insecure-skip-tls-verify: give the CA, or set PIPEOPS_KUBE_INSECURE=true".to_owned(),
        );
    }
    let url = Url::parse(&cluster.server).map_err(|error| format!("has a server that is no URL: {error}"))?;
    let ca = bytes(
        base,
        cluster.certificate_authority_data.as_deref(),
        cluster.certificate_authority.as_deref(),
    )?;
    let chain = bytes(
        base,
        user.client_certificate_data.as_deref(),
        user.client_certificate.as_deref(),
    )?;
    let key = bytes(base, user.client_key_data.as_deref(), user.client_key.as_deref())?;
    let certificate = match (chain, key) {
        (Some(chain), Some(key)) => Some(ClientCertificate { chain, key }),
        (None, None) => None,
        _ => return Err("has a client certificate without key, or a key without certificate".to_owned()),
    };
    let token = match (user.token_file, user.token) {
        (Some(file), _) => TokenSource::File(TokenFile::new(base.join(file))),
        (None, Some(token)) if !token.is_empty() => TokenSource::Static(SecretString::from(token)),
        (None, _) => TokenSource::None,
    };
    Ok(Parts {
        url,
        ca,
        insecure: cluster.insecure_skip_tls_verify,
        server_name: cluster.tls_server_name,
        certificate,
        token,
    })
}

/// Inline data wins over a file, as in kubectl.
fn bytes(base: &Path, data: Option<&str>, file: Option<&Path>) -> Result<Option<Vec<u8>>, String> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        return STANDARD
            .decode(data.trim())
            .map(Some)
            .map_err(|error| format!("has data that is no base64: {error}"));
    }
    let Some(file) = file else { return Ok(None) };
    let file = base.join(file);
    std::fs::read(&file)
        .map(Some)
        .map_err(|error| format!("names {}, which cannot be read: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\npreferences: {{}}\n\
             contexts: [{{name: c, context: {{cluster: k, user: u, namespace: x}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://10.0.0.1:6443', {cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    #[test]
    fn the_current_context_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), "CA").unwrap();
        let text = config(
            "certificate-authority: ca.crt, tls-server-name: kubernetes",
            "token: canary",
        );
        let parts = parse(&text, dir.path(), false).unwrap();
        assert_eq!(parts.url.as_str(), "https://10.0.0.1:6443/");
        assert_eq!(
            (parts.ca.as_deref(), parts.server_name.as_deref()),
            (Some(b"CA".as_slice()), Some("kubernetes"))
        );
        assert!(matches!(parts.token, TokenSource::Static(_)));
        assert!(!format!("{parts:?}").contains("canary"));
    }

    #[test]
    fn what_is_not_supported_is_said() {
        for (cluster, user, word) in [
            (
                "insecure-skip-tls-verify: true",
                "token: x",
                "PIPEOPS_KUBE_INSECURE",
            ),
            ("", "exec: {command: aws}", "exec"),
            ("", "client-certificate-data: QQ==", "without key"),
            ("certificate-authority: absent.crt", "", "absent.crt"),
            ("certificate-authority-data: '*'", "", "base64"),
            ("proxy-url: 'http://x'", "", "proxy-url"),
        ] {
            let error = parse(&config(cluster, user), Path::new("/nonexistent"), false).unwrap_err();
            assert!(error.contains(word), "{cluster} {user}: {error}");
        }
        assert!(
            parse(
                &config("insecure-skip-tls-verify: true", ""),
                Path::new("."),
                true
            )
            .unwrap()
            .insecure
        );
        assert!(
            parse("current-context: x", Path::new("."), false)
                .unwrap_err()
                .contains("no context")
        );
        assert!(parse("contexts: 7", Path::new("."), false).is_err());
    }
}
