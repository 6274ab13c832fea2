// The live view: the newest events that match the filters, at a bounded cost per second.

import { byId, make, setChoices, setText } from "./dom.js";
import { amount, clock, count, stateOf } from "./format.js";

const MAX_ROWS = 150;
const MAX_EVENTS = 2_000;
const MOST_IDS = 2_000;
const MOST_LIT = 20;

export class Live {
  constructor(home, { onPause }) {
    this._home = home;
    this._onPause = onPause;
    this._events = []; // the newest events, oldest first, unfiltered
    this._waiting = []; // events and drops not painted yet
    this._pressed = false;
    this._touched = false;
    this._arrived = 0;
    this._seen = 0;
    this._rate = 0;
    this._fits = () => true;
    this._shape = -1;
    byId("pause").addEventListener("click", () => this._press());
    const filters = byId("live-filters");
    filters.addEventListener("submit", (happened) => happened.preventDefault());
    filters.addEventListener("input", () => this._filter());
    filters.addEventListener("reset", () => setTimeout(() => this._filter()));
    this._watchTouch();
  }

  get isPaused() {
    return this._pressed || this._touched;
  }

  take(messages) {
    const events = messages.filter(({ type }) => type === "event").length;
    this._arrived += events;
    this._waiting.push(...messages);
    if (this._waiting.length > 2 * MAX_EVENTS) this._waiting = this._waiting.slice(-MAX_EVENTS);
  }

  /** Show waiting events; nothing moves under the pointer or while paused. */
  paint() {
    if (this.isPaused || this._waiting.length === 0) return;
    const arrived = this._waiting;
    this._waiting = [];
    const events = arrived.filter(({ type }) => type === "event").map(({ event }) => event);
    this._events = [...this._events, ...events].slice(-MAX_EVENTS);
    const rows = [];
    for (let index = arrived.length - 1; index >= 0 && rows.length < MAX_ROWS; index -= 1) {
      const message = arrived[index];
      if (message.type === "dropped") rows.push(lostRow(message));
      else if (this._fits(message.event)) rows.push(eventRow(message.event));
    }
    // Highlight a few; many would flicker.
    if (rows.length <= MOST_LIT) for (const row of rows) row.classList.add("new");
    const body = byId("events");
    body.prepend(...rows);
    while (body.rows.length > MAX_ROWS) body.lastElementChild.remove();
    this._showEmpty();
  }

  /** Update the rate and the filter choices, once a second. */
  tick() {
    this._rate = this._arrived - this._seen;
    this._seen = this._arrived;
    const held = this.isPaused && this._waiting.length ? ` ${count(this._waiting.length, "event waits", "events wait")}.` : "";
    const pace = `${amount(this._rate)} per second, ${amount(this._arrived)} since this page was opened.`;
    setText(byId("live-note"), this.isPaused ? `Paused.${held}` : pace);
    if (this._shape === this._home.shape) return;
    this._shape = this._home.shape;
    setChoices(byId("live-area"), this._home.areaChoices());
    setChoices(byId("live-domain"), this._home.domainChoices());
    const ids = [...this._home.entities.keys()].sort().slice(0, MOST_IDS);
    byId("entity-ids").replaceChildren(...ids.map((value) => make("option", { value })));
  }

  _press() {
    this._pressed = !this._pressed;
    setText(byId("pause"), this._pressed ? "Resume" : "Pause");
    byId("pause").setAttribute("aria-pressed", String(this._pressed));
    this._paused();
  }

  _paused() {
    this.tick();
    this._onPause();
    this.paint();
  }

  _watchTouch() {
    for (const [name, isOn] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]]) {
      byId("stream").addEventListener(name, (happened) => {
        // Touch leaves no pointer whose leaving would end the pause.
        if (happened.pointerType === "touch") return;
        this._touched = isOn;
        this._paused();
      });
    }
  }

  _filter() {
    this._fits = fits({
      words: byId("live-search").value,
      area_id: byId("live-area").value,
      domain: byId("live-domain").value,
      entity_id: byId("live-entity").value,
      home: this._home,
    });
    const rows = [];
    for (let index = this._events.length - 1; index >= 0 && rows.length < MAX_ROWS; index -= 1) {
      if (this._fits(this._events[index])) rows.push(eventRow(this._events[index]));
    }
    byId("events").replaceChildren(...rows);
    this._showEmpty();
  }

  _showEmpty() {
    const isEmpty = byId("events").rows.length === 0;
    byId("live-empty").hidden = !isEmpty;
    if (isEmpty && this._events.length) setText(byId("live-empty"), "No event matches these filters yet.");
  }
}

/** Return a predicate for events, or for entities of the home. */
export function fits({ words, area_id, domain, entity_id = "", home }) {
  const wanted = words.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const glob = entity_id.trim() ? globbed(entity_id.trim()) : null;
  return (event) => {
    if (area_id && event.area_id !== area_id) return false;
    if (domain && event.domain !== domain) return false;
    if (glob && !glob.test(event.entity_id)) return false;
    if (wanted.length === 0) return true;
    const name = event.friendly_name ?? event.name ?? "";
    const place = event.area_id ? home.areaName(event.area_id) : "";
    const device = event.device_id ? home.deviceName(event.device_id) ?? "" : "";
    const text = `${name} ${event.entity_id} ${event.state} ${place} ${device}`.toLowerCase();
    return wanted.every((word) => text.includes(word));
  };
}

/** Matches part of an id; with `*` or `?` the pattern must match all of it. */
function globbed(text) {
  const escaped = text.replace(/[.+^${}()|[\]\\]/g, "\\$&");
  if (!/[*?]/.test(text)) return new RegExp(escaped, "i");
  return new RegExp(`^${escaped.replaceAll("*", ".*").replaceAll("?", ".")}$`, "i");
}

function eventRow(event) {
  const link = make("a", { href: `#/entity/${encodeURIComponent(event.entity_id)}` }, event.friendly_name || event.entity_id);
  const place = event.area_name ?? event.area_id ?? "";
  const time = clock(event.time);
  // On a narrow page, time and area are shown here instead of in columns, and the id is hidden.
  const below = make(
    "small",
    {},
    make("span", { className: "id" }, event.friendly_name ? event.entity_id : ""),
    make("span", { className: "at" }, time),
    make("span", { className: "place" }, place && ` · ${place}`),
  );
  const entity = make("td", {}, link, below);
  const state = make("td", {});
  if (event.previous_state !== null && event.previous_state !== event.state) {
    state.append(make("span", { className: "was" }, `${event.previous_state} → `));
  }
  state.append(make("b", {}, stateOf(event)));
  return make("tr", {}, make("td", {}, time), entity, state, make("td", {}, place));
}

function lostRow({ count: lost }) {
  return make("tr", {}, make("td", { colSpan: 4, className: "lost" }, `This page was too slow and missed ${count(lost, "event", "events")}.`));
}
