// The machine of a live run as tiles. Reads the traits of machine.py's Machine; asks no host for anything.

const HEALTH = {
  AVAILABLE: { mark: "○", means: "has a free slot" },
  BUSY: { mark: "●", means: "all slots taken" },
  UNHEALTHY: { mark: "▲", means: "takes no work" },
  LOST: { mark: "✕", means: "gone" },
};
const COLUMNS = ["health", "reasons", "utilization", "memory", "temperature", "power", "running"];
const LARGE = 16; // GPUs: a tile with everything
const COMPACT = 128; // above: a cell with a number
const NARROW_PX = 400; // of the dashboard: tiles are a size smaller

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Write only what differs: a style or layout that is not touched costs nothing. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function known(value, unit) {
  return value === null || value === undefined ? "N/A" : `${value}${unit}`;
}

function meter(label) {
  const row = make("span", "altlas-meter");
  const bar = make("span", "altlas-bar");
  const fill = make("span", "altlas-fill");
  const value = make("span", "altlas-value");
  bar.append(fill);
  row.append(make("span", "altlas-label", label), bar, value);
  return { row, fill, value };
}

function level(part, share, text) {
  const width = `${Math.round(100 * Math.min(1, Math.max(0, share || 0)))}%`;
  if (part.fill.style.width !== width) part.fill.style.width = width;
  put(part.value, text);
}

/** A tile: a button that selects its GPU. */
function makeTile(id, facts, size) {
  const button = make("button", "altlas-gpu");
  button.type = "button";
  button.dataset.gpu = id;
  button.setAttribute("aria-pressed", "false");
  button.tabIndex = id === 0 ? 0 : -1;
  const tile = { id, facts, button, mark: make("span", "altlas-mark") };
  if (size === "dense") {
    button.append(tile.mark);
    return tile;
  }
  const top = make("span", "altlas-top");
  top.append(make("span", "altlas-id", `GPU ${id}`), tile.mark);
  tile.utilization = meter("util");
  tile.memory = meter("mem");
  tile.heat = make("span");
  tile.power = make("span");
  tile.slots = make("span", "altlas-slots");
  const foot = make("span", "altlas-foot");
  foot.append(tile.heat, tile.power, tile.slots);
  button.append(top, make("span", "altlas-name", facts.name), tile.utilization.row, tile.memory.row, foot);
  return tile;
}

function sizeFor(count, width) {
  const narrow = width > 0 && width < NARROW_PX;
  if (count <= LARGE) return narrow ? "compact" : "large";
  return count <= COMPACT && !narrow ? "compact" : "dense";
}

function slotText(running, slots, size) {
  const dots = size === "large" && slots <= 8 ? "■".repeat(running) + "□".repeat(Math.max(0, slots - running)) + " " : "";
  return `${dots}${running}/${slots}`;
}

function drawTile(tile, size, gpu) {
  const { facts, button } = tile;
  const state = HEALTH[gpu.health] || { mark: "?", means: "" };
  const said =
    `GPU ${tile.id}, ${facts.name}, ${gpu.health}${gpu.reason ? `: ${gpu.reason}` : ""}, ` +
    `${known(gpu.utilization, " %")} utilized, ${known(gpu.memory, "")} of ${facts.memory} GiB, ` +
    `${known(gpu.temperature, " °C")}, ${known(gpu.power, " W")}, ${gpu.running} of ${facts.slots} slots at work`;
  if (button.title === said) return; // nothing has changed
  button.title = said;
  button.setAttribute("aria-label", said);
  button.dataset.health = gpu.health;
  const well = gpu.health === "AVAILABLE" || gpu.health === "BUSY";
  if (size === "dense") {
    put(tile.mark, !well ? state.mark : gpu.utilization === null ? "–" : String(gpu.utilization));
    button.style.setProperty("--share", String((gpu.utilization || 0) / 100));
    return;
  }
  put(tile.mark, size === "compact" && well ? state.mark : `${state.mark} ${gpu.health}`);
  level(tile.utilization, gpu.utilization / 100, known(gpu.utilization, " %"));
  level(
    tile.memory,
    gpu.memory / facts.memory,
    size === "large" ? `${known(gpu.memory, "")} / ${facts.memory} GiB` : known(gpu.memory, " GiB"),
  );
  put(tile.heat, known(gpu.temperature, " °C"));
  put(tile.power, known(gpu.power, " W"));
  put(tile.slots, slotText(gpu.running, facts.slots, size));
}

/** State, clock, numbers and news around the tiles. */
function makeFrame(el) {
  const root = make("section", "altlas-machine");
  root.setAttribute("aria-label", "The machine");
  const state = make("span", "altlas-state");
  const clock = make("span", "altlas-clock");
  const pace = make("span", "altlas-quiet");
  const machine = make("span", "altlas-quiet altlas-what");
  const head = make("div", "altlas-head");
  head.append(state, clock, pace, machine);
  const figures = make("dl", "altlas-figures");
  const problem = make("p", "altlas-problem");
  problem.setAttribute("role", "alert");
  const tiles = make("div", "altlas-tiles");
  tiles.setAttribute("role", "group");
  tiles.setAttribute("aria-label", "GPUs: choose the one to break or mend");
  const legend = make("p", "altlas-quiet altlas-legend");
  const news = make("ol", "altlas-news");
  news.setAttribute("aria-label", "News, latest first");
  news.tabIndex = 0;
  root.append(head, problem, figures, tiles, legend, news);
  el.append(root);
  return { root, state, clock, pace, machine, figures, problem, tiles, legend, news };
}

