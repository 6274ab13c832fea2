// The page's own elements. What comes from Home Assistant is put in as text only: a name is
// never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Return a new element with properties of its own and children: nodes, or text. */
export function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return a new element of SVG. */
export function draw(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Change a text only when it differs: a screen reader says again what is put in again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Fill a list of choices, after its first one, and keep what was chosen. */
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

/** Say something at the top of the page; a new word on the same matter replaces the old one. */
export function notify(matter, words, action = null) {
  byId(`notice-${matter}`)?.remove();
  const close = make("button", { type: "button", className: "plain" }, "Dismiss");
  const notice = make("p", { id: `notice-${matter}`, className: "notice" }, make("span", {}, words), action, close);
  close.addEventListener("click", () => notice.remove());
  byId("notices").append(notice);
}
