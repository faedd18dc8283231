/* Draws the parts of the page that asked for it: each not too often, a few milliseconds at a time, only while seen. */

const REST = 15; // a part rests this many times as long as it took, so that a slow computer still answers its user
const FRAME_MS = 8; // of script in one frame; a part that takes longer has a frame of its own

export class Painter {
  #parts = new Map();
  #waiting = null;

  /** A part of the page, drawn at most once in `everyMs`. */
  add(name, everyMs, draw) {
    this.#parts.set(name, { draw, everyMs, wanted: false, lastMs: -Infinity, tookMs: 0 });
  }

  request(name) {
    this.#parts.get(name).wanted = true;
    this.#plan(0);
  }

  #plan(delayMs) {
    if (this.#waiting !== null) return;
    // A frame comes only while the tab is shown: a hidden one collects, and draws once when it is looked at again.
    this.#waiting = setTimeout(() => requestAnimationFrame((nowMs) => this.#frame(nowMs)), delayMs);
  }

  #frame(nowMs) {
    this.#waiting = null;
    const startMs = performance.now();
    let nextMs = Infinity;
    for (const part of this.#parts.values()) {
      if (!part.wanted) continue;
      const dueMs = part.lastMs + Math.max(part.everyMs, REST * part.tookMs) - nowMs;
      if (dueMs > 0 || performance.now() - startMs > FRAME_MS) {
        nextMs = Math.min(nextMs, Math.max(0, dueMs));
        continue;
      }
      part.wanted = false;
      part.lastMs = nowMs;
      const beforeMs = performance.now();
      part.draw();
      part.tookMs = performance.now() - beforeMs;
    }
    if (nextMs < Infinity) this.#plan(nextMs);
  }
}
