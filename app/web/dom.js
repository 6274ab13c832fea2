// DOM helpers. Data from Home Assistant is inserted as text only, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Return a new element with properties and children (nodes or text). */
export function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return a new SVG element. */
export function draw(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Return text with its `code` in backquotes as nodes. */
export function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

/** Change a text only when it differs: a screen reader would repeat it. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Fill a select after its first option, and keep the selection. */
export function setChoices(select, choices) {
  const shown = [...select.options].slice(1).map((option) => option.value);
  if (shown.join("\n") === choices.map(([value]) => value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(
    select.options[0],
    ...choices.map(([value, text]) => make("option", { value, textContent: text })),
  );
  select.value = choices.some(([value]) => value === chosen) ? chosen : "";
}

/** Show a notice at the top of the page; it replaces an earlier one on the same matter. */
export function notify(matter, words, action = null) {
  byId(`notice-${matter}`)?.remove();
  const close = make("button", { type: "button", className: "plain" }, "Dismiss");
  const notice = make("p", { id: `notice-${matter}`, className: "notice" }, make("span", {}, words), action, close);
  close.addEventListener("click", () => notice.remove());
  byId("notices").append(notice);
}
