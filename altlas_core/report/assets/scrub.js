/* One time for all figures over time of a run: a cursor that a slider or the mouse moves, and one zoom for all. */
"use strict";
(() => {
  const MOST_LINES = 4; // whose values stand beside the cursor
  const STEPS = 200; // of the slider, at least
  const THUMB_PX = 16; // its middle stands where the time is

  const isTimeline = (place) => String(place.layout.meta.figure).startsWith("timeline");
  const isTime = (place) => place.layout && place.layout.meta && place.layout.meta.time_axis;
  const lines = (place) => place.data.filter((trace) =>
    (trace.type || "scatter").startsWith("scatter") && (trace.mode || "lines").includes("lines") &&
    trace.name && trace.hoverinfo !== "skip" && Array.isArray(trace.x));
  const bars = (place) => place.data.filter((trace) => trace.type === "bar" && trace.orientation === "h" && trace.base);
  const short = (value) => String(Number(value.toPrecision(4)));

  /** The figures over time by run: by its name where they say it, else those of one part, from each timeline on. */
  function groups() {
    const found = new Map();
    let part = 0, timelines = 0;
    for (const node of document.querySelectorAll("main h2, .story h3, .figure[data-drawn]")) {
      if (node.tagName.startsWith("H")) [part, timelines] = [part + 1, 0];
      else if (isTime(node)) {
        timelines += isTimeline(node);
        const key = node.layout.meta.run ?? `${part}/${timelines}`;
        found.set(key, [...(found.get(key) || []), node]);
      }
    }
    return [...found.values()].filter((places) => places.length > 1 || isTimeline(places[0]));
  }

  /** What a line says at a time: the step, the bin or the point between; null before it begins and in a gap. */
  function valueAt(trace, time) {
    let low = 0, high = trace.x.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (trace.x[middle] <= time) low = middle + 1;
      else high = middle;
    }
    const before = low - 1, shape = (trace.line && trace.line.shape) || "linear";
    if (before < 0) return shape === "hvh" ? trace.y[0] : null; // the first bin begins before its middle
    if (low === trace.x.length || shape === "hv") return trace.y[before];
    if (shape === "vh") return trace.x[before] === time ? trace.y[before] : trace.y[low];
    const share = (time - trace.x[before]) / (trace.x[low] - trace.x[before]);
    if (shape === "hvh") return trace.y[share < 0.5 ? before : low];
    if (trace.y[before] === null || trace.y[low] === null) return null;
    return trace.y[before] + share * (trace.y[low] - trace.y[before]);
  }

  /** How many tasks a timeline shows running: its bars, or the line that stands for too many of them; else null. */
  function running(place, time) {
    const shown = bars(place);
    if (!shown.length) {
      const line = lines(place).find((trace) => trace.name === "running tasks");
      return line ? Math.round(valueAt(line, time)) : null;
    }
    const now = (trace) => trace.base.filter((start, at) => start <= time && time < start + trace.x[at]).length;
    return shown.reduce((sum, trace) => sum + now(trace), 0);
  }

  function unitOf(place, trace) {
    const axis = place._fullLayout["yaxis" + (trace.yaxis || "y").slice(1)];
    return (/\(([^()]*)\)$/.exec(axis.title.text || "") || ["", ""])[1];
  }

  function label(place, time) {
    if (isTimeline(place)) return `${running(place, time) ?? "N/A"} running`;
    const shown = lines(place);
    if (!shown.length || shown.length > MOST_LINES) return "";
    return shown.map((trace) => {
      const value = valueAt(trace, time);
      const text = typeof value === "number" ? `${short(value)} ${unitOf(place, trace)}`.trim() : "N/A";
      return shown.length > 1 ? `${trace.name}: ${text}` : text;
    }).join("\n");
  }

  function summary(places, time) {
    const said = [];
    const timeline = places.find(isTimeline);
    const count = timeline ? running(timeline, time) : null;
    if (count !== null) {
      said.push(`${count} ${count === 1 ? "task" : "tasks"} running`);
    }
    const queue = places.find((place) => place.layout.meta.figure === "queue_depth" && lines(place).length === 1);
    const beside = timeline && timeline.layout.meta.waiting; // where no figure of the queue is drawn
    const depths = queue ? lines(queue)[0] : beside && { ...beside, line: { shape: "hv" } };
    const waiting = depths && valueAt(depths, time);
    if (typeof waiting === "number") said.push(`${!queue && beside.most ? "up to " : ""}${short(waiting)} waiting`);
    return `${short(time)} s${said.length ? ": " + said.join(", ") : ""}`;
  }

  class Group {
    constructor(places) {
      this.places = places;
      this.initial = places.map((place) => [...place._fullLayout.xaxis.range]);
      this.busy = false;
      this.used = false;
      const hosts = places.filter(isTimeline);
      this.hosts = hosts.length ? hosts : places.slice(0, 1);
      this.hosts.forEach((place) => this.control(place));
      places.forEach((place) => this.follow(place));
      this.move(Math.max(0, this.initial[0][0]), false);
    }

    control(place) {
      const box = document.createElement("div");
      box.className = "scrub";
      box.innerHTML = '<input type="range"><p class="now" aria-hidden="true"></p><div class="zoom" role="group" aria-label="Zoom"></div>';
      const slider = box.querySelector("input");
      slider.addEventListener("input", () => this.move(Number(slider.value)));
      for (const [text, name, act] of [
        ["+", "Zoom in around the cursor", () => this.scale(0.5)],
        ["−", "Zoom out", () => this.scale(2)],
        ["Whole run", "Show the whole run", () => this.zoom(null)],
      ]) {
        const button = document.createElement("button");
        Object.assign(button, { type: "button", textContent: text, title: name });
        button.setAttribute("aria-label", name);
        button.addEventListener("click", act);
        box.querySelector(".zoom").append(button);
      }
      place.after(box);
      place.slider = slider;
    }

    follow(place) {
      place.cursor = document.createElement("div");
      Object.assign(place.cursor, { className: "cursor", hidden: true });
      place.append(place.cursor);
      place.on("plotly_afterplot", () => this.put(place));
      place.on("plotly_relayout", (change) => this.relayed(place, change));
      place.addEventListener("pointermove", (event) => this.point(place, event));
    }

    point(place, event) {
      if (event.pointerType !== "mouse" || event.buttons) return;
      const box = place.getBoundingClientRect(), axis = place._fullLayout.xaxis, size = place._fullLayout._size;
      const x = event.clientX - box.left - axis._offset, y = event.clientY - box.top - size.t;
      if (x >= 0 && x <= axis._length && y >= 0 && y <= size.h) this.move(axis.p2l(x));
    }

    move(time, used = true) {
      this.at = time;
      this.used ||= used;
      const text = summary(this.places, time);
      for (const { slider } of this.hosts) {
        slider.setAttribute("aria-valuetext", text);
        slider.parentElement.querySelector(".now").textContent = text;
      }
      this.places.forEach((place) => this.put(place));
    }

    /** The slider stands under the axis and goes as far as that shows. */
    align({ slider, _fullLayout: { xaxis } }) {
      const [low, high] = xaxis.range;
      const step = 10 ** Math.floor(Math.log10((high - low) / STEPS));
      Object.assign(slider, { min: low, max: high, step, value: this.at });
      slider.setAttribute("aria-label", `Time, ${short(low)} to ${short(high)} s`);
      slider.style.marginLeft = `${xaxis._offset - THUMB_PX / 2}px`;
      slider.style.width = `${xaxis._length + THUMB_PX}px`;
    }

    put(place) {
      const axis = place._fullLayout.xaxis, size = place._fullLayout._size, x = axis.l2p(this.at);
      if (place.slider) this.align(place);
      place.cursor.hidden = !this.used || x < -0.5 || x > axis._length + 0.5;
      Object.assign(place.cursor.style, { left: `${axis._offset + x}px`, top: `${size.t}px`, height: `${size.h}px` });
      place.cursor.classList.toggle("left", x > axis._length / 2);
      place.cursor.dataset.label = label(place, this.at);
    }

    scale(factor) {
      const [from, to] = this.initial[this.places.indexOf(this.hosts[0])];
      const [low, high] = this.hosts[0]._fullLayout.xaxis.range;
      const width = (high - low) * factor;
      if (width >= to - from) return this.zoom(null);
      const start = Math.min(Math.max(this.at - width / 2, from), to - width);
      return this.zoom([start, start + width]);
    }

    /** Show this stretch of time in all figures; null: each as it was at first. */
    async zoom(range) {
      this.busy = true;
      await Promise.all(this.places.map((place, at) => Plotly.relayout(place, { "xaxis.range": [...(range || this.initial[at])] })));
      this.busy = false;
      if (range) this.move(Math.min(Math.max(this.at, range[0]), range[1]), this.used);
    }

    relayed(place, change) {
      if (this.busy) return;
      if ("xaxis.range[0]" in change) this.zoom([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
      else if (change["xaxis.range"]) this.zoom(change["xaxis.range"]);
      else if (change["xaxis.autorange"]) this.zoom(null);
    }
  }

  const start = () => groups().forEach((places) => new Group(places));
  if (document.documentElement.dataset.figures === "drawn") start();
  else document.addEventListener("figures-drawn", start);
})();
