// The dashboard: routes between views, loads their data and paints them.

import { byId, make, notify, setText } from "./dom.js";
import { Entity } from "./entity.js";
import { HomeStore } from "./store.js";
import { DeadLetters } from "./dead_letters.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";
import { HomeView } from "./home_view.js";
import { Refused, ask, askHealth, key } from "./api.js";
import { SettingsView } from "./settings.js";
import { Stream } from "./stream.js";
import { amount, short, span } from "./format.js";

const HEALTH_EVERY_MS = 5_000;
const PAINT_EVERY_MS = 250;
const LOAD_EVERY = 2; // polls of /health, for larger data
const RESTARTED_MS = 1_000; // more than two clocks in one response may differ

const TITLES = { overview: "Overview", live: "Live", home: "Home", entity: "Entity", letters: "Dead letters", settings: "Settings" };
const NAMED = ["live", "home", "settings"]; // views whose name is in the address
const UNTOUCHED = ["letters", "settings"]; // a poll does not load these again while they are read

const home = new HomeStore();
const overview = new Overview();
const homeView = new HomeView(home);
const entity = new Entity(home);
const letters = new DeadLetters({ onChange: () => look() });
const settings = new SettingsView();
const live = new Live(home, { onPause: () => showLine() });
const stream = new Stream({ onMessages: take, onState: heed });

let health = null;
let startedAt = null; // of the service
let looks = 0;
let view = "overview";
let waitFor_s = 0;
let isHomeAsked = false;
let wasLive = false;

// --- views -------------------------------------------------------------------------------

function viewOf(hash) {
  const [, name = "", rest = ""] = /^#\/([^/]*)\/?(.*)$/.exec(hash) ?? [];
  if (name === "entity" && rest) return ["entity", decodeURIComponent(rest)];
  if (name === "dead-letters") return ["letters", null];
  return [NAMED.includes(name) ? name : "overview", null];
}

function showView({ isFirst = false } = {}) {
  if (location.hash && !location.hash.startsWith("#/")) return; // the skip link
  const [name, which] = viewOf(location.hash);
  view = name;
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== `view-${name}`;
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    const isCurrent = link.dataset.view === (name === "entity" ? "home" : name);
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${which ?? TITLES[name]} · websocket-ingestion`;
  if (name === "entity") entity.show(which, hasStore()).catch(excuse);
  if (!isFirst) {
    scrollTo(0, 0);
    document.querySelector(`#view-${name} h1`).focus({ preventScroll: true });
  }
  load();
  paint();
}

/** Load what the view shows beyond the stream; nothing while the key is missing. */
function load() {
  if (!isOpen()) return;
  const asked = {
    overview: () => [overview.showRate(), overview.showGaps()],
    letters: () => [letters.load()],
    settings: () => [settings.load()],
    entity: () => [entity.load()],
  }[view];
  Promise.all(asked ? asked() : []).catch(excuse);
}

const isOpen = () => stream.state === "live";
const hasStore = () => health === null || health.sinks.some(({ name }) => name === "embedded");

function excuse(problem) {
  // /health and the stream each report a service that is down.
  if (problem instanceof Refused && [401, 429].includes(problem.status)) lock(problem.message);
}

// --- health --------------------------------------------------------------------------------

async function look() {
  try {
    health = await askHealth();
    overview.showHealth(health);
    showAbout();
    noteRestart();
    stream.hurry();
    if (isHomeAsked && !home.isListed && isOpen() && health.discovery.entities > 0) await home.lookUp();
  } catch {
    overview.showNoAnswer();
  }
}

async function pollForever() {
  await look();
  looks += 1;
  if (looks % LOAD_EVERY === 0 && !document.hidden && !UNTOUCHED.includes(view)) load();
  setTimeout(pollForever, HEALTH_EVERY_MS);
}

/** Name the user that Home Assistant's ingress reports; elsewhere there is none. */
async function showUser() {
  if (!location.pathname.includes("/hassio_ingress/")) return;
  const { user } = await ask("api/v1/session");
  const name = user?.display_name ?? user?.name;
  if (!name) return;
  setText(byId("user"), `Signed in to Home Assistant as ${name}.`);
  byId("user").hidden = false;
}

function showAbout() {
  setText(
    byId("about"),
    `Version ${health.version}, running for ${span(health.uptime_seconds)}, `
      + `${amount(Math.round(health.performance.memory_mb))} MB of memory.`,
  );
  const refused = health.dead_letters;
  byId("letters-badge").hidden = !refused;
  setText(byId("letters-badge"), short(refused));
}

function noteRestart() {
  const started = Date.parse(health.timestamp) - 1_000 * health.uptime_seconds;
  if (startedAt !== null && started - startedAt.at > RESTARTED_MS) {
    const reload = startedAt.version === health.version ? null : make("a", { href: "" }, "Reload the page");
    const version = reload ? ` with version ${health.version}` : "";
    notify("restart", `The service restarted ${span(health.uptime_seconds)} ago${version}; this page is connected again.`, reload);
  }
  startedAt = { at: started, version: health.version };
}

// --- the stream ------------------------------------------------------------------------------

function take(messages) {
  const events = [];
  for (const message of messages) {
    if (message.type !== "event") continue;
    home.take(message.event);
    events.push(message.event);
  }
  overview.take(events);
  live.take(messages);
}

function heed(state, more) {
  if (state === "waiting") waitFor_s = more;
  if (state === "locked") lock(more);
  if (state === "live") {
    byId("key-form").hidden = true;
    if (wasLive) look();
    wasLive = true;
    load();
    askHome();
  }
  showLine();
}

function showLine() {
  const [words, mood] = {
    connecting: ["Connecting…", ""],
    live: live.isPaused && view === "live" ? ["Paused", "warn"] : ["Live", "good"],
    waiting: [`Disconnected, retrying in ${waitFor_s} s`, "bad"],
    locked: ["Locked", "warn"],
  }[stream.state];
  setText(byId("line"), words);
  byId("line").className = `pill ${mood}`;
}

/** Fill the home from stored data once; then the stream keeps it current. */
async function askHome() {
  if (isHomeAsked) return;
  isHomeAsked = true;
  try {
    health ??= await askHealth();
    await home.lookUp();
    if (hasStore()) await home.remember();
  } catch {
    isHomeAsked = false; // retried with the next connection
  }
}

// --- the key -----------------------------------------------------------------------------------

function lock(words) {
  key.forget();
  setText(byId("key-note"), words ? `${words.replace(/\.$/, "")}.` : "Stored in this tab until you close it.");
  byId("key-note").classList.toggle("wrong", Boolean(words));
  byId("key-form").hidden = false;
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (happened) => {
  happened.preventDefault();
  key.set(byId("key").value);
  byId("key").value = "";
  stream.open();
});

// --- painting ------------------------------------------------------------------------------

function paint() {
  if (document.hidden) return;
  if (view === "overview") overview.paint();
  if (view === "live") live.paint();
}

setInterval(paint, PAINT_EVERY_MS);
setInterval(() => {
  live.tick();
  if (document.hidden) return;
  if (view === "home") homeView.paint();
  if (view === "entity") entity.paint();
}, 1_000);

addEventListener("hashchange", () => showView());
addEventListener("online", () => stream.hurry());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});

showView({ isFirst: true });
pollForever();
stream.open();
showUser().catch(excuse);
