/* Every table sorts by a click on a head, or by Enter on it. Numbers sort as numbers, what is missing comes last. */
"use strict";
(() => {
  const MISSING = new Set(["", "n/a", "nan", "none", "null", "–", "—", "-"]);
  const NUMBER = /^([-+−]?[\d.,\s\u202f]*\d(?:e[-+]?\d+)?)(?:\s*[^\d\s].*|\s*\/\s*\d+)?$/i;
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const say = document.createElement("p");

  /** What a cell says, without the signs that only repeat it. */
  function textOf(cell) {
    const said = cell.cloneNode(true);
    said.querySelectorAll("[aria-hidden]").forEach((sign) => sign.remove());
    return said.textContent.trim().replace(/\s+/g, " ");
  }

  function numberOf(text) {
    const found = NUMBER.exec(text);
    return found ? Number(found[1].replace(/[,\s\u202f]/g, "").replace("−", "-")) : NaN;
  }

  /** Rows with the values of a column: numbers where all that is there are some, else texts; null for what is missing. */
  function keyed(rows, column) {
    const texts = rows.map((row) => textOf(row.cells[column]));
    const present = texts.map((text) => !MISSING.has(text.toLowerCase()));
    const numbers = texts.map(numberOf);
    const numeric = numbers.every((value, at) => !present[at] || !Number.isNaN(value));
    return rows.map((row, at) => [row, present[at] ? (numeric ? numbers[at] : texts[at]) : null]);
  }

  function compare(one, other, sign) {
    if (one === null || other === null) return (one === null) - (other === null);
    return sign * (typeof one === "number" ? one - other : words.compare(one, other));
  }

  function sort(table, heads, column) {
    const head = heads[column];
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const body = table.tBodies[0];
    const rows = keyed([...body.rows], column);
    rows.sort((a, b) => compare(a[1], b[1], order === "ascending" ? 1 : -1));
    body.append(...rows.map(([row]) => row));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    say.textContent = `Sorted by ${textOf(head) || "the first column"}, ${order}.`;
  }

  function regular(table) {
    const body = table.tBodies[0];
    if (!table.tHead || table.tHead.rows.length !== 1 || table.tBodies.length !== 1 || body.rows.length < 2) return false;
    const heads = table.tHead.rows[0].cells;
    const plain = (cells) => [...cells].every((cell) => cell.colSpan === 1 && cell.rowSpan === 1);
    return plain(heads) && [...body.rows].every((row) => row.cells.length === heads.length && plain(row.cells));
  }

  function makeSortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      if (!textOf(button)) button.setAttribute("aria-label", "Sort by this column");
      button.addEventListener("click", () => sort(table, heads, column));
      head.replaceChildren(button);
    });
    table.classList.add("sortable");
  }

  /** Only what scrolls needs the keyboard. */
  function focusWhatScrolls() {
    for (const frame of document.querySelectorAll(".scroll, pre")) {
      const scrolls = frame.scrollWidth > frame.clientWidth + 1 || frame.scrollHeight > frame.clientHeight + 1;
      frame.toggleAttribute("tabindex", scrolls);
      if (scrolls) frame.tabIndex = 0;
    }
  }

  say.className = "hidden";
  say.setAttribute("role", "status");
  document.body.append(say);
  [...document.querySelectorAll("main table")].filter(regular).forEach(makeSortable);
  focusWhatScrolls();
  window.addEventListener("resize", focusWhatScrolls);
  document.addEventListener("toggle", focusWhatScrolls, true);
})();
