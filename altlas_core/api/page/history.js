/* The last five minutes of readings, in columns. Never more: a page that is open for days must not grow. */

export const WINDOW_S = 300;
export const MANY_GPUS = 16; // above: mean, least and most instead of one line for each
export const READINGS = ["utilization", "memory_used", "temperature", "power_usage"];
const MOST_SAMPLES = 1200; // should the server send faster than once a second
const GAP = 3; // missing samples that break a line

export class History {
  #intervalS = 1;
  times = [];
  queueDepth = [];
  /** reading -> line -> values; a line is a GPU's id, or "mean", "least" and "most" of many. */
  lines = Object.fromEntries(READINGS.map((reading) => [reading, new Map()]));
  many = false;

  /** Forget all, take what the server remembers. */
  load(telemetry) {
    this.#intervalS = telemetry.interval_s;
    this.times = [...telemetry.time];
    this.queueDepth = [...telemetry.queue_depth];
    this.many = telemetry.gpus.length > MANY_GPUS;
    for (const reading of READINGS) {
      const columns = telemetry.gpus.map((gpu) => gpu[reading]);
      const lines = this.many
        ? summaries(this.times.map((_, row) => columns.map((column) => column[row])))
        : telemetry.gpus.map((gpu) => [gpu.id, [...gpu[reading]]]);
      this.lines[reading] = new Map(lines);
    }
    this.#trim();
  }

  /** One more sample of all GPUs, unless it is known already. */
  add(time, gpus, queueDepth) {
    const last = this.times.at(-1) ?? -Infinity;
    if (time <= last) return;
    if (this.times.length > 0 && time - last > GAP * this.#intervalS) this.#row(last + this.#intervalS, null, null);
    this.#row(time, gpus, queueDepth);
    this.#trim();
  }

  #row(time, gpus, queueDepth) {
    this.times.push(time);
    this.queueDepth.push(queueDepth);
    const byId = gpus === null ? new Map() : new Map(gpus.map((gpu) => [gpu.id, gpu]));
    for (const reading of READINGS) {
      if (this.many) {
        const row = gpus === null ? [] : gpus.map((gpu) => gpu[reading]);
        for (const [name, [value]] of summaries([row])) this.lines[reading].get(name).push(value);
      } else {
        for (const [id, values] of this.lines[reading]) values.push(byId.get(id)?.[reading] ?? null);
      }
    }
  }

  #trim() {
    const oldest = (this.times.at(-1) ?? 0) - WINDOW_S;
    let surplus = Math.max(0, this.times.length - MOST_SAMPLES);
    while (surplus < this.times.length && this.times[surplus] < oldest) surplus += 1;
    if (surplus === 0) return;
    this.times.splice(0, surplus);
    this.queueDepth.splice(0, surplus);
    for (const lines of Object.values(this.lines)) for (const values of lines.values()) values.splice(0, surplus);
  }
}

/** Of each row of readings, null where not read: its mean, least and most. */
function summaries(rows) {
  const mean = [], least = [], most = [];
  for (const row of rows) {
    let sum = 0, number = 0, low = Infinity, high = -Infinity;
    for (const value of row) {
      if (value === null || value === undefined) continue;
      sum += value;
      number += 1;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    mean.push(number ? sum / number : null);
    least.push(number ? low : null);
    most.push(number ? high : null);
  }
  return [["mean", mean], ["least", least], ["most", most]];
}

/** Things a second over the last ten seconds, from totals that come about once a second. */
export class Rate {
  #samples = [];

  add(atMs, total) {
    const last = this.#samples.at(-1);
    if (last && total < last.total) this.#samples = []; // another server, which counts from the beginning
    this.#samples.push({ atMs, total });
    while (this.#samples.length > 2 && this.#samples[1].atMs <= atMs - 10_000) this.#samples.shift();
    if (this.#samples.length > 200) this.#samples.splice(1, 1);
  }

  forget() {
    this.#samples = [];
  }

  /** null before two totals are known. */
  get perS() {
    const first = this.#samples[0], last = this.#samples.at(-1);
    if (!first || last.atMs - first.atMs < 500) return null;
    return ((last.total - first.total) * 1000) / (last.atMs - first.atMs);
  }
}
