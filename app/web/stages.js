// Steps of the set-up: a form, a status, and the checks that the service made of what was entered.
// Nothing that was entered is cleared when a check fails.

import { byId, make, prose, setText } from "./dom.js";
import { absolve, absolveAll, complain, errorsOf, field, focusFirstError } from "./forms.js";
import { Refused, ask } from "./api.js";
import { count } from "./format.js";

export const NO_ANSWER = "The service does not respond. Check that it is running, and try again: what you entered is still here.";

const STATUS = { ok: "OK", warning: "Warning", failed: "Failed", "not tried": "Not tried" };

/** Fields that a failed check is about, unless it says so itself. */
const FIELD_OF = { home_assistant: "url", token: "token", rights: "token", database: "url" };

/** Label, help and type of each field that a kind of database may have. */
const FIELDS = {
  url: ["Address", "With its port, as this service reaches it.", "url"],
  database: ["Database", "Created if it is missing and the user may do so.", "text"],
  username: ["User name", "Empty if the server requires none.", "text"],
  password: ["Password", null, "password"],
  token: ["Token", "One that may write to it.", "password"],
  org: ["Organization", null, "text"],
  bucket: ["Bucket", "Created if it is missing and the token may do so.", "text"],
};

export class Stage {
  constructor(name, { onLocked = () => {} } = {}) {
    this.name = name;
    this.form = byId(`${name}-form`);
    this._button = this.form.querySelector("[type=submit]");
    this._onLocked = onLocked;
    this.form.addEventListener("input", ({ target }) => absolve(target));
  }

  input(name) {
    return this.form.elements.namedItem(name);
  }

  open() {
    this.form.hidden = false;
    this.say("");
    byId(`${this.name}-title`).focus();
  }

  finish(words) {
    this.form.hidden = true;
    this.say(words, "good");
  }

  say(words, mood = "") {
    setText(byId(`${this.name}-status`), words);
    byId(`${this.name}-status`).className = `stage-status ${mood}`;
  }

  /** Request something while the form cannot be sent again; return the answer, or null with the
      reason shown. */
  async run(words, address, options) {
    absolveAll(this.form);
    this.say(words, "busy");
    this._button.disabled = true;
    try {
      return await ask(address, options);
    } catch (problem) {
      this.excuse(problem);
      return null;
    } finally {
      this._button.disabled = false;
    }
  }

  /** Show the checks, those that failed beside their field; return whether all passed. */
  take({ ok, checks }) {
    this.showChecks(checks.filter((check) => !this._point(check)));
    if (ok) return true;
    const failed = checks.filter(({ status }) => status === "failed").length;
    this.say(failed === 1 ? "A check failed." : `${failed} checks failed.`, "bad");
    focusFirstError(this.form);
    return false;
  }

  showChecks(checks) {
    byId(`${this.name}-checks`).replaceChildren(...checks.map(checkItem));
    const details = byId(`${this.name}-details`);
    details.hidden = checks.length === 0;
    details.open = checks.some(({ status }) => status !== "ok");
    setText(details.firstElementChild, details.open ? "Checks" : `${count(checks.length, "check", "checks")} passed`);
  }

  /** Show a failed check beside the field that it is about; return whether there is one. */
  _point({ name, status, field: about, text, advice }) {
    const input = this.input(about ?? FIELD_OF[name] ?? "");
    if (status !== "failed" || !input || input.closest("[hidden]")) return false;
    complain(input, advice ? `${text} ${advice}` : text);
    return true;
  }

  excuse(problem) {
    if (!(problem instanceof Refused)) return this.say(NO_ANSWER, "bad");
    const rest = [];
    for (const [about, message] of errorsOf(problem.problem)) {
      const input = this.input(about);
      if (input) complain(input, message);
      else rest.push(message);
    }
    const isBeside = focusFirstError(this.form);
    this.say(rest.join(" ") || (isBeside ? "Some entries cannot be used." : problem.message), "bad");
    if (problem.status === 401) this._onLocked(problem.message);
  }
}

/** The choice of a database: its kind, and the fields of that kind. */
export class DatabaseStage extends Stage {
  constructor(options) {
    super("database", options);
    this._kinds = [];
    this._found = [];
    this.form.addEventListener("change", ({ target }) => {
      if (target.name === "kind") this._showKind();
    });
  }

  get kind() {
    const chosen = this.form.querySelector("[name=kind]:checked")?.value;
    return this._kinds.find(({ kind }) => kind === chosen);
  }

  get isOffered() {
    return this._kinds.length > 0;
  }

  /** Offer the kinds, the first of them chosen if `isFirst`. */
  offer({ kinds, found }, { isFirst }) {
    this._kinds = kinds;
    this._found = found.database ?? [];
    const choices = kinds.map(({ kind, label }, index) => {
      const radio = make("input", { type: "radio", name: "kind", value: kind, checked: isFirst && index === 0 });
      return make("label", {}, radio, make("span", {}, make("b", {}, label), this._note(kind)));
    });
    byId("kinds").replaceChildren(byId("kinds").firstElementChild, ...choices);
    const names = Object.keys(FIELDS).filter((name) => kinds.some(({ fields }) => fields.includes(name)));
    byId("database-fields").replaceChildren(...names.map(databaseField));
    this._showKind();
  }

  /** Return the body that describes what was entered; null with the error shown. */
  entered() {
    absolveAll(this.form);
    if (!this.kind) {
      this.say("Choose one.", "bad");
      return null;
    }
    const { kind, fields } = this.kind;
    const values = fields.map((name) => [name, this.input(name).value.trim() || null]);
    const body = { kind, ...Object.fromEntries(values) };
    if (body.url !== null) return body;
    complain(this.input("url"), "Enter the address of the database.");
    focusFirstError(this.form);
    return null;
  }

  /** Let the service write to the database and read back; return whether it could. */
  async check(body) {
    const answer = await this.run("Checking the database…", "api/v1/setup/database", { method: "POST", body });
    return answer !== null && this.take(answer);
  }

  _note(kind) {
    const at = this._foundAt(kind);
    if (at) return make("span", { className: "quiet" }, `Found at ${at}`);
    if (kind !== "embedded") return null;
    return make("span", { className: "quiet" }, "A file of this service. Nothing to install; a database can be added later.");
  }

  _foundAt(kind) {
    return this._found.find((each) => each.kind === kind)?.url;
  }

  /** Show the fields of the chosen kind; what is in the others stays for when it is chosen again. */
  _showKind() {
    const { kind, fields, defaults = {} } = this.kind ?? { fields: [] };
    for (const input of byId("database-fields").querySelectorAll("input")) {
      input.closest(".field").hidden = !fields.includes(input.name);
      input.placeholder = defaults[input.name] ?? "";
      absolve(input);
    }
    const found = this._foundAt(kind);
    if (found && !this.input("url").value) this.input("url").value = found;
    this.showChecks([]);
    this.say("");
  }
}

function databaseField(name) {
  const [label, help, type] = FIELDS[name];
  const input = make("input", { id: `database-${name}`, name, type, autocomplete: "off", spellcheck: false });
  return field(input, label, help);
}

export function checkItem({ status, text, advice }) {
  return make(
    "li",
    { className: status.replace(" ", "-") },
    make("b", {}, STATUS[status] ?? status),
    make("span", {}, ...prose(text)),
    advice && make("span", { className: "quiet" }, ...prose(advice)),
  );
}
