// Small charts: the shapes are SVG stretched to the width there is, the words around them are
// HTML, so that they stay sharp and keep their size.

import { draw, make } from "./dom.js";

const WIDTH = 1_000;
const HEIGHT = 100;
const Y_TICKS = 4;

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const STEPS_MS = [MINUTE_MS, 2 * MINUTE_MS, 5 * MINUTE_MS, 15 * MINUTE_MS, HOUR_MS, 2 * HOUR_MS, 6 * HOUR_MS, DAY_MS, 2 * DAY_MS];
const MOST_X_TICKS = 5;

const hourWords = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const dayWords = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric" });

/**
 * A chart of one value over time, as an area under steps: a value holds until the next one.
 *
 * Points are [milliseconds since the epoch, number or null]; null breaks the line.
 */
export class Plot {
  constructor(host, { say }) {
    this._say = say;
    this._points = [];
    this._area = draw("path", { class: "area" });
    this._line = draw("path", { class: "line" });
    this._rules = draw("g", { class: "rules" });
    this._figure = make("figure", { className: "plot", role: "img", ariaLabel: "Nothing to draw yet" });
    this._pane = make("div", { className: "pane" });
    this._svg = draw(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      this._rules,
      this._area,
      this._line,
    );
    this._cursor = make("div", { className: "cursor", hidden: true });
    this._readout = make("div", { className: "readout", hidden: true });
    this._y = make("div", { className: "axis-y" });
    this._x = make("div", { className: "axis-x" });
    this._pane.append(this._svg, this._cursor, this._readout);
    this._figure.append(this._y, this._pane, this._x);
    host.replaceChildren(this._figure);
    this._pane.addEventListener("pointermove", ({ clientX }) => this._point(clientX));
    this._pane.addEventListener("pointerleave", () => this._unpoint());
  }

  draw({ points, from, to, label, fromZero = false }) {
    this._points = points;
    this._from = from;
    this._to = to;
    const numbers = points.map(([, y]) => y).filter((y) => y !== null);
    const ticks = niceTicks(fromZero ? 0 : Math.min(...numbers), Math.max(...numbers));
    const [low, high] = [ticks[0], ticks.at(-1)];
    // What lies outside is drawn at the edge: another clock may be ahead of this one.
    const x = (moment) => (WIDTH * (Math.min(to, Math.max(from, moment)) - from)) / (to - from);
    const y = (value) => HEIGHT - (HEIGHT * (value - low)) / (high - low);
    const [line, area] = paths(points, { x, y, end: x(to) });
    this._line.setAttribute("d", line);
    this._area.setAttribute("d", area);
    this._rules.replaceChildren(
      ...ticks.map((tick) => draw("line", { x1: 0, x2: WIDTH, y1: y(tick), y2: y(tick) })),
    );
    this._y.replaceChildren(...ticks.map((tick) => placed(sayTick(tick), "bottom", (tick - low) / (high - low))));
    this._x.replaceChildren(...timeTicks(from, to));
    this._figure.setAttribute("aria-label", label);
  }

  _point(clientX) {
    const box = this._pane.getBoundingClientRect();
    const moment = this._from + ((clientX - box.left) / box.width) * (this._to - this._from);
    const point = this._points.findLast(([at]) => at <= moment);
    this._cursor.hidden = this._readout.hidden = point === undefined;
    if (point === undefined) return;
    const share = Math.max(0, point[0] - this._from) / (this._to - this._from);
    this._cursor.style.left = `${100 * share}%`;
    this._readout.style.left = `${100 * share}%`;
    this._readout.classList.toggle("left", share > 0.6);
    this._readout.textContent = this._say(point);
  }

  _unpoint() {
    this._cursor.hidden = this._readout.hidden = true;
  }
}

