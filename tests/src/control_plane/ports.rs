//! Ports for chisel, which cannot be asked which port it took for a 0.

use std::net::TcpListener;

use anyhow::{Result, bail};
use rand::Rng;

/// Below Linux' default range for outgoing connections (32768 and up), so that no connection takes a port
/// between our look and chisel's bind; random, so that test processes side by side rarely meet.
const RANGE: std::ops::Range<u16> = 30_000..32_768;
/// The range is nearly empty on any machine; a hundred misses mean something else is wrong.
const ATTEMPTS: usize = 100;

/// A port that nobody listens on, and that is not `taken`.
pub(super) fn free_port(taken: impl Fn(u16) -> bool) -> Result<u16> {
    for _ in 0..ATTEMPTS {
        let port = rand::rng().random_range(RANGE);
        // On all addresses, because that is where chisel binds a reverse forward by default.
        if !taken(port) && TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port in {RANGE:?} after {ATTEMPTS} attempts")
}

/// Whether some socket listens on the port.
///
/// Read from the kernel's table: a connection would go through the tunnel to its target, and a trial bind could
/// take the port away from chisel at the moment when it wants it.
pub(super) fn listening(port: u16) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        std::fs::read_to_string(table)
            .is_ok_and(|table| table.lines().skip(1).any(|line| listens(line, port)))
    })
}

/// Columns: slot, local address `hex:port`, remote address, state (`0A` is LISTEN).
fn listens(line: &str, port: u16) -> bool {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local, state) = (columns.next(), columns.nth(1));
    let local = local
        .and_then(|local| local.rsplit_once(':'))
        .map(|(_, port)| port);
    state == Some("0A") && local.and_then(|local| u16::from_str_radix(local, 16).ok()) == Some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_seen_and_its_port_not_given_out() {
        let port = free_port(|_| false).unwrap();
        let held = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        assert!(listening(held.local_addr().unwrap().port()));
        assert!(!listening(port));
        assert_ne!(free_port(|other| other == port).unwrap(), port);
    }
}
