/* Numbers in words. What was not read is "N/A", never 0. */

export const NOT_READ = "N/A";
const GIB = 2 ** 30;
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const oneDigit = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

const known = (value) => typeof value === "number" && Number.isFinite(value);

export const count = (value) => (known(value) ? whole.format(value) : NOT_READ);
export const tenths = (value) => (known(value) ? oneDigit.format(value) : NOT_READ);
export const percent = (value) => (known(value) ? `${whole.format(value)} %` : NOT_READ);
export const celsius = (value) => (known(value) ? `${whole.format(value)} °C` : NOT_READ);
export const gib = (bytes) => (known(bytes) ? bytes / GIB : null);

/** "12.3 / 80.0 GiB"; either side may be unknown. */
export function ofTotal(value, total, unit, write) {
  if (!known(value) && !known(total)) return NOT_READ;
  return `${write(value)} / ${write(total)} ${unit}`;
}

/** A span of seconds, as long as it must be: 18 ms, 4.2 s, 3 min 12 s, 5 h 2 min, 3 d 4 h. */
export function span(seconds) {
  if (!known(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 59.95) return `${oneDigit.format(s)} s`;
  return longSpan(s);
}

/** The same in full seconds, for what counts up in front of one's eyes. */
export function longSpan(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Unix seconds as a date and time of this computer's zone. */
export const date = (unixSeconds) => (known(unixSeconds) ? moment.format(unixSeconds * 1000) : "–");

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** The first `length` characters, never half of a pair, with an ellipsis where something is missing. */
export function start(text, length) {
  if (text.length <= length) return text;
  const characters = Array.from(text.slice(0, length + 1));
  return characters.slice(0, Math.min(length, characters.length - 1)).join("") + "…";
}
