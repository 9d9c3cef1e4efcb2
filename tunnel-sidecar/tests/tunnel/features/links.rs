//! How the server is reached: TLS, proxies, headers, fingerprints; ours beside the Go client.

mod proxies;
mod server;
mod tls;

use std::{fmt::Write as _, path::Path};

use proto::v1::{Header, TunnelSpec};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

use super::{GoClient, Outcome, Seen, tcp_comes_back};
use crate::world::{Chisel, Front, ProxyDouble, Target, World, condition, eventually, free_port, spec};

/// An authority and what it has signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate and key of somebody, PEM.
    fn sign(&self, names: &[&str], purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Writes a text and returns where.
fn written(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

type Change = Box<dyn Fn(&mut TunnelSpec)>;

/// One way to a server.
struct Way {
    name: &'static str,
    url: String,
    go_flags: Vec<String>,
    go: Outcome,
    /// Variables of both clients.
    env: Vec<(&'static str, String)>,
    change: Change,
    ours: Outcome,
    note: &'static str,
}

impl Way {
    /// Works with both.
    fn works(
        name: &'static str,
        url: &str,
        go_flags: &[&str],
        change: impl Fn(&mut TunnelSpec) + 'static,
    ) -> Self {
        Self {
            name,
            url: url.to_owned(),
            go_flags: go_flags.iter().map(|flag| (*flag).to_owned()).collect(),
            go: Outcome::Works,
            env: Vec::new(),
            change: Box::new(change),
            ours: Outcome::Works,
            note: "",
        }
    }

    fn go_says(self, text: &'static str) -> Self {
        Self {
            go: Outcome::Says(text),
            ..self
        }
    }

    fn ours_says(self, text: &'static str) -> Self {
        Self {
            ours: Outcome::Says(text),
            ..self
        }
    }

    fn env(self, name: &'static str, value: String) -> Self {
        Self {
            env: vec![(name, value)],
            ..self
        }
    }

    fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }
}

/// Walks each way with both clients.
async fn walk(server: &Chisel, ways: Vec<Way>) -> usize {
    let target = Target::echo().await;
    let mut table = String::new();
    let count = ways.len();
    for way in ways {
        let port = free_port().await;
        let remotes = [format!("R:127.0.0.1:{port}:127.0.0.1:{}", target.port())];
        let go = GoClient::start_with(&way.url, &way.go_flags, &remotes, &way.env);
        let seen = match way.go {
            Outcome::Says(text) => go.says(text).await,
            Outcome::Works | Outcome::Bytes(_) => {
                let seen = eventually(way.name, || tcp_comes_back(port)).await;
                assert_eq!(seen, Seen::Works);
                Outcome::Works
            }
        };
        assert_eq!(seen, way.go, "{}: the Go client\n{}", way.name, go.log());
        drop(go);
        server.until_free(port).await;

        let world = World::start(&way.env).await;
        let mut wanted = TunnelSpec {
            remotes: remotes.to_vec(),
            ..spec(&way.url, &[])
        };
        (way.change)(&mut wanted);
        world.core.send(wanted);
        match way.ours {
            Outcome::Says(text) => {
                world
                    .until(text, |report| condition(report, "Tunnel").1.contains(text))
                    .await;
            }
            Outcome::Works | Outcome::Bytes(_) => {
                world.until_listening(1).await;
                eventually(way.name, || tcp_comes_back(port)).await;
            }
        }
        assert!(
            matches!((way.go, way.ours), (Outcome::Says(_), Outcome::Says(_)))
                || way.go == way.ours
                || !way.note.is_empty(),
            "{}: say why",
            way.name
        );
        world.supervisor.drain("the way was walked");
        writeln!(
            table,
            "{:45} Go {:?}, ours {:?} {}",
            way.name, way.go, way.ours, way.note
        )
        .unwrap();
    }
    println!("{table}");
    count
}

fn tls_flags(dir: &TempDir, authority: &Authority, clients: Option<&Authority>) -> Vec<String> {
    let (certificate, key) = authority.sign(
        &["localhost", ProxyDouble::NAME],
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    let mut flags = vec![
        "--tls-cert".to_owned(),
        written(dir.path(), "server.pem", &certificate),
        "--tls-key".to_owned(),
        written(dir.path(), "server.key", &key),
    ];
    if let Some(clients) = clients {
        flags.extend([
            "--tls-ca".to_owned(),
            written(dir.path(), "clients.pem", &clients.pem()),
        ]);
    }
    flags
}
