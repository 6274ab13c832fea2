// One entity: its current state, and its history from the embedded store as a chart.

import { Band, Plot } from "./chart.js";
import { byId, make, setText } from "./dom.js";
import { ask } from "./api.js";
import { ago, clock, count, span, stateOf } from "./format.js";

const HOUR_MS = 3_600_000;
const RANGES = [["1 h", HOUR_MS], ["6 h", 6 * HOUR_MS], ["24 h", 24 * HOUR_MS], ["7 days", 168 * HOUR_MS]];
const PAGE = 1_000;
const PAGES = 5;
const LISTED = 100;
const NUMBER = /^-?\d+(\.\d+)?([eE][+-]?\d+)?$/;

export class Entity {
  constructor(home) {
    this._home = home;
    this._id = null;
    this._range_ms = HOUR_MS;
    this._requests = 0;
    this._kind = null;
    byId("ranges").append(
      ...RANGES.map(([words, ms]) => {
        const button = make("button", { type: "button" }, words);
        button.setAttribute("aria-pressed", String(ms === this._range_ms));
        button.addEventListener("click", () => this._choose(ms));
        return button;
      }),
    );
  }

  /** Show an entity; `hasStore` says whether there is an embedded store. */
  async show(entity_id, hasStore) {
    this._id = entity_id;
    this._hasStore = hasStore;
    this._kind = null;
    byId("entity-plot").replaceChildren();
    byId("changes").replaceChildren();
    byId("entity-changes").hidden = true;
    this.paint();
    await this.load();
  }

  /** Show the current state. */
  paint() {
    const entity = this._home.entities.get(this._id);
    const name = entity?.name || this._id;
    setText(byId("entity-title"), name);
    setText(byId("entity-id"), this._id);
    const device = entity?.device_id ? this._home.deviceName(entity.device_id) : null;
    const place = entity?.area_id ? this._home.areaName(entity.area_id) : null;
    setText(byId("entity-place"), [place, device].filter(Boolean).map((part) => ` / ${part}`).join(""));
    const isKnown = entity !== undefined && entity.time !== null;
    setText(byId("entity-state"), isKnown ? stateOf(entity) : "–");
    setText(byId("entity-since"), isKnown ? `updated ${ago(entity.time)}` : "not seen yet");
  }

  /** Load the history and draw it. */
  async load() {
    if (!this._hasStore) {
      setText(byId("entity-note"), "Its history is in InfluxDB. To see it here, set EMBEDDED_STORE=on.");
      return;
    }
    const number = (this._requests += 1);
    const to = Date.now();
    const from = to - this._range_ms;
    const { events, isWhole } = await this._history(from);
    if (number !== this._requests) return; // superseded
    this._draw(events, isWhole ? from : Date.parse(events[0].time), to);
    this._list(events);
    setText(byId("entity-note"), this._words(events, isWhole));
  }

  _choose(ms) {
    this._range_ms = ms;
    for (const [index, button] of [...byId("ranges").children].entries()) {
      button.setAttribute("aria-pressed", String(RANGES[index][1] === ms));
    }
    this.load().catch(() => setText(byId("entity-note"), "The history could not be loaded; try again."));
  }

  /** Return the events of the range, oldest first, preceded by the one before it. */
  async _history(from) {
    const address = `api/v1/events/${encodeURIComponent(this._id)}`;
    const begin = new Date(from).toISOString();
    const events = [];
    let cursor = "";
    let isWhole = false;
    for (let page = 0; page < PAGES && !isWhole; page += 1) {
      const found = await ask(`${address}?limit=${PAGE}&start=${begin}${cursor}`);
      events.push(...found.events);
      isWhole = found.next_cursor === null;
      cursor = `&cursor=${encodeURIComponent(found.next_cursor)}`;
    }
    if (isWhole) events.push(...(await ask(`${address}?limit=1&end=${begin}`)).events);
    return { events: events.reverse(), isWhole };
  }

  _draw(events, from, to) {
    const numeric = events.filter(({ state }) => NUMBER.test(state)).length;
    const kind = numeric > events.length / 2 ? "number" : "word";
    if (events.length === 0) {
      byId("entity-plot").replaceChildren();
      this._kind = null;
      return;
    }
    const unit = events.at(-1).unit_of_measurement ?? "";
    if (kind !== this._kind) {
      this._kind = kind;
      const say = ([at, value]) => `${clock(at)}: ${value === null ? "unavailable" : `${value} ${this._unit}`}`;
      this._chart = kind === "number" ? new Plot(byId("entity-plot"), { say }) : new Band(byId("entity-plot"));
    }
    this._unit = unit;
    const name = byId("entity-title").textContent;
    if (kind === "number") {
      const points = events.map(({ time, state }) => [Date.parse(time), NUMBER.test(state) ? Number(state) : null]);
      const values = points.map(([, y]) => y).filter((y) => y !== null);
      const label = `${name}, ${count(values.length, "value", "values")}: from ${Math.min(...values)} to ${Math.max(...values)} ${unit}`;
      this._chart.draw({ points, from, to, label });
    } else {
      this._chart.draw({ spans: spansOf(events, from, to), from, to, say: span, label: `${name}: states over time` });
    }
  }

  _list(events) {
    const newest = events.slice(-LISTED).reverse();
    byId("entity-changes").hidden = newest.length === 0;
    setText(byId("changes-note"), events.length > LISTED ? `The newest ${LISTED}` : "");
    byId("changes").replaceChildren(
      ...newest.map((event) =>
        make(
          "tr",
          {},
          make("td", {}, clock(event.time)),
          make("td", {}, make("b", {}, stateOf(event)), event.backfilled ? make("small", {}, "backfilled") : null),
          make("td", {}, event.previous_state ?? ""),
          make("td", {}, event.duration ? span(event.duration) : ""),
        ),
      ),
    );
  }

  _words(events, isWhole) {
    if (events.length === 0) return "The embedded store has no changes of this entity.";
    return isWhole ? "" : `Changes often: showing the newest ${count(events.length, "change", "changes")}.`;
  }
}

/** Return the states as [from, to, state], oldest first. */
function spansOf(events, from, to) {
  const spans = [];
  for (const [index, event] of events.entries()) {
    const begun = Math.max(from, Date.parse(event.time));
    const ended = index + 1 < events.length ? Math.max(from, Date.parse(events[index + 1].time)) : to;
    const state = event.removed ? "removed" : event.state;
    const last = spans.at(-1);
    if (last !== undefined && last[2] === state) last[1] = ended;
    else spans.push([begun, ended, state]);
  }
  return spans;
}
