// Asks for the state once a second and shows it. What did not change is left alone, so that focus and selection stay.

import { ABSENT, ago, build, celsius, clock, count, gib, jobLink, percent, rate, show, span, watts } from "./format.js";
import "./explain.js";

const ASK_EVERY_MS = 1000;
const SILENCE_MS = 5000;
const DOTS_MAX = 16;
const POOL_MARKS = { ready: "●", starting: "◐", draining: "◑", unready: "✕", disconnected: "○" };
const POOL_TONES = { ready: "good", starting: "fair", draining: "fair", unready: "bad", disconnected: "bad" };
const JOB_MARKS = { finished: "✓", cancelled: "–", expired: "!", dropped: "!", failed: "✕" };
const JOB_TONES = { finished: "good", cancelled: "calm", expired: "fair", dropped: "fair", failed: "bad" };

const byId = (id) => document.getElementById(id);
const lines = (first, ...others) => [first, ...others.filter(Boolean).map((other) => ["small", other])];
const bar = (ratio) => ["span.bar", { "aria-hidden": "true" }, ["span.fill", { ratio }]];

function kind(job) {
  const parts = [job.priority, job.model_id];
  if (job.session_id) parts.push(`session ${job.session_id}`);
  return parts.filter(Boolean).join(" · ");
}

function output(job) {
  const again = job.attempt > 1 ? `attempt ${job.attempt}` : "";
  const note = [job.state === "running" ? "" : job.state, again].filter(Boolean).join(", ");
  const told = ["span.told", ["b", count(job.pieces)], " of ", ["abbr", { title: "expected" }, `~${count(job.expected_tokens)}`]];
  const parts = [["span", bar(job.pieces / Math.max(job.expected_tokens, 1)), told]];
  return note ? [...parts, ["small", note]] : parts;
}

function slots(pool) {
  // What was free when its host was last heard of is free to nobody now.
  if (pool.state === "disconnected") return [ABSENT];
  const words = `${pool.slots_free} of ${pool.slots_total} free`;
  if (pool.slots_total > DOTS_MAX) return [words];
  const busy = Math.max(0, pool.slots_total - pool.slots_free);
  const dots = [..."█".repeat(busy)].map(() => ["i.busy"]).concat([..."█".repeat(pool.slots_total - busy)].map(() => ["i"]));
  return [["span.dots", { "aria-hidden": "true" }, ...dots], ["small", words]];
}

function poolState(pool) {
  const mark = [`span.state.${POOL_TONES[pool.state] ?? "calm"}`, `${POOL_MARKS[pool.state] ?? "?"} ${pool.state}`];
  return pool.reason ? [mark, ["small.reason", pool.reason]] : [mark];
}

function speed(pool) {
  const prompt = pool.prompt_tokens_per_s === null ? "" : `prompt ${rate(pool.prompt_tokens_per_s)}`;
  const slowed = pool.perf_scale < 1 ? `clocks at ${percent(pool.perf_scale)}` : "";
  return lines(["b", rate(pool.decode_tokens_per_s)], prompt, slowed);
}

function outcome(job) {
  const mark = [`span.state.${JOB_TONES[job.state] ?? "calm"}`, `${JOB_MARKS[job.state] ?? "?"} ${job.state}`];
  return job.why ? [mark, ["small", job.why.toLowerCase().replaceAll("_", " ")]] : [mark];
}

// One function per column, in the order of the headings; "num" and "wide" are as there.
const TABLES = {
  running: {
    key: (job) => `${job.job_id} ${job.attempt}`,
    cells: [
      ["", (job) => lines(jobLink(job.job_id), kind(job))],
      ["pool", (job) => [["span", { title: job.pool_id }, job.pool_id]]],
      ["progress", output],
      ["num wide", (job) => [span(job.runs_for_ms)]],
      ["num", (job) => [job.ends_in_ms === 0 ? ["span.late", "due"] : span(job.ends_in_ms)]],
    ],
  },
  waiting: {
    key: (job) => job.job_id,
    cells: [
      ["num", (job) => [count(job.position)]],
      ["", (job) => lines(jobLink(job.job_id), kind(job))],
      ["num", (job) => [span(job.waited_ms)]],
      ["num", (job) => [span(job.starts_in_ms)]],
      ["num wide", (job) => [span(job.ends_in_ms)]],
      ["num wide", (job) => [percent(job.on_time_ratio)]],
    ],
  },
  ended: {
    key: (job) => job.job_id,
    cells: [
      ["", (job) => lines(jobLink(job.job_id), kind(job))],
      ["", outcome],
      ["pool wide", (job) => [job.pool_id ? ["span", { title: job.pool_id }, job.pool_id] : ABSENT]],
      ["num wide", (job) => [count(job.tokens_out)]],
      ["num wide", (job) => [span(job.queued_ms)]],
      ["num wide", (job) => [span(job.first_token_ms)]],
      ["num", (job) => [span(job.took_ms)]],
      ["num", (job) => [ago(job.ended_ago_ms)]],
    ],
  },
  pools: {
    key: (pool) => pool.pool_id,
    cells: [
      ["pool", (pool) => lines(["b", { title: pool.pool_id }, pool.pool_id], pool.model_id, `${pool.engine} ${pool.engine_version} on ${pool.host_id}`.trim())],
      ["", poolState],
      ["slots", slots],
      ["num wide", speed],
      ["num wide", (pool) => [span(pool.snapshot_age_ms)]],
    ],
  },
};

