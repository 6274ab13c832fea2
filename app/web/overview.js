// The first view: whether all is well, and if not, which sentence to act on.

import { Plot } from "./chart.js";
import { byId, make, setText } from "./dom.js";
import { between, boundOf, bucketsOf, meanOf, samplesOf, totalOf, valueOf } from "./metrics.js";
import { ask, askText, has } from "./api.js";
import { VERDICT, ago, amount, clock, count, homeAssistantStep, journalStep, lostEvents, short, sinkStep, span, stateOf } from "./format.js";

const BIN_S = 5;
const WINDOW_S = 15 * 60;
const LEAST_WINDOW_S = 2 * 60;
const LATEST = 7;
const LATE_S = 30; // much more than a batch waits, or a slow database takes
// Latencies are those since the oldest look at /metrics that is kept: the last five minutes.
const LOOKS = 60;

export class Overview {
  constructor() {
    this._plot = new Plot(byId("rate-plot"), {
      say: ([at, events]) => `${clock(at)}: ${amount(Math.round(events * 10) / 10)}/s`,
    });
    this._looks = [];
    this._samples = [];
    this._latest = [];
    this._reasons = null;
    this._health = null;
    this._answered = 0;
  }

  /** How many dead letters there are, as of the last look. */
  get deadLetters() {
    return valueOf(this._samples, "ingest_dead_letters");
  }

  // --- health ------------------------------------------------------------------------------

  showHealth(health) {
    this._health = health;
    this._answered = Date.now();
    const [words, mood] = this._judged(health);
    this._verdict(words, mood, this._note(health));
    this._showReasons(health.reasons);
    this._showTiles(health);
    this._showWay(health);
    byId("view-overview").classList.remove("old");
  }

  showNoAnswer() {
    const last = this._answered ? ` What you see is ${span(Math.round((Date.now() - this._answered) / 1_000))} old.` : "";
    this._verdict("No answer", "bad", `The service does not answer; this page asks again by itself.${last}`);
    this._showReasons([]);
    byId("view-overview").classList.add("old");
  }

  _verdict(words, mood, note) {
    setText(byId("verdict"), words);
    byId("verdict-card").dataset.mood = mood;
    setText(byId("verdict-note"), note);
  }

  /** Nothing may be wrong now, and yet all is not well: what was lost stays lost. */
  _judged(health) {
    const dropped = this._dropped(health);
    if (health.status === "healthy" && dropped) return [`Running, but ${count(dropped, "change was", "changes were")} lost`, "warn"];
    return VERDICT[health.status] ?? [health.status, "bad"];
  }

  _dropped({ sinks, ...health }) {
    const ofSink = ({ name }) => valueOf(this._samples, "ingest_sink_points_dropped_total", name);
    return sinks.reduce((total, sink) => total + ofSink(sink), lostEvents(health));
  }

  _note({ status, connection, subscription, uptime_seconds: uptime }) {
    if (status !== "healthy") return "Capturing goes on where it can. What to look at, worst first:";
    const events = count(subscription.total_events_received, "change", "changes");
    const version = connection.ha_version ? ` ${connection.ha_version}` : "";
    return `Listening to Home Assistant${version}. ${events} since the start, ${span(uptime)} ago.`;
  }

  _showReasons(reasons) {
    // Untouched when nothing changed: a screen reader would say them again and again.
    if (this._reasons === reasons.join("\n")) return;
    this._reasons = reasons.join("\n");
    byId("reasons").replaceChildren(...reasons.map(reasonItem));
    byId("reasons").hidden = reasons.length === 0;
  }

