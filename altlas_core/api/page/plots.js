/* The plots, drawn by plotly.js in the page's own colours. Each is drawn only while it can be seen. */

import { COLOURS, colourOf, isDashed } from "./cards.js";
import { byId, el, setText } from "./dom.js";
import { WINDOW_S } from "./history.js";
import { NOT_READ, count, gib, tenths } from "./words.js";

const MOST_IN_ONE_HOVER = 8;
const MINUTES = [5, 4, 3, 2, 1, 0];
const same = (value) => value;

const KINDS = [
  {
    reading: "utilization", name: "Utilization", axis: "utilization", unit: "%", convert: same, write: count,
    top: 100,
  },
  { reading: "memory_used", name: "Memory used", axis: "memory used", unit: "GiB", convert: gib, write: tenths },
  {
    reading: "temperature", name: "Temperature", axis: "temperature", unit: "°C", convert: same, write: tenths,
    floats: true,
  },
  { reading: "power_usage", name: "Power", axis: "power", unit: "W", convert: same, write: count },
  { reading: null, name: "Queue depth", axis: "queued", unit: "tasks", convert: same, write: count },
];

export class Plots {
  #history;
  #visible = new Set();
  #theme = null;
  plots;

  /** `request(name)` is called when a plot comes into sight and needs drawing. */
  constructor(history, request) {
    this.#history = history;
    this.plots = KINDS.map((kind) => ({ kind, id: `plot-${kind.reading ?? "queue"}`, ...frame(kind) }));
    byId("plots").append(...this.plots.map((plot) => plot.node));
    const watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) this.#visible.add(target.id);
        else this.#visible.delete(target.id);
        if (isIntersecting) request(target.id);
      }
    }, { rootMargin: "100px" });
    this.plots.forEach((plot) => {
      plot.area.id = plot.id;
      watcher.observe(plot.area);
    });
    const sizes = new ResizeObserver((entries) => {
      for (const { target, contentRect } of entries) {
        const plot = this.plots.find(({ id }) => id === target.id);
        plot.size = { width: Math.floor(contentRect.width), height: Math.floor(contentRect.height) };
        request(plot.id);
      }
    });
    this.plots.forEach((plot) => sizes.observe(plot.area)); // so that drawing asks for no layout of the page
    const forget = () => {
      this.#theme = null;
      this.plots.forEach((plot) => request(plot.id));
    };
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forget);
  }

  draw(plot) {
    const history = this.#history;
    const now = history.times.at(-1);
    setText(plot.value, summary(plot.kind, history));
    if (now === undefined || !plot.size?.width || !this.#visible.has(plot.id)) return;
    if (typeof Plotly === "undefined") {
      setText(plot.area, "plotly.js could not be loaded.");
      return;
    }
    this.#theme ??= theme();
    const ago = history.times.map((time) => now - time);
    const data = traces(plot.kind, history, ago, this.#theme);
    Plotly.react(plot.area, data, layout(plot, data, this.#theme), { displayModeBar: false, doubleClick: false });
  }
}

function frame(kind) {
  const value = el("span", { class: "quiet" });
  const area = el("div", { class: "plot", role: "img", "aria-label": `${kind.name} over the last five minutes` });
  const head = el("div", { class: "plot-head" }, el("h3", {}, kind.name), value);
  const node = el("article", { class: "panel plot-panel" }, head, area);
  return { node, area, value };
}

/** What the newest sample says, for those who cannot see the lines. */
function summary(kind, history) {
  const say = (value) => (value === null ? NOT_READ : `${kind.write(value)} ${kind.unit}`);
  if (kind.reading === null) return `now ${count(history.queueDepth.at(-1) ?? null)}`;
  const lines = history.lines[kind.reading];
  if (history.many) {
    const newest = (name) => say(kind.convert(lines.get(name)?.at(-1) ?? null));
    const [least, mean, most] = ["least", "mean", "most"].map(newest);
    return `mean ${mean}, from ${least} to ${most}`;
  }
  const known = Array.from(lines.values(), (values) => values.at(-1)).filter((value) => typeof value === "number");
  if (known.length === 0) return "not read";
  const mean = kind.convert(known.reduce((sum, value) => sum + value, 0) / known.length);
  return known.length === 1 ? `now ${say(mean)}` : `mean ${say(mean)}`;
}

function traces(kind, history, x, colours) {
  const hovertemplate = `%{y:.4~g} ${kind.unit}`;
  const line = (y, name, more) => ({ type: "scatter", mode: "lines", x, y, name, hovertemplate, ...more });
  if (kind.reading === null) {
    return [line(history.queueDepth, "queued", {
      line: { color: colours.ink, width: 1.5, shape: "hv" }, fill: "tozeroy", fillcolor: colours.inkTint,
    })];
  }
  const lines = Array.from(history.lines[kind.reading], ([key, values]) => [key, values.map(kind.convert)]);
  if (!history.many) {
    return lines.map(([id, y], position) => line(y, `GPU ${id}`, {
      line: { color: colours.gpus[colourOf(position)], width: 1.5, dash: isDashed(position) ? "dash" : "solid" },
    }));
  }
  const of = new Map(lines);
  const edge = { color: colours.gpus["--gpu-0"], width: 0 };
  return [
    line(of.get("least"), "least", { line: edge }),
    line(of.get("most"), "most", { line: edge, fill: "tonexty", fillcolor: colours.band }),
    line(of.get("mean"), "mean", { line: { ...edge, width: 2 } }),
  ];
}

function layout(plot, data, colours) {
  const { kind } = plot;
  const axis = {
    gridcolor: colours.grid, linecolor: colours.line, zeroline: false, fixedrange: true, ticks: "",
  };
  const title = (text, standoff) => ({ text, standoff, font: { size: 11, color: colours.soft } });
  return {
    ...plot.size,
    margin: { l: 52, r: 12, t: 8, b: 38 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: colours.sans, size: 11, color: colours.soft },
    showlegend: false,
    dragmode: false,
    hovermode: data.length > MOST_IN_ONE_HOVER ? "closest" : "x unified",
    hoverlabel: { bgcolor: colours.raised, bordercolor: colours.line, font: { color: colours.strong, size: 11 } },
    xaxis: {
      ...axis,
      range: [WINDOW_S, 0],
      title: title("minutes ago", 4),
      unifiedhovertitle: { text: "%{x:.0f} s ago" },
      tickvals: MINUTES.map((minute) => 60 * minute),
      ticktext: MINUTES.map((minute) => (minute ? String(minute) : "now")),
    },
    yaxis: {
      ...axis,
      range: kind.top ? [0, kind.top] : range(data, kind.floats),
      title: title(`${kind.axis} (${kind.unit})`, 6),
      nticks: 5,
      tickformat: ",~r",
    },
  };
}

/** A range that holds still: it ends at round numbers. Those of `floats` need not begin at 0. */
function range(data, floats) {
  let low = Infinity, high = -Infinity;
  for (const { y } of data) {
    for (const value of y) {
      if (value === null) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (high < low) return [0, 1];
  if (floats) return [Math.floor(low / 10 - 0.1) * 10, Math.ceil(high / 10 + 0.1) * 10];
  return [0, roundAbove(Math.max(high * 1.04, 4))];
}

function roundAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value) * power;
}

/** The colours of the style sheet, as they are in the present scheme. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  const names = Array.from({ length: COLOURS }, (_, position) => colourOf(position));
  const gpus = Object.fromEntries(names.map((name) => [name, get(name)]));
  return {
    gpus, sans: get("--sans"), grid: get("--grid"), line: get("--line"), raised: get("--raised"),
    soft: get("--ink-soft"), strong: get("--ink"), ink: get("--ink-soft"), inkTint: get("--plot-fill"), band: get("--plot-band"),
  };
}
