//! The simulation from outside, through its socket.

mod behaviour;
mod kubectl;
mod trouble;

use reqwest::Method;
use serde_json::Value;

use super::{
    Simulation, SimulationConfig,
    contract::{ContractClient, Credential},
};

/// A simulation that moves only when told.
async fn start(config: SimulationConfig) -> Simulation {
    Simulation::start(config).await.unwrap()
}

fn client_of(simulation: &Simulation, token: &str) -> ContractClient {
    let ca = Some(simulation.ca_pem()).filter(|pem| !pem.is_empty());
    ContractClient::new(&simulation.url(), ca, Credential::Token(token.to_owned())).unwrap()
}

fn admin(simulation: &Simulation) -> ContractClient {
    client_of(simulation, simulation.admin_token())
}

/// Status and body of a GET.
async fn get(client: &ContractClient, path: &str) -> (u16, Value) {
    let answer = ContractClient::send(client.request(Method::GET, path))
        .await
        .unwrap();
    (answer.code, answer.value)
}
