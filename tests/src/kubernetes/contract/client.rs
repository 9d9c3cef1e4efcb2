//! A plain HTTP client for the scenarios: no Kubernetes library, so that every byte is what the wire said.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Method, RequestBuilder, header};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;

/// How the client proves who it is.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Bearer token.
    Token(String),
    /// Client certificate and key, PEM.
    Certificate {
        /// Certificate.
        certificate: String,
        /// Key.
        key: String,
    },
}

/// A client of one API server.
#[derive(Clone, Debug)]
pub struct ContractClient {
    base: String,
    http: reqwest::Client,
    /// The same without any credential.
    nobody: reqwest::Client,
    token: Option<String>,
    namespace: String,
    log_pod: Option<(String, String)>,
}

/// A whole answer.
#[derive(Debug)]
pub(in crate::kubernetes) struct Answer {
    pub(in crate::kubernetes) code: u16,
    pub(in crate::kubernetes) headers: header::HeaderMap,
    pub(in crate::kubernetes) version: reqwest::Version,
    pub(in crate::kubernetes) bytes: Vec<u8>,
    pub(in crate::kubernetes) value: Value,
}

impl Answer {
    /// Fails unless the status is this one.
    pub(in crate::kubernetes) fn expect(self, code: u16) -> Result<Value> {
        ensure!(
            self.code == code,
            "status {} instead of {code}: {}",
            self.code,
            self.value
        );
        Ok(self.value)
    }

    /// Fails unless it is a `Status` with this code and reason.
    pub(in crate::kubernetes) fn refused(self, code: u16, reason: &str) -> Result<Value> {
        let value = self.expect(code)?;
        for (key, expected) in [
            ("kind", Value::from("Status")),
            ("apiVersion", Value::from("v1")),
            ("status", Value::from("Failure")),
            ("code", Value::from(code)),
            ("reason", Value::from(reason)),
        ] {
            ensure!(value[key] == expected, "{key} is not {expected} in {value}");
        }
        ensure!(value["metadata"].is_object(), "no metadata in {value}");
        ensure!(
            value["message"].as_str().is_some_and(|text| !text.is_empty()),
            "no message in {value}"
        );
        Ok(value)
    }
}

