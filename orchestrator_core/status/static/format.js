// Numbers as people read them, and DOM nodes from plain trees. What is not known is shown as absent, never as 0.

const GIB = 2 ** 30;
const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const ABSENT = ["span.absent", "–", ["span.unseen", "not known"]];

const known = (value, told) => (value === null || value === undefined ? ABSENT : told(value));

export const count = (value) => known(value, (v) => numbers.format(v));

export const rate = (value) => known(value, (v) => (v < 100 ? v.toFixed(1) : numbers.format(v)));

export const percent = (value) => known(value, (v) => `${Math.round(v * 100)} %`);

export const gib = (value) =>
  known(value, (v) => (v < 100 * GIB ? (v / GIB).toFixed(1) : numbers.format(v / GIB)));

export const watts = (value) => known(value, (v) => `${numbers.format(v / 1000)} W`);

export const celsius = (value) => known(value, (v) => `${v} °C`);

export function span(ms) {
  return known(ms, (value) => {
    const seconds = value / 1000;
    if (seconds < 60) return `${seconds.toFixed(seconds < 9.95 ? 2 : 1)} s`;
    const minutes = Math.floor(seconds / 60);
    if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
    const hours = Math.floor(minutes / 60);
    return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
  });
}

// Of how long ago something was, less is enough.
export function ago(ms) {
  const seconds = Math.round(ms / 1000);
  return seconds < 1 ? "now" : seconds < 60 ? `${seconds} s ago` : `${span(ms)} ago`;
}

export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

// A job's id: of a UUID the end, which tells jobs apart. The rest is there for readers and copies.
export function jobLink(id) {
  const cut = /^[0-9a-f]{8}-[0-9a-f-]{27}$/.test(id) ? id.length - 8 : 0;
  const text = cut ? [["span.cut", id.slice(0, cut)], id.slice(cut)] : [id];
  return ["a.job", { href: `#job=${encodeURIComponent(id)}`, title: id }, ...text];
}

// A tree is a text, or ["tag.class", {attributes}, ...trees]; `ratio` is a bar's length. Texts become text nodes: nothing
// that a client named is ever read as HTML.
export function build(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [selector, ...rest] = tree;
  const [tag, ...classes] = selector.split(".");
  const node = document.createElement(tag);
  node.classList.add(...classes);
  for (const part of rest) {
    if (typeof part === "string" || Array.isArray(part)) node.append(build(part));
    else if (part instanceof Node) node.append(part);
    else for (const [name, value] of Object.entries(part)) set(node, name, value);
  }
  return node;
}

function set(node, name, value) {
  if (name === "ratio") node.style.inlineSize = `${Math.min(1, Math.max(0, value)) * 100}%`;
  else node.setAttribute(name, value);
}

// Makes a node show trees, and leaves it alone when it does already: focus and selection stay.
const shown = new WeakMap();

export function show(node, ...trees) {
  const made = JSON.stringify(trees);
  if (shown.get(node) === made) return;
  shown.set(node, made);
  node.replaceChildren(...trees.map(build));
}
