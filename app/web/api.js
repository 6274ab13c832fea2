// Questions to the service, with the API key of this tab when there is one. All addresses are
// relative to the page, so that it works below a path.

const KEY = "websocket-ingestion.api_key";

/** The service answered, but not with what was asked for. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `The service answered ${status}.`);
    this.status = status;
    this.code = problem.code ?? "";
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Return the JSON of an address; throws `Refused`, or a TypeError when nobody answers. */
export async function ask(address, { method = "GET" } = {}) {
  const response = await asked(address, method);
  const body = await response.json();
  if (!response.ok) throw new Refused(response.status, body);
  return body;
}

/** Return the report of /health; a broken service tells it with a 503. */
export async function askHealth() {
  const response = await asked("health", "GET");
  const body = await response.json();
  if (!("reasons" in body)) throw new Refused(response.status, body);
  return body;
}

/** Return a text, such as /metrics. */
export async function askText(address) {
  const response = await asked(address, "GET");
  if (!response.ok) throw new Refused(response.status, {});
  return response.text();
}

function asked(address, method) {
  const headers = {};
  if (key.get() !== null) headers.Authorization = `Bearer ${key.get()}`;
  return fetch(address, { method, headers, cache: "no-store" });
}

let document_ = null;

/** Say whether this version of the service has a route: asking for one that is not there
    would put an error into the console of everyone who looks. */
export async function has(route) {
  document_ ??= ask("openapi.json");
  try {
    return route in (await document_).paths;
  } catch {
    document_ = null; // asked again the next time
    return false;
  }
}