function drawFigures(list, pairs) {
  if (list.childElementCount !== pairs.length) {
    list.replaceChildren(
      ...pairs.map(([name]) => {
        const pair = make("div");
        pair.append(make("dt", "", name), make("dd"));
        return pair;
      }),
    );
  }
  pairs.forEach(([name, text], at) => {
    const pair = list.children[at];
    put(pair.firstChild, name);
    put(pair.lastChild, text);
    pair.classList.toggle("altlas-bad", name === "failed" && text !== "0");
  });
}

function drawNews(list, lines) {
  const latest = [...lines].reverse();
  const before = [...list.children].map((item) => item.textContent);
  const same = before.length === latest.length && before.every((text, at) => text === latest[at]);
  if (!same) list.replaceChildren(...latest.map((line) => make("li", "", line)));
  list.hidden = latest.length === 0;
}

/** Arrow keys, Home and End move between the tiles, one of which is in the order of Tab. */
function moveFocus(event, tiles) {
  const buttons = tiles.map((tile) => tile.button);
  const at = buttons.indexOf(document.activeElement);
  if (at < 0) return;
  const columns = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  const ends = { Home: 0, End: buttons.length - 1 };
  const to = event.key in ends ? ends[event.key] : at + steps[event.key];
  if (!(to >= 0 && to < buttons.length)) return;
  event.preventDefault();
  buttons[at].tabIndex = -1;
  buttons[to].tabIndex = 0;
  buttons[to].focus();
}

function render({ model, el }) {
  const frame = makeFrame(el);
  let tiles = [];
  let size = "large";
  let asked = 0;
  let width = 0;

  function build() {
    const gpus = model.get("gpus");
    size = sizeFor(gpus.length, width);
    frame.tiles.dataset.size = size;
    tiles = gpus.map((facts, id) => makeTile(id, facts, size));
    frame.tiles.replaceChildren(...tiles.map((tile) => tile.button));
    const marks = Object.entries(HEALTH).map(([name, { mark, means }]) => `${mark} ${name} ${means}`);
    const number = size === "dense" ? "Numbers: utilization in percent. " : "";
    frame.legend.textContent = number + marks.join("   ");
  }

  function draw() {
    asked = 0;
    const gpus = model.get("gpus");
    const other = gpus.length !== tiles.length || gpus.some((facts, id) => facts.name !== tiles[id].facts.name);
    if (other || sizeFor(gpus.length, width) !== size) build();
    const now = Object.fromEntries(COLUMNS.map((name) => [name, model.get(name)]));
    const chosen = model.get("selected");
    tiles.forEach((tile, id) => {
      tile.facts = gpus[id];
      const reading = { reason: now.reasons[id] };
      for (const name of COLUMNS) if (name !== "reasons") reading[name] = now[name][id];
      drawTile(tile, size, reading);
      const pressed = String(id === chosen);
      if (tile.button.getAttribute("aria-pressed") !== pressed) tile.button.setAttribute("aria-pressed", pressed);
    });
    const head = model.get("head");
    frame.root.dataset.state = head.state || "";
    put(frame.state, head.state || "");
    put(frame.clock, head.clock || "");
    put(frame.pace, `${head.pace || ""}, ${head.provenance || ""}`);
    put(frame.machine, head.machine || "");
    put(frame.problem, model.get("problem") || head.error || "");
    frame.problem.hidden = !frame.problem.textContent;
    drawFigures(frame.figures, model.get("figures"));
    drawNews(frame.news, model.get("news"));
    model.send({ seen: model.get("frame") });
  }

  function ask() {
    if (!asked) asked = requestAnimationFrame(draw);
  }

  function choose(event) {
    const button = event.target.closest(".altlas-gpu");
    if (!button) return;
    tiles.forEach((tile) => (tile.button.tabIndex = tile.button === button ? 0 : -1));
    const id = Number(button.dataset.gpu);
    model.send({ select: id === model.get("selected") ? -1 : id });
  }

  model.on("change", ask);
  frame.tiles.addEventListener("click", choose);
  frame.tiles.addEventListener("keydown", (event) => moveFocus(event, tiles));
  draw();

  // Keys typed here are meant for the buttons, not for the notebook around them; and the figure follows the width.
  let settling = 0;
  const settle = new ResizeObserver(() => {
    el.closest(".altlas-live")?.setAttribute("data-lm-suppress-shortcuts", "true");
    if (el.clientWidth === width || !el.clientWidth) return;
    width = el.clientWidth;
    ask();
    clearTimeout(settling);
    settling = setTimeout(() => model.send({ width }), 100);
  });
  settle.observe(el);
  return () => {
    settle.disconnect();
    clearTimeout(settling);
    cancelAnimationFrame(asked);
    model.off("change", ask);
  };
}

export default { render };
