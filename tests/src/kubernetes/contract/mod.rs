//! What a Kubernetes API promises its clients, as scenarios over plain HTTP.
//!
//! The same [`check`] runs against the simulation and against a real kube-apiserver: what passes on both is what the
//! double may be trusted for. Each scenario uses names of its own inside one namespace that is made and removed here.

mod client;
mod lists;
mod logs;
mod objects;
mod patches;
mod surface;
mod watches;

use std::{future::Future, path::Path, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;

pub use client::{ContractClient, Credential};

/// Longest time for one scenario: some wait for a timeout of the server.
const PATIENCE: Duration = Duration::from_secs(60);

/// How one scenario ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Name of the scenario.
    pub name: &'static str,
    /// Nothing, or what was seen instead.
    pub result: Result<(), String>,
}

impl Outcome {
    async fn of(name: &'static str, scenario: impl Future<Output = Result<()>>) -> Self {
        let result = match tokio::time::timeout(PATIENCE, scenario).await {
            Ok(result) => result.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("took longer than {PATIENCE:?}")),
        };
        Self { name, result }
    }
}

macro_rules! outcomes {
    ($client:expr, $($module:ident::$name:ident,)*) => {
        vec![$(Outcome::of(stringify!($name), $module::$name($client)).await,)*]
    };
}

/// Runs every scenario. Those on logs need a running pod, named with [`ContractClient::with_log_pod`].
pub async fn check(client: &ContractClient) -> Vec<Outcome> {
    let made = client
        .post(
            "/api/v1/namespaces",
            &json!({"metadata": {"name": client.namespace()}}),
        )
        .await;
    if let Err(error) = made.and_then(|answer| answer.expect(201)) {
        return vec![Outcome {
            name: "make_a_namespace",
            result: Err(format!("{error:#}")),
        }];
    }
    let mut outcomes = outcomes![
        client,
        surface::speaks_http_2_and_names_its_version,
        surface::discovery_lists_what_is_used,
        surface::refusals_are_status_objects,
        surface::who_has_no_role_is_forbidden,
        surface::large_answers_are_compressed_on_request,
        surface::tables_for_people,
        surface::metadata_for_those_who_count,
        objects::create_read_delete,
        objects::create_refuses_what_it_must,
        objects::update_compares_the_version,
        objects::a_write_that_changes_nothing_keeps_the_version,
        objects::status_is_apart,
        objects::finalizers_hold_an_object,
        objects::delete_honours_preconditions,
        objects::leases_compare_and_set,
        objects::deletecollection_by_label,
        patches::merge_patch,
        patches::json_patch,
        patches::strategic_merge_patch,
        patches::apply,
        patches::scale,
        lists::pages_with_remaining_count,
        lists::pages_show_one_moment,
        lists::selectors,
        lists::positions_too_old_and_too_new,
        watches::events_in_order,
        watches::a_selector_turns_changes_into_comings_and_goings,
        watches::from_a_position_nothing_is_repeated,
        watches::initial_events_end_with_a_bookmark,
        watches::bookmarks_and_a_clean_end,
        watches::an_old_position_is_gone,
        watches::options_that_contradict,
    ];
    if client.log_pod().is_some() {
        outcomes.extend(outcomes![client, logs::tail_and_follow, logs::refusals,]);
    }
    outcomes.push(Outcome::of("remove_the_namespace", objects::remove_namespace(client)).await);
    outcomes
}

/// Runs every scenario against the server of a kubeconfig, with the pod whose log is read, and returns how many passed.
///
/// A fresh server must have been restarted once, or it still knows every revision and nothing is ever too old.
///
/// # Errors
/// When a scenario fails: a line for each.
pub async fn prove(kubeconfig: &Path, log_pod: Option<(&str, &str)>) -> Result<usize> {
    let mut client = ContractClient::from_kubeconfig(kubeconfig)?;
    if let Some((namespace, pod)) = log_pod {
        client = client.with_log_pod(namespace, pod);
    }
    let outcomes = check(&client).await;
    let failures = failures(&outcomes);
    ensure!(failures.is_empty(), "{failures}");
    Ok(outcomes.len())
}

/// Every outcome that is a failure, in lines; empty when all went well.
pub fn failures(outcomes: &[Outcome]) -> String {
    let failed = outcomes
        .iter()
        .filter_map(|outcome| Some((outcome.name, outcome.result.as_ref().err()?)));
    failed.map(|(name, why)| format!("{name}: {why}\n")).collect()
}
