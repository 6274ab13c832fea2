// What is known of the home: entities with their last state, devices and areas. It comes from
// the live stream, from the history of the embedded store, and from the catalog where the
// service has one.

import { ask, has } from "./api.js";
import { nameOf } from "./format.js";

const PAGES = 3;
const PAGE = 1_000;

export class HomeStore {
  constructor() {
    this.entities = new Map();
    this.devices = new Map();
    this.areas = new Map();
    /** Ids of entities that changed since somebody last took them. */
    this.changed = new Set();
    /** Grows when there is a new entity, device or area, or one has moved. */
    this.shape = 0;
  }

  /** Take a state change, of now or of the past: the newest wins. */
  take(event) {
    const known = this.entities.get(event.entity_id);
    if (known !== undefined && known.time !== null && known.time > event.time) return;
    const area_id = event.area_id ?? known?.area_id ?? null;
    if (event.area_name && this.areas.get(area_id) !== event.area_name) {
      this.areas.set(area_id, event.area_name);
      this.shape += 1;
    }
    const device_id = event.device_id ?? known?.device_id ?? null;
    if (device_id !== null && event.model && !this.devices.has(device_id)) {
      this.devices.set(device_id, { name: null, model: modelOf(event) });
      this.shape += 1;
    }
    if (known === undefined || known.area_id !== area_id || known.device_id !== device_id) this.shape += 1;
    this.entities.set(event.entity_id, {
      entity_id: event.entity_id,
      domain: event.domain ?? event.entity_id.split(".", 1)[0],
      name: event.friendly_name ?? known?.name ?? null,
      area_id,
      device_id,
      integration: event.integration ?? known?.integration ?? null,
      state: event.state,
      unit_of_measurement: event.unit_of_measurement,
      removed: event.removed,
      time: event.time,
    });
    this.changed.add(event.entity_id);
  }

  /** Return and forget the ids of what changed since the last time. */
  takeChanged() {
    const changed = this.changed;
    this.changed = new Set();
    return changed;
  }

  areaName(area_id) {
    return area_id === null ? "No area" : this.areas.get(area_id) ?? nameOf(area_id);
  }

  /** Say what a device is called, with its model; null when nothing is known of it. */
  deviceName(device_id) {
    const device = this.devices.get(device_id);
    return device ? device.name ?? device.model : null;
  }

  /** Return [id, name] of every area that an entity is in, by name; those without come last. */
  areaChoices() {
    const ids = new Set([...this.entities.values()].map(({ area_id }) => area_id));
    return [...ids]
      .filter((id) => id !== null)
      .map((id) => [id, this.areaName(id)])
      .sort(([, one], [, other]) => one.localeCompare(other));
  }

  domainChoices() {
    const domains = new Set([...this.entities.values()].map(({ domain }) => domain));
    return [...domains].sort().map((domain) => [domain, domain]);
  }

  /** Ask for the newest states of the past, so that a quiet home is not an empty one. */
  async remember() {
    let cursor = null;
    for (let page = 0; page < PAGES; page += 1) {
      const more = cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`;
      const { events, next_cursor: next } = await ask(`api/v1/events?limit=${PAGE}${more}`);
      events.forEach((event) => this.take(event));
      if (next === null) return;
      cursor = next;
    }
  }

  /** Ask the catalog, where the service has one, for names and places. */
  async lookUp() {
    if (!(await has("/api/devices"))) return;
    const { areas = [] } = (await has("/api/areas")) ? await ask("api/areas") : {};
    for (const area of areas) this.areas.set(area.area_id ?? area.id, area.name);
    // Page by page, devices first: no page is long enough to keep the tab busy.
    for await (const devices of pages("devices")) devices.forEach((device) => this._takeDevice(device));
    for await (const entities of pages("entities")) {
      for (const entity of entities) this._takeEntity(entity, this.devices.get(entity.device_id));
      this.shape += 1;
    }
  }

  _takeDevice(device) {
    this.devices.set(device.device_id, {
      name: device.name_by_user ?? device.name,
      model: modelOf(device),
      area_id: device.area_id ?? null,
    });
  }

  _takeEntity(entity, device) {
    if (entity.disabled) return;
    const known = this.entities.get(entity.entity_id);
    this.entities.set(entity.entity_id, {
      state: undefined, // not known: it has not changed since this page watches
      unit_of_measurement: entity.unit_of_measurement ?? null,
      removed: false,
      time: null,
      domain: entity.domain,
      entity_id: entity.entity_id,
      integration: entity.platform ?? null,
      ...known,
      name: known?.name ?? entity.friendly_name ?? null,
      area_id: entity.area_id ?? device?.area_id ?? known?.area_id ?? null,
      device_id: entity.device_id ?? null,
    });
  }
}

/** Yield all devices, or entities, of the catalog, a page at a time. */
async function* pages(kind) {
  let more = "";
  while (more !== null) {
    const { [kind]: rows, next_cursor: next } = await ask(`api/${kind}?limit=${PAGE}${more}`);
    yield rows;
    more = next === null ? null : `&cursor=${encodeURIComponent(next)}`;
  }
}

/** Say who made it and what it is, the maker once. */
function modelOf({ manufacturer, model }) {
  if (!manufacturer || model?.startsWith(manufacturer)) return model ?? null;
  return model ? `${manufacturer} ${model}` : manufacturer;
}
