// The first page: /health in words, and the live stream. What comes from Home Assistant is
// put in with textContent only: a name is never markup.

const HEALTH_EVERY_MS = 5_000;
const MAX_ROWS = 200;
const PAINT_EVERY_MS = 150;
const FIRST_WAIT_MS = 1_000;
const MAX_WAIT_MS = 15_000;
const KEY = "websocket-ingestion.api_key";

const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat();

/** Return a new element that holds only text. */
function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Show a short text as a pill of one mood: good, warn, bad or none. */
function setPill(pill, text, mood = "") {
  if (pill.textContent !== text) pill.textContent = text;
  pill.className = `pill ${mood}`;
}

/** Say how long something takes, for a person: "42 s", "5 min", "3 h", "12 days". */
function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3_600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

function ago(iso) {
  return `${span(Math.max(0, (Date.now() - Date.parse(iso)) / 1_000))} ago`;
}

function count(amount, one, many) {
  return `${number.format(amount)} ${amount === 1 ? one : many}`;
}

// --- health in words ---------------------------------------------------------------------

const STATUS = {
  healthy: ["All is well", "good"],
  degraded: ["Needs a look", "warn"],
  unhealthy: ["Broken", "bad"],
};

function sayConnection({ connection, subscription }) {
  const version = connection.ha_version ? ` ${connection.ha_version}` : "";
  switch (connection.current_state) {
    case "connected": {
      const starting = connection.ha_state && connection.ha_state !== "RUNNING"
        ? ", which is not fully started" : "";
      const last = subscription.last_event ? ` Last event ${ago(subscription.last_event)}.` : "";
      return `Connected to Home Assistant${version}${starting}.${last}`;
    }
    case "waiting": {
      const next = connection.next_attempt_in_seconds;
      return `Not connected.${next === null ? "" : ` Next attempt in ${span(next)}.`}`;
    }
    case "disconnected":
      return "Not connected.";
    default:
      return `Connecting to Home Assistant (${connection.current_state}).`;
  }
}

function sayEvents({ accounting, subscription }) {
  const { received, journaled, filtered, malformed, dropped, pending } = accounting.events;
  const lost = Object.values(dropped).reduce((sum, each) => sum + each, 0);
  const parts = [`${count(received, "event", "events")} received`, `${number.format(journaled)} journaled`];
  if (pending) parts.push(`${number.format(pending)} on their way`);
  if (filtered) parts.push(`${number.format(filtered)} filtered`);
  if (malformed) parts.push(`${number.format(malformed)} unreadable`);
  if (lost) parts.push(`${number.format(lost)} dropped`);
  return `${parts.join(", ")}. ${number.format(subscription.event_rate_per_minute)} per minute.`;
}

function sayJournal({ journal }) {
  const safe = journal.durable ? "A crash loses nothing that is in it" : "It is not durable now";
  const size = `${number.format(Math.ceil(journal.bytes / 100_000) / 10)} MB`;
  const waiting = journal.pending_points
    ? ` ${count(journal.pending_points, "event waits", "events wait")} for the next commit.` : "";
  return `${safe}; ${size}.${waiting}`;
}

const SINK = {
  ok: "Writing",
  waiting: "Waiting for the database",
  holding: "Holding everything until a person looks",
  refusing: "The database refuses",
};

function saySink(sink) {
  const held = sink.held
    ? ` ${count(sink.held, "point waits", "points wait")}, the oldest for ${span(sink.lag_seconds)}.`
    : " Nothing waits.";
  const drained = sink.drained_in_seconds > 1
    ? ` Caught up in about ${span(sink.drained_in_seconds)}.` : "";
  const error = sink.last_error && sink.state !== "ok" ? ` Last error: ${sink.last_error}.` : "";
  return `${SINK[sink.state] ?? sink.state}; ${count(sink.points_written, "point", "points")} written.`
    + `${held}${drained}${error}`;
}

function sayDiscovery({ discovery }) {
  const known = [
    count(discovery.devices, "device", "devices"),
    count(discovery.entities, "entity", "entities"),
    count(discovery.areas, "area", "areas"),
  ].join(", ");
  return `${known}${discovery.is_stale ? ", not up to date" : ""}.`;
}

function showHealth(health) {
  const [text, mood] = STATUS[health.status] ?? [health.status, "bad"];
  setPill(byId("status"), text, mood);
  byId("subtitle").textContent =
    `Version ${health.version}, running for ${span(health.uptime_seconds)}, `
    + `${number.format(health.performance.memory_mb)} MB of memory.`;
  showReasons(health.reasons);
  const facts = [
    ["Connection", sayConnection(health)],
    ["Events", sayEvents(health)],
    ["Journal", sayJournal(health)],
    ...health.sinks.map((sink) => [`Sink: ${sink.name}`, saySink(sink)]),
    ["Known", sayDiscovery(health)],
  ];
  byId("facts").classList.remove("old");
  byId("facts").replaceChildren(...facts.map(([term, words]) => {
    const fact = document.createElement("div");
    fact.append(element("dt", term), element("dd", words));
    return fact;
  }));
}

let reasonsShown = "";

function showReasons(reasons) {
  // Untouched when nothing changed: a screen reader would say them again and again.
  if (reasonsShown === reasons.join("\n")) return;
  reasonsShown = reasons.join("\n");
  byId("reasons").replaceChildren(...reasons.map((reason) => element("li", reason)));
  byId("reasons").hidden = reasons.length === 0;
}

