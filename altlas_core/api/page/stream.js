/* The stream of events: read, taken up again when it breaks, given up when it falls silent. */

import { ApiError } from "./api.js";

const FIRST_DELAY_S = 0.5;
const LONGEST_DELAY_S = 10;
const SILENCE_S = 20; // the server says something at least every 15 s
const EVENT_END = /\r?\n\r?\n/;

/** Reads server-sent events from a response's body; calls `take(name, data)` for each, in order, waiting for it. */
export async function readEvents(body, take, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    buffer += value;
    for (let end = EVENT_END.exec(buffer); end !== null; end = EVENT_END.exec(buffer)) {
      const event = parse(buffer.slice(0, end.index));
      buffer = buffer.slice(end.index + end[0].length);
      if (event !== null) await take(event.name, event.data);
    }
  }
}

/** One event's lines; null for a comment, which only shows that the line is up. */
function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length === 0 ? null : { name, data: JSON.parse(data.join("\n")) };
}

export class Live {
  #api;
  #reload;
  #take;
  #tell;
  #failures = 0;
  #wake = null;

  /**
   * `reload()` fetches all lists; it runs before the first event of each connection is taken, so what they say last is
   * never older than the lists. `take(name, data)` gets events; `tell(state, detail)` gets "live" or "reconnecting".
   */
  constructor(api, { reload, take, tell }) {
    this.#api = api;
    this.#reload = reload;
    this.#take = take;
    this.#tell = tell;
    window.addEventListener("online", () => this.#wake?.());
  }

  async run() {
    for (;;) {
      let why = "The server ended the stream of events.";
      try {
        await this.#connection();
      } catch (error) {
        why = error instanceof ApiError ? error.message : "The connection broke off.";
      }
      const delayS = Math.min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** this.#failures) * (0.8 + 0.2 * Math.random());
      this.#failures += 1;
      this.#tell("reconnecting", { why });
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, delayS * 1000);
      });
    }
  }

  async #connection() {
    const stop = new AbortController();
    let watchdog;
    const heard = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => stop.abort(), SILENCE_S * 1000);
    };
    try {
      const response = await this.#api.open("GET", "/events", undefined, stop.signal);
      await this.#reload(stop.signal);
      heard();
      this.#tell("live", {});
      await readEvents(response.body, (name, data) => this.#event(name, data, stop.signal), heard);
    } finally {
      clearTimeout(watchdog);
      stop.abort();
    }
  }

  async #event(name, data, signal) {
    this.#failures = 0;
    if (name === "lagged") await this.#reload(signal);
    else this.#take(name, data);
  }
}