/** Return the path of the line and of the area below it. */
function paths(points, { x, y, end }) {
  const line = [];
  const area = [];
  let begun = null;
  const close = (at) => {
    if (begun === null) return;
    line.push(`H${at}`);
    area.push(`H${at}V${HEIGHT}H${begun}Z`);
    begun = null;
  };
  for (const [moment, value] of points) {
    const at = round(x(moment));
    if (value === null) {
      close(at);
    } else if (begun === null) {
      begun = at;
      line.push(`M${at},${round(y(value))}`);
      area.push(`M${at},${round(y(value))}`);
    } else {
      line.push(`H${at}V${round(y(value))}`);
      area.push(`H${at}V${round(y(value))}`);
    }
  }
  close(round(end));
  return [line.join(""), area.join("")];
}

const round = (some) => Math.round(some * 100) / 100;

/** Return a few round numbers around the range, the ends included. */
function niceTicks(low, high) {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  const wide = high - low || Math.abs(high) * 0.1 || 1;
  const raw = wide / Y_TICKS;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const first = Math.floor(low / step);
  const last = Math.max(Math.ceil(high / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

function sayTick(tick) {
  return Math.abs(tick) >= 10_000 ? `${Math.round(tick / 100) / 10}k` : String(tick);
}

/** Return the words under a time axis, at round moments of this place's time. */
function timeTicks(from, to) {
  const step = STEPS_MS.find((each) => (to - from) / each <= MOST_X_TICKS) ?? STEPS_MS.at(-1);
  const offset = new Date(from).getTimezoneOffset() * MINUTE_MS;
  const ticks = [];
  for (let at = Math.ceil((from - offset) / step) * step + offset; at <= to; at += step) {
    const share = (at - from) / (to - from);
    if (share < 0.06 || share > 0.97) continue;
    ticks.push(placed((step >= DAY_MS ? dayWords : hourWords).format(at), "left", share));
  }
  return ticks;
}

function placed(text, side, share) {
  const word = make("span", {}, text);
  word.style[side] = `${100 * share}%`;
  return word;
}

// --- states that are words -----------------------------------------------------------------

const HUES = 6;
const QUIET = new Set(["off", "closed", "not_home", "idle", "standby", "unlocked", "clear", "below_horizon"]);
const AWAY = new Set(["unavailable", "unknown", "removed"]);

/** Show the states over time as a band of colors, with a legend of their durations. */
export class Band {
  constructor(host) {
    this._svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this._x = make("div", { className: "axis-x" });
    this._figure = make("figure", { className: "plot band", role: "img", ariaLabel: "Nothing to draw yet" }, make("div", { className: "pane" }, this._svg), this._x);
    this._legend = make("ul", { className: "legend" });
    host.replaceChildren(this._figure, this._legend);
  }

  /** Spans are [from, to, state], oldest first; `say` formats a duration in seconds. */
  draw({ spans, from, to, label, say }) {
    const lasted = new Map();
    for (const [begun, ended, state] of spans) lasted.set(state, (lasted.get(state) ?? 0) + ended - begun);
    const hues = new Map();
    for (const state of lasted.keys()) hues.set(state, hueOf(state, hues.size));
    const x = (moment) => (WIDTH * (Math.min(to, Math.max(from, moment)) - from)) / (to - from);
    this._svg.replaceChildren(
      ...spans.map(([begun, ended, state]) => {
        const left = round(x(begun));
        const band = draw("rect", { class: hues.get(state), x: left, y: 0, width: Math.max(0.8, round(x(ended)) - left), height: HEIGHT });
        band.append(draw("title", {}, `${state}, ${say((ended - begun) / 1_000)}`));
        return band;
      }),
    );
    const longest = [...lasted].sort(([, one], [, other]) => other - one);
    this._legend.replaceChildren(
      ...longest.map(([state, ms]) =>
        make("li", {}, make("i", { className: hues.get(state) }), make("b", {}, state), ` ${say(ms / 1_000)}`),
      ),
    );
    this._x.replaceChildren(...timeTicks(from, to));
    this._figure.setAttribute("aria-label", label);
  }
}

function hueOf(state, number) {
  if (AWAY.has(state)) return "hue-away";
  return QUIET.has(state) ? "hue-quiet" : `hue-${number % HUES}`;
}