async function askHealth() {
  try {
    const response = await fetch("health", { cache: "no-store" });
    showHealth(await response.json());
  } catch {
    setPill(byId("status"), "No answer", "bad");
    byId("facts").classList.add("old");
  } finally {
    setTimeout(askHealth, HEALTH_EVERY_MS);
  }
}

// --- the live stream ---------------------------------------------------------------------

let waiting = []; // messages not yet painted, newest last
let pressed = false; // the button
let touched = false; // the pointer or the focus is on the rows
let arrived = 0; // events since the last look at the rate

function isPaused() {
  return pressed || touched;
}

function showState({ state, unit_of_measurement: unit, removed }) {
  if (removed) return "removed";
  return unit ? `${state} ${unit}` : String(state);
}

function eventRow({ event }) {
  const row = document.createElement("tr");
  const entity = element("td", event.friendly_name || event.entity_id);
  if (event.friendly_name) entity.append(element("small", event.entity_id));
  const state = document.createElement("td");
  if (event.previous_state !== null && event.previous_state !== event.state) {
    state.append(element("span", `${event.previous_state} → `, "was"));
  }
  state.append(element("span", showState(event), "now"));
  const time = new Date(event.time).toLocaleTimeString(undefined, { hour12: false });
  row.append(element("td", time), entity, state, element("td", event.area_name ?? event.area_id ?? ""));
  return row;
}

function lostRow({ count: lost }) {
  const row = document.createElement("tr");
  const cell = element("td", `This page was too slow for ${count(lost, "event", "events")}.`, "lost");
  cell.colSpan = 4;
  row.append(cell);
  return row;
}

function paint() {
  if (isPaused() || waiting.length === 0) return;
  const rows = waiting.map((message) => (message.type === "event" ? eventRow(message) : lostRow(message)));
  waiting = [];
  rows.forEach((row) => row.classList.add("new"));
  const body = byId("events");
  body.prepend(...rows.reverse());
  while (body.rows.length > MAX_ROWS) body.lastElementChild.remove();
  byId("empty").hidden = true;
}

function keep(message) {
  if (message.type === "event") arrived += 1;
  waiting.push(message);
  if (waiting.length > 2 * MAX_ROWS) waiting = waiting.slice(-MAX_ROWS);
}

function showPause() {
  const button = byId("pause");
  button.textContent = pressed ? "Go on" : "Pause";
  button.setAttribute("aria-pressed", String(pressed));
  if (connected) setPill(byId("live-status"), isPaused() ? "Paused" : "Live", isPaused() ? "warn" : "good");
  paint();
}

let connected = false;
let wait_ms = FIRST_WAIT_MS;

function watch() {
  const address = new URL("ws?coalesce=1", location.href);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  let asking = false; // for the key: then a close is no reason to try again
  setPill(byId("live-status"), "Connecting…");

  socket.onmessage = ({ data }) => {
    const frame = JSON.parse(data);
    for (const message of Array.isArray(frame) ? frame : [frame]) {
      switch (message.type) {
        case "auth_required":
          asking = !offerKey(socket);
          break;
        case "auth_invalid":
          sessionStorage.removeItem(KEY);
          asking = true;
          askForKey(`${message.message}.`);
          break;
        case "hello":
          connected = true;
          wait_ms = FIRST_WAIT_MS;
          byId("key-form").hidden = true;
          showPause();
          break;
        case "event":
        case "dropped":
          keep(message);
          break;
      }
    }
  };
  socket.onclose = () => {
    connected = false;
    if (!asking) tryAgain();
  };
}

function tryAgain() {
  const until = Date.now() + wait_ms;
  wait_ms = Math.min(2 * wait_ms, MAX_WAIT_MS);
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1_000);
    if (left <= 0) {
      watch();
      return;
    }
    setPill(byId("live-status"), `Lost; trying again in ${left} s`, "bad");
    setTimeout(tick, 250);
  };
  tick();
}

/** Send the key of this tab, if there is one, and say whether there was. */
function offerKey(socket) {
  const key = sessionStorage.getItem(KEY);
  if (key === null) {
    askForKey();
    socket.close();
    return false;
  }
  socket.send(JSON.stringify({ type: "auth", api_key: key }));
  return true;
}

function askForKey(note = "It is kept in this tab until you close it.") {
  setPill(byId("live-status"), "Needs the API key", "warn");
  byId("key-note").textContent = note;
  byId("key-form").hidden = false;
  byId("key").focus();
}

// --- begin ---------------------------------------------------------------------------------

byId("key-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
  watch();
});

byId("pause").addEventListener("click", () => {
  pressed = !pressed;
  showPause();
});

for (const [name, isOn] of [
  ["pointerenter", true],
  ["pointerleave", false],
  ["focusin", true],
  ["focusout", false],
]) {
  byId("stream").addEventListener(name, (happened) => {
    // A finger leaves no pointer behind that would end the pause.
    if (happened.pointerType === "touch") return;
    touched = isOn;
    showPause();
  });
}

setInterval(paint, PAINT_EVERY_MS);
setInterval(() => {
  byId("rate").textContent = connected ? `${count(arrived, "event", "events")}/s` : "";
  arrived = 0;
}, 1_000);
askHealth();
watch();
