/* The live page: what the machine does now. This module ties the others together. */

import { Api } from "./api.js";
import { Details } from "./details.js";
import { byId, setText } from "./dom.js";
import { PredictionForm } from "./form.js";
import { GpuView } from "./gpus.js";
import { History, Rate } from "./history.js";
import { Painter } from "./painter.js";
import { Plots } from "./plots.js";
import { Live } from "./stream.js";
import { MOST_SHOWN, TaskList } from "./tasklist.js";
import { TaskTable } from "./tasks.js";
import { count, date, longSpan, tenths } from "./words.js";

const LIST_EVERY_MS = 15_000;

const history = new History();
const tasks = new TaskList();
const rates = { tasks: new Rate(), tokens: new Rate() };
let status = null;
let gpus = [];
let connection = { state: "connecting" };
let missed = null; // tasks told of since the list was last asked for: it may be older than they are
let clockOffsetS = 0; // the server's clock less ours

const clock = () => Date.now() / 1000 + clockOffsetS;
const api = new Api(askForKey);
const painter = new Painter();
const details = new Details(api, cancel);
const gpuView = new GpuView((id) => details.open(id));
const table = new TaskTable({ open: (id) => details.open(id), cancel, filter }, clock);
const form = new PredictionForm(api, (id) => details.open(id));
const plots = new Plots(history, (name) => painter.request(name));

painter.add("numbers", 250, drawNumbers);
painter.add("gpus", 500, () => gpuView.draw(gpus));
painter.add("tasks", 250, () => table.draw(tasks.newest));
for (const plot of plots.plots) painter.add(plot.id, 900, () => plots.draw(plot));

async function reload(signal) {
  const [now, all, telemetry, list] = await Promise.all([
    api.get("/status", signal), api.get("/gpus", signal), api.get("/telemetry", signal), api.get(tasksPath(), signal),
  ]);
  rates.tasks.forget();
  rates.tokens.forget();
  history.load(telemetry);
  tasks.load(list.tasks);
  gpus = all.gpus;
  takeStatus(now);
  document.body.toggleAttribute("data-loaded", true);
  for (const part of ["gpus", "tasks", ...plots.plots.map((plot) => plot.id)]) painter.request(part);
}

function take(name, data) {
  if (name === "status") takeStatus(data);
  else if (name === "gpus") takeGpus(data);
  else if (name === "task") takeTask(data);
}

function takeStatus(data) {
  status = data;
  rates.tasks.add(performance.now(), data.tasks.COMPLETED);
  rates.tokens.add(performance.now(), data.tokens_total);
  form.describe(data, gpus);
  painter.request("numbers");
}

function takeGpus(data) {
  clockOffsetS = data.time - Date.now() / 1000;
  gpus = data.gpus;
  history.add(data.time, data.gpus, data.queue_depth);
  painter.request("gpus");
  for (const plot of plots.plots) painter.request(plot.id);
}

function takeTask(task) {
  tasks.take(task);
  if (missed !== null) missed.push(task);
  painter.request("tasks");
  details.changed(task);
}

const tasksPath = () => `/tasks?limit=${MOST_SHOWN}${tasks.state && `&status=${tasks.state}`}`;

async function filter(state) {
  tasks.state = state;
  say("");
  try {
    await reloadTasks();
  } catch (error) {
    say(error.message, true);
  }
}

async function reloadTasks() {
  const toldOf = [];
  missed = toldOf;
  try {
    const list = await api.get(tasksPath());
    if (missed !== toldOf) return; // it was asked for again meanwhile
    tasks.load(list.tasks);
    for (const task of toldOf) tasks.take(task);
    painter.request("tasks");
  } finally {
    if (missed === toldOf) missed = null;
  }
}

/** Cancels a task; what the server says to that. */
async function cancel(id) {
  say(`Cancelling ${id}…`);
  let words, wrong = false;
  try {
    words = (await api.remove(`/tasks/${encodeURIComponent(id)}`)).message;
  } catch (error) {
    [words, wrong] = [error.message, true];
  }
  say(words, wrong);
  return words;
}

function say(words, wrong = false) {
  setText(byId("tasks-say"), words);
  byId("tasks-say").classList.toggle("bad", wrong);
}

/** Shows the field for the key; resolves when one was entered. */
function askForKey(refused) {
  const place = byId("key-form");
  const field = byId("key");
  const before = connection;
  connect({ state: "key" });
  const words = refused ? "That key was not accepted. Try another." : "This server answers only those who have a key.";
  setText(byId("key-say"), words);
  place.hidden = false;
  field.value = "";
  field.focus();
  return new Promise((resolve) => {
    place.onsubmit = (event) => {
      event.preventDefault();
      place.hidden = true;
      connect(before.state === "live" ? before : { state: "connecting" });
      resolve(field.value.trim());
    };
  });
}

function connect(next) {
  connection = next;
  document.body.dataset.connection = next.state;
  drawConnection();
}

function drawConnection() {
  const { state, why } = connection;
  const words = state === "live" && status?.ready === false ? "starting" : state === "key" ? "key needed" : state;
  setText(byId("connection-text"), words);
  const lost = byId("lost");
  lost.hidden = state !== "reconnecting";
  if (lost.hidden) return;
  const shown = history.times.length ? ` What is shown is of ${date(history.times.at(-1))}.` : "";
  setText(lost, `No connection: ${why}${shown}`);
}

function drawNumbers() {
  if (status === null) return;
  drawConnection();
  for (const [state, number] of Object.entries(status.tasks)) {
    const place = document.getElementById(`count-${state}`);
    if (place) setText(place, count(number));
  }
  const rate = ({ perS }) => (connection.state !== "live" || perS === null ? "–" : tenths(perS));
  setText(byId("rate-tasks"), rate(rates.tasks));
  setText(byId("rate-tokens"), rate(rates.tokens));
  setText(byId("tokens-total"), count(status.tokens_total));
  const { backend, provenance } = status;
  setText(byId("fact-backend"), backend === provenance ? backend : `${backend}, ${provenance}`);
  setText(byId("fact-gpus"), count(gpus.length));
  setText(byId("fact-uptime"), longSpan(clock() - status.started_at));
  setText(byId("fact-version"), status.version);
  setText(byId("plots-note"), plotsNote());
}

function plotsNote() {
  const source = status.provenance === "mixed" ? "measured and simulated" : status.provenance;
  return history.many ? `${source}; line: mean of all GPUs, band: from the least to the most` : source;
}

setInterval(() => {
  if (document.hidden || connection.state !== "live") return;
  painter.request("numbers");
  table.tick();
}, 1000);

// Of a flood of tasks the server tells the newest only, so that a row could stand still: the list is asked for again.
setInterval(() => {
  if (!document.hidden && connection.state === "live") reloadTasks().catch(() => {}); // the stream says what is wrong
}, LIST_EVERY_MS);

new Live(api, { reload, take, tell: (state, detail) => connect({ state, ...detail }) }).run();
