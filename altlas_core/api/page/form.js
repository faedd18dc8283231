/* The form that asks for a prediction and shows the answer, or what was wrong. */

import { byId, el, setAttribute, setText } from "./dom.js";
import { count, span, tenths } from "./words.js";

const WAIT_S = 30; // how long the server holds the answer back for the task to end
const FIELDS = ["text", "max_length", "temperature", "priority", "strategy", "gpu_id"];

export class PredictionForm {
  #api;
  #open;
  #form = byId("predict");
  #send = byId("predict-send");
  #result = byId("predict-result");

  /** `open(id)` shows a task's details. */
  constructor(api, open) {
    this.#api = api;
    this.#open = open;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#predict();
    });
    this.#form.addEventListener("input", (event) => setAttribute(event.target, "aria-invalid", null));
    byId("f-text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit();
    });
  }

  /** What the server allows. */
  describe(status, gpus) {
    setText(byId("predict-model"), status.model);
    byId("f-max_length").max = status.limits.max_length;
    if (gpus.length > 0) byId("f-gpu_id").max = Math.max(...gpus.map((gpu) => gpu.id));
    const select = byId("f-strategy");
    if (select.options.length !== status.strategies.length + 1) {
      select.replaceChildren(select.options[0], ...status.strategies.map((name) => el("option", {}, name)));
    }
  }

  #body() {
    const value = (name) => this.#form.elements[name].value;
    const number = (name) => (value(name).trim() === "" ? undefined : Number(value(name)));
    const options = { strategy: value("strategy") || undefined, gpu_id: number("gpu_id") };
    return {
      text: value("text"), max_length: number("max_length"), temperature: number("temperature"),
      priority: value("priority"), gpu_options: options,
    };
  }

  async #predict() {
    if (this.#send.disabled) return;
    this.#send.disabled = true;
    this.#form.setAttribute("aria-busy", "true");
    this.#mark(null);
    this.#result.replaceChildren(el("p", { class: "quiet" }, "Waiting for the answer…"));
    const body = this.#body();
    try {
      this.#show(body.text, await this.#api.post(`/predict?wait=${WAIT_S}`, body));
    } catch (error) {
      this.#refused(error);
    } finally {
      this.#send.disabled = false;
      this.#form.removeAttribute("aria-busy");
    }
  }

  #show(text, { task_id: id, status, task }) {
    if (task?.result) {
      this.#result.replaceChildren(answer(text, task.result), facts(task), this.#more(id));
    } else if (task?.error || status === "FAILED" || status === "CANCELLED") {
      this.#result.replaceChildren(bad(`${status}: ${task?.error ?? "no reason was given"}`), this.#more(id));
    } else {
      const words = `Still ${status} after ${WAIT_S} s. It goes on; see the list of tasks.`;
      this.#result.replaceChildren(el("p", { class: "say" }, words), this.#more(id));
    }
  }

  #more(id) {
    return el("p", {}, el("button", { type: "button", class: "link", onclick: () => this.#open(id) }, `All of ${id}`));
  }

  #refused(error) {
    const later = error.retryAfterS ? ` Try again in ${error.retryAfterS} s.` : "";
    this.#result.replaceChildren(bad(error.message + later));
    this.#mark(fieldOf(error.message));
  }

  /** Mark the field that was refused, and go there; null: none is. */
  #mark(name) {
    for (const field of FIELDS) {
      const input = this.#form.elements[field];
      setAttribute(input, "aria-invalid", field === name ? "true" : null);
      setAttribute(input, "aria-describedby", field === name ? "predict-result" : null);
    }
    if (name) this.#form.elements[name].focus();
  }
}

const bad = (words) => el("p", { class: "notice bad" }, words);

/** The field an error speaks of: the one named first. "text" is a word too, so it counts only at the beginning. */
function fieldOf(message) {
  const found = FIELDS.map((name) => ({ name, at: message.search(new RegExp(`\\b${name}\\b`)) }))
    .filter(({ name, at }) => at >= 0 && (name !== "text" || at < 3));
  found.sort((a, b) => a.at - b.at);
  return found[0]?.name ?? null;
}

const answer = (text, result) =>
  el("p", { class: "generated" }, el("span", { class: "prompt" }, text), el("span", { class: "answer" }, result.text));

function facts(task) {
  const { result } = task;
  const rows = [
    ["Tokens", `${count(result.tokens)} after ${count(result.prompt_tokens)}`],
    ["First token", span(result.time_to_first_token_s)],
    ["Speed", `${tenths(result.tokens_per_s)} tokens/s`],
    ["Device", `GPU ${result.gpu_id ?? task.gpu_id}${result.simulated ? ", simulated" : ""}`],
  ];
  const pair = ([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
  return el("dl", { class: "facts" }, ...rows.map(pair));
}
