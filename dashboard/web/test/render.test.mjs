import assert from "node:assert/strict";
import { test } from "node:test";
import { h, text } from "../dist/dom.js";
import { barHeights, containerState, page, problems, unknownText } from "../dist/render.js";
import { NOW, healthy } from "./snapshot.mjs";

const all = (node) => (typeof node === "string" ? [] : [node, ...node.children.flatMap(all)]);
const elements = (snapshot) => page(snapshot, NOW).flatMap(all);
const card = (snapshot, name) => elements(snapshot).find((e) => e.attributes["data-container"] === name);

test("a healthy agent has nothing that needs attention", () => {
  assert.deepEqual(problems(healthy(), NOW), []);
  const shown = page(healthy(), NOW).map(text).join("\n");
  for (const part of ["Active", "Nothing needs attention", "60 of the last 60 accepted", "1\u202f500", "10 MiB", "3 open watches", "round trip 1.4 ms"]) {
    assert.ok(shown.includes(part), part);
  }
});

test("a container that is not heard is unknown, whatever it said last", () => {
  const snapshot = healthy();
  Object.assign(snapshot.containers[2], { known: false, unknown_since: NOW - 8000, ready: true });
  const shown = card(snapshot, "k8s-proxy");
  assert.equal(shown.attributes["data-state"], "unknown");
  assert.match(text(shown), /unknown since \d\d:\d\d:\d\d \(8 s\)/);
  assert.match(problems(snapshot, NOW)[0].what, /^k8s-proxy is unknown since/);
  assert.equal(card(snapshot, "agent-core").attributes["data-state"], "ready");
});

test("one that was never heard says so", () => {
  const container = { ...healthy().containers[1], known: false };
  assert.equal(unknownText(container, NOW), "not heard yet");
  assert.deepEqual(containerState(container), ["unknown", "unknown"]);
});

test("a false condition is a problem with its reason; not applicable is none", () => {
  const snapshot = healthy();
  const [, tunnel] = snapshot.containers;
  tunnel.ready = false;
  Object.assign(tunnel.conditions[0], { status: "false", reason: "connection refused" });
  assert.deepEqual(problems(snapshot, NOW), [{ what: "tunnel-sidecar: TunnelUp", why: "connection refused" }]);
  assert.equal(card(snapshot, "tunnel-sidecar").attributes["data-state"], "not-ready");
});

test("every other fault is named with its cause", () => {
  const snapshot = healthy();
  Object.assign(snapshot.agent, { phase: "refused", reason: "token revoked" });
  Object.assign(snapshot.tunnel, { state: "backoff", reason: "no pong", next_retry: NOW + 4000, connected_since: null });
  Object.assign(snapshot.tunnel.forwards[0], { state: "failed", reason: "port taken" });
  Object.assign(snapshot.proxy.doors[0], { open: false, reason: "no credential" });
  assert.deepEqual(problems(snapshot, NOW).map(({ what, why }) => `${what}: ${why}`), [
    "Refused by the control plane: token revoked",
    "The tunnel is down: no pong; next try in 4 s",
    "Forward kubernetes-api failed: port taken",
    "Door http is closed: no credential",
  ]);
});

test("a failed heartbeat stands out", () => {
  const beats = healthy().heartbeats.slice(0, 3);
  Object.assign(beats[1], { accepted: false, status: 0, ms: 5000, error: "timed out" });
  const heights = barHeights(beats);
  assert.ok(heights[1] > heights[0] && heights[1] > heights[2], String(heights));
  const shown = page({ ...healthy(), heartbeats: beats }, NOW).map(text).join("\n");
  assert.match(shown, /2 of the last 3 accepted/);
  assert.match(shown, /no answer/);
});

test("an agent that knows nothing yet is shown without a gap", () => {
  const snapshot = { ...healthy(), containers: [], heartbeats: [], streams: [], actions: [] };
  snapshot.tunnel.forwards = [];
  snapshot.proxy.doors = [];
  const shown = page(snapshot, NOW).map(text).join("\n");
  assert.match(shown, /None sent yet/);
  assert.ok(!/undefined|NaN|null/.test(shown), shown);
});

test("buttons are those the agent offers", () => {
  const names = elements(healthy()).map((e) => e.attributes["data-action"]).filter(Boolean);
  assert.deepEqual(names, ["heartbeat", "reregister"]);
});

test("text of a peer stays text", () => {
  const snapshot = healthy();
  snapshot.agent.reason = "<img src=x onerror=alert(1)>";
  assert.ok(!elements(snapshot).some((e) => e.tag === "img"));
});

test("no element carries an inline style or a handler, every table has a caption, every heading an owner", () => {
  const seen = elements(healthy());
  assert.ok(seen.length > 100);
  for (const element of seen) {
    for (const name of Object.keys(element.attributes)) assert.ok(name !== "style" && !name.startsWith("on"), name);
    if (element.tag === "table") assert.equal(element.children[0].tag, "caption");
    if (element.tag === "section") {
      const id = element.attributes["aria-labelledby"];
      assert.ok(all(element).some((inner) => inner.attributes.id === id), id);
    }
  }
});

test("children that are off are left out", () => {
  assert.deepEqual(h("p", { hidden: true, title: false, n: 1 }, null, false, ["a", [h("b", {})]]), {
    tag: "p", attributes: { hidden: "", n: "1" }, children: ["a", { tag: "b", attributes: {}, children: [] }],
  });
});
