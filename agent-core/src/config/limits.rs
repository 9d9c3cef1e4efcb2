//! What each caller of k8s-proxy may have.

use proto::v1::ProxyLimits;

use super::read::Reader;

/// More than a busy console opens, and less than the table of k8s-proxy holds, so that one caller cannot fill it.
const STREAMS: u32 = 15_000;
/// An informer-heavy caller starts with a few hundred lists at once.
const IN_FLIGHT: u32 = 2_000;

/// Reads `proxy.limits.*`; 0 in any of them takes the bound away.
pub(super) fn limits(reader: &mut Reader<'_>) -> ProxyLimits {
    ProxyLimits {
        streams: number(reader, "proxy.limits.streams", STREAMS),
        in_flight: number(reader, "proxy.limits.in_flight", IN_FLIGHT),
        requests_per_second: number(reader, "proxy.limits.requests_per_second", 0),
        bytes_per_second: number(reader, "proxy.limits.bytes_per_second", 0),
    }
}

fn number<T: std::str::FromStr>(reader: &mut Reader<'_>, path: &'static str, default: T) -> T {
    reader
        .parsed(path, "a whole number; 0 means no limit")
        .unwrap_or(default)
}
