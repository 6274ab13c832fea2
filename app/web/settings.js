// Settings: every setting by group. What the environment sets is read-only, a secret is never
// shown, and saving restarts the service.

import { byId, make, prose, setText } from "./dom.js";
import { absolve, absolveAll, complain, errorsOf, field, focusFirstError } from "./forms.js";
import { ask, askHealth, key, restarted } from "./api.js";
import { DatabaseStage } from "./stages.js";
import { count } from "./format.js";

const RESTARTING = "Saved. The service is restarting…";
const BACK = "Saved. The service has restarted.";
const GONE = "Saved, but the service has not responded since. Its log says why.";

export class SettingsView {
  constructor() {
    this._form = byId("settings-form");
    this._rows = [];
    this._text = "";
    this._isAsked = false;
    this._database = new DatabaseStage();
    this._database.form.addEventListener("submit", (happened) => {
      happened.preventDefault();
      this._useDatabase();
    });
    this._form.addEventListener("submit", (happened) => {
      happened.preventDefault();
      this._save();
    });
    this._form.addEventListener("input", ({ target }) => {
      absolve(target);
      this._showChanges();
    });
    this._form.addEventListener("reset", () => setTimeout(() => {
      absolveAll(this._form);
      this._showChanges();
    }));
  }

  /** Load the settings, unless there are changes that were not saved. */
  async load() {
    if (this._changed().length) return;
    try {
      const { settings } = await ask("api/v1/settings");
      if (this._changed().length) return; // entered meanwhile
      this._show(settings);
      if (!this._isAsked) await this._offerDatabases();
    } catch (problem) {
      setText(byId("settings-status"), problem.message);
      throw problem;
    }
  }

  _show(settings) {
    // Rebuilding would take the focus from the field that has it.
    if (this._text === JSON.stringify(settings)) return;
    this._text = JSON.stringify(settings);
    const open = new Set([...byId("settings").children].filter((group) => group.open).map(({ id }) => id));
    this._rows = settings.map(rowOf).sort((one, other) => isSet(other) - isSet(one));
    const names = [...new Set(settings.map(({ group }) => group))];
    byId("settings").replaceChildren(...names.map((name, index) => {
      const rows = this._rows.filter(({ setting }) => setting.group === name);
      const id = `settings-${index}`;
      return groupOf({ id, name, rows, open: open.has(id) || rows.some(isSet) });
    }));
    this._showChanges();
  }

  /** Offer the kinds of databases; without fields the environment has chosen one. */
  async _offerDatabases() {
    this._isAsked = true;
    const offered = await ask("api/v1/setup");
    const hasChoice = offered.kinds.some(({ fields }) => fields.length);
    byId("database").hidden = !hasChoice;
    if (hasChoice) this._database.offer(offered, { isFirst: false });
  }

  async _useDatabase() {
    const body = this._database.entered();
    if (body === null || !(await this._database.check(body))) return;
    try {
      const before = await askHealth();
      await ask("api/v1/setup", { method: "PUT", body: { home_assistant: null, database: body } });
      this._database.say(RESTARTING, "busy");
      if (!(await restarted(before))) return this._database.say(GONE, "bad");
      await this.load();
      this._database.say(BACK, "good");
    } catch (problem) {
      if (problem.problem?.checks) this._database.take({ ok: false, checks: problem.problem.checks });
      else this._database.excuse(problem);
    }
  }

  _changed() {
    return this._rows.filter(({ value }) => value() !== undefined);
  }

  _showChanges() {
    const changes = this._changed().length;
    byId("settings-save").disabled = changes === 0;
    byId("settings-discard").hidden = changes === 0;
    setText(byId("settings-changes"), changes ? `${count(changes, "change", "changes")}, not saved.` : "");
  }

