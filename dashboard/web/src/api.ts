// Talking to the agent. Addresses are relative to this file, so that the page works behind a path prefix.

import type { ActionName, Snapshot } from "./model.js";

const BASE = new URL("../", import.meta.url);
const CSRF = { "x-pipeops-csrf": "1" };

/** Whether this browser is signed in; throws when the agent does not answer. */
export async function signedIn(): Promise<boolean> {
  const answer: { signed_in: boolean } = await (await fetch(new URL("session", BASE))).json();
  return answer.signed_in;
}

/** Exchanges the operator token for a session. Returns why not, or `null`. */
export async function signIn(token: string): Promise<string | null> {
  try {
    const response = await fetch(new URL("session", BASE), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token }),
    });
    return response.ok ? null : await reason(response);
  } catch {
    return "the agent does not answer";
  }
}

export async function signOut(): Promise<void> {
  await fetch(new URL("session", BASE), { method: "DELETE", headers: CSRF });
}

/** Runs an action and returns the sentence to show. */
export async function act(action: ActionName): Promise<string> {
  try {
    const response = await fetch(new URL(`api/actions/${action}`, BASE), { method: "POST", headers: CSRF });
    return response.ok ? ((await response.json()) as { message: string }).message : await reason(response);
  } catch {
    return "the agent does not answer";
  }
}

async function reason(response: Response): Promise<string> {
  try {
    return ((await response.json()) as { error: string }).error;
  } catch {
    return `the agent answered ${response.status}`;
  }
}

export interface Listener {
  snapshot(snapshot: Snapshot): void;
  /** The stream broke; another try follows by itself. */
  lost(): void;
  /** The agent does not know this browser: it was restarted, or eight hours have passed. */
  signedOut(): void;
}

// First retry at once, then slower; an agent that restarts is back within seconds.
const FIRST_RETRY = 250;
const LAST_RETRY = 5000;

/** Follows the agent until stopped. The returned function stops it. */
export function follow(listener: Listener): () => void {
  let source: EventSource | null = null;
  let timer = 0;
  let delay = FIRST_RETRY;
  let stopped = false;

  // EventSource does not tell why it failed and gives up on an answer that is not a stream, so each try asks
  // about the session first and opens a new one.
  const open = async (): Promise<void> => {
    try {
      const known = await signedIn();
      if (stopped) return;
      if (!known) return listener.signedOut();
    } catch {
      return retry();
    }
    source = new EventSource(new URL("api/events", BASE));
    source.addEventListener("snapshot", (event) => {
      delay = FIRST_RETRY;
      listener.snapshot(JSON.parse(event.data) as Snapshot);
    });
    source.addEventListener("error", () => {
      source?.close();
      retry();
    });
  };

  const retry = (): void => {
    if (stopped) return;
    listener.lost();
    timer = window.setTimeout(() => void open(), delay);
    delay = Math.min(LAST_RETRY, delay * 2);
  };

  void open();
  return () => {
    stopped = true;
    window.clearTimeout(timer);
    source?.close();
  };
}
