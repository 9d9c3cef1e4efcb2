//! The same question, asked directly and through a door: the same bytes.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use super::PATH;
use crate::{
    events::{Encoding, Reader},
    lab::{Cluster, Lab, TOKEN},
    scenarios::survive::writer::Writer,
    wire::Target,
};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CBOR: &str = "application/cbor";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
const GROUPS: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// Ages in tables and the newest position change by themselves; a pair that differs is asked for again.
const ATTEMPTS: usize = 8;
/// Objects that together are large enough for the apiserver to compress them (128 KiB).
const LARGE: usize = 3;
const LARGE_BYTES: usize = 60_000;

struct Case {
    what: String,
    path: String,
    headers: Vec<(&'static str, &'static str)>,
    /// Whether frames of v1, which have their own compression, carry it unchanged.
    v1: bool,
}

/// Lists, pages, watches, streaming lists, errors and discovery in every encoding, directly and through the HTTP door
/// and the front.
///
/// # Errors
/// When a byte of a body, its type or its encoding differs.
pub async fn bytes_are_the_apiservers(cluster: Cluster) -> Result<()> {
    let (lab, id) = Lab::running(cluster).await?;
    let direct = Target::kubeconfig(&lab.kubeconfig)?;
    let before = position(&direct).await?;
    let mut writer = Writer::new(&lab.cluster, "bytes")?;
    for _ in 0..7 {
        writer.change().await?;
    }
    for number in 0..LARGE {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("large-{number}")},
            "data": {"filling": "filling of a large object ".repeat(LARGE_BYTES / 26)}
        });
        let headers = [("content-type", "application/json")];
        let body = Bytes::from(object.to_string());
        let mut connection = direct.http1().await?;
        connection
            .send(http::Method::POST, PATH, &headers, body)
            .await?
            .good()
            .await?;
    }
    let after = position(&direct).await?;
    let doors = [
        ("http", Target::plain(lab.pod.ports.door_http, Some(TOKEN))?),
        ("v1", Target::front(&lab.control_plane, &id)?),
    ];
    for (door, through) in &doors {
        let mut compared = 0;
        for case in cases(before, after) {
            if *door == "v1" && !case.v1 {
                continue;
            }
            let bytes = same(&case, &direct, through)
                .await
                .with_context(|| format!("{door}: {}", case.what))?;
            println!("{door}: {}: {bytes} bytes, the same", case.what);
            compared += 1;
        }
        let pages = pages(&direct, through)
            .await
            .with_context(|| format!("{door}: pages"))?;
        println!("{door}: list in {pages} pages with continue: the same");
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let what = format!("{door}: streaming list in {}", encoding.name());
            let (events, end) = streaming(&direct, through, encoding)
                .await
                .context(what.clone())?;
            println!("{what}: {events} events, the same; its end is marked: {end}");
        }
        ensure!(compared > 10 && pages > 2, "only {compared} cases, {pages} pages");
    }
    Ok(())
}

async fn position(direct: &Target) -> Result<u64> {
    let body = direct.get(&format!("{PATH}?limit=1"), &[]).await?.good().await?;
    let list: Value = serde_json::from_slice(&body)?;
    Ok(list["metadata"]["resourceVersion"]
        .as_str()
        .context("a position")?
        .parse()?)
}

fn cases(before: u64, after: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |what: &str, path: String, headers: &[(&'static str, &'static str)], v1| {
        cases.push(Case {
            what: what.to_owned(),
            path,
            headers: headers.to_vec(),
            v1,
        });
    };
    let list = format!("{PATH}?resourceVersion={after}&resourceVersionMatch=Exact");
    let watch = format!("{PATH}?watch=true&resourceVersion={before}&timeoutSeconds=1");
    let old = format!("{PATH}?watch=true&resourceVersion=1&timeoutSeconds=1");
    let kinds = [
        ("JSON", "application/json"),
        ("protobuf", PROTOBUF),
        ("CBOR", CBOR),
        ("a table", TABLE),
    ];
    for (name, accept) in kinds {
        let accept = [("accept", accept)];
        case(&format!("list in {name}"), list.clone(), &accept, true);
        case(&format!("watch in {name}"), watch.clone(), &accept, true);
        case(
            &format!("watch from an old position in {name}"),
            old.clone(),
            &accept,
            true,
        );
    }
    case("list of metadata", list.clone(), &[("accept", METADATA)], true);
    let gzip = [("accept", "application/json"), ("accept-encoding", "gzip")];
    case("list with gzip", list.clone(), &gzip, false);
    let gzip = [("accept", PROTOBUF), ("accept-encoding", "gzip")];
    case("list in protobuf with gzip", list, &gzip, false);
    case(
        "list from a position that is to come",
        format!("{PATH}?resourceVersion=99999999999&resourceVersionMatch=Exact"),
        &[],
        true,
    );
    case(
        "object that is not there",
        format!("{PATH}/no-such-object"),
        &[],
        true,
    );
    case(
        "discovery of groups",
        "/apis".to_owned(),
        &[("accept", GROUPS)],
        true,
    );
    case("discovery of v1", "/api/v1".to_owned(), &[], true);
    case("version", "/version".to_owned(), &[], true);
    cases
}

