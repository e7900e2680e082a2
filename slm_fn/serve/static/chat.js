// A chat in any element, the page's or the widget's: the log, the input field, the streamed reply.
// Invariant: one reply is streamed at a time, and no text of a stopped one is added to another conversation.

import { answer, fresh, learn, limits } from "./dialogue.js";
import { h, icon } from "./dom.js";
import { question, reply, sends } from "./message.js";
import { Failure } from "./stream.js";

const HEARD_MS = 15000; // an announced block is removed from the page after this time

/**
 * Add a chat to `root`. `server` is a URL; `settings()` and `key()` are called for every reply; `keep(conversation)` is
 * called after every change and returns whether it was stored; `needKey()`, if given, lets the user enter a key.
 */
export function mount(root, { server, settings, key = () => "", keep = () => true, needKey = null, words }) {
  const log = h("div", { class: "log", role: "log", "aria-live": "off", "aria-label": "Conversation", tabindex: "0" });
  const hint = h("div", { class: "hint" }, h("p", { class: "lead" }, words.greeting), h("p", {}, words.about));
  const input = h("textarea", { rows: "1", "aria-label": "Message", placeholder: words.placeholder, autocomplete: "off", enterkeyhint: "send" });
  const send = h("button", { class: "round send", "aria-label": "Send", disabled: true }, icon("send"));
  const stop = h("button", { class: "round stop", type: "button", "aria-label": "Stop", hidden: true }, icon("stop"));
  const latest = h("button", { class: "quiet latest", type: "button", hidden: true }, "Latest", icon("latest"));
  const form = h("form", { class: "field" }, input, send, stop);
  const heard = h("div", { class: "unseen", "aria-live": "polite" });
  const foot = h("p", { class: "foot" }, "Enter sends · Shift+Enter breaks the line · Esc stops");
  root.append(log, h("div", { class: "bottom" }, latest, form, foot), heard);

  let talk = fresh();
  let running = null; // the AbortController of the streamed reply
  let known = limits();

  // ---- the log ----

  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 32;

  function toEnd() {
    log.scrollTop = log.scrollHeight;
    latest.hidden = true;
  }

  /** Change the log; it scrolls to its end only if it was there before. */
  function change(act) {
    const following = atEnd();
    act();
    if (following) toEnd();
    else latest.hidden = false;
  }

  function hear(text) {
    const line = h("p", {}, text);
    heard.append(line);
    setTimeout(() => line.remove(), HEARD_MS);
  }

  function add(element) {
    change(() => { hint.remove(); log.append(element); });
    return element;
  }

  /** Add a line below a message, with a button for each named action. */
  function note(text, { error = false, ...buttons } = {}) {
    const line = h("div", { class: error ? "note error" : "note" }, h("span", {}, text));
    for (const [name, act] of Object.entries(buttons)) {
      if (act) line.append(h("button", { type: "button", class: "quiet", onclick: () => { line.remove(); act(); } }, name));
    }
    add(line);
    hear(text);
  }

  /** Draw the complete conversation. */
  function draw() {
    log.replaceChildren(...(talk.messages.length ? talk.messages.map(shown) : [hint]));
    toEnd();
  }

  function shown(message) {
    if (message.role === "user") return question(message, (text) => resend(message, text));
    const view = reply(message, { again });
    view.end();
    return view.article;
  }

  // ---- the reply ----

  function setRunning(controller) {
    running = controller;
    const hadFocus = stop.matches(":focus");
    stop.hidden = !controller;
    send.hidden = Boolean(controller);
    root.toggleAttribute("data-busy", Boolean(controller));
    if (hadFocus) input.focus();
    grow();
  }

  function save() {
    talk.changed = Date.now();
    if (!keep(talk)) note("The browser's storage is full: this conversation is not saved.", { error: true });
  }

  /** Add the deltas of a reply to `message`; returns how it ended. */
  async function take(message, view, controller) {
    let began = 0, pieces = 0, told = [], forgot = false, finish = null;
    const asked = { server, key: key(), settings: settings(), limits: known, signal: controller.signal };
    for await (const piece of answer(asked, talk.messages)) {
      if (controller !== running) return null; // another conversation has begun
      if (piece.told) ({ told, forgot } = piece);
      if (piece.finish) finish = piece.finish;
      if (piece.usage) {
        message.tokens = piece.usage.completion_tokens;
        learn(known, told, message.content, piece.usage);
      }
      if (!piece.text) continue;
      began ||= performance.now();
      message.tokens = pieces += 1; // about one event per token; the usage at the end is exact
      message.seconds = (performance.now() - began) / 1000;
      message.content += piece.text;
      view.write();
    }
    return { finish, forgot };
  }

  /** Request the model's reply to the conversation. */
  async function respond() {
    const controller = new AbortController();
    const message = { role: "assistant", content: "" };
    const view = reply(message, { again, change, hear });
    setRunning(controller);
    add(view.article);
    view.begin();
    let ended = null, failure = null;
    try {
      ended = await take(message, view, controller);
    } catch (error) {
      failure = error;
    }
    if (controller !== running) return;
    setRunning(null);
    view.end();
    conclude(message, view, ended, failure);
  }

  function conclude(message, view, ended, failure) {
    const stopped = failure && !(failure instanceof Failure);
    if (message.content && !(failure && !stopped)) {
      talk.messages.push(message);
      save();
    } else view.article.remove();
    const told = { "Try again": respond };
    if (stopped) note("Stopped.", message.content ? {} : told);
    else if (failure) fail(failure, told);
    else if (!message.content) note("The model returned an empty reply.", told);
    else if (ended.finish === "length") note("Cut short: the reply reached its limit.");
    else if (ended.forgot) note("The beginning of the conversation was left out: the model's context is full.");
  }

  function fail({ kind, message }, told) {
    if (kind === "key" && needKey) note(message, { error: true, "Enter key": () => needKey(respond) });
    else note(message, { error: true, ...(kind === "long" ? {} : told) });
  }

  // ---- user actions ----

  const tidy = () => log.querySelectorAll(".note").forEach((line) => (line.matches(".error") || line.querySelector("button")) && line.remove());

  function submit() {
    const text = input.value.trim();
    if (!text || running) return;
    tidy();
    const message = { role: "user", content: text };
    talk.messages.push(message);
    add(shown(message));
    toEnd();
    input.value = "";
    save();
    respond();
  }

  /** Generate the last reply again. */
  function again() {
    if (running || talk.messages.at(-1)?.role !== "assistant") return;
    talk.messages.pop();
    redo();
  }

  /** Replace a message of the user; the messages after it are removed. */
  function resend(message, text) {
    if (running) stopIt();
    talk.messages.splice(talk.messages.indexOf(message), Infinity, { role: "user", content: text });
    redo();
  }

  function redo() {
    save();
    draw();
    input.focus();
    respond();
  }

  /** Stop the reply without a note. */
  function stopIt() {
    running?.abort();
    setRunning(null);
  }

  function load(conversation = fresh(), focus = true) {
    stopIt();
    talk = conversation;
    known = { ...known, perCharacter: 0 };
    draw();
    if (focus) input.focus();
  }

  /** Fit the height of the input field to its text. */
  function grow() {
    input.style.height = "auto";
    input.style.height = `${input.scrollHeight}px`;
    send.disabled = !input.value.trim();
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  input.addEventListener("input", grow);
  input.addEventListener("keydown", (event) => { if (sends(event)) { event.preventDefault(); submit(); } });
  stop.addEventListener("click", () => running?.abort());
  latest.addEventListener("click", () => { toEnd(); input.focus(); });
  log.addEventListener("scroll", () => { if (atEnd()) latest.hidden = true; }, { passive: true });
  draw();
  grow();

  return {
    load,
    focus: () => input.focus(),
    talk: () => talk,
    /** Stop the streamed reply; returns whether there was one. */
    stop: () => Boolean(running && (running.abort(), true)),
    context: (tokens) => { known.context = tokens; },
  };
}
