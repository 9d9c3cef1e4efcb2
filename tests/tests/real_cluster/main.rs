//! The same lists as against the doubles, against the real single-node Kubernetes of `make cluster-up`; and the
//! chart on its kubelet.
//!
//! ```text
//!  contract    what the simulation promises, asked of the real apiserver
//!  local       scenarios with our processes on this machine and the admin's kubeconfig
//!  apiserver   watches through the front across a restart of the apiserver; one trace that it joins
//!  kubectl     a table of what is typed, straight and through the front, compared
//!  chart       helm install, kills, upgrades, refusals: with images of `make images`
//! ```
//!
//! One test at a time (`--test-threads 1`): they share the cluster, and some restart its apiserver.

mod apiserver;
mod chart;
mod contract;
mod informer;
mod kubectl;
mod local;
