//! Doubles that speak the wire.
