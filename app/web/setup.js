// Set-up: Home Assistant, the database, the first events. The service checks each entry before
// the next step.

import { byId, make, setText } from "./dom.js";
import { absolveAll, complain, focusFirstError } from "./forms.js";
import { Refused, ask, askHealth, key } from "./api.js";
import { DatabaseStage, NO_ANSWER, Stage, checkItem } from "./stages.js";
import { Stream } from "./stream.js";
import { ago, count, span, stateOf } from "./format.js";

const POLL_MS = 500;
const STARTS_MS = 60_000; // much more than a start takes
const LATEST = 7;

const homeAssistant = new Stage("home-assistant", { onLocked: lock });
const database = new DatabaseStage({ onLocked: lock });

// --- Home Assistant -----------------------------------------------------------------------

function enteredHome() {
  return { url: homeAssistant.input("url").value.trim(), token: homeAssistant.input("token").value.trim() };
}

homeAssistant.form.addEventListener("submit", async (happened) => {
  happened.preventDefault();
  absolveAll(homeAssistant.form);
  const body = enteredHome();
  if (!body.url) complain(homeAssistant.input("url"), "Enter the address of Home Assistant.");
  if (!body.token) complain(homeAssistant.input("token"), "Paste a token of Home Assistant.");
  if (focusFirstError(homeAssistant.form)) return;
  const answer = await homeAssistant.run("Checking Home Assistant…", "api/v1/setup/home-assistant", { method: "POST", body });
  if (answer === null || !homeAssistant.take(answer)) return;
  const version = answer.version ? ` ${answer.version}` : "";
  const entities = answer.entities ? `, ${count(answer.entities, "entity", "entities")}` : "";
  homeAssistant.finish(`Home Assistant${version} at ${body.url}${entities}`);
  byId("home-assistant-change").hidden = false;
  database.open();
});

byId("home-assistant-change").addEventListener("click", openHomeAssistant);

function openHomeAssistant() {
  byId("home-assistant-change").hidden = true;
  homeAssistant.open();
}

/** Link to the page of Home Assistant that creates tokens, once there is an address. */
function linkProfile() {
  const address = homeAssistant.input("url").value.trim();
  if (/^https?:/.test(address) && URL.canParse("/profile/security", address)) {
    byId("profile").href = new URL("/profile/security", address);
  } else {
    byId("profile").removeAttribute("href");
  }
}

homeAssistant.input("url").addEventListener("input", linkProfile);

function offerHomes(homes) {
  const input = homeAssistant.input("url");
  byId("found-homes").replaceChildren(...homes.map(({ url }) => make("option", { value: url })));
  if (homes.length === 0 || input.value) return;
  input.value = homes[0].url;
  setText(byId("home-assistant-url-help"), "Found on this network. Change it if this is another Home Assistant.");
  linkProfile();
}

// --- the database -------------------------------------------------------------------------

database.form.addEventListener("submit", async (happened) => {
  happened.preventDefault();
  const body = database.entered();
  if (body === null || !(await database.check(body))) return;
  const saved = await save(body);
  if (saved === null) return;
  database.finish(body.url ? `${database.kind.label} at ${body.url}` : database.kind.label);
  byId("home-assistant-change").hidden = true;
  if (saved.api_key) showKey(saved.api_key);
  await showFirstEvents();
});

/** Store the settings, which begins capture; return the answer, or null with the reason shown. */
async function save(entered) {
  database.say("Saving…", "busy");
  try {
    return await ask("api/v1/setup", { method: "PUT", body: { home_assistant: enteredHome(), database: entered } });
  } catch (problem) {
    const checks = problem.problem?.checks;
    if (checks) showWhatChanged(checks);
    else database.excuse(problem);
    return null;
  }
}

/** Show checks that failed now although they passed before. */
function showWhatChanged(checks) {
  const isOfDatabase = ({ name }) => name.startsWith("database");
  const ofHome = checks.filter((check) => !isOfDatabase(check));
  database.take({ ok: false, checks: checks.filter(isOfDatabase) });
  if (!ofHome.some(({ status }) => status === "failed")) return;
  database.say("");
  openHomeAssistant();
  homeAssistant.take({ ok: false, checks: ofHome });
}

