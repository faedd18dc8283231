/* The newest tasks of one state, or of all: what is kept of the stream. */

export const MOST_SHOWN = 100;
export const isActive = (task) => task.status === "QUEUED" || task.status === "RUNNING";

/** The number in "task-000123": newer tasks have greater ones. */
const numberOf = (task) => Number.parseInt(String(task.id).replace(/^\D*/, ""), 10);

export class TaskList {
  #tasks = new Map();
  state = ""; // "" shows all

  /** Forget all, take these. */
  load(tasks) {
    this.#tasks = new Map(tasks.map((task) => [task.id, task]));
    this.#trim();
  }

  take(task) {
    if (this.state === "" || task.status === this.state) this.#tasks.set(task.id, task);
    else this.#tasks.delete(task.id);
    if (this.#tasks.size > 2 * MOST_SHOWN) this.#trim();
  }

  /** Newest first, at most MOST_SHOWN. */
  get newest() {
    this.#trim();
    return Array.from(this.#tasks.values());
  }

  #trim() {
    const sorted = Array.from(this.#tasks.values()).sort((a, b) => numberOf(b) - numberOf(a));
    this.#tasks = new Map(sorted.slice(0, MOST_SHOWN).map((task) => [task.id, task]));
  }
}
