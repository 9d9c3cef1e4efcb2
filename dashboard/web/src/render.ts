// From a snapshot to the tree that is shown. Pure: no document, no clock, no network.

import { h, type Child, type Element_ } from "./dom.js";
import { ago, bytes, clock, count, digest, duration, grouped, roundTrip, until, words } from "./format.js";
import type { ActionName, Container, Forward, Heartbeat, Phase, Snapshot, Status } from "./model.js";

export type Tone = "good" | "bad" | "unknown" | "idle";

/** One thing that is not as it should be, and why. */
export interface Problem {
  what: string;
  why: string;
}

const PHASES: Record<Phase, [tone: Tone, title: string]> = {
  loading: ["unknown", "Reading its identity"],
  unregistered: ["unknown", "Not registered yet"],
  registering: ["unknown", "Registering"],
  active: ["good", "Active"],
  lapsed: ["bad", "Heartbeats are not accepted"],
  refused: ["bad", "Refused by the control plane"],
  draining: ["idle", "Stopping"],
};

// Colour is never the only sign: each tone has its own mark.
const MARKS: Record<Tone, string> = { good: "✓", bad: "✕", unknown: "?", idle: "–" };

/** What the state of a container is called, and its tone. */
export function containerState(container: Container): [state: "ready" | "not-ready" | "unknown", tone: Tone] {
  if (!container.known) return ["unknown", "unknown"];
  return container.ready ? ["ready", "good"] : ["not-ready", "bad"];
}

/** Everything that is wrong, most far-reaching first. */
export function problems(snapshot: Snapshot, now: number): Problem[] {
  const found: Problem[] = [];
  const [tone, title] = PHASES[snapshot.agent.phase];
  if (tone === "bad") found.push({ what: title, why: snapshot.agent.reason });
  for (const container of snapshot.containers) {
    if (!container.known) {
      found.push({ what: `${container.name} is ${unknownText(container, now)}`, why: "its reports do not arrive; look at its log" });
    } else {
      for (const condition of container.conditions.filter(({ status }) => status === "false")) {
        found.push({ what: `${container.name}: ${condition.name}`, why: condition.reason });
      }
    }
  }
  if (snapshot.tunnel.state === "backoff") {
    const retry = snapshot.tunnel.next_retry;
    const next = retry === null ? "" : `; next try ${until(retry, now)}`;
    found.push({ what: "The tunnel is down", why: snapshot.tunnel.reason + next });
  }
  for (const forward of snapshot.tunnel.forwards) {
    if (forward.state === "failed" || forward.state === "refused") {
      found.push({ what: `Forward ${forward.name} ${forward.state}`, why: forward.reason });
    }
  }
  for (const door of snapshot.proxy.doors.filter(({ open }) => !open)) {
    found.push({ what: `Door ${door.name} is closed`, why: door.reason });
  }
  return found;
}

/** `unknown since 12:00:01 (8 s)`. */
export function unknownText(container: Container, now: number): string {
  const since = container.unknown_since;
  return since === null ? "not heard yet" : `unknown since ${clock(since)} (${duration(now - since)})`;
}

/** The whole page below the bar. `now` is the agent's clock. */
export function page(snapshot: Snapshot, now: number): Element_[] {
  return [
    headline(snapshot, now),
    attention(problems(snapshot, now)),
    h("section", { "aria-labelledby": "containers-title" },
      h("h2", { id: "containers-title" }, "Containers"),
      h("div", { class: "cards" }, snapshot.containers.map((container) => card(container, now)))),
    heartbeats(snapshot.heartbeats, now),
    tunnel(snapshot, now),
    proxy(snapshot, now),
  ];
}

function headline(snapshot: Snapshot, now: number): Element_ {
  const { agent, actions } = snapshot;
  const [tone, title] = PHASES[agent.phase];
  const facts: [string, string][] = [
    ["Cluster", agent.cluster_uuid],
    ["Agent", agent.id],
    ["Control plane", agent.control_plane],
    ["Kubernetes", agent.kubernetes_version],
    ["Nodes", agent.nodes === null ? "" : grouped(agent.nodes)],
    ["Pods", agent.pods === null ? "" : grouped(agent.pods)],
    ["Running for", agent.started === 0 ? "" : duration(now - agent.started)],
  ];
  return h("section", { class: `headline ${tone}`, "aria-labelledby": "phase-title", "data-phase": agent.phase },
    h("div", { class: "verdict" },
      mark(tone),
      h("div", {},
        h("h1", { id: "phase-title" }, title),
        agent.reason !== "" && h("p", { class: "why" }, agent.reason))),
    actions.length > 0 && h("div", { class: "actions" }, actions.map(button)),
    h("dl", { class: "facts" }, facts.filter(([, value]) => value !== "").map(([name, value]) => fact(name, value))));
}

