// One message on the page: a user message that can be edited, a reply that is drawn while it is streamed.
// Invariant: a reply is drawn at most once per frame, and completed blocks are not drawn again.

import { copyButton, h, iconButton } from "./dom.js";
import { draw } from "./markdown.js";

/** A message of the user. `resend(text)` is called with the edited text. */
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
  queueMicrotask(() => field.focus()); // the field is in the page by then
  return form;
}

/** Whether a key press sends: Enter without Shift, unless it confirms an input method's word. */
export const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/** A reply of the model. `write()` draws, `end()` finishes; `hear(text)` gets each completed block. */
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

/** The text of a block, without the labels of its buttons. */
const spoken = (block) => (block.matches(".code") ? `Code: ${block.querySelector("code").textContent}` : block.textContent);

/** The number of tokens, and their speed if it could be measured. */
function speed({ tokens, seconds }) {
  if (!tokens) return "";
  const rate = seconds > 0.1 && tokens > 1 ? ` · ${((tokens - 1) / seconds).toFixed((tokens - 1) / seconds < 10 ? 1 : 0)} tokens/s` : "";
  return `${tokens} ${tokens === 1 ? "token" : "tokens"}${rate}`;
}
