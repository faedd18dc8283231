/* All GPUs: a card for each of a few, a tile for each of many with one card beside them. */

import { Card, STATES } from "./cards.js";
import { byId, el, setAttribute, setText } from "./dom.js";
import { MANY_GPUS } from "./history.js";
import { count } from "./words.js";

const LEVELS = 10; // tones of utilization
const MOST_WITH_ID = 128; // above, tiles are too small for more than a sign
const MOST_NAMED = 6; // GPUs in trouble that are named one by one

export class GpuView {
  #place = byId("gpus");
  #summary = byId("gpus-summary");
  #openTask;
  #shape = "";
  #draw = () => {};

  constructor(openTask) {
    this.#openTask = openTask;
  }

  draw(gpus) {
    if (gpus.length === 0) return;
    const shape = gpus.map((gpu) => gpu.id).join();
    if (shape !== this.#shape) {
      this.#shape = shape;
      this.#draw = (gpus.length > MANY_GPUS ? tiles : cards)(this.#place, gpus, this.#openTask);
    }
    this.#draw(gpus);
    setText(this.#summary, summary(gpus));
  }
}

/** "510 available, 512 busy, 2 lost". */
function summary(gpus) {
  const counts = {};
  for (const gpu of gpus) counts[gpu.status] = (counts[gpu.status] ?? 0) + 1;
  const present = Object.keys(STATES).filter((state) => counts[state]);
  return present.map((state) => `${count(counts[state])} ${STATES[state].word}`).join(", ");
}

function cards(place, gpus, openTask) {
  const made = new Map(gpus.map((gpu, position) => [gpu.id, new Card(position, openTask)]));
  place.className = "cards";
  place.replaceChildren(...Array.from(made.values(), (card) => card.node));
  return (now) => now.forEach((gpu) => made.get(gpu.id).draw(gpu));
}

function tiles(place, gpus, openTask) {
  const nodes = gpus.map(() => el("button", { type: "button", class: "tile", tabindex: -1 }));
  const wide = gpus.length <= MOST_WITH_ID;
  const looks = wide ? "tiles wide-tiles" : "tiles";
  const grid = el("div", { class: looks, role: "group", "aria-label": "GPUs; arrow keys move" }, ...nodes);
  const card = new Card(null, openTask);
  const trouble = el("p", { class: "trouble" });
  const aside = el("div", { class: "tile-card" }, card.node, trouble);
  place.className = "tiles-and-card";
  place.replaceChildren(el("div", {}, legend(wide), grid), aside);

  let latest = gpus;
  let chosen = Math.max(0, gpus.findIndex((gpu) => gpu.status === "UNHEALTHY" || gpu.status === "LOST"));
  const choose = (position, focus) => {
    setAttribute(nodes[chosen], "aria-pressed", null);
    nodes[chosen].tabIndex = -1;
    chosen = position;
    setAttribute(nodes[chosen], "aria-pressed", "true");
    nodes[chosen].tabIndex = 0;
    if (focus) nodes[chosen].focus();
    card.draw(latest[chosen]);
  };
  choose(chosen, false);
  grid.addEventListener("click", (event) => {
    const position = nodes.indexOf(event.target.closest(".tile"));
    if (position >= 0) choose(position, false);
  });
  grid.addEventListener("keydown", (event) => {
    const position = neighbour(event.key, chosen, nodes);
    if (position === null) return;
    event.preventDefault();
    choose(position, true);
  });
  return (now) => {
    latest = now;
    now.forEach((gpu, position) => drawTile(nodes[position], gpu, wide));
    card.draw(now[chosen]);
    drawTrouble(trouble, now, (id) => choose(now.findIndex((gpu) => gpu.id === id), true));
  };
}

function drawTile(node, gpu, wide) {
  const tone = gpu.utilization === null ? "unread" : Math.round((Math.min(100, gpu.utilization) / 100) * LEVELS);
  setAttribute(node, "data-tone", tone);
  if (node.dataset.state === gpu.status) return;
  node.dataset.state = gpu.status;
  const state = STATES[gpu.status] ?? { sign: "?", word: gpu.status };
  const sign = gpu.status === "AVAILABLE" && !wide ? "" : state.sign;
  setText(node, wide ? `${sign} ${gpu.id}` : sign);
  const say = `GPU ${gpu.id}: ${state.word}${gpu.reason ? `, ${gpu.reason}` : ""}`;
  setAttribute(node, "aria-label", say);
  setAttribute(node, "title", say);
}

/** Where an arrow key leads from a tile; null: another key, or the edge. */
function neighbour(key, position, nodes) {
  const top = nodes[0].offsetTop;
  const broken = nodes.findIndex((node) => node.offsetTop !== top);
  const columns = broken < 0 ? nodes.length : broken;
  const step = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
    Home: -position, End: nodes.length - 1 - position,
  }[key];
  const target = position + step;
  return step === undefined || target < 0 || target >= nodes.length ? null : target;
}

function legend(wide) {
  const scale = Array.from({ length: LEVELS + 1 }, (_, tone) => el("span", { class: "tile", "data-tone": tone }));
  const signs = Object.entries(STATES).map(([state, { sign, word }]) => {
    const shown = state === "AVAILABLE" && !wide ? "" : sign;
    const tile = el("span", { class: "tile", "data-tone": 0, "data-state": state }, shown);
    return el("span", { class: "legend-item" }, tile, word);
  });
  const bar = el("span", { class: "scale" }, ...scale);
  const tones = el("span", { class: "legend-item" }, "utilization 0 %", bar, "100 %");
  return el("p", { class: "legend", "aria-hidden": "true" }, tones, ...signs);
}

/** The GPUs that need somebody, each a button that shows it. */
function drawTrouble(place, gpus, show) {
  const ill = gpus.filter((gpu) => gpu.status === "UNHEALTHY" || gpu.status === "LOST");
  const key = ill.map((gpu) => gpu.id + gpu.status).join();
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const button = ({ id, status }) =>
    el("button", { type: "button", class: "chip", onclick: () => show(id) }, `${STATES[status].sign} GPU ${id}`);
  const named = ill.slice(0, MOST_NAMED).map(button);
  const more = ill.length > MOST_NAMED ? [`and ${count(ill.length - MOST_NAMED)} more`] : [];
  place.replaceChildren(...(ill.length ? ["In trouble: ", ...named, ...more] : []));
}
