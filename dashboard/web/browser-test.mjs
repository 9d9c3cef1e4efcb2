// Opens the page in real Chromium and watches what it shows.
//
//   node browser-test.mjs --url http://127.0.0.1:8080/dashboard --token-file operator-token [--command-file fifo] [--screenshots dir]
//
// Signs in, waits until all three containers are known and prints READY. Then reads commands, one per line, from the
// command file or standard input, and prints OK (or FAILED and ends) after each:
//
//   expect-known NAME      the page shows the container's reports as fresh
//   expect-unknown NAME    the page shows that its reports are missing, since when
//   outage-begins          from here on, requests that cannot reach the agent are no fault
//   expect-lost            the page says that the connection is lost
//   expect-sign-in         the page asks for the token again
//   sign-in                signs in (with --token-file the file is read anew)
//   outage-ends            from here on they are a fault again
//   screenshot NAME        writes NAME.png into the folder of --screenshots
//   quit                   ends
//
// Exits 1 on any console error, page error, failed request or broken Content-Security-Policy.

import { createReadStream, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

let chromium;
try {
  ({ chromium } = createRequire(new URL("./browser/package.json", import.meta.url))("playwright-core"));
} catch {
  console.error("playwright-core is missing: npm ci --prefix dashboard/web/browser");
  process.exit(1);
}

const { values: options } = parseArgs({
  options: {
    url: { type: "string" },
    token: { type: "string" },
    "token-file": { type: "string" },
    "command-file": { type: "string" },
    screenshots: { type: "string" },
    chromium: { type: "string", default: "/usr/bin/chromium" },
    patience: { type: "string", default: "60" },
  },
});
if (options.url === undefined || (options.token === undefined && options["token-file"] === undefined)) {
  console.error("usage: browser-test.mjs --url URL (--token TOKEN | --token-file FILE) [--command-file FILE]");
  process.exit(64);
}

const timeout = Number(options.patience) * 1000;
const containers = ["agent-core", "tunnel-sidecar", "k8s-proxy"];
const faults = [];
let outage = false;

const browser = await chromium.launch({
  executablePath: options.chromium,
  headless: true,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 1000 } });
page.setDefaultTimeout(timeout);
page.on("pageerror", (error) => faults.push(`page error: ${error.message}`));
page.on("console", (message) => {
  if (message.type() !== "error" && message.type() !== "warning") return;
  if (!(outage && message.text().includes("net::ERR_"))) faults.push(`console ${message.type()}: ${message.text()}`);
});
page.on("response", (response) => {
  if (response.status() >= 400 && !outage) faults.push(`${response.status()} for ${response.url()}`);
});
await page.addInitScript(() => {
  document.addEventListener("securitypolicyviolation", (event) => {
    console.error(`policy violated: ${event.violatedDirective} by ${event.blockedURI || event.sourceFile}`);
  });
});

const view = (name) => page.waitForSelector(`body[data-view="${name}"]`);
const card = (name, state) => page.waitForSelector(`[data-container="${name}"]${state}`);
const token = () => options.token ?? readFileSync(options["token-file"], "utf8").trim();

async function signIn() {
  await view("sign-in");
  await page.getByLabel("Operator token").fill(token());
  await page.keyboard.press("Enter");
  await view("live");
}

const commands = {
  "expect-known": (name) => card(name, ':not([data-state="unknown"])'),
  "expect-unknown": async (name) => {
    const text = await (await card(name, '[data-state="unknown"]')).innerText();
    if (!/unknown since \d\d:\d\d:\d\d/.test(text)) throw new Error(`the card does not say since when: ${text}`);
  },
  "outage-begins": () => { outage = true; },
  "outage-ends": () => { outage = false; },
  "expect-lost": () => page.waitForSelector('#connection[data-state="lost"]'),
  "expect-sign-in": () => view("sign-in"),
  "sign-in": signIn,
  screenshot: (name) => page.screenshot({ path: `${options.screenshots ?? "."}/${name}.png`, fullPage: true }),
};

function blameless() {
  if (faults.length > 0) throw new Error(faults.join("\n"));
}

async function follow() {
  const response = await page.goto(options.url);
  if (!/default-src 'none'/.test(response.headers()["content-security-policy"] ?? "")) throw new Error("no strict Content-Security-Policy");
  await signIn();
  for (const name of containers) await commands["expect-known"](name);
  blameless();
  console.log("READY");
  const file = options["command-file"];
  const input = file === undefined ? process.stdin : createReadStream(file);
  for await (const line of createInterface({ input })) {
    const [name, argument] = line.trim().split(/\s+/);
    if (name === "quit") return;
    if (!(name in commands)) throw new Error(`no such command: ${line}`);
    await commands[name](argument);
    blameless();
    console.log("OK");
  }
}

let code = 0;
try {
  await follow();
  blameless();
} catch (error) {
  console.log("FAILED");
  console.error(error instanceof Error ? error.message : error);
  for (const fault of faults) console.error(fault);
  code = 1;
}
await browser.close();
process.exit(code);
