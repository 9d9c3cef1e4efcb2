// What the agent sends: the types of dashboard/src/snapshot.rs as JSON. Times are milliseconds since 1970.

export type Phase = "loading" | "unregistered" | "registering" | "active" | "lapsed" | "refused" | "draining";
export type Status = "true" | "false" | "not-applicable";
export type SessionState = "idle" | "connecting" | "connected" | "backoff";
export type ForwardState = "pending" | "listening" | "failed" | "refused";
export type ActionName = "heartbeat" | "reregister" | "reconnect";

export interface Condition {
  name: string;
  status: Status;
  reason: string;
  since: number;
}

export interface Container {
  name: string;
  known: boolean;
  unknown_since: number | null;
  last_report: number | null;
  ready: boolean;
  conditions: Condition[];
  instances_seen: number;
  version: string;
}

export interface Heartbeat {
  at: number;
  accepted: boolean;
  status: number;
  ms: number;
  error: string;
}

export interface Forward {
  name: string;
  remote_port: number;
  target: string;
  dials: string;
  state: ForwardState;
  reason: string;
  connections_open: number;
  connections_total: number;
  bytes_in: number;
  bytes_out: number;
}

export interface Door {
  name: string;
  address: string;
  open: boolean;
  reason: string;
  since: number | null;
}

export interface OpenStream {
  id: number;
  door: string;
  user: string;
  method: string;
  path: string;
  watch: boolean;
  opened: number | null;
  events: number;
  bytes: number;
  rewatches: number;
}

export interface Snapshot {
  now: number;
  actions: ActionName[];
  agent: {
    id: string;
    cluster_uuid: string;
    cluster_name: string;
    phase: Phase;
    reason: string;
    control_plane: string;
    started: number;
    version: string;
    nodes: number | null;
    pods: number | null;
    kubernetes_version: string;
  };
  containers: Container[];
  heartbeats: Heartbeat[];
  tunnel: {
    state: SessionState;
    reason: string;
    server: string;
    fingerprint: string;
    connected_since: number | null;
    next_retry: number | null;
    connects: number;
    round_trip_us: number | null;
    forwards: Forward[];
  };
  proxy: {
    doors: Door[];
    streams_open: number;
    watches_open: number;
    requests: number;
    refused: number;
    rewatched: number;
    certificate_sha256: string;
    read_only: boolean;
    upstream: string;
  };
  streams: OpenStream[];
}
