//! What informers rely on: the bytes of the apiserver, and each change once, as client-go and kube-rs see it.

mod bytes;
mod client_go;

pub use bytes::bytes_are_the_apiservers;
pub use client_go::client_go;

const PATH: &str = "/api/v1/namespaces/default/configmaps";
