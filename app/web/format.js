// Formats numbers, times and the status of each pipeline step as text.

const number = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const clockTime = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayTime = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

const dayOnly = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

const A_DAY_MS = 86_400_000;

export const amount = (count) => number.format(count);

/** Format a large number in few characters: "1.2M". */
export const short = (count) => (Math.abs(count) < 10_000 ? number.format(count) : compact.format(count));

export function count(some, one, many) {
  return `${number.format(some)} ${some === 1 ? one : many}`;
}

/** Format a duration: "40 ms", "42 s", "5 min", "3 h", "12 days", without a line break. */
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

/** Format a time: the time of day, and the day unless within the last 24 hours. */
export function clock(iso) {
  const moment = new Date(iso);
  return Math.abs(Date.now() - moment) < A_DAY_MS ? clockTime.format(moment) : dayTime.format(moment);
}

/** Format a time in few characters: the time of day within the last 24 hours, else the day. */
export function day(iso) {
  const moment = new Date(iso);
  return Math.abs(Date.now() - moment) < A_DAY_MS ? clockTime.format(moment) : dayOnly.format(moment);
}

export function megabytes(bytes) {
  return `${number.format(Math.ceil(bytes / 100_000) / 10)} MB`;
}

/** Format the state of an entity with its unit. */
export function stateOf({ state, unit_of_measurement: unit, removed }) {
  if (removed || state === null || state === undefined) return "removed";
  if (!unit) return state;
  return unit === "%" || unit === "°" ? `${state}${unit}` : `${state} ${unit}`;
}

/** Turn an id into a name: "living_room" is "Living room". */
export function nameOf(id) {
  const words = id.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

// --- health ------------------------------------------------------------------------------

export const VERDICT = {
  healthy: ["All is well", "good"],
  degraded: ["Needs attention", "warn"],
  unhealthy: ["Not working", "bad"],
};

const SINK = {
  ok: ["Writing", "good"],
  waiting: ["Waiting for the database", "warn"],
  holding: ["Paused, needs attention", "warn"],
  refusing: ["Rejected by the database", "bad"],
};

const BREAKER = { closed: "closed", open: "open", "half-open": "testing" };

/** Return a step of the pipeline: its name, state, mood and facts. */
export function homeAssistantStep({ connection, subscription, circuit_breaker: breaker, discovery }) {
  const facts = [
    ["Last event", subscription.last_event ? ago(subscription.last_event) : "none yet"],
    ["Connections", `${amount(connection.successful_connections)} of ${amount(connection.connection_attempts)} attempts`],
    ["Breaker", BREAKER[breaker.state] ?? breaker.state],
    ["Known", `${count(discovery.entities, "entity", "entities")}, ${count(discovery.devices, "device", "devices")}${discovery.is_stale ? ", out of date" : ""}`],
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
      return [next === null ? "Not connected" : `Not connected; next attempt in ${span(Math.ceil(next))}`, "bad"];
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
    ["To commit", journal.pending_points ? `${amount(pending)}, oldest ${span(journal.oldest_pending_seconds)}` : amount(pending)],
    ["On disk", megabytes(journal.bytes)],
  ];
  if (filtered) facts.push(["Filtered", amount(filtered)]);
  if (malformed) facts.push(["Malformed", amount(malformed)]);
  if (journal.salvaged) facts.push(["Recovered", amount(journal.salvaged)]);
  const [words, mood] = journal.durable ? ["Durable", "good"] : ["Not durable: a crash would lose events", "bad"];
  return { name: "Journal", words, mood, facts };
}

export function sinkStep(sink) {
  const facts = [
    ["Written", short(sink.points_written)],
    ["Buffered", sink.held ? `${amount(sink.held)}, oldest ${span(sink.lag_seconds)}` : "none"],
    ["Last write", sink.last_write ? ago(sink.last_write) : "none yet"],
    ["Breaker", BREAKER[sink.breaker] ?? sink.breaker],
  ];
  if (sink.drained_in_seconds > 1) facts.push(["Caught up in", span(sink.drained_in_seconds)]);
  if (sink.points_dead_lettered) facts.push(["Dead letters", amount(sink.points_dead_lettered)]);
  if (sink.points_dropped) facts.push(["Dropped", amount(sink.points_dropped)]);
  const [words, mood] = SINK[sink.state] ?? [sink.state, "warn"];
  const error = sink.state !== "ok" && sink.last_error ? sink.last_error : null;
  return { name: sinkName(sink.name), words, mood, facts, error };
}

export function sinkName(name) {
  if (name === "embedded") return "Embedded store";
  return name.startsWith("influx") ? "InfluxDB" : nameOf(name);
}

/** Return how many events were lost before the journal, and points that sinks lost. */
export function droppedOf({ sinks, accounting }) {
  const counts = [...Object.values(accounting.events.dropped), ...sinks.map((sink) => sink.points_dropped)];
  return counts.reduce((sum, each) => sum + each, 0);
}