const BUTTONS: Record<ActionName, string> = {
  heartbeat: "Send a heartbeat",
  reregister: "Register again",
  reconnect: "Reconnect the tunnel",
};

function button(action: ActionName): Element_ {
  return h("button", { type: "button", "data-action": action, "data-key": action }, BUTTONS[action]);
}

function attention(found: Problem[]): Element_ {
  return h("section", { class: found.length === 0 ? "attention quiet" : "attention", "aria-labelledby": "attention-title" },
    h("h2", { id: "attention-title" }, found.length === 0 ? "Nothing needs attention" : "Needs attention"),
    found.length > 0 && h("ul", {}, found.map(({ what, why }) =>
      h("li", {}, h("strong", {}, what), why !== "" && h("span", {}, why)))));
}

function card(container: Container, now: number): Element_ {
  const [state, tone] = containerState(container);
  const label = state === "unknown" ? unknownText(container, now) : words(state);
  const restarts = Math.max(0, container.instances_seen - 1);
  return h("article", { class: `card ${tone}`, "data-container": container.name, "data-state": state, "data-key": container.name },
    h("header", {}, mark(tone), h("div", {}, h("h3", {}, container.name), h("p", { class: "state" }, label))),
    container.conditions.length === 0
      ? h("p", { class: "empty" }, "It has not said anything about itself.")
      : h("ul", { class: container.known ? "conditions" : "conditions stale" }, container.conditions.map((condition) =>
          h("li", { class: TONES[condition.status], title: `since ${clock(condition.since)}` },
            mark(TONES[condition.status], words(condition.status)),
            h("span", {}, h("b", {}, condition.name), " ", condition.reason)))),
    h("footer", {},
      container.version === "" ? "" : `version ${container.version}`,
      restarts > 0 && h("span", {}, count(restarts, "restart seen", "restarts seen")),
      container.last_report !== null && h("span", {}, `heard ${ago(container.last_report, now)}`)));
}

const TONES: Record<Status, Tone> = { "true": "good", "false": "bad", "not-applicable": "idle" };

function heartbeats(beats: Heartbeat[], now: number): Element_ {
  const accepted = beats.filter((beat) => beat.accepted);
  const latest = beats.at(-1);
  return h("section", { "aria-labelledby": "beats-title" },
    h("h2", { id: "beats-title" }, "Heartbeats"),
    latest === undefined
      ? h("p", { class: "empty" }, "None sent yet.")
      : [
          h("p", { class: "summary" }, `${accepted.length} of the last ${beats.length} accepted, latest ${ago(latest.at, now)}`),
          sparkline(beats),
          table("Last heartbeats", ["Sent", "Result", "Took", "Why"], beats.slice(-8).reverse().map((beat) => [
            clock(beat.at),
            tag(beat.accepted ? "good" : "bad", beat.accepted ? `accepted ${beat.status}` : beat.status === 0 ? "no answer" : String(beat.status)),
            `${beat.ms} ms`,
            beat.error,
          ])),
        ]);
}

const BAR = 10;
const HEIGHT = 56;

/** Heights of the bars: a failure stands full height, the rest by duration against the slowest. */
export function barHeights(beats: Heartbeat[]): number[] {
  const slowest = Math.max(1, ...beats.filter((beat) => beat.accepted).map((beat) => beat.ms));
  return beats.map((beat) => (beat.accepted ? Math.max(3, Math.round((beat.ms / slowest) * (HEIGHT - 8))) : HEIGHT));
}

