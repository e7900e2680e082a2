// The page's two drawers: stored conversations, and the settings of generation.
// Invariant: each is a native modal dialog, so the browser handles focus, Escape and the backdrop.

import { asMarkdown, title } from "./dialogue.js";
import { h, iconButton } from "./dom.js";
import { SAMPLING, settings as sound } from "./store.js";

/** A dialog at a side of the page, with `body` below its heading. */
function drawer(side, heading, ...body) {
  const id = `drawer-${side}`;
  const head = h("header", {}, h("h2", { id }, heading), iconButton("close", "Close", () => dialog.close()));
  const dialog = h("dialog", { class: `drawer ${side}`, "aria-labelledby": id }, h("div", { class: "sheet" }, head, ...body));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // a click on the backdrop
  document.body.append(dialog);
  return dialog;
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const fileName = (conversation) => `${title(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chat"}.md`;

/** The conversations stored in this browser. `current()` is the open one's id; `open(conversation)` shows another. */
export function conversations({ store, current, open }) {
  const list = h("ul", { class: "chats" });
  const empty = h("p", { class: "soft" }, "No conversations yet. They are stored in this browser only.");
  const all = h("button", { type: "button", class: "quiet" }, "Export all");
  all.addEventListener("click", () => download("conversations.json", "application/json", JSON.stringify(store.all(), null, 2)));
  const start = h("button", { type: "button", class: "loud", onclick: () => { dialog.close(); open(); } }, "New chat");
  const dialog = drawer("left", "Conversations", empty, list, h("div", { class: "row foot-row" }, all, start));

  function row(conversation) {
    const pick = h("button", { type: "button", class: "pick", "aria-current": current() === conversation.id ? "true" : null },
      h("span", { class: "name" }, title(conversation)), h("span", { class: "soft" }, when(conversation.changed)));
    pick.addEventListener("click", () => { dialog.close(); open(store.get(conversation.id) ?? conversation); });
    const called = title(conversation);
    const line = h("li", {}, pick,
      iconButton("edit", `Rename ${called}`, () => line.replaceChildren(renaming(conversation, line))),
      iconButton("save", `Export ${called}`, () => download(fileName(conversation), "text/markdown", asMarkdown(conversation))),
      iconButton("remove", `Delete ${called}`, () => remove(conversation, line)));
    return line;
  }

  function renaming(conversation, line) {
    const field = h("input", { "aria-label": "Name", maxlength: "60" });
    field.value = title(conversation);
    const done = (name) => {
      if (!field.isConnected) return;
      if (name) store.put(Object.assign(conversation, { title: name }));
      const fresh = row(conversation);
      line.replaceWith(fresh);
      fresh.children[1].focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
      event.preventDefault(); // do not close the drawer, and do not press the button that gets the focus
      done(event.key === "Enter" ? field.value.trim() : "");
    });
    queueMicrotask(() => { field.focus(); field.select(); }); // the field is in the page by then
    return h("div", { class: "row rename" }, field, h("button", { type: "button", class: "quiet", onclick: () => done(field.value.trim()) }, "Rename"));
  }

  function remove(conversation, line) {
    store.remove(conversation.id);
    if (current() === conversation.id) open();
    const undo = h("button", { type: "button", class: "quiet" }, "Undo");
    undo.addEventListener("click", () => {
      store.put(conversation);
      const fresh = row(conversation);
      line.replaceWith(fresh);
      fresh.firstChild.focus();
    });
    line.replaceChildren(h("span", { class: "soft gone", role: "status" }, "Deleted."), undo);
    undo.focus();
  }

  return {
    show() {
      const kept = store.all();
      list.replaceChildren(...kept.map(row));
      list.hidden = all.hidden = !kept.length;
      empty.hidden = kept.length > 0;
      dialog.showModal();
    },
  };
}

function when(time) {
  const date = new Date(time), today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { timeStyle: "short" } : { day: "numeric", month: "short", year: "numeric" });
}

/** The settings of generation: `get()` returns the current ones. The key is stored until the tab closes. */
export function options({ store, key }) {
  let chosen = store.settings();
  const system = h("textarea", { id: "system", rows: "4", "aria-describedby": "system-hint", placeholder: "You are a helpful assistant." });
  const numbers = Object.entries(SAMPLING).map(([name, { min, max, step, empty: unset = "model’s own" }]) =>
    h("input", { id: name, type: "number", inputmode: "decimal", min, max, step: step === 1 ? 1 : "any", "aria-describedby": `${name}-hint`, placeholder: unset }));
  const field = (input, label, hint) =>
    h("div", { class: "option" }, h("label", { for: input.id }, label), input, h("p", { class: "soft", id: `${input.id}-hint` }, hint));
  const secret = h("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", pattern: "[\\x21-\\x7e]+", "aria-describedby": "key-hint" });
  const secretField = field(secret, "API key", "Stored until this tab is closed, and sent to this server only.");
  const reset = h("button", { type: "button", class: "quiet" }, "Reset");
  const done = h("button", { class: "loud" }, "Done");
  const form = h("form", {}, secretField, field(system, "System prompt", "Sent to the model before your messages."),
    h("fieldset", {}, h("legend", {}, "Sampling"), ...Object.values(SAMPLING).map(({ label, hint }, i) => field(numbers[i], label, hint))),
    h("div", { class: "row foot-row" }, reset, done));
  const dialog = drawer("right", "Settings", form);
  let then = null;

  function fill() {
    system.value = chosen.system;
    for (const input of numbers) input.value = chosen.sampling[input.id] ?? "";
    secret.value = key.get();
  }

  form.addEventListener("input", () => {
    chosen = sound({ system: system.value, sampling: Object.fromEntries(numbers.map((input) => [input.id, input.value])) });
    store.set(chosen);
    if (secret.validity.valid) key.set(secret.value.trim());
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); dialog.close(); });
  reset.addEventListener("click", () => {
    chosen = sound(null);
    store.set(chosen);
    fill();
  });
  dialog.addEventListener("close", () => {
    if (then && key.get()) then();
    then = null;
  });

  function show(asked = null) {
    then = asked;
    secretField.hidden = !asked && !key.get();
    fill();
    dialog.showModal();
    (asked ? secret : system).focus();
  }
  return { show: () => show(), askKey: (retry) => show(retry), get: () => chosen };
}
