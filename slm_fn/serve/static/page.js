// The chat page: one chat, its drawers, and the address of the server it came from.
// Invariant: the conversation on the screen is the one that is stored.

import { mount } from "./chat.js";
import { conversations, options } from "./drawer.js";
import { model } from "./stream.js";
import { key, open, storage } from "./store.js";

const byId = (id) => document.getElementById(id);
const server = new URL(".", import.meta.url);
const store = open(storage("localStorage"));
const last = storage("sessionStorage"); // which conversation this tab shows

const settings = options({ store, key });
const chat = mount(byId("chat"), {
  server,
  settings: settings.get,
  key: key.get,
  keep(conversation) {
    last.setItem("slm_fn/open", conversation.id);
    return store.put(conversation);
  },
  needKey: (retry) => settings.askKey(() => { greet(); retry(); }),
  words: {
    greeting: "Say something.",
    about: "This is a small language model. It answers quickly, has a short context, and makes things up.",
    placeholder: "Message",
  },
});
const kept = conversations({ store, current: () => chat.talk().id, open: show });

function show(conversation) {
  chat.load(conversation);
  last.setItem("slm_fn/open", conversation?.id ?? "");
}

/** Request the model's name and context length. */
async function greet() {
  try {
    const { id, max_model_len: context } = await model(server, key.get());
    byId("model").textContent = id;
    if (context > 0) chat.context(context);
  } catch { /* the first reply will report the reason */ }
}

const theme = byId("theme");
function shade(toggle) {
  const dark = slmTheme(toggle);
  theme.setAttribute("aria-pressed", String(dark));
  const ink = getComputedStyle(document.body).backgroundColor;
  for (const meta of document.querySelectorAll("meta[name=theme-color]")) meta.content = ink;
}

theme.addEventListener("click", () => shade(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shade(false));
byId("new").addEventListener("click", () => show());
byId("chats").addEventListener("click", kept.show);
byId("settings").addEventListener("click", settings.show);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) chat.stop();
});
shade(false);
greet();
show(store.get(last.getItem("slm_fn/open") ?? "") ?? undefined);