/** Show the key that the service made for a browser on another machine; this tab keeps it. */
function showKey(made) {
  key.set(made);
  byId("new-key").value = made;
  byId("new-key-card").hidden = false;
}

byId("new-key-copy").addEventListener("click", async () => {
  byId("new-key").select();
  try {
    await navigator.clipboard.writeText(byId("new-key").value);
    setText(byId("new-key-copy"), "Copied");
  } catch {
    // without TLS a browser offers no clipboard; the key is selected
  }
});

// --- the first events -----------------------------------------------------------------------

const newest = [];

async function showFirstEvents() {
  const begun = Date.now();
  byId("events-title").focus();
  say("Starting…", "busy");
  let health = null;
  while (health?.status !== "healthy") {
    await pause();
    health = await healthOfCapture();
    if (health) showReasons(health.reasons);
    else if (Date.now() - begun > STARTS_MS) say("The service has not responded since. Its log says why.", "bad");
  }
  byId("to-dashboard").hidden = false;
  say("Connected. Waiting for the first change: switch a light, for example.", "busy");
  await listen();
  let first_s = null;
  for (;;) {
    const stored = health.sinks.reduce((total, { points_written: written }) => total + written, 0);
    if (stored) {
      first_s ??= (Date.now() - begun) / 1_000;
      say(`${count(stored, "event", "events")} stored; the first ${span(Math.max(1, Math.round(first_s)))} after the start.`, "good");
    }
    paint();
    await pause();
    health = (await healthOfCapture()) ?? health;
  }
}

/** Return the health of the capturing service; null before, and while it does not respond. */
async function healthOfCapture() {
  try {
    const health = await askHealth();
    return "sinks" in health ? health : null;
  } catch {
    return null;
  }
}

function showReasons(reasons) {
  byId("events-reasons").replaceChildren(...reasons.map((text) => checkItem({ status: "warning", text })));
  byId("events-reasons").hidden = reasons.length === 0;
}

/** Stream events, unless this browser may not read data: then the totals are all there is. */
async function listen() {
  try {
    await ask("api/v1/session");
  } catch (problem) {
    if (problem instanceof Refused) showReasons([problem.message]);
    return;
  }
  new Stream({ onMessages: take, onState: () => {} }).open();
}

function take(messages) {
  const events = messages.filter(({ type }) => type === "event").map(({ event }) => event);
  newest.unshift(...events.reverse());
  newest.length = Math.min(newest.length, LATEST);
  paint();
}

function paint() {
  byId("latest").replaceChildren(...newest.map(eventItem));
}

function eventItem(event) {
  return make(
    "li",
    {},
    make("span", {}, event.friendly_name || event.entity_id),
    make("b", {}, stateOf(event)),
    make("time", { dateTime: event.time }, ago(event.time)),
  );
}

function say(words, mood) {
  setText(byId("events-status"), words);
  byId("events-status").className = `stage-status ${mood}`;
}

const pause = () => new Promise((done) => setTimeout(done, POLL_MS));

// --- the start ------------------------------------------------------------------------------

function lock(words) {
  key.forget();
  byId("stages").hidden = true;
  setText(byId("key-note"), words);
  byId("key-form").hidden = false;
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (happened) => {
  happened.preventDefault();
  key.set(byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});

async function start() {
  // The key of a one-time link is a cookie by now.
  history.replaceState(null, "", location.pathname);
  byId("problem").hidden = true;
  byId("stages").hidden = false;
  try {
    const offered = await ask("api/v1/setup");
    if (!offered.needed) return location.replace("./");
    offerHomes(offered.found.home_assistant ?? []);
    if (!database.isOffered) database.offer(offered, { isFirst: true });
    const isIdle = document.activeElement === document.body;
    if (isIdle) homeAssistant.input(homeAssistant.input("url").value ? "token" : "url").focus();
  } catch (problem) {
    if (problem.status === 401) return lock(problem.message);
    byId("stages").hidden = true;
    setText(byId("problem"), problem instanceof Refused ? problem.message : NO_ANSWER);
    byId("problem").hidden = false;
  }
}

start();