// Rows are kept by key and only moved when they must: a moved element loses the focus.
function sync(parent, rows, keyOf, make, fill) {
  const wanted = new Set(rows.map(keyOf));
  let lost = false;
  for (const old of [...parent.children]) {
    if (wanted.has(old.dataset.key)) continue;
    lost ||= old.contains(document.activeElement);
    old.remove();
  }
  const present = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const row of rows) {
    let node = present.get(keyOf(row));
    if (!node) {
      node = make();
      node.dataset.key = keyOf(row);
    }
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
    fill(node, row);
  }
  if (lost) parent.closest("section").focus();
}

function table(name, rows, total) {
  const { key, cells } = TABLES[name];
  const section = byId(name);
  const make = () => build(["tr", ...cells.map(([cls]) => ["td", { class: cls }])]);
  const fill = (tr, row) => cells.forEach(([, tell], index) => show(tr.children[index], ...tell(row)));
  sync(section.querySelector("tbody"), rows, key, make, fill);
  section.querySelector(".scroll").hidden = rows.length === 0;
  section.querySelector(".empty").hidden = rows.length > 0;
  const more = section.querySelector(".more");
  more.hidden = total <= rows.length;
  show(more, `and ${count(total - rows.length)} more`);
}

function gauge(name, ratio, ...told) {
  const drawn = ratio === null ? ["span.bar.unknown", { "aria-hidden": "true" }] : bar(ratio);
  return ["div.gauge", ["span.what", name], drawn, ["span.told", ...told]];
}

function device(one) {
  const { memory_used_bytes: used, memory_total_bytes: total } = one;
  const memory = used === null || !total ? null : used / total;
  const sick = one.health && one.health !== "ok";
  const parts = [
    ["p.name", ["b", one.name || one.device_id]],
    gauge("Memory", memory, gib(used), " of ", gib(total), " GiB"),
    gauge("Busy", one.utilization_ratio, percent(one.utilization_ratio)),
    ["p.notes", ["span", "Temperature ", celsius(one.temperature_celsius)], ["span", "Power ", watts(one.power_milliwatts)]],
    ["p.notes", ["span", one.host_id], ["span", one.pool_ids.join(", ")]],
  ];
  if (!one.connected) parts.push(["p.sick", "The host is not connected: nothing is known of it now."]);
  else if (sick) parts.push(["p.sick", `${one.health.replaceAll("_", " ")}${one.health_detail ? `: ${one.health_detail}` : ""}`]);
  return parts;
}

function devices(all) {
  const list = byId("devices").querySelector("ul");
  sync(list, all, (one) => `${one.host_id} ${one.device_id}`, () => build(["li"]), (li, one) => show(li, ...device(one)));
  list.hidden = all.length === 0;
  byId("devices").querySelector(".empty").hidden = all.length > 0;
}

function summary(now) {
  const { queue } = now;
  show(byId("waiting-count"), count(queue.interactive + queue.batch));
  show(byId("waiting-note"), `${count(queue.interactive)} interactive, ${count(queue.batch)} batch; room for ${count(queue.capacity)}`);
  show(byId("running-count"), count(now.running_total));
  show(byId("running-note"), `${count(now.ended_total)} ended recently`);
  show(byId("slots-count"), count(now.slots_free));
  show(byId("slots-note"), `of ${count(now.slots_total)} in ready pools`);
  show(byId("pools-count"), count(now.pools_ready));
  const unready = now.pools_total - now.pools_ready;
  const tone = now.pools_ready ? "span.state.fair" : "span.state.bad";
  show(byId("pools-note"), `of ${count(now.pools_total)}`, ...(unready ? [[tone, ` ▲ ${count(unready)} not ready`]] : []));
  show(byId("server"), `${now.server.version}${now.server.draining ? " · draining: no new jobs" : ""}`);
}

// Screen readers are told of what matters, not of every number.
let states = null;

function announce(now) {
  const before = states;
  states = new Map(now.pools.map((pool) => [pool.pool_id, pool.state]));
  const changed = now.pools.filter((pool) => before !== null && before.get(pool.pool_id) !== pool.state);
  if (changed.length) say(changed.slice(0, 3).map((pool) => `Pool ${pool.pool_id} is ${pool.state}.`).join(" "));
}

const say = (text) => show(byId("said"), text);

function trouble(text) {
  const box = byId("trouble");
  box.hidden = !text;
  show(box, text);
}

function render(now) {
  summary(now);
  table("running", now.running, now.running_total);
  table("waiting", now.waiting, now.queue.interactive + now.queue.batch);
  table("ended", now.ended, now.ended.length);
  const untold = now.ended_total > 0 ? "Not told while the journal does not answer." : "No job has ended yet.";
  show(byId("ended").querySelector(".empty"), untold);
  table("pools", now.pools, now.pools_total);
  devices(now.devices);
  announce(now);
  trouble(now.server.trouble);
}

let paused = false;
let lastMs = null;
let lost = false;
let timer = 0;

async function look() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  try {
    const answer = await fetch("/status/now.json", { signal: AbortSignal.timeout(SILENCE_MS) });
    if (!answer.ok) throw new Error(String(answer.status));
    const now = await answer.json();
    if (paused) return;
    render(now);
    lastMs = now.at_ms;
    show(byId("fresh"), ["span.live", "●"], ` live, ${clock(lastMs)}`);
    if (lost) say("Connected again.");
    lost = false;
  } catch (error) {
    const since = lastMs === null ? "" : ` What is shown is of ${clock(lastMs)}.`;
    trouble(`orchestratord does not answer.${since}`);
    show(byId("fresh"), "not connected");
    lost = true;
  }
  clearTimeout(timer);
  timer = setTimeout(look, ASK_EVERY_MS);
}

byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", String(paused));
  if (paused) show(byId("fresh"), `paused at ${lastMs === null ? "the start" : clock(lastMs)}`);
  look();
});
document.addEventListener("visibilitychange", look);
look();
