//! Whole sessions against the scripted server: what must hold when the peer does right, does wrong, or does nothing.

mod channels;
mod handshake;
mod liveness;
mod rekey;
