/* The table of tasks: a row for each, changed in place. */

import { byId, el, setAttribute, setText } from "./dom.js";
import { isActive } from "./tasklist.js";
import { longSpan, plural, span, start } from "./words.js";

export const TASK_SIGNS = { QUEUED: "○", RUNNING: "◐", COMPLETED: "✓", FAILED: "✕", CANCELLED: "–" };
const COLUMNS = ["State", "Task", "Priority", "GPU", "Age", "Duration", "Text", "Cancel"];
const TEXT_START = 90; // characters of a prompt

export class TaskTable {
  #rows = new Map();
  #body = el("tbody", { role: "rowgroup" });
  #note = byId("tasks-note");
  #act;
  #clock;
  #canHover = window.matchMedia("(hover: hover)");

  /** `act.open(id)` shows a task, `act.cancel(id)` cancels it, `act.filter(state)` shows those of a state. */
  constructor(act, clock) {
    this.#act = act;
    this.#clock = clock;
    const head = (name) => (name === "Cancel" ? el("span", { class: "hidden" }, name) : name);
    const heads = COLUMNS.map((name) => el("th", { scope: "col", role: "columnheader" }, head(name)));
    byId("tasks-panel").append(
      el("table", { role: "table", "aria-labelledby": "tasks-title" },
        el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads)), this.#body));
    this.#addFilter();
  }

  #addFilter() {
    for (const state of ["", ...Object.keys(TASK_SIGNS)]) {
      const choose = () => this.#act.filter(state);
      const input = el("input", { type: "radio", name: "state", value: state, onchange: choose });
      input.checked = state === "";
      const word = state === "" ? "All" : state[0] + state.slice(1).toLowerCase();
      byId("tasks-filter").append(el("label", {}, input, el("span", {}, word)));
    }
  }

  /** Somebody points at a row, or is in it with the keyboard: rows stay where they are. */
  get #held() {
    const pointedAt = this.#canHover.matches && this.#body.matches(":hover");
    return pointedAt || this.#body.querySelector(":focus-visible") !== null;
  }

  draw(tasks) {
    const held = this.#held && this.#rows.size > 0;
    if (held) this.#update(tasks);
    else this.#rebuild(tasks);
    const newer = held ? tasks.filter((task) => !this.#rows.has(task.id)).length : 0;
    const words = newer ? `held while you are in it, ${plural(newer, "newer task")}` : `newest ${tasks.length}`;
    setText(this.#note, tasks.length === 0 ? "none" : words);
  }

  #update(tasks) {
    for (const task of tasks) this.#rows.get(task.id)?.draw(task, this.#clock());
  }

  #rebuild(tasks) {
    const wanted = new Set(tasks.map((task) => task.id));
    for (const [id, row] of this.#rows) {
      if (wanted.has(id)) continue;
      row.node.remove();
      this.#rows.delete(id);
    }
    let place = this.#body.firstChild;
    for (const task of tasks) {
      let row = this.#rows.get(task.id);
      if (row === undefined) {
        row = new Row(task.id, this.#act);
        this.#rows.set(task.id, row);
      }
      if (row.node === place) place = place.nextSibling;
      else this.#body.insertBefore(row.node, place);
      row.draw(task, this.#clock());
    }
  }

  /** Ages and durations move on though nothing happened. */
  tick() {
    const now = this.#clock();
    for (const row of this.#rows.values()) row.drawTimes(now);
  }
}

class Row {
  constructor(id, act) {
    const cell = (name, ...content) => el("td", { role: "cell", class: `c-${name}` }, ...content);
    this.state = el("span", { class: "state" });
    this.opener = el("button", { type: "button", class: "link" }, id);
    this.priority = cell("priority");
    this.gpu = cell("gpu");
    this.age = cell("age");
    this.duration = cell("duration");
    this.prompt = el("span", { class: "prompt" });
    this.answer = el("span", { class: "answer" });
    this.error = el("span", { class: "error" });
    this.cancel = el("button", { type: "button", class: "small", "aria-label": `Cancel ${id}` }, "Cancel");
    this.cancel.addEventListener("click", (event) => {
      event.stopPropagation();
      act.cancel(id);
    });
    this.node = el("tr", { role: "row", onclick: () => act.open(id) },
      cell("state", this.state), cell("id", this.opener), this.priority, this.gpu, this.age, this.duration,
      cell("text", el("span", { class: "clip" }, this.prompt, " ", this.answer, " ", this.error)),
      cell("cancel", this.cancel));
  }

  draw(task, now) {
    if (task !== this.task) {
      this.task = task;
      setText(this.state, `${TASK_SIGNS[task.status] ?? "?"} ${task.status}`);
      setAttribute(this.state, "data-state", task.status);
      setText(this.priority, task.priority);
      setText(this.gpu, task.gpu_id === null ? "–" : `GPU ${task.gpu_id}`);
      setText(this.prompt, start(task.params?.text ?? "", TEXT_START));
      setText(this.answer, task.result?.text ? `→ ${task.result.text}` : "");
      setText(this.error, task.error ?? "");
      this.cancel.hidden = !isActive(task);
    }
    this.drawTimes(now);
  }

  drawTimes(now) {
    const { created_at: created, started_at: started, completed_at: completed } = this.task;
    setText(this.age, longSpan(now - created));
    setText(this.duration, duration(started, completed, now));
  }
}

function duration(started, completed, now) {
  if (started === null) return "–";
  return completed === null ? longSpan(now - started) : span(completed - started);
}
