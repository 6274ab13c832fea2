// The home view: devices and entities by area, each with its last state.

import { byId, make, setChoices, setText } from "./dom.js";
import { fits } from "./live.js";
import { count, day, stateOf } from "./words.js";

export class Rooms {
  constructor(home) {
    this._home = home;
    this._rows = new Map(); // entity_id -> its row on the page
    this._shape = -1;
    const filters = byId("home-filters");
    filters.addEventListener("submit", (happened) => happened.preventDefault());
    filters.addEventListener("input", () => this.build());
    filters.addEventListener("reset", () => setTimeout(() => this.build()));
  }

  /** Show what changed since the last time; build all anew only when something came or moved. */
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
    this._rows = new Map();
    byId("areas").replaceChildren(...byArea(wanted, home).map(([name, entities]) => this._card(name, entities)));
    const known = home.entities.size;
    setText(byId("home-note"), known ? `${count(wanted.length, "entity", "entities")} of ${known}.` : "");
    byId("home-empty").hidden = wanted.length > 0;
    if (known && !wanted.length) setText(byId("home-empty"), "Nothing fits these filters.");
  }

  _card(name, entities) {
    const devices = byDevice(entities, this._home);
    return make(
      "section",
      { className: "card area" },
      make("header", { className: "card-head" }, make("h2", {}, name), make("p", { className: "quiet" }, count(entities.length, "entity", "entities"))),
      ...devices.map(([device, members]) => this._device(device, members)),
    );
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

/** Return [name, entities] of each area, by name; those without an area come last. */
function byArea(entities, home) {
  const areas = grouped(entities, ({ area_id }) => area_id);
  return [...areas]
    .sort(([one], [other]) => (one === null) - (other === null) || home.areaName(one).localeCompare(home.areaName(other)))
    .map(([area_id, members]) => [home.areaName(area_id), members]);
}

/** Return [name or null, entities] of each device; what belongs to none comes first. */
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

/** Leave the area out of a name that begins with it: the card says it already. */
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
