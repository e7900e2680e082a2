// Inline Markdown: emphasis, code, links.
// Invariant: linear time for every text; every link is http, https or mailto.

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const PLAIN = /[^\\`*_~[\]!<\n]{1,4000}/y;
const DESTINATION = /\(\s{0,8}(?:<([^<>\n]{0,2000})>|([^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500}){0,4}))(?:\s{1,8}(?:"[^"]{0,500}"|'[^']{0,500}'))?\s{0,8}\)/y;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BARE = /https?:\/\/[^\s<>[\]"`|]{1,2000}/y;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const MAX_DEPTH = 20; // of nested emphasis: deeper trees are slow in browsers

/** The address as the browser normalizes it if it is safe to open, else null. */
export function safe(address) {
  try {
    const url = new URL(address); // not relative to this page, which the model does not know
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** A line or a paragraph of Markdown as nodes. */
export function inline(text) {
  const line = { text, at: 0, out: document.createDocumentFragment(), runs: [], brackets: [], dead: 0, ticks: ticks(text) };
  while (line.at < text.length) step(line);
  emphasise(line.runs, 0);
  line.out.normalize();
  return line.out;
}

function step(line) {
  const { text, at } = line, char = text[at];
  PLAIN.lastIndex = at;
  const plain = PLAIN.exec(text)?.[0];
  if (plain) return words(line, plain);
  if (char === "\n") return put(line, document.createElement("br"), 1);
  if (char === "\\" && text[at + 1] === "\n") return put(line, document.createElement("br"), 2);
  if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) return say(line, text[at + 1], 2);
  if (char === "`") return code(line);
  if (char === "*" || char === "_" || char === "~") return run(line);
  if (char === "[" || (char === "!" && text[at + 1] === "[")) return open(line);
  if (char === "]") return close(line);
  ANGLE.lastIndex = at;
  const angle = char === "<" ? ANGLE.exec(text) : null;
  if (angle) return put(line, anchor(angle[1], angle[1]) ?? angle[1], angle[0].length);
  return say(line, char, 1);
}

function put(line, node, length) {
  line.out.append(node);
  line.at += length;
  return line.out.lastChild;
}

const say = (line, text, length = text.length) => put(line, document.createTextNode(text), length);

function anchor(address, label) {
  const href = safe(address);
  if (!href) return null;
  const a = document.createElement("a");
  Object.assign(a, { href, rel: "noopener noreferrer nofollow", target: "_blank", textContent: label });
  return a;
}

/** Plain text, with the addresses in it as links. */
function words(line, plain) {
  const found = plain.search(/\bhttps?:\/\//);
  if (found < 0) return say(line, plain);
  if (found > 0) say(line, plain.slice(0, found));
  BARE.lastIndex = line.at;
  let address = BARE.exec(line.text)?.[0];
  if (!address) return say(line, plain.slice(found, found + 4));
  const ends = ".,;:!?'*_~" + (address.includes("(") ? "" : ")");
  while (ends.includes(address.at(-1))) address = address.slice(0, -1);
  return put(line, anchor(address, address) ?? address, address.length);
}

/** Positions of backtick runs by length: code ends at the next run of the same length. */
function ticks(text) {
  const found = new Map();
  for (const { 0: { length }, index } of text.matchAll(/`+/g)) {
    if (!found.has(length)) found.set(length, { places: [], next: 0 });
    found.get(length).places.push(index);
  }
  return found;
}

function code(line) {
  let length = 1;
  while (line.text[line.at + length] === "`") length += 1;
  const same = line.ticks.get(length) ?? { places: [], next: 0 };
  while (same.places[same.next] <= line.at) same.next += 1;
  const end = same.places[same.next];
  if (end === undefined) return say(line, "`".repeat(length));
  const inside = line.text.slice(line.at + length, end).replaceAll("\n", " ");
  const element = document.createElement("code");
  const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim();
  element.textContent = padded ? inside.slice(1, -1) : inside;
  return put(line, element, end + length - line.at);
}

function run(line) {
  const { text, at } = line, char = text[at];
  let count = 1;
  while (text[at + count] === char) count += 1;
  const before = text[at - 1] ?? " ", after = text[at + count] ?? " ";
  const edge = (side) => /\s/.test(side) || PUNCTUATION.test(side);
  const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || edge(before));
  const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || edge(after));
  const node = say(line, char.repeat(count));
  if (char === "~" && count !== 2) return;
  const word = char === "_"; // snake_case is not emphasis
  const opens = left && (!word || !right || PUNCTUATION.test(before));
  const closes = right && (!word || !left || PUNCTUATION.test(after));
  line.runs.push({ node, char, count, whole: count, opens, closes });
}

/** Pair the runs from `bottom` on, as CommonMark does; `floors` holds where searches failed, so none is repeated. */
function emphasise(runs, bottom) {
  const stack = [], floors = new Map();
  const drop = (length) => {
    stack.length = length;
    for (const [kind, floor] of floors) floors.set(kind, Math.min(floor, length));
  };
  for (const closer of runs.splice(bottom)) {
    const kind = closer.char + (closer.whole % 3) + closer.opens;
    while (closer.closes && closer.count) {
      let at = stack.length - 1;
      const floor = floors.get(kind) ?? 0;
      while (at >= floor && !pair(stack[at], closer)) at -= 1;
      if (at < floor || !wrap(stack[at], closer)) {
        floors.set(kind, stack.length);
        break;
      }
      drop(stack[at].count ? at + 1 : at);
    }
    if (closer.opens && closer.count) stack.push(closer);
  }
}

function pair(opener, closer) {
  if (opener.char !== closer.char) return false;
  const both = opener.closes || closer.opens;
  return !both || (opener.whole + closer.whole) % 3 !== 0 || (opener.whole % 3 === 0 && closer.whole % 3 === 0);
}

function wrap(opener, closer) {
  const used = opener.count > 1 && closer.count > 1 ? 2 : 1;
  const element = document.createElement(opener.char === "~" ? "del" : used === 2 ? "strong" : "em");
  const inside = [];
  for (let node = opener.node.nextSibling; node !== closer.node; node = node.nextSibling) inside.push(node);
  const depth = inside.reduce((deepest, node) => Math.max(deepest, node.depth ?? 0), 0) + 1;
  if (depth > MAX_DEPTH) return false;
  element.depth = depth;
  element.append(...inside);
  opener.node.after(element);
  for (const side of [opener, closer]) {
    side.count -= used;
    side.node.data = side.char.repeat(side.count);
  }
  return true;
}

function open(line) {
  const image = line.text[line.at] === "!";
  const node = say(line, image ? "![" : "[");
  line.brackets.push({ node, image, runs: line.runs.length });
}

/** A `]`: with an opener before it and a destination after it, the text between becomes a link. */
function close(line) {
  const opener = line.brackets.pop();
  DESTINATION.lastIndex = line.at + 1;
  const found = opener && (opener.image || line.brackets.length >= line.dead) ? DESTINATION.exec(line.text) : null;
  line.dead = Math.min(line.dead, line.brackets.length);
  if (!found) return say(line, "]");
  emphasise(line.runs, opener.runs);
  const link = anchor(found[1] ?? found[2], "") ?? document.createElement("span");
  while (opener.node.nextSibling) link.append(opener.node.nextSibling);
  for (const inner of link.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
  if (opener.image) link.replaceChildren(`[image${link.textContent && `: ${link.textContent.slice(0, 500)}`}]`); // never loaded
  else line.dead = line.brackets.length; // links are not nested
  opener.node.remove();
  return put(line, link, 1 + found[0].length);
}
