//! What is seen before any object: protocol, discovery, refusals, forms.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Version, header};
use serde_json::json;

use super::client::ContractClient;

pub(super) async fn speaks_http_2_and_names_its_version(client: &ContractClient) -> Result<()> {
    let answer = client.get("/version").await?;
    ensure!(answer.version == Version::HTTP_2, "{:?}", answer.version);
    let version = answer.expect(200)?;
    ensure!(
        version["gitVersion"]
            .as_str()
            .is_some_and(|text| text.starts_with("v1.")),
        "{version}"
    );
    for path in ["/livez", "/readyz", "/healthz"] {
        let answer = client.get(path).await?;
        ensure!(
            answer.code == 200 && answer.bytes == b"ok",
            "{path}: {} {:?}",
            answer.code,
            answer.bytes
        );
    }
    Ok(())
}

pub(super) async fn discovery_lists_what_is_used(client: &ContractClient) -> Result<()> {
    let versions = client.get("/api").await?.expect(200)?;
    ensure!(versions["versions"] == json!(["v1"]), "{versions}");
    let groups = client.get("/apis").await?.expect(200)?;
    let names: Vec<_> = groups["groups"]
        .as_array()
        .context("no groups")?
        .iter()
        .map(|group| &group["name"])
        .collect();
    for wanted in ["apps", "coordination.k8s.io"] {
        ensure!(
            names.iter().any(|name| **name == wanted),
            "{wanted} is not in {names:?}"
        );
    }
    for (path, wanted) in [
        (
            "/api/v1",
            &[
                "namespaces",
                "nodes",
                "pods",
                "pods/log",
                "pods/status",
                "services",
                "configmaps",
                "secrets",
                "events",
                "serviceaccounts",
            ][..],
        ),
        (
            "/apis/apps/v1",
            &["deployments", "deployments/scale", "replicasets"],
        ),
        ("/apis/coordination.k8s.io/v1", &["leases"]),
    ] {
        let list = client.get(path).await?.expect(200)?;
        ensure!(list["kind"] == "APIResourceList", "{list}");
        let names: Vec<_> = list["resources"]
            .as_array()
            .context("no resources")?
            .iter()
            .map(|r| &r["name"])
            .collect();
        for name in wanted {
            ensure!(
                names.iter().any(|found| *found == name),
                "{name} is not in {path}"
            );
        }
    }
    Ok(())
}

pub(super) async fn refusals_are_status_objects(client: &ContractClient) -> Result<()> {
    let status = client
        .get(&client.core("configmaps/nothing"))
        .await?
        .refused(404, "NotFound")?;
    ensure!(
        status["message"] == "configmaps \"nothing\" not found",
        "{status}"
    );
    ensure!(
        status["details"] == json!({"name": "nothing", "kind": "configmaps"}),
        "{status}"
    );
    let status = client
        .get(&client.group("apps", "deployments/nothing"))
        .await?
        .refused(404, "NotFound")?;
    ensure!(
        status["message"] == "deployments.apps \"nothing\" not found",
        "{status}"
    );
    ensure!(
        status["details"] == json!({"name": "nothing", "group": "apps", "kind": "deployments"}),
        "{status}"
    );

    ContractClient::send(client.stranger("/api/v1/namespaces"))
        .await?
        .refused(401, "Unauthorized")?;
    client
        .post("/api/v1/configmaps", &json!({"metadata": {"name": "x"}}))
        .await?
        .refused(405, "MethodNotAllowed")?;
    let status = client
        .get("/api/v1/nosuchthings")
        .await?
        .refused(404, "NotFound")?;
    ensure!(status["details"] == json!({}), "{status}");
    for path in ["/nothing-here", "/apis/no.such.group"] {
        let unknown = client.get(path).await?;
        ensure!(
            unknown.code == 404 && unknown.bytes == b"404 page not found\n",
            "{path}: {:?}",
            unknown.bytes
        );
    }

    let request = client
        .request(Method::GET, &client.core("configmaps"))
        .header(header::ACCEPT, "text/csv");
    ContractClient::send(request)
        .await?
        .refused(406, "NotAcceptable")?;
    let request = client
        .request(Method::POST, &client.core("configmaps"))
        .header(header::CONTENT_TYPE, "text/csv");
    ContractClient::send(request.body("a,b"))
        .await?
        .refused(415, "UnsupportedMediaType")?;
    let request = client
        .request(Method::POST, &client.core("configmaps"))
        .header(header::CONTENT_TYPE, "application/json");
    ContractClient::send(request.body("{"))
        .await?
        .refused(400, "BadRequest")?;
    Ok(())
}

