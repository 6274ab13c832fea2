// Forms: fields with their error beside them. An error belongs to the text it was about, so
// editing the field removes it.

import { byId, make, setText } from "./dom.js";

/** Return a labeled field around an input; `help` is text or a node. */
export function field(input, label, help = null) {
  const made = make(
    "div",
    { className: "field" },
    make("label", { htmlFor: input.id }, label),
    input,
    help && make("p", { id: `${input.id}-help`, className: "quiet" }, help),
    make("p", { id: `${input.id}-error`, className: "field-error", hidden: true }),
  );
  input.setAttribute("aria-describedby", `${input.id}-help ${input.id}-error`);
  return made;
}

/** Names of variables at the start of a sentence, which the field makes obvious. */
const NAMES = /^[A-Z][A-Z0-9_]+( or [A-Z][A-Z0-9_]+)*: /;

/** Show an error beside a field, in addition to those that are there. */
export function complain(input, words) {
  const note = byId(`${input.id}-error`);
  const sentence = words.replace(NAMES, "");
  const shown = sentence.charAt(0).toUpperCase() + sentence.slice(1);
  setText(note, note.textContent ? `${note.textContent} ${shown}` : shown);
  note.hidden = false;
  input.setAttribute("aria-invalid", "true");
}

export function absolve(input) {
  const note = byId(`${input.id}-error`);
  if (!note) return;
  setText(note, "");
  note.hidden = true;
  input.removeAttribute("aria-invalid");
}

/** Remove all errors of a form. */
export function absolveAll(form) {
  for (const input of form.querySelectorAll("[aria-invalid]")) absolve(input);
}

/** Focus the first field with an error; return whether there is one. */
export function focusFirstError(form) {
  const first = form.querySelector("[aria-invalid]");
  first?.focus();
  return first !== null;
}

/** Return the members of a 422 problem that are about single values: the last part of each
    location, and its sentence. */
export function errorsOf(problem) {
  return (problem.errors ?? []).map(({ location, message }) => [location.split(".").at(-1), message]);
}
