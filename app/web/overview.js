// The overview: status, what needs attention, totals, event rate and latest events.

import { Plot } from "./chart.js";
import { byId, make, setText } from "./dom.js";
import { ask, has } from "./api.js";
import { VERDICT, ago, amount, clock, count, droppedOf, homeAssistantStep, journalStep, short, sinkStep, span, stateOf } from "./format.js";

const BIN_S = 5;
const WINDOW_S = 15 * 60;
const LEAST_WINDOW_S = 2 * 60;
const LATEST = 7;
const LATE_S = 30; // much more than a batch waits, or a slow database takes

export class Overview {
  constructor() {
    this._plot = new Plot(byId("rate-plot"), {
      say: ([at, events]) => `${clock(at)}: ${amount(Math.round(events * 10) / 10)}/s`,
    });
    this._latest = [];
    this._reasons = null;
    this._health = null;
    this._answered = 0;
  }

  // --- health ------------------------------------------------------------------------------

  showHealth(health) {
    this._health = health;
    this._answered = Date.now();
    const [words, mood] = verdictOf(health);
    this._verdict(words, mood, this._note(health));
    this._showReasons(health.reasons);
    this._showTiles(health);
    this._showPipeline(health);
    byId("view-overview").classList.remove("old");
  }

  showNoAnswer() {
    const last = this._answered ? ` This page shows the state of ${span(Math.round((Date.now() - this._answered) / 1_000))} ago.` : "";
    this._verdict("No response", "bad", `The service does not respond; this page retries automatically.${last}`);
    this._showReasons([]);
    byId("view-overview").classList.add("old");
  }

  _verdict(words, mood, note) {
    setText(byId("verdict"), words);
    byId("verdict-card").dataset.mood = mood;
    setText(byId("verdict-note"), note);
  }

  _note({ status, connection, subscription, uptime_seconds: uptime }) {
    if (status !== "healthy") return "The service keeps capturing what it can. Needs attention, worst first:";
    const events = count(subscription.total_events_received, "change", "changes");
    const version = connection.ha_version ? ` ${connection.ha_version}` : "";
    return `Connected to Home Assistant${version}. ${events} in ${span(uptime)}.`;
  }

  _showReasons(reasons) {
    // Unchanged reasons stay untouched: a screen reader would repeat them.
    if (this._reasons === reasons.join("\n")) return;
    this._reasons = reasons.join("\n");
    byId("reasons").replaceChildren(...reasons.map(reasonItem));
    byId("reasons").hidden = reasons.length === 0;
  }

  _showTiles(health) {
    const { sinks, journal } = health;
    const held = sinks.reduce((total, sink) => total + sink.held, 0);
    const written = sinks.reduce((total, sink) => total + sink.points_written, 0);
    const letters = health.dead_letters;
    const dropped = droppedOf(health);
    const oldest = Math.max(0, ...sinks.map((sink) => sink.lag_seconds));
    const isBehind = oldest > LATE_S || sinks.some(({ state }) => state !== "ok");
    byId("tiles").replaceChildren(
      tile("Written", short(written), sinks.length > 1 ? `points to ${sinks.length} sinks` : "points"),
      tile("Buffered", short(held), held ? `oldest ${span(oldest)}` : "nothing buffered", held && isBehind ? "warn" : ""),
      tile("Dead letters", short(letters), letters ? "rejected by the database" : "none rejected", letters ? "warn" : ""),
      tile("Dropped", short(dropped), dropped ? "lost" : "nothing lost", dropped ? "bad" : ""),
      delayTile("Time to journal", [journal.last_commit_delay_seconds]),
      delayTile("Time to database", sinks.map((sink) => sink.last_delay_seconds)),
      tile("Journal", short(journal.pending_points), journal.pending_points ? "events to commit" : "all committed"),
      gapTile(health.gaps),
    );
  }

  _showPipeline(health) {
    const steps = [homeAssistantStep(health), journalStep(health), ...health.sinks.map(sinkStep)];
    byId("pipeline").replaceChildren(...steps.map(stepItem));
  }

  // --- what needs the key --------------------------------------------------------------------

