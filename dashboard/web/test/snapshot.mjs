// A healthy agent; tests change what they are about.

export const NOW = 1_700_000_100_000;

const container = (name, conditions) => ({
  name, known: true, unknown_since: null, last_report: NOW - 2000, ready: true, instances_seen: 1, version: "0.1.0",
  conditions: conditions.map(([name, status, reason]) => ({ name, status, reason, since: NOW - 60_000 })),
});

export const healthy = () => ({
  now: NOW,
  actions: ["heartbeat", "reregister"],
  agent: {
    id: "agent-1", cluster_uuid: "0b1c", cluster_name: "edge-7", phase: "active", reason: "heartbeat accepted",
    control_plane: "https://api.example", started: NOW - 3_600_000, version: "0.1.0", nodes: 3, pods: 41, kubernetes_version: "v1.34.2",
  },
  containers: [
    container("agent-core", [["Registered", "true", "as 0b1c"]]),
    container("tunnel-sidecar", [["TunnelUp", "true", "byte through kubernetes-api"]]),
    container("k8s-proxy", [["Upstream", "true", "v1.34.2"], ["DialedDoor", "not-applicable", "none asked for"]]),
  ],
  heartbeats: Array.from({ length: 60 }, (_, at) => ({ at: NOW - (60 - at) * 5000, accepted: true, status: 200, ms: 10 + at, error: "" })),
  tunnel: {
    state: "connected", reason: "", server: "wss://tunnel.example", fingerprint: "", connected_since: NOW - 9000,
    next_retry: null, connects: 1, round_trip_us: 1400,
    forwards: [{
      name: "kubernetes-api", remote_port: 16443, target: "kubernetes-api", dials: "127.0.0.1:8443", state: "listening",
      reason: "", connections_open: 2, connections_total: 1500, bytes_in: 2048, bytes_out: 10_485_760,
    }],
  },
  proxy: {
    doors: [{ name: "http", address: "127.0.0.1:8001", open: true, reason: "", since: NOW - 9000 }],
    streams_open: 4, watches_open: 3, requests: 12, refused: 1, rewatched: 0, certificate_sha256: "", read_only: false, upstream: "https://10.0.0.1",
  },
  streams: [],
});
