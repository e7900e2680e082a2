// One message on the page: a question that can be edited, a reply that is drawn while it is written.
// Invariant: a reply is drawn once a frame at most, and what has been drawn is not touched again.

import { copyButton, h, iconButton } from "./dom.js";
import { draw } from "./markdown.js";

/** What the user said, word for word. `resend(text)` is called with what they made of it. */
export function question(message, resend) {
  const text = h("div", { class: "text" }, message.content);
  const edit = iconButton("edit", "Edit", () => article.replaceChildren(head, editor(message.content, leave, resend)));
  const tools = h("div", { class: "tools" }, copyButton("Copy", () => message.content), edit);
  const head = h("h2", { class: "unseen" }, "You said");
  const article = h("article", { class: "message user" }, head, text, tools);
  const leave = () => {
    article.replaceChildren(head, text, tools);
    edit.focus();
  };
  return article;
}

function editor(content, leave, resend) {
  const field = h("textarea", { "aria-label": "Edit your message", rows: Math.min(8, content.split("\n").length + 1) });
  const send = () => field.value.trim() && resend(field.value.trim());
  const form = h("form", { class: "edit" }, field,
    h("div", { class: "row" }, h("button", { type: "button", class: "quiet", onclick: leave }, "Cancel"), h("button", { class: "loud" }, "Send")));
  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); leave(); }
    else if (event.target === field && sends(event)) { event.preventDefault(); send(); }
  });
  field.value = content;
  queueMicrotask(() => field.focus()); // it is in the page by then
  return form;
}

/** Whether a key press sends: Enter alone, and not the one that picks a word of an input method. */
export const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/** What the model said. `write(text)` draws, `end()` finishes; `hear(words)` is told each block once it is whole. */
export function reply(message, { again, change = (act) => act(), hear = () => {} }) {
  const text = h("div", { class: "text" }), meta = h("span", { class: "meta" });
  const tools = h("div", { class: "tools" }, copyButton("Copy", () => message.content),
    iconButton("again", "Regenerate", again, { class: "icon again" }), meta);
  const article = h("article", { class: "message assistant" }, h("h2", { class: "unseen" }, "The model said"), text, tools);
  let frame = 0, heard = 0;
  const redraw = (whole) => {
    cancelAnimationFrame(frame);
    frame = 0;
    change(() => {
      const blocks = draw(text, message.content);
      for (; heard < blocks.length - (whole ? 0 : 1); heard += 1) hear(spoken(blocks[heard]));
      meta.textContent = speed(message);
    });
  };
  return {
    article,
    begin: () => article.classList.add("writing"),
    write: () => { frame ||= requestAnimationFrame(() => redraw(false)); },
    end: () => {
      article.classList.remove("writing");
      redraw(true);
    },
  };
}

/** A block's words, without the labels of its buttons. */
const spoken = (block) => (block.matches(".code") ? `Code: ${block.querySelector("code").textContent}` : block.textContent);

/** How much was said, and how fast where that could be measured. */
function speed({ tokens, seconds }) {
  if (!tokens) return "";
  const rate = seconds > 0.1 && tokens > 1 ? ` · ${((tokens - 1) / seconds).toFixed((tokens - 1) / seconds < 10 ? 1 : 0)} tokens/s` : "";
  return `${tokens} ${tokens === 1 ? "token" : "tokens"}${rate}`;
}
