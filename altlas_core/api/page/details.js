/* The dialog that shows all fields of one task. */

import { byId, el, setText } from "./dom.js";
import { isActive } from "./tasklist.js";
import { date, span } from "./words.js";

const TIMES = new Set(["created_at", "started_at", "completed_at"]);

export class Details {
  #api;
  #cancel;
  #dialog = byId("details");
  #id = null;
  #asked = 0;

  constructor(api, cancel) {
    this.#api = api;
    this.#cancel = cancel;
    byId("details-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => {
      this.#id = null;
    });
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // beside it
    });
  }

  /** Show a task; what the stream told of it is shortened, so it is asked for. */
  async open(id) {
    this.#id = id;
    setText(byId("details-title"), id);
    setText(byId("details-say"), "");
    byId("details-fields").replaceChildren();
    if (!this.#dialog.open) this.#dialog.showModal();
    await this.#load();
  }

  /** The stream told of a task: if it is the one shown, show it as it is now. */
  async changed(task) {
    if (task.id === this.#id) await this.#load();
  }

  async #load() {
    const [id, asked] = [this.#id, ++this.#asked];
    try {
      const task = await this.#api.get(`/tasks/${encodeURIComponent(id)}`);
      if (asked === this.#asked && id === this.#id) this.#show(task);
    } catch (error) {
      if (id === this.#id) setText(byId("details-say"), error.message);
    }
  }

  #show(task) {
    const row = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
    const rows = Array.from(fields(task), ([name, value]) => row(name, words(name, value)));
    if (isActive(task)) {
      const cancel = () => this.#cancelIt(task.id);
      rows.push(row("", el("button", { type: "button", class: "small", onclick: cancel }, "Cancel this task")));
    }
    byId("details-fields").replaceChildren(...rows);
  }

  async #cancelIt(id) {
    const answer = await this.#cancel(id);
    if (id !== this.#id) return;
    setText(byId("details-say"), answer);
    await this.#load();
  }
}

/** Every field by its path: "params.text", "result.tokens". */
function* fields(value, path = "") {
  for (const [name, inner] of Object.entries(value)) {
    if (inner !== null && typeof inner === "object" && !Array.isArray(inner)) yield* fields(inner, `${path}${name}.`);
    else yield [path + name, inner];
  }
}

function words(name, value) {
  if (value === null || value === "") return "–";
  if (TIMES.has(name)) return date(value);
  if (name.endsWith("_s") && typeof value === "number" && !name.includes("_per_")) return span(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}
