// The answer to "why there?" and "why not yet?", in a dialog that has an address of its own: #job=ID.

import { ABSENT, build, clock, count, gib, percent, rate, span } from "./format.js";
import { legend, names, picture } from "./picture.js";

const ASK_AGAIN_MS = 2000;
const DECIDED_BY = {
  only_candidate: "it was the only one that could take the job",
  score: "it is predicted to end first",
  warm_kv: "of the equal ones it still holds the session",
  slots_free: "of the equal ones it has the most free slots",
  vram_headroom: "of the equal ones it has the most memory left",
  tokens_per_s: "of the equal ones it is the fastest",
  pool_id: "all else was equal: the first by name",
};
const dialog = document.getElementById("explain");
const body = document.getElementById("explained");
const title = document.getElementById("explain-h");
let asking = 0;

const plain = (reason) => reason.replaceAll("_", " ");
// The scheduler's clock counts milliseconds since 1970; people read a time of day.
const timely = (text) => text.replace(/\b\d{13}\b/g, (ms) => clock(Number(ms)));

const BYTES = new Set(["vram_total", "kv_total", "kv_room", "device_share"]);

function memory(text) {
  const bytes = /^(\d+)( .*)?$/.exec(text);
  return bytes ? `${gib(Number(bytes[1]))} GiB${bytes[2] ?? ""}` : text;
}

function sides({ reason, required, offered }) {
  if (!required && !offered) return plain(reason);
  let both = [required, offered];
  // What differs by less than is shown is told to the byte.
  if (BYTES.has(reason) && memory(required) !== memory(offered)) both = both.map(memory);
  const [needs, has] = both.map((text) => text || "–");
  return timely(`${plain(reason)}: needs ${needs}, has ${has}`);
}

function lackList(excluded, total) {
  const items = excluded.map((one) => [
    "li",
    ["b", names(one)],
    ...one.lacks.map((lack) => ["span.lack", sides(lack)]),
  ]);
  const more = total - excluded.reduce((sum, one) => sum + one.pools_total, 0);
  if (more > 0) items.push(["li", `and ${more} more`]);
  return ["ul.lacks", ...items];
}

function causeList(causes) {
  const help = (text) => (text ? [["span.help", `What would help: ${text}.`]] : []);
  return ["ul.lacks", ...causes.map((one) => ["li", one.sentence, ...help(one.remedy)])];
}

function facts(decision) {
  const rows = decision.candidates.map((one) => [
    "tr",
    ["th", { scope: "row" }, one.pool_id],
    ["td.num", count(one.slots_free)],
    ["td.num", rate(one.tokens_per_s), one.perf_scale < 1 ? ` at ${percent(one.perf_scale)} clocks` : ""],
    ["td", one.kv_warm ? "warm" : "cold"],
    ["td.num", one.headroom_bytes === null ? ABSENT : `${gib(one.headroom_bytes)} GiB`],
    ["td.num", span(one.snapshot_age_ms)],
  ]);
  const heads = ["Candidate", "Slots free", "Tokens/s", "Cache", "Memory left", "Snapshot age"];
  const numeric = new Set(["Slots free", "Tokens/s", "Memory left", "Snapshot age"]);
  return [
    "div.scroll",
    { role: "group", "aria-label": "What the candidates reported", tabindex: "0" },
    [
      "table",
      ["caption", "What the candidates had reported when it was decided"],
      ["thead", ["tr", ...heads.map((head) => [numeric.has(head) ? "th.num" : "th", { scope: "col" }, head])]],
      ["tbody", ...rows],
    ],
  ];
}

function sentence(decision) {
  const declined = decision.declined_offers;
  const passed = declined ? `, letting ${declined} slower ${declined === 1 ? "slot" : "slots"} pass` : "";
  const wait = decision.waited_ms < 5 ? "at once" : `after ${span(decision.waited_ms)}`;
  const why = DECIDED_BY[decision.decided_by] ?? decision.decided_by;
  const when = clock(decision.decided_at_ms);
  return `Attempt ${decision.attempt} went to ${decision.pool_id}: ${why}. Decided ${wait}, at ${when}${passed}.`;
}

function decided(decision) {
  const parts = ["section.decision", ["p.verdict", sentence(decision)]];
  parts.push(["figure", picture(decision), ["figcaption", "Predicted time to the end of the job, shorter is better", legend]]);
  const hidden = decision.candidates_total - decision.candidates.length;
  if (hidden > 0) parts.push(["p.more", `and ${hidden} more candidates`]);
  parts.push(facts(decision));
  if (decision.excluded.length) {
    parts.push(["h3", "Excluded"], lackList(decision.excluded, decision.excluded_total));
  }
  if (!decision.complete) {
    parts.push(["p.more", "The recording no longer holds this decision: only the best of it was kept."]);
  }
  return parts;
}

function render(told) {
  title.textContent = `Job ${told.job_id}`;
  const parts = [["p.verdict", `${told.state}, ${told.priority}, model ${told.model_id || "not named"}`]];
  if (told.wait_summary) {
    parts.push(["h3", "It waits because"], ["p", told.wait_summary]);
    if (told.wait_remedy) parts.push(["p", `What would help: ${told.wait_remedy}.`]);
    if (told.wait_causes.length) parts.push(causeList(told.wait_causes));
  } else if (!told.decisions.length) {
    parts.push(["p.empty", "No placement was decided."]);
  }
  parts.push(...told.decisions.map(decided));
  if (told.trace_id) parts.push(["p.more", "Trace ", ["code", told.trace_id]]);
  body.replaceChildren(...parts.map(build));
}

const say = (text) => body.replaceChildren(build(["p.empty", text]));

async function ask(jobId, turn) {
  let again = false;
  try {
    const answer = await fetch(`/status/job.json?id=${encodeURIComponent(jobId)}`, {
      signal: AbortSignal.timeout(15_000),
    });
    const told = await answer.json();
    if (turn !== asking) return;
    if (answer.ok) {
      render(told);
      again = told.state === "queued";
    } else {
      say(told.problem);
      again = answer.status === 503;
    }
  } catch {
    if (turn === asking) say("orchestratord does not answer.");
    again = true;
  }
  if (again) setTimeout(() => turn === asking && ask(jobId, turn), ASK_AGAIN_MS);
}

function follow() {
  const match = /^#job=(.+)$/.exec(location.hash);
  asking += 1;
  if (!match) {
    if (dialog.open) dialog.close();
    return;
  }
  let jobId;
  try {
    jobId = decodeURIComponent(match[1]);
  } catch {
    return;
  }
  title.textContent = `Job ${jobId}`;
  say("Making the decision again from the recording …");
  if (!dialog.open) dialog.showModal();
  ask(jobId, asking);
}

function leave() {
  asking += 1;
  if (location.hash) history.replaceState(null, "", location.pathname);
}

// The event comes a moment after the closing. Who asks for the same job meanwhile must find another
// address, or it would be no change of it; and the next job may be open by then.
let left = false;
document.getElementById("close").addEventListener("click", () => {
  dialog.close();
  leave();
  left = true;
});
dialog.addEventListener("close", () => {
  if (!left && !dialog.open) leave();
  left = false;
});
addEventListener("hashchange", follow);
follow();