function sparkline(beats: Heartbeat[]): Element_ {
  const slots = 60;
  const heights = barHeights(beats);
  const failed = beats.filter((beat) => !beat.accepted).length;
  return h("svg", { class: "spark", viewBox: `0 0 ${slots * BAR} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `Duration of the last ${beats.length} heartbeats, ${failed} of them failed` },
    beats.map((beat, at) => {
      const height = heights[at] ?? 0;
      return h("rect", { class: beat.accepted ? "good" : "bad", x: (slots - beats.length + at) * BAR, y: HEIGHT - height, width: BAR - 3, height },
        h("title", {}, `${clock(beat.at)} ${beat.accepted ? `${beat.ms} ms` : beat.error}`));
    }));
}

const FORWARDS: Record<Forward["state"], Tone> = { pending: "unknown", listening: "good", failed: "bad", refused: "bad" };

function tunnel({ tunnel }: Snapshot, now: number): Element_ {
  const tones: Record<typeof tunnel.state, Tone> = { idle: "idle", connecting: "unknown", connected: "good", backoff: "bad" };
  const parts = [
    tunnel.server,
    tunnel.connected_since === null ? tunnel.reason : `for ${duration(now - tunnel.connected_since)}`,
    tunnel.round_trip_us === null ? "" : `round trip ${roundTrip(tunnel.round_trip_us)}`,
    tunnel.next_retry === null ? "" : `next try ${until(tunnel.next_retry, now)}`,
    tunnel.connects > 1 ? count(tunnel.connects, "session", "sessions") : "",
  ];
  return h("section", { "aria-labelledby": "tunnel-title" },
    h("h2", { id: "tunnel-title" }, "Tunnel"),
    h("p", { class: "summary" }, tag(tones[tunnel.state], tunnel.state), ...parts.filter((part) => part !== "").map(item)),
    tunnel.forwards.length === 0
      ? h("p", { class: "empty" }, "No forwards are asked for.")
      : table("Forwards", ["Forward", "Port", "Target", "State", "Open", "Total", "In", "Out"], tunnel.forwards.map((forward) => [
          h("b", {}, forward.name),
          String(forward.remote_port),
          h("span", {}, forward.target, forward.dials !== "" && forward.dials !== forward.target && h("small", {}, ` → ${forward.dials}`)),
          h("span", {}, tag(FORWARDS[forward.state], forward.state), forward.reason !== "" && h("small", {}, ` ${forward.reason}`)),
          grouped(forward.connections_open),
          grouped(forward.connections_total),
          bytes(forward.bytes_in),
          bytes(forward.bytes_out),
        ])));
}

function proxy({ proxy, streams }: Snapshot, now: number): Element_ {
  const parts = [
    count(proxy.streams_open, "open stream", "open streams"),
    `${grouped(proxy.requests)} served, ${grouped(proxy.refused)} refused`,
    proxy.rewatched > 0 ? count(proxy.rewatched, "watch resumed unseen", "watches resumed unseen") : "",
    proxy.upstream === "" ? "" : `upstream ${proxy.upstream}`,
    proxy.read_only ? "read-only" : "",
    proxy.certificate_sha256 === "" ? "" : `certificate ${digest(proxy.certificate_sha256)}`,
  ];
  return h("section", { "aria-labelledby": "proxy-title" },
    h("h2", { id: "proxy-title" }, "Kubernetes access"),
    h("p", { class: "summary" },
      tag(proxy.watches_open > 0 ? "good" : "idle", count(proxy.watches_open, "open watch", "open watches")),
      ...parts.filter((part) => part !== "").map(item)),
    proxy.doors.length === 0
      ? h("p", { class: "empty" }, "No doors are known.")
      : table("Doors", ["Door", "State", "Address", "Why", "Since"], proxy.doors.map((door) => [
          h("b", {}, door.name),
          tag(door.open ? "good" : "bad", door.open ? "open" : "closed"),
          door.address,
          door.reason,
          door.since === null ? "" : ago(door.since, now),
        ])),
    streams.length > 0 && table("Open streams", ["Stream", "Who", "Request", "Events", "Bytes", "Opened"], streams.map((stream) => [
      tag(stream.watch ? "good" : "idle", stream.watch ? "watch" : "request"),
      h("span", {}, stream.user, h("small", {}, ` ${stream.door}`)),
      h("code", {}, `${stream.method} ${stream.path}`),
      h("span", {}, grouped(stream.events), stream.rewatches > 0 && h("small", {}, ` ${count(stream.rewatches, "resume", "resumes")}`)),
      bytes(stream.bytes),
      stream.opened === null ? "" : ago(stream.opened, now),
    ])));
}

// The heading of each column is repeated on its cells, where narrow screens show rows as blocks.
function table(caption: string, columns: string[], rows: Child[][]): Element_ {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col" }, column)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, at) =>
        h("td", { "data-column": columns[at] ?? "", class: cell === "" ? "none" : false }, cell)))))));
}

function mark(tone: Tone, label?: string): Element_ {
  return label === undefined
    ? h("span", { class: `mark ${tone}`, "aria-hidden": "true" }, MARKS[tone])
    : h("span", { class: `mark ${tone}`, role: "img", "aria-label": label }, MARKS[tone]);
}

function tag(tone: Tone, label: string): Element_ {
  return h("span", { class: `tag ${tone}` }, h("span", { "aria-hidden": "true" }, `${MARKS[tone]} `), label);
}

function item(value: string): Element_ {
  return h("span", {}, value);
}

function fact(name: string, value: string): Element_ {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}
