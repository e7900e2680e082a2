// Elements, icons and the clipboard.
// Invariant: text becomes text nodes and attributes only, never markup.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  send: "M10 16V4.5M4.5 9.5 10 4l5.5 5.5",
  stop: "M6 6h8v8H6z",
  copy: "M7.5 7.5h8v8h-8zM12.5 7.5v-3h-8v8h3",
  done: "m4.5 10.5 3.5 3.5 7.5-8",
  edit: "M4.5 15.5v-3l8-8 3 3-8 8zM10.5 6.5l3 3",
  again: "M15.5 10a5.5 5.5 0 1 1-1.6-3.9l1.6 1.6M15.5 4v3.7h-3.7",
  close: "m5 5 10 10M15 5 5 15",
  chats: "M4 6h12M4 10h12M4 14h7",
  add: "M10 4v12M4 10h12",
  tune: "M4 6.5h6.5M14.5 6.5H16M4 13.5h1.5M9.5 13.5H16M12.5 4.5v4M7.5 11.5v4",
  theme: "M16 11.5A6.5 6.5 0 0 1 8.5 4a6.5 6.5 0 1 0 7.5 7.5z",
  save: "M10 4v8.5M6.5 9.5 10 13l3.5-3.5M4.5 16h11",
  remove: "M4.5 6h11M8 6V4.5h4V6M6 6l.7 9.5h6.6L14 6",
  bubble: "M4 4.5h12v8.5H9.5L6 16v-3H4z",
  latest: "M10 4v11.5M4.5 10.5 10 16l5.5-5.5",
};

/** An element with attributes (`on...` are event listeners) and children, strings or nodes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An icon that is hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "path"));
  svg.firstChild.setAttribute("d", ICONS[name]);
  return svg;
}

/** A button with an icon and the accessible name `label`. */
export const iconButton = (name, label, onclick, props = {}) =>
  h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...props }, icon(name));

/** A button that copies the result of `text()` and shows whether it succeeded. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const copied = await copy(text(), button);
    button.replaceChildren(icon(copied ? "done" : "close"));
    button.setAttribute("aria-label", copied ? "Copied" : "Could not copy");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", label);
    }, 1600);
  });
  return button;
}

async function copy(text, beside) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // without TLS there is no clipboard API; execCommand needs a selected field
    const field = h("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
    field.value = text;
    beside.after(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    beside.focus();
    return copied;
  }
}
