/* Shows what the suite tells by server-sent events. Between two of them only the clocks go on. */
"use strict";
(() => {
  const VERDICTS = { passed: "Passed", failed: "Failed", broke: "Broke", waiting: "Waiting", running: "Running" };
  const MARKS = { passed: "✓", failed: "✕", broke: "!", waiting: "…", running: "…" };
  const CLOCK_MS = 500;
  const find = (selector, place = document) => place.querySelector(selector);
  const rows = new Map([...document.querySelectorAll("[data-scenario]")].map((row) => [row.dataset.scenario, row]));
  const known = new Map(); // scenario -> the status last shown
  let state = null;
  let heard = 0;
  let over = false;

  function duration(seconds) {
    if (seconds < 60) return `${Math.floor(seconds)} s`;
    const minutes = Math.floor(seconds / 60);
    return `${minutes} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  }

  const exact = (seconds) => (seconds < 10 ? `${seconds.toFixed(1)} s` : duration(seconds));
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

  // Only what differs is written: a screen reader and a text selection are left in peace.
  function say(place, text) {
    if (place.textContent !== text) place.textContent = text;
  }

  function tone(place, status) {
    const others = Object.keys(VERDICTS).filter((name) => name !== status);
    place.classList.remove(...others);
    place.classList.add(status);
  }

  function marked(place, status) {
    const mark = find(".mark", place);
    tone(place, status);
    tone(mark, status);
    say(mark, MARKS[status]);
  }

  function stateText(scenario, gone) {
    const expected = scenario.expected_s ? ` of about ${exact(scenario.expected_s)}` : "";
    if (scenario.status === "waiting") return `Waiting${scenario.expected_s ? `, takes about ${exact(scenario.expected_s)}` : ""}`;
    if (scenario.status === "running") {
      const { cell } = scenario;
      const where = cell ? `cell ${cell.number} of ${cell.count}${cell.about ? `: ${cell.about}` : ""}` : "starting a kernel";
      return `${duration(scenario.elapsed_s + gone)}${expected} · ${where}`;
    }
    return `${VERDICTS[scenario.status]} in ${exact(scenario.elapsed_s ?? 0)}`;
  }

  function showChecks(row, checks) {
    const details = find(".held", row);
    details.hidden = checks.length === 0;
    if (details.hidden || details.dataset.count === String(checks.length)) return;
    details.dataset.count = checks.length;
    const failed = checks.filter((check) => !check.passed);
    say(find("summary", details), `${checks.length - failed.length} of ${plural(checks.length, "check")} hold`);
    details.open = failed.length > 0;
    const items = [...failed, ...checks.filter((check) => check.passed)].map((check) => {
      const item = document.createElement("li");
      const text = document.createElement("span");
      if (check.passed) {
        text.textContent = check.name;
      } else {
        item.className = "failed";
        const name = document.createElement("strong");
        name.textContent = check.name;
        text.append(name, `: expected ${check.expected}, observed ${check.observed}`);
      }
      item.append(text);
      return item;
    });
    find("ul", details).replaceChildren(...items);
  }

  function showScenario(scenario) {
    const row = rows.get(scenario.name);
    const ended = !["waiting", "running"].includes(scenario.status);
    const link = find("h3 a", row);
    marked(row, scenario.status);
    if (ended && !over) link.href = link.dataset.page;
    else link.removeAttribute("href");
    const bar = find("progress", row);
    bar.hidden = scenario.status !== "running";
    if (scenario.cell) bar.value = (scenario.cell.number - 1) / scenario.cell.count;
    const problem = find(".problem", row);
    problem.hidden = !scenario.error;
    say(problem, scenario.error ?? "");
    showChecks(row, scenario.checks);
    const before = known.get(scenario.name);
    known.set(scenario.name, scenario.status);
    return before !== undefined && before !== scenario.status && ended;
  }

  function showClocks() {
    const gone = over ? 0 : (performance.now() - heard) / 1000;
    say(find("#clock"), duration(state.elapsed_s + gone));
    const left = find("#deadline");
    left.hidden = over || state.deadline_left_s === null;
    if (!left.hidden) say(left, `${duration(Math.max(0, state.deadline_left_s - gone))} until the deadline`);
    for (const scenario of state.scenarios) say(find(".state", rows.get(scenario.name)), stateText(scenario, gone));
  }

  function summary(scenarios) {
    const count = (status) => scenarios.filter((scenario) => scenario.status === status).length;
    const ended = scenarios.length - count("waiting") - count("running");
    const running = count("running") && !over ? `, ${count("running")} running` : "";
    const checks = scenarios.flatMap((scenario) => scenario.checks);
    const held = checks.filter((check) => check.passed).length;
    const said = checks.length ? ` ${held} of ${plural(checks.length, "check")} hold.` : "";
    return `${ended} of ${plural(scenarios.length, "scenario")} ended${running}.${said}`;
  }

  function finish(title, status) {
    over = true;
    marked(find("#verdict"), status);
    say(find("h1"), title);
    document.title = document.title.replace("Running", title);
    find("#over").hidden = false;
    find(".home").removeAttribute("href");
  }

  function show(text) {
    state = JSON.parse(text);
    heard = performance.now();
    if (state.ended) finish(state.ended.verdict, state.ended.status);
    const fresh = state.scenarios.filter(showScenario);
    const said = summary(state.scenarios);
    say(find("#verdict .say"), said);
    showClocks();
    const news = fresh.map((scenario) => `${find("h3", rows.get(scenario.name)).textContent}: ${VERDICTS[scenario.status]}.`);
    if (state.ended) news.push(`The run has ended: ${state.ended.verdict}.`);
    if (news.length) say(find("#news"), `${news.join(" ")} ${said}`);
    return state.ended;
  }

  find("#copy").addEventListener("click", async (event) => {
    await navigator.clipboard.writeText(find("#path").textContent);
    say(event.target, "Copied");
  });

  const source = new EventSource("events");
  const clock = setInterval(() => state && showClocks(), CLOCK_MS);
  const stop = () => {
    source.close(); // else the browser would ask again and again
    clearInterval(clock);
    document.documentElement.dataset.watch = "over";
  };
  source.addEventListener("message", (event) => show(event.data) && stop());
  source.addEventListener("error", () => {
    stop();
    if (over) return;
    finish("Gone", "broke");
    if (state) state.scenarios.forEach(showScenario);
    say(find("#verdict .say"), "The suite is not there any more: it was killed, or this page was loaded too late.");
    say(find("#news"), "The suite is not there any more.");
  });
})();
