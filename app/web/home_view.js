// The home view: devices and entities by area, each with its last state.

import { byId, make, setChoices, setText } from "./dom.js";
import { fits } from "./live.js";
import { amount, count, day, stateOf } from "./format.js";

// Rows on the page at once: with more, areas are collapsed and open this many at a time.
const ROWS = 500;

export class HomeView {
  constructor(home) {
    this._home = home;
    this._rows = new Map(); // entity_id -> its row on the page
    this._opened = new Map(); // area_id -> how many of its rows are shown, in a large home
    this._shape = -1;
    const filters = byId("home-filters");
    filters.addEventListener("submit", (happened) => happened.preventDefault());
    filters.addEventListener("input", () => this.build());
    filters.addEventListener("reset", () => setTimeout(() => this.build()));
  }

  /** Show what changed; rebuild only when something was added or moved. */
  paint() {
    const changed = this._home.takeChanged();
    if (this._shape !== this._home.shape) {
      this.build();
      return;
    }
    for (const entity_id of changed) {
      const row = this._rows.get(entity_id);
      if (row !== undefined) fill(row, this._home.entities.get(entity_id), this._home);
    }
  }

  build() {
    const home = this._home;
    this._shape = home.shape;
    setChoices(byId("home-area"), home.areaChoices());
    setChoices(byId("home-domain"), home.domainChoices());
    const isWanted = fits({
      words: byId("home-search").value,
      area_id: byId("home-area").value,
      domain: byId("home-domain").value,
      home,
    });
    const wanted = [...home.entities.values()].filter((entity) => !entity.removed && isWanted(entity));
    const isLarge = wanted.length > ROWS;
    this._rows = new Map();
    this._cards(byArea(wanted, home), isLarge);
    const known = home.entities.size;
    const hint = isLarge ? " Open an area, or search." : "";
    setText(byId("home-note"), known ? `${count(wanted.length, "entity", "entities")} of ${amount(known)}.${hint}` : "");
    byId("home-empty").hidden = wanted.length > 0;
    if (known && !wanted.length) setText(byId("home-empty"), "Nothing matches these filters.");
  }

  /** Show a card for each area; keep the focus. */
  _cards(areas, isLarge) {
    const focused = document.activeElement?.dataset.area;
    const cards = areas.map(([area_id, entities]) => this._card(area_id, entities, isLarge));
    byId("areas").replaceChildren(...cards);
    byId("areas").classList.toggle("folded", isLarge);
    if (focused !== undefined) {
      cards.map((card) => card.querySelector("[data-area]")).find((fold) => fold?.dataset.area === focused)?.focus();
    }
  }

  _card(area_id, entities, isLarge) {
    const name = this._home.areaName(area_id);
    const content = make("div", {});
    const card = make(
      "section",
      { className: "card area" },
      make("header", { className: "card-head" }, make("h2", {}, isLarge ? this._fold(area_id, name, entities, content) : name), make("p", { className: "quiet" }, count(entities.length, "entity", "entities"))),
      content,
    );
    if (!isLarge) this._fill(content, entities, entities.length);
    return card;
  }

  /** Return the button that opens an area; a closed area has no rows on the page. */
  _fold(area_id, name, entities, content) {
    const fold = make("button", { type: "button", className: "fold" }, name);
    fold.dataset.area = area_id ?? "";
    const show = () => {
      const most = this._opened.get(area_id) ?? 0;
      fold.setAttribute("aria-expanded", String(most > 0));
      this._fill(content, entities, most);
      if (most > 0 && most < entities.length) content.append(this._more(area_id, entities.length - most, show));
    };
    fold.addEventListener("click", () => {
      if (!this._opened.delete(area_id)) this._opened.set(area_id, ROWS);
      show();
    });
    show();
    return fold;
  }

  _more(area_id, rest, show) {
    const more = make("button", { type: "button" }, `Show ${amount(Math.min(rest, ROWS))} more of ${amount(rest)}`);
    more.addEventListener("click", () => {
      const content = more.parentElement;
      const shown = this._opened.get(area_id);
      this._opened.set(area_id, shown + ROWS);
      show();
      content.querySelectorAll("li a")[shown].focus(); // the first new row
    });
    return more;
  }

  /** Show the first rows of an area, by device. */
  _fill(content, entities, most) {
    for (const { entity_id } of entities) this._rows.delete(entity_id);
    let left = most;
    const devices = [];
    for (const [device, members] of left > 0 ? byDevice(entities, this._home) : []) {
      if (left <= 0) break;
      devices.push(this._device(device, members.slice(0, left)));
      left -= members.length;
    }
    content.replaceChildren(...devices);
  }

  _device(device, entities) {
    const rows = entities.map((entity) => {
      const row = make("li", {}, make("a", {}), make("b", {}), make("time", {}));
      this._rows.set(entity.entity_id, row);
      return fill(row, entity, this._home);
    });
    return make("div", { className: "device" }, device ? make("h3", {}, device) : null, make("ul", { className: "entities" }, ...rows));
  }
}

/** Return [id, entities] of each area, by name; entities without an area come last. */
function byArea(entities, home) {
  const areas = grouped(entities, ({ area_id }) => area_id);
  return [...areas]
    .sort(([one], [other]) => (one === null) - (other === null) || home.areaName(one).localeCompare(home.areaName(other)));
}

/** Return [name or null, entities] of each device; entities without a device come first. */
function byDevice(entities, home) {
  const devices = grouped(entities, ({ device_id }) => (device_id ? home.deviceName(device_id) : null));
  return [...devices]
    .sort(([one], [other]) => (one ?? "").localeCompare(other ?? ""))
    .map(([name, members]) => [name, members.sort((one, other) => nameIn(one).localeCompare(nameIn(other)))]);
}

function grouped(entities, keyOf) {
  const groups = new Map();
  for (const entity of entities) {
    const group = groups.get(keyOf(entity));
    if (group === undefined) groups.set(keyOf(entity), [entity]);
    else group.push(entity);
  }
  return groups;
}

const nameIn = ({ name, entity_id }) => name || entity_id;

/** Remove the area from a name that begins with it: the card shows it. */
function nameWithin(entity, home) {
  const name = nameIn(entity);
  const area = entity.area_id === null ? "" : `${home.areaName(entity.area_id)} `;
  if (!area || !name.startsWith(area)) return name;
  const rest = name.slice(area.length);
  return rest.charAt(0).toUpperCase() + rest.slice(1);
}

function fill(row, entity, home) {
  const [link, state, time] = row.children;
  link.href = `#/entity/${encodeURIComponent(entity.entity_id)}`;
  link.title = entity.entity_id;
  setText(link, nameWithin(entity, home));
  setText(state, entity.time === null ? "–" : stateOf(entity));
  row.classList.toggle("away", entity.state === "unavailable" || entity.state === "unknown");
  setText(time, entity.time === null ? "" : day(entity.time));
  return row;
}