pub(super) async fn who_has_no_role_is_forbidden(client: &ContractClient) -> Result<()> {
    let ask = async |method: Method, path: &str| {
        let request = client
            .request(method, path)
            .header("Impersonate-User", "nobody")
            .json(&json!({}));
        ContractClient::send(request).await?.refused(403, "Forbidden")
    };
    let place = format!("in the namespace \"{}\"", client.namespace());
    let status = ask(Method::GET, &client.core("configmaps")).await?;
    let expected = format!(
        "configmaps is forbidden: User \"nobody\" cannot list resource \"configmaps\" in API group \"\" {place}"
    );
    ensure!(
        status["message"] == expected && status["details"] == json!({"kind": "configmaps"}),
        "{status}"
    );
    let status = ask(Method::GET, &client.core("pods/x/log")).await?;
    let expected = format!(
        "pods \"x\" is forbidden: User \"nobody\" cannot get resource \"pods/log\" in API group \"\" {place}"
    );
    ensure!(status["message"] == expected, "{status}");
    ensure!(
        status["details"] == json!({"name": "x", "kind": "pods"}),
        "{status}"
    );
    let status = ask(Method::DELETE, &client.group("apps", "deployments/x")).await?;
    let expected = format!(
        "deployments.apps \"x\" is forbidden: User \"nobody\" cannot delete resource \"deployments\" in API group \"apps\" {place}"
    );
    ensure!(status["message"] == expected, "{status}");
    let status = ask(Method::GET, "/api/v1/nodes").await?;
    let expected = "nodes is forbidden: User \"nobody\" cannot list resource \"nodes\" in API group \"\" at the cluster scope";
    ensure!(status["message"] == expected, "{status}");
    Ok(())
}

pub(super) async fn large_answers_are_compressed_on_request(client: &ContractClient) -> Result<()> {
    let name = "large";
    let filling = "x".repeat(200_000);
    client
        .post(
            &client.core("configmaps"),
            &json!({"metadata": {"name": name}, "data": {"filling": filling}}),
        )
        .await?
        .expect(201)?;
    let path = client.core("configmaps/large");
    let plain = client.get(&path).await?;
    ensure!(
        plain.headers.get(header::CONTENT_ENCODING).is_none() && plain.bytes.len() > 200_000,
        "plain"
    );
    let request = client
        .request(Method::GET, &path)
        .header(header::ACCEPT_ENCODING, "gzip");
    let packed = ContractClient::send(request).await?;
    ensure!(
        packed
            .headers
            .get(header::CONTENT_ENCODING)
            .is_some_and(|value| value == "gzip"),
        "{:?}",
        packed.headers
    );
    ensure!(
        packed.bytes.starts_with(&[0x1f, 0x8b]) && packed.bytes.len() < 20_000,
        "{} bytes",
        packed.bytes.len()
    );
    client.delete(&path).await?.expect(200)?;
    Ok(())
}

pub(super) async fn tables_for_people(client: &ContractClient) -> Result<()> {
    client
        .post(&client.core("configmaps"), &json!({"metadata": {"name": "row"}}))
        .await?
        .expect(201)?;
    let path = client.core("configmaps?limit=1");
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table = ContractClient::send(client.request(Method::GET, &path).header(header::ACCEPT, accept))
        .await?
        .expect(200)?;
    ensure!(
        table["kind"] == "Table" && table["apiVersion"] == "meta.k8s.io/v1",
        "{table}"
    );
    let columns = table["columnDefinitions"].as_array().context("no columns")?;
    let names: Vec<_> = columns
        .iter()
        .filter_map(|column| column["name"].as_str())
        .collect();
    ensure!(names == ["Name", "Data", "Age"], "{names:?}");
    let row = &table["rows"][0];
    ensure!(
        row["cells"].as_array().is_some_and(|cells| cells.len() == 3),
        "{row}"
    );
    ensure!(row["object"]["kind"] == "PartialObjectMetadata", "{row}");
    Ok(())
}

pub(super) async fn metadata_for_those_who_count(client: &ContractClient) -> Result<()> {
    let ask = async |path: &str, form: &str| {
        let accept = format!("application/json;as={form};g=meta.k8s.io;v=v1");
        ContractClient::send(client.request(Method::GET, path).header(header::ACCEPT, accept))
            .await?
            .expect(200)
    };
    let list = ask("/api/v1/namespaces?limit=1", "PartialObjectMetadataList").await?;
    ensure!(
        list["kind"] == "PartialObjectMetadataList" && list["apiVersion"] == "meta.k8s.io/v1",
        "{list}"
    );
    ensure!(
        list["metadata"]["remainingItemCount"]
            .as_u64()
            .is_some_and(|count| count > 0),
        "{list}"
    );
    let item = &list["items"][0];
    ensure!(
        item["metadata"]["name"].is_string() && item.get("spec").is_none(),
        "{item}"
    );
    let one = ask(
        &client.core("configmaps/kube-root-ca.crt"),
        "PartialObjectMetadata",
    )
    .await?;
    ensure!(
        one["kind"] == "PartialObjectMetadata" && one.get("data").is_none(),
        "{one}"
    );
    ensure!(one["metadata"]["name"] == "kube-root-ca.crt", "{one}");
    Ok(())
}
