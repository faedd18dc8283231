/* One card for each GPU. */

import { el, setAttribute, setText } from "./dom.js";
import { NOT_READ, celsius, count, gib, ofTotal, percent, tenths } from "./words.js";

export const COLOURS = 8; // page.css: --gpu-0 to --gpu-7; from the ninth GPU on the same ones, dashed
/** A state's sign and what it means; the sign keeps states apart without colour. */
export const STATES = {
  AVAILABLE: { sign: "○", word: "available" },
  BUSY: { sign: "●", word: "busy" },
  UNHEALTHY: { sign: "▲", word: "unhealthy" },
  LOST: { sign: "✕", word: "lost" },
};

/** The custom property of a GPU's colour, and whether its line is dashed: the same wherever the GPU appears. */
export const colourOf = (position) => `--gpu-${position % COLOURS}`;
export const isDashed = (position) => position >= COLOURS;

/** Several tasks may share a slot: they are computed together. */
function running(gpu) {
  if (!gpu.task_count) return "no task";
  const tasks = gpu.task_count === 1 ? "1 task" : `${gpu.task_count} tasks`;
  return gpu.slots_used ? `${tasks} in ${gpu.slots_used} of ${gpu.slots} slots` : `${tasks}, just ended`;
}

export class Card {
  /** `position` null: one of many, which has no colour of its own. */
  constructor(position, openTask) {
    this.name = el("span", { class: "gpu-name" });
    this.state = el("span", { class: "state" });
    this.title = el("h3", {});
    this.mark = el("span", { class: "tag simulated" }, "simulated");
    this.reason = el("p", { class: "reason" });
    this.utilization = meter("Utilization");
    this.memory = meter("Memory");
    this.temperature = el("dd", {});
    this.power = el("dd", {});
    this.slots = el("span", {});
    this.processes = el("span", { class: "chips" });
    this.tasks = el("p", { class: "card-tasks" }, this.slots, this.processes);
    this.openTask = openTask;
    this.shownProcesses = null;
    const swatch = position === null ? null : el("span", { class: "swatch", "aria-hidden": "true" });
    this.node = el("article", { class: "card" },
      el("div", { class: "card-head" }, swatch, this.title, this.state),
      el("p", { class: "card-name" }, this.name, this.mark),
      el("div", { class: "meters" }, this.utilization.node, this.memory.node),
      el("dl", { class: "pair" },
        el("div", {}, el("dt", {}, "Temperature"), this.temperature),
        el("div", {}, el("dt", {}, "Power"), this.power)),
      el("div", { class: "card-foot" }, this.tasks, this.reason));
    if (position !== null) {
      this.node.style.setProperty("--own", `var(${colourOf(position)})`);
      this.node.toggleAttribute("data-dashed", isDashed(position));
    }
  }

  draw(gpu) {
    const state = STATES[gpu.status] ?? { sign: "?" };
    setText(this.title, `GPU ${gpu.id}`);
    setText(this.name, gpu.name);
    setText(this.state, `${state.sign} ${gpu.status}`);
    setAttribute(this.state, "data-state", gpu.status);
    setAttribute(this.node, "data-state", gpu.status);
    this.mark.hidden = !gpu.simulated;
    this.utilization.draw(gpu.utilization, percent(gpu.utilization));
    this.memory.draw(share(gpu.memory_used, gpu.memory_total),
      ofTotal(gib(gpu.memory_used), gib(gpu.memory_total), "GiB", tenths));
    setText(this.temperature, celsius(gpu.temperature));
    setText(this.power, ofTotal(gpu.power_usage, gpu.power_limit, "W", count));
    setText(this.slots, running(gpu));
    this.#drawProcesses(gpu.processes);
    setText(this.reason, gpu.reason ?? "");
    this.reason.hidden = !gpu.reason;
    this.tasks.hidden = Boolean(gpu.reason) && gpu.processes.length === 0;
  }

  #drawProcesses(processes) {
    const shown = processes.join();
    if (shown === this.shownProcesses) return;
    this.shownProcesses = shown;
    const chips = processes.slice(0, 4).map((id) =>
      el("button", { type: "button", class: "chip", onclick: () => this.openTask(id) }, id));
    if (processes.length > 4) chips.push(el("span", {}, `and ${processes.length - 4} more`));
    this.processes.replaceChildren(...chips);
  }
}

const share = (part, whole) => (part === null || !whole ? null : (100 * part) / whole);

/** A labelled bar with its value in words; an unread value has no bar. */
function meter(label) {
  const value = el("span", { class: "meter-value" });
  const bar = el("span", { class: "bar" });
  const track = el("span", { class: "track", "aria-hidden": "true" }, bar);
  const node = el("p", { class: "meter" }, el("span", { class: "meter-label" }, label), value, track);
  return {
    node,
    draw(per100, words) {
      setText(value, words);
      track.toggleAttribute("data-unread", per100 === null);
      bar.style.transform = `scaleX(${per100 === null ? 0 : Math.min(1, Math.max(0, per100 / 100)).toFixed(3)})`;
    },
  };
}
