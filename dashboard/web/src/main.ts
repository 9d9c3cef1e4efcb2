// The life of the page: sign in, follow, show, and say when the connection is lost.

import { act, follow, signIn, signOut } from "./api.js";
import { patch, type Element_ } from "./dom.js";
import type { ActionName, Snapshot } from "./model.js";
import { containerState, page, problems, unknownText } from "./render.js";
import { words } from "./format.js";

function find<T extends Element>(id: string, kind: new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`the page has no #${id}`);
  return element;
}

const body = document.body;
const live = find("live", HTMLElement);
const connection = find("connection", HTMLElement);
const announce = find("announce", HTMLElement);
const outcome = find("outcome", HTMLElement);
const cluster = find("cluster", HTMLElement);
const form = find("sign-in", HTMLFormElement);
const field = find("token", HTMLInputElement);
const refusal = find("refusal", HTMLElement);
const leave = find("sign-out", HTMLButtonElement);

let latest: Snapshot | null = null;
// What to add to this browser's clock to get the agent's.
let clockOffset = 0;
let spoken = "";
let stop: () => void = () => undefined;

function show(view: "connecting" | "sign-in" | "live"): void {
  body.dataset["view"] = view;
  if (view === "sign-in") field.focus();
}

function setConnection(state: "live" | "lost", sentence: string): void {
  connection.dataset["state"] = state;
  if (connection.textContent !== sentence) connection.textContent = sentence;
}

function draw(): void {
  if (latest === null) return;
  const now = Date.now() + clockOffset;
  const tree: Element_[] = page(latest, now);
  patch(live, tree);
  const wrong = problems(latest, now).length;
  const name = latest.agent.cluster_name || "PipeOps agent";
  cluster.textContent = name;
  document.title = wrong === 0 ? name : `(${wrong}) ${name}`;
  speak(latest, now);
}

// Screen readers hear changes of state, not every tick of a clock.
function speak(snapshot: Snapshot, now: number): void {
  const states = snapshot.containers.map((container) => {
    const [state] = containerState(container);
    return [container.name + state, `${container.name} ${state === "unknown" ? unknownText(container, now) : words(state)}`] as const;
  });
  const key = snapshot.agent.phase + states.map(([part]) => part).join();
  if (key === spoken) return;
  if (spoken !== "") announce.textContent = `${snapshot.agent.phase}. ${states.map(([, sentence]) => sentence).join(". ")}`;
  spoken = key;
}

function start(): void {
  stop();
  stop = follow({
    snapshot(snapshot) {
      latest = snapshot;
      clockOffset = snapshot.now - Date.now();
      setConnection("live", "live");
      show("live");
      draw();
    },
    lost() {
      setConnection("lost", "connection lost, retrying");
    },
    signedOut() {
      stop();
      latest = null;
      patch(live, []);
      cluster.textContent = "";
      setConnection("lost", "not signed in");
      show("sign-in");
    },
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  refusal.textContent = "";
  void signIn(field.value.trim()).then((why) => {
    if (why === null) {
      field.value = "";
      start();
    } else {
      refusal.textContent = why;
      field.select();
    }
  });
});

leave.addEventListener("click", () => {
  void signOut().finally(start);
});

live.addEventListener("click", (event) => {
  const target = event.target;
  if (!(target instanceof HTMLButtonElement)) return;
  const action = target.dataset["action"] as ActionName | undefined;
  if (action === undefined) return;
  const label = target.textContent ?? action;
  outcome.textContent = `${label} …`;
  void act(action).then((sentence) => {
    outcome.textContent = `${label}: ${sentence}`;
  });
});

// Ages grow while nothing arrives; after an outage they must not pretend to be fresh, so they keep counting.
window.setInterval(draw, 1000);
start();