  async showRate() {
    const { seconds, events_per_minute: perMinute } = await ask("api/v1/event-rate");
    setText(byId("rate-now"), short(Math.round(perMinute)));
    const to = Math.floor(Date.now() / 1_000 / BIN_S) * BIN_S;
    const window_s = this._window_s();
    const bins = new Map();
    for (const { time, events } of seconds) {
      const bin = Math.floor(Date.parse(time) / 1_000 / BIN_S) * BIN_S;
      bins.set(bin, (bins.get(bin) ?? 0) + events);
    }
    const points = [];
    for (let at = to - window_s; at < to; at += BIN_S) points.push([at * 1_000, (bins.get(at) ?? 0) / BIN_S]);
    const most = Math.max(...points.map(([, y]) => y));
    this._plot.draw({
      points,
      from: (to - window_s) * 1_000,
      to: to * 1_000,
      fromZero: true,
      label: `Events per second over the last ${span(window_s)}: at most ${amount(most)}; ${amount(Math.round(perMinute))} in the last minute`,
    });
  }

  /** The last 15 minutes, or the time since the start of the service if that is shorter. */
  _window_s() {
    const uptime_s = this._health?.uptime_seconds ?? WINDOW_S;
    return Math.min(WINDOW_S, Math.max(LEAST_WINDOW_S, Math.ceil(uptime_s / BIN_S) * BIN_S));
  }

  async showGaps() {
    if (!(await has("/api/v1/gaps"))) return;
    const { gaps } = await ask("api/v1/gaps");
    byId("gaps-card").hidden = gaps.length === 0;
    setText(byId("gaps-note"), "Times when nothing was captured, and whether they were filled from Home Assistant's history.");
    byId("gaps").replaceChildren(
      ...gaps.slice(0, 50).map((gap) =>
        make("tr", {}, ...[clock(gap.start), gap.end ? clock(gap.end) : "now", gap.state, count(gap.changes ?? 0, "change", "changes"), gap.detail ?? gap.reason ?? ""].map((text) => make("td", {}, text))),
      ),
    );
  }

  // --- latest ------------------------------------------------------------------------------

  /** Add events, oldest first; the next `paint` shows them. */
  take(events) {
    if (events.length === 0) return;
    this._latest = [...this._latest, ...events.slice(-LATEST)].slice(-LATEST);
    this._isNew = true;
  }

  paint() {
    if (!this._isNew) return;
    this._isNew = false;
    byId("latest").replaceChildren(...this._latest.toReversed().map(latestItem));
    byId("latest-empty").hidden = true;
  }
}

/** What was lost stays lost, so a healthy service that dropped events is not shown as all well. */
function verdictOf(health) {
  const dropped = droppedOf(health);
  if (health.status === "healthy" && dropped) return [`Running, but ${count(dropped, "change was", "changes were")} lost`, "warn"];
  return VERDICT[health.status] ?? [health.status, "bad"];
}

/** Return a reason, with a link to the view that helps. */
function reasonItem(reason) {
  const item = make("li", {}, reason);
  if (reason.includes("dead letter")) item.append(" ", make("a", { href: "#/dead-letters" }, "See the dead letters"));
  return item;
}

function tile(name, value, note, mood = "") {
  return make("div", { className: `tile ${mood}` }, make("dt", {}, name), make("dd", {}, make("b", {}, value), make("span", {}, note)));
}

/** Return the slowest of the last delays from receipt until a point was stored. */
function delayTile(name, delays) {
  const known = delays.filter((delay) => delay !== null);
  return known.length ? tile(name, span(Math.max(...known)), "last batch") : tile(name, "–", "no data yet");
}

function gapTile({ open, filled, unfillable }) {
  if (open) return tile("Gaps", amount(open), "to be filled", "warn");
  if (unfillable) return tile("Gaps", amount(unfillable), "could not be filled", "warn");
  return tile("Gaps", filled ? amount(filled) : "0", filled ? "all filled" : "none found");
}

function stepItem({ name, words, mood, facts, error }) {
  return make(
    "li",
    { className: `step ${mood}` },
    make("h3", {}, make("i", { className: "dot", ariaHidden: "true" }), name),
    make("p", { className: "step-words" }, words),
    error ? make("p", { className: "step-error" }, error) : null,
    make("dl", { className: "facts" }, ...facts.map(([term, fact]) => make("div", {}, make("dt", {}, term), make("dd", {}, fact)))),
  );
}

function latestItem(event) {
  const link = make("a", { href: `#/entity/${encodeURIComponent(event.entity_id)}` }, event.friendly_name || event.entity_id);
  return make("li", {}, link, make("b", {}, stateOf(event)), make("time", { dateTime: event.time }, ago(event.time)));
}