impl ContractClient {
    /// A client; without an authority the base URL must be plain HTTP.
    ///
    /// # Errors
    /// When a certificate or key cannot be read.
    pub fn new(base: &str, ca_pem: Option<&str>, credential: Credential) -> Result<Self> {
        let (token, identity) = match credential {
            Credential::Token(token) => (Some(token), None),
            Credential::Certificate { certificate, key } => (None, Some((certificate, key))),
        };
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            http: http_client(ca_pem, identity)?,
            nobody: http_client(ca_pem, None)?,
            token,
            namespace: format!("contract-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]),
            log_pod: None,
        })
    }

    /// A client for the current context of a kubeconfig with embedded data.
    ///
    /// # Errors
    /// When something is missing in it.
    pub fn from_kubeconfig(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let config: Value = serde_saphyr::from_str(&text)?;
        let named = |list: &str, name: &Value, inner: &str| {
            let all = config[list].as_array().context("no list")?;
            let found = all
                .iter()
                .find(|entry| entry["name"] == *name)
                .with_context(|| format!("no {name} in {list}"))?;
            anyhow::Ok(found[inner].clone())
        };
        let context = named("contexts", &config["current-context"], "context")?;
        let cluster = named("clusters", &context["cluster"], "cluster")?;
        let user = named("users", &context["user"], "user")?;
        let decoded = |value: &Value| -> Result<Option<String>> {
            let Some(text) = value.as_str() else {
                return Ok(None);
            };
            Ok(Some(String::from_utf8(BASE64_STANDARD.decode(text)?)?))
        };
        let credential = match (
            user["token"].as_str(),
            decoded(&user["client-certificate-data"])?,
            decoded(&user["client-key-data"])?,
        ) {
            (Some(token), ..) => Credential::Token(token.to_owned()),
            (None, Some(certificate), Some(key)) => Credential::Certificate { certificate, key },
            _ => bail!(
                "neither token nor embedded client certificate in {}",
                path.display()
            ),
        };
        let server = cluster["server"]
            .as_str()
            .context("no server in the kubeconfig")?;
        Self::new(
            server,
            decoded(&cluster["certificate-authority-data"])?.as_deref(),
            credential,
        )
    }

    /// Names a pod that runs and writes, for the scenarios on logs.
    #[must_use]
    pub fn with_log_pod(mut self, namespace: &str, pod: &str) -> Self {
        self.log_pod = Some((namespace.to_owned(), pod.to_owned()));
        self
    }

    /// The namespace of the scenarios.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(in crate::kubernetes) fn log_pod(&self) -> Option<&(String, String)> {
        self.log_pod.as_ref()
    }

    /// `/api/v1/namespaces/<ours>/<rest>`.
    pub(in crate::kubernetes) fn core(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.namespace)
    }

    /// `/apis/<group>/v1/namespaces/<ours>/<rest>`.
    pub(in crate::kubernetes) fn group(&self, group: &str, rest: &str) -> String {
        format!("/apis/{group}/v1/namespaces/{}/{rest}", self.namespace)
    }

    /// A request to be completed by hand.
    pub(in crate::kubernetes) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The same with a token of nobody.
    pub(in crate::kubernetes) fn stranger(&self, path: &str) -> RequestBuilder {
        self.nobody
            .get(format!("{}{path}", self.base))
            .bearer_auth("nobody-knows-this-token")
    }

    pub(in crate::kubernetes) async fn send(request: RequestBuilder) -> Result<Answer> {
        let response = request.send().await?;
        let (code, headers, version) = (
            response.status().as_u16(),
            response.headers().clone(),
            response.version(),
        );
        let bytes = response.bytes().await?.to_vec();
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer {
            code,
            headers,
            version,
            bytes,
            value,
        })
    }

    pub(in crate::kubernetes) async fn get(&self, path: &str) -> Result<Answer> {
        Self::send(self.request(Method::GET, path)).await
    }

    pub(in crate::kubernetes) async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        Self::send(self.request(Method::POST, path).json(body)).await
    }

    pub(in crate::kubernetes) async fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        Self::send(self.request(Method::PUT, path).json(body)).await
    }

    pub(in crate::kubernetes) async fn delete(&self, path: &str) -> Result<Answer> {
        Self::send(self.request(Method::DELETE, path)).await
    }

    pub(in crate::kubernetes) async fn patch(&self, path: &str, media: &str, body: &Value) -> Result<Answer> {
        let request = self
            .request(Method::PATCH, path)
            .header(header::CONTENT_TYPE, media);
        Self::send(request.body(body.to_string())).await
    }

    /// Opens a stream of lines.
    pub(in crate::kubernetes) async fn open(&self, path: &str) -> Result<Lines> {
        let response = self.request(Method::GET, path).send().await?;
        let code = response.status().as_u16();
        if code != 200 {
            bail!("status {code} instead of a stream: {}", response.text().await?);
        }
        Ok(Lines {
            response,
            buffer: Vec::new(),
        })
    }
}

/// Lines of an answer that goes on.
#[derive(Debug)]
pub(in crate::kubernetes) struct Lines {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line, or the clean end.
    pub(in crate::kubernetes) async fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            match self.response.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => bail!("the stream ended inside of a line"),
            }
        }
    }

    /// The next event of a watch, or the clean end.
    pub(in crate::kubernetes) async fn event(&mut self) -> Result<Option<Value>> {
        let Some(line) = self.line().await? else {
            return Ok(None);
        };
        Ok(Some(
            serde_json::from_str(&line).with_context(|| format!("no event: {line}"))?,
        ))
    }

    /// The next event, which must be of this type and name.
    pub(in crate::kubernetes) async fn expect(&mut self, kind: &str, name: &str) -> Result<Value> {
        let event = self.event().await?.context("the watch ended")?;
        ensure!(event["type"] == kind, "{kind} of {name} expected, got {event}");
        ensure!(
            event["object"]["metadata"]["name"] == name,
            "{kind} of {name} expected, got {event}"
        );
        Ok(event["object"].clone())
    }
}

fn http_client(ca_pem: Option<&str>, identity: Option<(String, String)>) -> Result<reqwest::Client> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default().as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain =
                CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .no_proxy();
    Ok(client.connect_timeout(Duration::from_secs(10)).build()?)
}

/// The resourceVersion of an object or list, as a number: real ones are, though clients may not rely on it.
pub(in crate::kubernetes) fn revision(value: &Value) -> Result<u64> {
    let text = value["metadata"]["resourceVersion"]
        .as_str()
        .with_context(|| format!("no resourceVersion in {value}"))?;
    text.parse().with_context(|| format!("resourceVersion {text}"))
}