/// The bytes of a body that is the same both ways.
async fn same(case: &Case, direct: &Target, through: &Target) -> Result<usize> {
    let mut different = String::new();
    for _ in 0..ATTEMPTS {
        // At once, so that ages are the same.
        let (own, theirs) = tokio::join!(ask(direct, case), ask(through, case));
        let (own, theirs) = (own?, theirs?);
        if own == theirs {
            return Ok(own.2.len());
        }
        let place = own.2.iter().zip(&theirs.2).position(|(own, their)| own != their);
        let place = place.unwrap_or_else(|| own.2.len().min(theirs.2.len()));
        let near = |body: &Bytes| {
            let (from, to) = (place.saturating_sub(40), (place + 40).min(body.len()));
            String::from_utf8_lossy(body.get(from..to).unwrap_or_default()).into_owned()
        };
        different = format!(
            "{} {:?} {} bytes against {} {:?} {} bytes; at {place}: {} | {}",
            own.0,
            own.1,
            own.2.len(),
            theirs.0,
            theirs.1,
            theirs.2.len(),
            near(&own.2),
            near(&theirs.2)
        );
    }
    bail!("{different}")
}

async fn ask(target: &Target, case: &Case) -> Result<(u16, Vec<String>, Bytes)> {
    let answer = target.get(&case.path, &case.headers).await?;
    let status = answer.status().as_u16();
    let heads = ["content-type", "content-encoding"].map(|name| {
        let value = answer.headers().get(name);
        value
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default()
    });
    Ok((status, heads.to_vec(), answer.bytes().await?))
}

/// A list in pages of two, each page asked for both ways; how many there were.
async fn pages(direct: &Target, through: &Target) -> Result<usize> {
    let (mut pages, mut next) = (0, String::new());
    loop {
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("limit", "2")
            .append_pair("continue", &next)
            .finish();
        let case = Case {
            what: "page".to_owned(),
            path: format!("{PATH}?{query}"),
            headers: Vec::new(),
            v1: true,
        };
        // The first page has the newest position in it, which others move on: only what follows is settled.
        if pages > 0 {
            same(&case, direct, through).await?;
        }
        pages += 1;
        let list: Value = serde_json::from_slice(&ask(through, &case).await?.2)?;
        match list["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => token.clone_into(&mut next),
            _ => return Ok(pages),
        }
    }
}

/// Initial events, which come in any order, both ways; how many, and whether their end was marked.
async fn streaming(direct: &Target, through: &Target, encoding: Encoding) -> Result<(usize, bool)> {
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=2";
    let path = format!("{PATH}?{query}");
    let mut all = Vec::new();
    for target in [direct, through] {
        let answer = target.get(&path, &[("accept", encoding.accept())]).await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let body = answer.bytes().await?;
        let mut reader = Reader::new(encoding);
        let mut events = reader.push(&body)?;
        ensure!(reader.left() == 0, "half an event");
        events.retain(|event| event.kind == "ADDED");
        events.sort_by(|one, other| one.name.cmp(&other.name));
        let mark = b"k8s.io/initial-events-end";
        all.push((events, memchr::memmem::find(&body, mark).is_some()));
    }
    let [own, theirs] = all.as_slice() else {
        bail!("two answers")
    };
    ensure!(own == theirs, "{own:?} against {theirs:?}");
    ensure!(own.1 && !own.0.is_empty(), "no initial events, or no end of them");
    Ok((own.0.len(), theirs.1))
}
