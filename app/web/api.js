// Requests to the service, with this tab's API key if there is one. Addresses are relative to the
// page, so that it works below a path.

const KEY = "websocket-ingestion.api_key";
const RESTART_POLL_MS = 500;
const RESTARTS_MS = 60_000; // much more than a restart takes

/** The service returned an error. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `The service returned status ${status}.`);
    this.status = status;
    this.code = problem.code ?? "";
    this.problem = problem;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Return the JSON of an address; throws `Refused`, or a TypeError without a response. */
export async function ask(address, { method = "GET", body: sent } = {}) {
  const response = await asked(address, method, sent);
  const body = await response.json();
  if (!response.ok) throw new Refused(response.status, body);
  return body;
}

/** Return the body of /health, which a broken service sends with status 503. */
export async function askHealth() {
  const response = await asked("health", "GET");
  const body = await response.json();
  if (!("reasons" in body)) throw new Refused(response.status, body);
  return body;
}

/** Wait until the service has restarted, as its uptime shows; return whether it did in time. */
export async function restarted(before) {
  const until = Date.now() + RESTARTS_MS;
  while (Date.now() < until) {
    await new Promise((done) => setTimeout(done, RESTART_POLL_MS));
    try {
      if ((await askHealth()).uptime_seconds < before.uptime_seconds) return true;
    } catch {
      // it does not respond while it restarts
    }
  }
  return false;
}

function asked(address, method, sent) {
  const headers = {};
  if (key.get() !== null) headers.Authorization = `Bearer ${key.get()}`;
  if (sent !== undefined) headers["Content-Type"] = "application/json";
  return fetch(address, { method, headers, body: JSON.stringify(sent), cache: "no-store" });
}

let document_ = null;

/** Return whether the service has a route: requesting a missing one would log an error in the
    browser's console. */
export async function has(route) {
  document_ ??= ask("openapi.json");
  try {
    return route in (await document_).paths;
  } catch {
    document_ = null; // retried the next time
    return false;
  }
}
