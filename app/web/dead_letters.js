// Dead letters: points a database rejected permanently, with the reason; retry and delete.

import { byId, make, setText } from "./dom.js";
import { ask } from "./api.js";
import { clock, count, sinkName } from "./format.js";

const PAGE = 50;

export class DeadLetters {
  constructor({ onChange }) {
    this._onChange = onChange;
    this._cursor = null;
    byId("retry").addEventListener("click", () => this._retry());
    byId("delete").addEventListener("click", () => this._delete());
    byId("letters-more").addEventListener("click", () => this._more());
  }

  /** Load and show the newest. */
  async load() {
    const page = await this._page("");
    byId("letters").replaceChildren(...page.dead_letters.map(letterItem));
    this._show(page);
  }

  async _more() {
    const page = await this._page(`&cursor=${this._cursor}`);
    byId("letters").append(...page.dead_letters.map(letterItem));
    this._show(page);
  }

  async _page(more) {
    return ask(`api/v1/dead-letters?limit=${PAGE}${more}`);
  }

  _show({ count: all, next_cursor: cursor }) {
    this._cursor = cursor;
    this._count = all;
    byId("letters-more").hidden = cursor === null;
    byId("letters-empty").hidden = all > 0;
    byId("letters-actions").hidden = all === 0;
    setText(byId("letters-note"), all ? `${count(all, "point", "points")}, newest first.` : "");
  }

  async _retry() {
    await this._do(byId("retry"), async () => {
      const { retried } = await ask("api/v1/dead-letters/retry", { method: "POST" });
      await this.load();
      return `${count(retried, "point is", "points are")} in the journal again. Any that are rejected again return here.`;
    });
  }

  async _delete() {
    const dialog = byId("confirm");
    setText(byId("confirm-title"), `Delete ${count(this._count, "dead letter", "dead letters")}?`);
    setText(byId("confirm-words"), "This permanently deletes points that were never written.");
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    if (dialog.returnValue !== "yes") return;
    await this._do(byId("delete"), async () => {
      const { deleted } = await ask("api/v1/dead-letters?all=true", { method: "DELETE" });
      await this.load();
      return `${count(deleted, "dead letter", "dead letters")} deleted.`;
    });
  }

  async _do(button, deed) {
    button.disabled = true;
    try {
      const words = await deed();
      setText(byId("letters-note"), words);
      this._onChange();
    } catch (problem) {
      setText(byId("letters-note"), `That failed: ${problem.message}`);
    } finally {
      button.disabled = false;
    }
  }
}

function letterItem({ sink, line, reason, refused_at: at }) {
  return make(
    "li",
    { className: "card letter" },
    make("p", { className: "letter-head" }, make("b", {}, reason), make("span", { className: "quiet" }, `${sinkName(sink)}, ${clock(at)}`)),
    make("pre", { tabIndex: 0, ariaLabel: "The point, as line protocol" }, make("code", {}, line)),
  );
}
