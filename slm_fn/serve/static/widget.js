// The chat in a page of any origin: <script type="module" src="https://HOST/widget.js" data-title="..."></script>.
// Invariant: needs no style-src, cookies or globals of the page: a shadow root, constructed style sheets, one element.

import { h, icon, iconButton } from "./dom.js";

const HERE = new URL(".", import.meta.url);
const OPEN = "slm_fn/widget/open";
const SHEETS = ["theme.css", "chat.css", "widget.css"];
let sheets = null; // loaded once for all elements

/** Loads style sheets by fetch: connect-src allows this host already, style-src need not. */
function styles() {
  const load = async (name) => {
    const response = await fetch(new URL(name, HERE), { credentials: "omit" });
    if (!response.ok) throw new Error(`${name}: status ${response.status}`);
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(await response.text());
    return sheet;
  };
  return (sheets ??= Promise.all(SHEETS.map(load)));
}

/** Black or white, whichever has more contrast with a colour. */
function inkOn(colour) {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d");
  pixel.fillStyle = colour;
  pixel.fillRect(0, 0, 1, 1);
  const linear = [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => (c / 255 <= 0.04045 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

/** `<slm-chat>`: with `data-float` a button in the window's corner, else a box at its position. */
class SlmChat extends HTMLElement {
  static observedAttributes = ["data-accent", "data-font", "data-radius"];
  #chat = null;
  #panel = null;
  #launcher = null;

  attributeChangedCallback() {
    const { accent, font, radius } = this.dataset;
    const set = (name, value, property) => {
      if (value && CSS.supports(property, value)) this.style.setProperty(name, value);
      else this.style.removeProperty(name);
      return this.style.getPropertyValue(name);
    };
    const colour = set("--accent", accent, "color");
    set("--on-accent", colour && inkOn(colour), "color");
    const page = this.isConnected && font === "inherit" ? getComputedStyle(this.parentElement).fontFamily : font;
    set("--font", page, "font-family");
    set("--radius", radius, "border-radius");
  }

  async connectedCallback() {
    if (this.shadowRoot) return;
    this.attributeChangedCallback(); // the page's font is known now
    const shadow = this.attachShadow({ mode: "open" });
    const root = h("div", { class: "frame" });
    try {
      shadow.adoptedStyleSheets = await styles();
    } catch (error) {
      console.error(`slm-chat: ${HERE.origin} cannot be reached from this page: ${error.message}`);
      return;
    }
    shadow.append(root);
    if ("float" in this.dataset) this.#float(root);
    else await this.#fill(root);
  }

  /** Adds the chat to an element; its code is loaded when it is first needed. */
  async #fill(root) {
    const [{ mount }, store, { model }] = await Promise.all([import("./chat.js"), import("./store.js"), import("./stream.js")]);
    const { greeting, about, placeholder, system, temperature, maxTokens, keep } = this.dataset;
    const chosen = store.settings({ system, sampling: { temperature, max_tokens: maxTokens } });
    const tab = keep === "no" ? null : store.storage("sessionStorage");
    const body = h("div", { class: "chat", lang: this.lang || null });
    const chat = mount(body, {
      server: HERE,
      settings: () => chosen,
      keep: (conversation) => !tab || store.open(tab).put({ ...conversation, id: "widget" }),
      words: {
        greeting: greeting ?? "Say something.",
        about: about ?? "A small language model answers. It makes things up.",
        placeholder: placeholder ?? "Message",
      },
    });
    root.append(this.#head(chat), body);
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !chat.stop()) this.close();
    });
    const kept = tab && store.open(tab).get("widget");
    if (kept) chat.load(kept, false);
    this.#chat = chat;
    model(HERE, "").then(({ max_model_len: context }) => context > 0 && chat.context(context)).catch(() => {}); // the first reply reports the reason
  }

  #head(chat) {
    const close = this.#launcher ? iconButton("close", "Close", () => this.close()) : null;
    const title = h("h2", { id: "title" }, this.dataset.title ?? "Chat");
    return h("header", {}, title, iconButton("add", "New chat", () => chat.load()), close);
  }

  #float(root) {
    const name = this.dataset.title ?? "Chat";
    this.#panel = h("div", { class: "panel", id: "panel", role: "dialog", "aria-label": name, hidden: true });
    const toggle = () => (this.#panel.hidden ? this.open() : this.close());
    this.#launcher = h("button", { class: "launcher", type: "button", "aria-label": name, "aria-expanded": "false", "aria-controls": "panel", onclick: toggle }, icon("bubble"));
    root.append(this.#panel, this.#launcher);
    if ("open" in this.dataset || this.#remembered()) this.open(false);
  }

  #remembered(open) {
    try {
      if (open === undefined) return sessionStorage.getItem(OPEN) === "1";
      if (this.dataset.keep !== "no") sessionStorage.setItem(OPEN, open ? "1" : "0");
    } catch { /* storage is not allowed */ }
    return false;
  }

  #show(open) {
    this.#panel.hidden = !open;
    this.#launcher.setAttribute("aria-expanded", String(open));
    this.#launcher.replaceChildren(icon(open ? "close" : "bubble"));
    this.toggleAttribute("data-shown", open);
    this.#remembered(open);
  }

  /** Show the panel; the input field gets the focus unless the page opened it. */
  async open(focus = true) {
    if (!this.#panel) return;
    this.#show(true);
    if (!this.#panel.childElementCount) await this.#fill(this.#panel);
    if (focus) this.#chat.focus();
  }

  /** Hide the panel; a streamed reply continues. */
  close() {
    if (!this.#panel || this.#panel.hidden) return;
    this.#show(false);
    this.#launcher.focus();
  }
}

if (!customElements.get("slm-chat")) {
  customElements.define("slm-chat", SlmChat);
  const tag = [...document.querySelectorAll("script[src]")].find(({ src }) => src === import.meta.url);
  if (tag && !document.querySelector("slm-chat")) {
    const chat = document.createElement("slm-chat");
    Object.assign(chat.dataset, tag.dataset, { float: "" });
    document.body.append(chat);
  }
}
