// Markdown blocks as nodes: paragraphs, headings, lists, quotes, tables and code; only changed blocks are redrawn.
// Invariant: built with createElement and text nodes only, so a model's text is never markup and loads nothing.

import { copyButton, h } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^ *(`{3,}|~{3,})([^`]*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const MAX_DEPTH = 12; // of nested lists and quotes
const FIRST_HEADING = 3; // a message's own heading has level two

/** Draw `text` into `element`; unchanged blocks stay as they are. Returns the blocks' elements. */
export function draw(element, text) {
  const lines = text.replace(/\r\n?/g, "\n").replaceAll("\0", "\ufffd").split("\n");
  const blocks = parse(lines, 0);
  const drawn = element.blocks ?? [];
  let same = 0;
  while (same < blocks.length && drawn[same]?.source === source(lines, blocks[same])) same += 1;
  for (const { node } of drawn.splice(same)) node.remove();
  for (const block of blocks.slice(same)) {
    const node = render(block, drawn.at(-1)?.level ?? FIRST_HEADING - 1);
    drawn.push({ node, source: source(lines, block), level: levelAfter(node, drawn.at(-1)?.level) });
    element.append(node);
  }
  element.blocks = drawn;
  return drawn.map(({ node }) => node);
}

const source = (lines, { from, to }) => lines.slice(from, to).join("\n");
const levelAfter = (node, before = FIRST_HEADING - 1) => (/^H\d$/.test(node.tagName) ? Number(node.tagName[1]) : before);

/** Lines as blocks `{kind, from, to, ...}`. */
function parse(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = fence(lines, at) ?? heading(lines, at) ?? rule(lines, at) ?? table(lines, at)
      ?? (depth < MAX_DEPTH ? quote(lines, at, depth) ?? list(lines, at, depth) : null) ?? paragraph(lines, at, depth);
    blocks.push({ ...block, from: at });
    at = block.to;
  }
  return blocks;
}

function fence(lines, at) {
  const found = FENCE.exec(lines[at]);
  if (!found) return null;
  const [, mark, info] = found, margin = indent(lines[at]);
  let to = at + 1;
  const closes = (line) => line.trim().length >= mark.length && line.trim() === mark[0].repeat(line.trim().length);
  while (to < lines.length && !closes(lines[to])) to += 1;
  const code = lines.slice(at + 1, to).map((line) => dedent(line, margin)).join("\n");
  return { kind: "code", lang: info.trim().split(/\s/)[0].slice(0, 40), code, to: Math.min(to + 1, lines.length) };
}

function heading(lines, at) {
  const found = /^ {0,3}(#{1,6})\s(.*)$/.exec(lines[at]);
  if (!found) return null;
  let text = found[2].trim(), end = text.length;
  while (text[end - 1] === "#") end -= 1;
  if (end === 0 || text[end - 1] === " ") text = text.slice(0, end).trim();
  return { kind: "heading", level: found[1].length, text, to: at + 1 };
}

function rule(lines, at) {
  const bare = lines[at].replaceAll(" ", "");
  return bare.length > 2 && "-*_".includes(bare[0]) && bare === bare[0].repeat(bare.length) ? { kind: "rule", to: at + 1 } : null;
}

/** The cells of a row: between pipes that are not escaped. */
function cells(line) {
  const parts = [""];
  for (const part of line.trim().split(/(\\\||\|)/)) {
    if (part === "|") parts.push("");
    else parts[parts.length - 1] += part === "\\|" ? "|" : part;
  }
  if (!parts[0].trim()) parts.shift();
  if (parts.length && !parts.at(-1).trim()) parts.pop();
  return parts.map((part) => part.trim());
}

function table(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return null;
  const marks = cells(lines[at + 1]), head = cells(lines[at]);
  if (marks.length !== head.length || !marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  const align = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : "left"));
  let to = at + 2;
  while (lines[to]?.includes("|")) to += 1;
  const rows = lines.slice(at + 2, to).map(cells).map((row) => head.map((_, i) => row[i] ?? ""));
  return { kind: "table", head, align, rows, to };
}

const quoted = (line) => /^ {0,3}>/.test(line);