  _showTiles(health) {
    const { sinks, journal } = health;
    const held = sinks.reduce((total, sink) => total + sink.held, 0);
    const written = sinks.reduce((total, sink) => total + sink.points_written, 0);
    const letters = this.deadLetters;
    const dropped = this._dropped(health);
    const oldest = Math.max(0, ...sinks.map((sink) => sink.lag_seconds));
    const isBehind = oldest > LATE_S || sinks.some(({ state }) => state !== "ok");
    byId("tiles").replaceChildren(
      tile("Written", short(written), sinks.length > 1 ? `points, to ${sinks.length} sinks` : "points"),
      tile("Held", short(held), held ? `the oldest for ${span(oldest)}` : "nothing waits", held && isBehind ? "warn" : ""),
      tile("Dead letters", short(letters), letters ? "refused by the database" : "none refused", letters ? "warn" : ""),
      tile("Dropped", short(dropped), dropped ? "lost at a bound" : "nothing lost", dropped ? "bad" : ""),
      this._latencyTile("Durable", "ingest_commit_delay_seconds"),
      this._latencyTile("In the database", "ingest_sink_delay_seconds"),
      tile("Journal", short(journal.pending_points), journal.pending_points ? "events to commit" : "all committed"),
      gapTile(health.gaps),
    );
  }

  _latencyTile(name, histogram) {
    const before = this._looks[0] ?? [];
    const mean_s = meanOf(before, this._samples, histogram);
    if (mean_s === null) return tile(name, "–", "no figure yet");
    const most_s = boundOf(between(bucketsOf(before, histogram), bucketsOf(this._samples, histogram)), 0.99);
    const most = most_s === Infinity ? "over an hour at times" : `99\u00a0% within ${span(most_s)}`;
    return tile(name, span(mean_s), `on average; ${most}`);
  }

  _showWay(health) {
    const books = ({ name }) => ({
      deadLettered: valueOf(this._samples, "ingest_sink_points_dead_lettered_total", name),
      dropped: totalOf(this._samples, "ingest_sink_points_dropped_total", name),
    });
    const steps = [
      homeAssistantStep(health),
      journalStep(health),
      ...health.sinks.map((sink) => sinkStep(sink, books(sink))),
    ];
    byId("way").replaceChildren(...steps.map(stepItem));
  }

  // --- what needs the key --------------------------------------------------------------------

  async look() {
    const text = await askText("metrics");
    this._samples = samplesOf(text);
    this._looks.push(this._samples.filter(({ name }) => /_(bucket|sum|count)$/.test(name)));
    // The first look has nothing to compare with, and shows all since the start.
    if (this._looks.length === 1) this._looks.unshift([]);
    else if (this._looks.length === 3 && this._looks[0].length === 0) this._looks.shift();
    if (this._looks.length > LOOKS) this._looks.shift();
    if (this._health) this._showTiles(this._health);
  }

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

  /** The last 15 minutes, or less of them while the service is younger than that. */
  _window_s() {
    const uptime_s = this._health?.uptime_seconds ?? WINDOW_S;
    return Math.min(WINDOW_S, Math.max(LEAST_WINDOW_S, Math.ceil(uptime_s / BIN_S) * BIN_S));
  }

  async showGaps() {
    if (!(await has("/api/v1/gaps"))) return;
    const { gaps } = await ask("api/v1/gaps");
    byId("gaps-card").hidden = gaps.length === 0;
    setText(byId("gaps-note"), "Spans of time in which nothing was captured, and what became of them.");
    byId("gaps").replaceChildren(
      ...gaps.slice(0, 50).map((gap) =>
        make("tr", {}, ...[clock(gap.start), gap.end ? clock(gap.end) : "now", gap.state, count(gap.changes ?? 0, "change", "changes"), gap.detail ?? gap.reason ?? ""].map((text) => make("td", {}, text))),
      ),
    );
  }

  // --- just now ------------------------------------------------------------------------------

  /** Take events, oldest first; they are shown with the next `paint`. */
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

/** Return a reason, with a way to the view that can do something about it. */
function reasonItem(reason) {
  const item = make("li", {}, reason);
  if (reason.includes("dead letter")) item.append(" ", make("a", { href: "#/dead-letters" }, "See the dead letters"));
  return item;
}

function tile(name, value, note, mood = "") {
  return make("div", { className: `tile ${mood}` }, make("dt", {}, name), make("dd", {}, make("b", {}, value), make("span", {}, note)));
}

function gapTile({ open, filled, unfillable }) {
  if (open) return tile("Gaps", amount(open), "to be read back", "warn");
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
