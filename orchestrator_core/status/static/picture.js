// A decision as a picture: one bar per candidate, made of the parts of its predicted end; excluded pools below.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 46;
const EXCLUDED_ROW = 30;
const PARTS = [
  ["delay_ms", "the engine's own delay"],
  ["prompt_ms", "reading the prompt"],
  ["decode_ms", "writing the output"],
];

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;

// A name that is too long ends at the share of the width that it has.
function label(text, y, cls, width = "72%") {
  const short = draw("svg", { width, height: ROW, y, overflow: "hidden" });
  short.append(draw("title", {}, text), draw("text", { x: 0, y: 16, class: cls }, text));
  return short;
}

function candidate(one, y, longest, winner) {
  const group = draw("g", { class: winner ? "candidate winner" : "candidate" });
  group.append(label(`${winner ? "★ " : ""}${one.pool_id}`, y, "name"));
  group.append(draw("text", { x: "100%", y: y + 16, class: "score" }, seconds(one.score_ms)));
  group.append(draw("rect", { x: 0, y: y + 24, width: "100%", height: 12, class: "track" }));
  let from = 0;
  for (const [part] of PARTS) {
    const share = (one[part] / longest) * 100;
    const bar = draw("rect", { x: `${from}%`, y: y + 24, width: `${share}%`, height: 12, class: part });
    group.append(bar);
    from += share;
  }
  return group;
}

// Pools that lack the same are one line.
export function names(group) {
  const more = group.pools_total - group.pool_ids.length;
  return more > 0 ? `${group.pool_ids.join(", ")} and ${more} more` : group.pool_ids.join(", ");
}

function excluded(one, y) {
  const group = draw("g", { class: "excluded" });
  group.append(label(names(one), y, "name", "55%"));
  const [first, ...others] = one.lacks.map((lack) => lack.reason.replaceAll("_", " "));
  const why = others.length ? `${first} +${others.length}` : first;
  group.append(draw("text", { x: "100%", y: y + 16, class: "score" }, `excluded: ${why}`));
  group.append(draw("line", { x1: 0, x2: "100%", y1: y + 24, y2: y + 24, class: "none" }));
  return group;
}

export function picture(decision) {
  const { candidates } = decision;
  const longest = Math.max(1, ...candidates.map((one) => one.score_ms));
  const height = candidates.length * ROW + decision.excluded.length * EXCLUDED_ROW;
  const told = candidates.map((one) => `${one.pool_id} ${seconds(one.score_ms)}`);
  const others = decision.excluded.map(names);
  const text = `Predicted end: ${told.join(", ")}.${others.length ? ` Excluded: ${others.join(", ")}.` : ""}`;
  const image = draw("svg", { role: "img", "aria-label": text, width: "100%", height });
  candidates.forEach((one, index) => {
    image.append(candidate(one, index * ROW, longest, one.pool_id === decision.pool_id));
  });
  decision.excluded.forEach((one, index) => {
    image.append(excluded(one, candidates.length * ROW + index * EXCLUDED_ROW));
  });
  return image;
}

export const legend = [
  "ul.legend",
  ...PARTS.map(([part, words]) => ["li", [`span.swatch.${part}`], words]),
];
