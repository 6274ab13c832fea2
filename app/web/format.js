// Facts in words, as a person would say them.

const number = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const clockTime = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayTime = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

const dayOnly = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

const A_DAY_MS = 86_400_000;

export const amount = (count) => number.format(count);

/** Say a large number in few characters: "1.2M". */
export const short = (count) => (Math.abs(count) < 10_000 ? number.format(count) : compact.format(count));

export function count(some, one, many) {
  return `${number.format(some)} ${some === 1 ? one : many}`;
}

/** Say how long something takes: "40 ms", "42 s", "5 min", "3 h", "12 days", never broken in two. */
export function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1_000)}\u00a0ms`;
  if (seconds < 10) return `${number.format(Math.round(seconds * 10) / 10)}\u00a0s`;
  if (seconds < 90) return `${Math.round(seconds)}\u00a0s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)}\u00a0min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3_600)}\u00a0h`;
  return `${Math.round(seconds / 86_400)}\u00a0days`;
}

export function ago(iso) {
  const seconds = (Date.now() - Date.parse(iso)) / 1_000;
  return seconds < 1.5 ? "just now" : `${span(Math.round(seconds))} ago`;
}

/** Say when: the time of day, and the day where it is not the last one. */
export function clock(iso) {
  const moment = new Date(iso);
  return Math.abs(Date.now() - moment) < A_DAY_MS ? clockTime.format(moment) : dayTime.format(moment);
}

/** Say when in few characters: the time of the last day, else the day. */
export function day(iso) {
  const moment = new Date(iso);
  return Math.abs(Date.now() - moment) < A_DAY_MS ? clockTime.format(moment) : dayOnly.format(moment);
}

export function megabytes(bytes) {
  return `${number.format(Math.ceil(bytes / 100_000) / 10)} MB`;
}

/** Say the state of an entity, with its unit. */
export function stateOf({ state, unit_of_measurement: unit, removed }) {
  if (removed || state === null || state === undefined) return "removed";
  if (!unit) return state;
  return unit === "%" || unit === "°" ? `${state}${unit}` : `${state} ${unit}`;
}

/** Make a name of an id where nobody gave one: "living_room" is "Living room". */
export function nameOf(id) {
  const words = id.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

// --- health ------------------------------------------------------------------------------

export const VERDICT = {
  healthy: ["All is well", "good"],
  degraded: ["Needs a look", "warn"],
  unhealthy: ["Broken", "bad"],
};

const SINK = {
  ok: ["Writing", "good"],
  waiting: ["Waiting for the database", "warn"],
  holding: ["Holding everything until a person looks", "warn"],
  refusing: ["The database refuses", "bad"],
};

const BREAKER = { closed: "closed", open: "open: it rests", "half-open": "half open: it tries" };

/** Return a step of the way: who, in what state, in what mood, and facts about it. */
export function homeAssistantStep({ connection, subscription, circuit_breaker: breaker, discovery }) {
  const facts = [
    ["Last event", subscription.last_event ? ago(subscription.last_event) : "none yet"],
    ["Connections", `${amount(connection.successful_connections)} of ${amount(connection.connection_attempts)} tries`],
    ["Breaker", BREAKER[breaker.state] ?? breaker.state],
    ["Known", `${count(discovery.entities, "entity", "entities")}, ${count(discovery.devices, "device", "devices")}${discovery.is_stale ? ", not up to date" : ""}`],
  ];
  const [words, mood] = connectionWords(connection);
  return { name: "Home Assistant", words, mood, facts };
}

function connectionWords(connection) {
  const version = connection.ha_version ? ` to ${connection.ha_version}` : "";
  switch (connection.current_state) {
    case "connected":
      if (connection.ha_state && connection.ha_state !== "RUNNING") return [`Connected${version}, which is still starting`, "good"];
      return [`Connected${version}`, "good"];
    case "waiting": {
      const next = connection.next_attempt_in_seconds;
      return [next === null ? "Not connected" : `Not connected; next try in ${span(Math.ceil(next))}`, "bad"];
    }
    case "disconnected":
      return ["Not connected", "bad"];
    default:
      return [`Connecting: ${connection.current_state}`, "warn"];
  }
}

export function journalStep({ journal, accounting }) {
  const { pending, filtered, malformed } = accounting.events;
  const facts = [
    ["Journaled", short(accounting.events.journaled)],
    ["On their way", journal.pending_points ? `${amount(pending)}, oldest ${span(journal.oldest_pending_seconds)}` : amount(pending)],
    ["On disk", megabytes(journal.bytes)],
  ];
  if (filtered) facts.push(["Filtered", amount(filtered)]);
  if (malformed) facts.push(["Unreadable", amount(malformed)]);
  if (journal.salvaged) facts.push(["Salvaged", amount(journal.salvaged)]);
  const [words, mood] = journal.durable ? ["Durable: a crash loses nothing in it", "good"] : ["Not durable now", "bad"];
  return { name: "Journal", words, mood, facts };
}

export function sinkStep(sink, books) {
  const facts = [
    ["Written", short(sink.points_written)],
    ["Held", sink.held ? `${amount(sink.held)}, oldest ${span(sink.lag_seconds)}` : "none"],
    ["Last write", sink.last_write ? ago(sink.last_write) : "none yet"],
    ["Breaker", BREAKER[sink.breaker] ?? sink.breaker],
  ];
  if (sink.drained_in_seconds > 1) facts.push(["Caught up in", span(sink.drained_in_seconds)]);
  if (books.deadLettered) facts.push(["Dead letters", amount(books.deadLettered)]);
  if (books.dropped) facts.push(["Dropped", amount(books.dropped)]);
  const [words, mood] = SINK[sink.state] ?? [sink.state, "warn"];
  const error = sink.state !== "ok" && sink.last_error ? sink.last_error : null;
  return { name: sinkName(sink.name), words, mood, facts, error };
}

export function sinkName(name) {
  if (name === "embedded") return "Embedded store";
  return name.startsWith("influx") ? "InfluxDB" : nameOf(name);
}

export const lostEvents = (health) =>
  Object.values(health.accounting.events.dropped).reduce((sum, each) => sum + each, 0);