  async _save() {
    absolveAll(this._form);
    const values = Object.fromEntries(this._changed().map(({ setting, value }) => [setting.name, value()]));
    byId("settings-save").disabled = true;
    setText(byId("settings-status"), "Checking and saving…");
    try {
      const before = await askHealth();
      await ask("api/v1/settings", { method: "PUT", body: { values } });
      if (values.API_KEY) key.set(values.API_KEY);
      await this._waitFrom(before);
    } catch (problem) {
      this._excuse(problem);
      this._showChanges();
    }
  }

  /** Wait for the restart and show what the service has then. */
  async _waitFrom(before) {
    setText(byId("settings-status"), RESTARTING);
    const isBack = await restarted(before);
    setText(byId("settings-status"), isBack ? BACK : GONE);
    if (!isBack) return;
    this._rows = [];
    this._text = "";
    await this.load().catch(() => {}); // which shows why, for example a new API_KEY
  }

  _excuse(problem) {
    const rest = [];
    for (const [name, message] of errorsOf(problem.problem ?? {})) {
      const row = this._rows.find(({ setting }) => setting.name === name);
      if (row) {
        complain(row.input, message);
        row.input.closest("details").open = true;
      } else {
        rest.push(message);
      }
    }
    const isBeside = focusFirstError(this._form);
    setText(byId("settings-status"), rest.join(" ") || (isBeside ? "Nothing was saved: some values cannot be used." : `Nothing was saved: ${problem.message}`));
  }
}

/** What is set comes first in its group, and opens it. */
const isSet = ({ setting }) => setting.source !== "default";

function groupOf({ id, name, rows, open }) {
  return make(
    "details",
    { id, className: "card group", open },
    make("summary", {}, make("h2", {}, name)),
    make("div", { className: "fields" }, ...rows.map(({ element }) => element)),
  );
}

/** Return a setting with its input; `value` is the text to save, null to remove it, undefined
    without a change. */
function rowOf(setting) {
  const input = inputOf(setting);
  const shown = input.value;
  const remove = setting.is_secret && setting.source === "file" ? removal(input) : null;
  const element = field(input, make("code", {}, setting.name), helpOf(setting));
  if (remove) element.append(remove.label);
  const value = () => {
    if (remove?.box.checked) return null;
    return input.value === shown ? undefined : input.value || null;
  };
  return { setting, input, element, value };
}

function inputOf({ name, value, choices, default: standard, is_secret: isSecret, is_set: isSet, is_multi_line: isLong, is_read_only: isFixed }) {
  const id = `setting-${name}`;
  const shown = isSecret ? "" : value ?? "";
  if (choices) {
    const options = [["", standard ? `Default (${standard})` : "Default"], ...choices.map((each) => [each, each])];
    const nodes = options.map(([each, words]) => make("option", { value: each, defaultSelected: each === shown }, words));
    return make("select", { id, disabled: isFixed }, ...nodes);
  }
  const placeholder = isSecret ? (isSet ? "Set, not shown" : "") : standard ?? "";
  const input = isLong && !isSecret ? make("textarea", { rows: 3 }) : make("input", { type: isSecret ? "password" : "text" });
  return Object.assign(input, { id, placeholder, defaultValue: shown, readOnly: isFixed, autocomplete: "off", spellcheck: false });
}

/** Return a checkbox that removes a stored secret, whose input is empty anyway. */
function removal(input) {
  const box = make("input", { type: "checkbox", id: `${input.id}-remove` });
  return { box, label: make("label", { className: "check" }, box, "Remove it") };
}

function helpOf({ help, source, is_secret: isSecret, is_read_only: isFixed }) {
  const where = {
    environment: "Set in the environment, which has priority: change it there.",
    file: isSecret ? "Stored; enter another to replace it." : "Changed here.",
    default: isFixed ? "Only the environment can set it." : "",
  }[source] ?? "";
  const sentence = /[.!?]$/.test(help) ? help : `${help}.`;
  return make("span", {}, ...prose(sentence), where && make("b", {}, ` ${where}`));
}
