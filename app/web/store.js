// The home as known to this page: entities with their last state, devices and areas, from the live
// stream, the embedded store and the catalog.

import { ask, has } from "./api.js";
import { nameOf } from "./format.js";

const PAGES = 3;
const PAGE = 1_000;

export class HomeStore {
  constructor() {
    this.entities = new Map();
    this.devices = new Map();
    this.areas = new Map();
    /** Ids of entities that changed since the last `takeChanged`. */
    this.changed = new Set();
    /** Whether the catalog has listed an entity: it is empty until the first discovery is stored. */
    this.isListed = false;
    /** Increases when an entity, device or area is added or moves. */
    this.shape = 0;
  }

  /** Add a state change, live or stored; the newest wins. */
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

  /** Return and clear the ids of changed entities. */
  takeChanged() {
    const changed = this.changed;
    this.changed = new Set();
    return changed;
  }

  areaName(area_id) {
    return area_id === null ? "No area" : this.areas.get(area_id) ?? nameOf(area_id);
  }

  /** Return the name or model of a device; null when unknown. */
  deviceName(device_id) {
    const device = this.devices.get(device_id);
    return device ? device.name ?? device.model : null;
  }

  /** Return [id, name] of every area that has an entity, by name. */
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

  /** Load the newest stored events, so that a quiet home is not empty. */
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

  /** Load names and areas from the catalog. */
  async lookUp() {
    if (!(await has("/api/devices"))) return;
    const { areas = [] } = (await has("/api/areas")) ? await ask("api/areas") : {};
    for (const area of areas) this.areas.set(area.area_id ?? area.id, area.name);
    // In pages, devices first: no page blocks the tab for long.
    for await (const devices of pages("devices")) devices.forEach((device) => this._takeDevice(device));
    for await (const entities of pages("entities")) {
      for (const entity of entities) this._takeEntity(entity, this.devices.get(entity.device_id));
      this.isListed ||= entities.length > 0;
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
      state: undefined, // unknown: no change seen yet
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

/** Yield the devices or entities of the catalog in pages. */
async function* pages(kind) {
  let more = "";
  while (more !== null) {
    const { [kind]: rows, next_cursor: next } = await ask(`api/${kind}?limit=${PAGE}${more}`);
    yield rows;
    more = next === null ? null : `&cursor=${encodeURIComponent(next)}`;
  }
}

/** Return manufacturer and model, without repeating the manufacturer. */
function modelOf({ manufacturer, model }) {
  if (!manufacturer || model?.startsWith(manufacturer)) return model ?? null;
  return model ? `${manufacturer} ${model}` : manufacturer;
}