function quote(lines, at, depth) {
  let to = at;
  while (to < lines.length && quoted(lines[to])) to += 1;
  if (to === at) return null;
  const inside = lines.slice(at, to).map((line) => line.replace(/^ {0,3}> ?/, ""));
  return { kind: "quote", blocks: parse(inside, depth + 1), to };
}

function indent(line) {
  let width = 0;
  for (const char of line) {
    if (char !== " " && char !== "\t") break;
    width += char === "\t" ? 4 : 1;
  }
  return width;
}

/** The line without its first `width` columns of white space. */
function dedent(line, width) {
  let at = 0;
  for (let seen = 0; seen < width && (line[at] === " " || line[at] === "\t"); at += 1) seen += line[at] === "\t" ? 4 : 1;
  return line.slice(at);
}

const item = (line) => (rule([line], 0) ? null : ITEM.exec(line));
const sort = (mark) => mark.at(-1); // - * + . or )

/** A list. Two columns of indentation are inside an item, since models are not exact. */
function list(lines, at, depth) {
  const first = item(lines[at]);
  if (!first) return null;
  const margin = first[1].length, items = [];
  let to = at, loose = false;
  while (to < lines.length) {
    const found = item(lines[to]);
    if (!found || sort(found[2]) !== sort(first[2]) || found[1].length >= margin + 2) break;
    if (items.length && !lines[to - 1].trim()) loose = true;
    const inside = [lines[to].slice(found[0].length)], width = found[0].length;
    for (to += 1; to < lines.length; to += 1) {
      const line = lines[to], blank = !lines[to - 1].trim();
      const goesOn = !blank && line.trim() && !begins(line); // a paragraph that was wrapped
      if (line.trim() && indent(line) < margin + 2 && !goesOn) break;
      inside.push(dedent(line, width));
    }
    while (inside.length && !inside.at(-1).trim()) inside.pop();
    items.push(parse(inside, depth + 1));
  }
  while (!lines[to - 1].trim()) to -= 1;
  return { kind: "list", ordered: /\d/.test(first[2]), start: parseInt(first[2], 10), items, loose, to };
}

const begins = (line) => Boolean(FENCE.test(line) || /^ {0,3}#{1,6}\s/.test(line) || rule([line], 0) || quoted(line) || item(line));

function paragraph(lines, at, depth) {
  let to = at + 1;
  while (to < lines.length && lines[to].trim() && (depth >= MAX_DEPTH || !begins(lines[to])) && !table(lines, to)) to += 1;
  return { kind: "paragraph", text: lines.slice(at, to).map((line) => line.trim()).join("\n"), to };
}

/** A block as an element; headings never skip a level. */
function render(block, level) {
  if (block.kind === "code") return codeBlock(block);
  if (block.kind === "heading") return h(`h${Math.min(6, level + 1, FIRST_HEADING - 1 + block.level)}`, {}, inline(block.text));
  if (block.kind === "rule") return h("hr");
  if (block.kind === "table") return tableOf(block);
  if (block.kind === "quote") return h("blockquote", {}, ...block.blocks.map((inner) => render(inner, level)));
  if (block.kind === "list") return listOf(block, level);
  return h("p", {}, inline(block.text));
}

function listOf({ ordered, start, items, loose }, level) {
  // In a tight list the text of an item is not a paragraph.
  const inner = (block) => (block.kind === "paragraph" && !loose ? inline(block.text) : render(block, level));
  return h(ordered ? "ol" : "ul", { start: ordered && start !== 1 ? start : null }, ...items.map((blocks) => h("li", {}, ...blocks.map(inner))));
}

function tableOf({ head, align, rows }) {
  const row = (tag, texts) => h("tr", {}, ...texts.map((text, i) => h(tag, { class: align[i], scope: tag === "th" ? "col" : null }, inline(text))));
  const whole = h("table", {}, h("thead", {}, row("th", head)), h("tbody", {}, ...rows.map((texts) => row("td", texts))));
  return h("div", { class: "wide", role: "region", "aria-label": "Table", tabindex: "0" }, whole);
}

function codeBlock({ lang, code }) {
  const bar = h("div", { class: "bar" }, h("span", {}, lang || "code"), copyButton("Copy code", () => code));
  return h("div", { class: "code" }, bar, h("pre", { tabindex: "0" }, h("code", {}, code)));
}
