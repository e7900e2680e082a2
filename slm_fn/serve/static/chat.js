// The chat page: one conversation, streamed. Whatever the model says goes through textContent, so it is never markup.

const byId = (id) => document.getElementById(id);
const [log, form, input, send, stop, status, hint] = ["log", "form", "input", "send", "stop", "status", "hint"].map(byId);

let messages = [];
let running = null; // the AbortController of the reply being written

/** Parse a stream of server-sent events into the JSON after each `data:`. One decoder, so no character is split. */
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Ask the server and yield pieces of the reply. Throws an Error whose message can be shown. */
async function* ask(conversation, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages: conversation, stream: true }),
    signal,
  });
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message ?? `The server answered ${response.status}.`);
  }
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices?.[0];
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
  }
}

/** Whether the reader is at the end of the log; only then does the log follow the text. */
const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;

function follow(change) {
  const stay = atEnd();
  change();
  if (stay) log.scrollTop = log.scrollHeight;
}

function add(kind, text = "") {
  const element = document.createElement("div");
  element.className = kind;
  element.textContent = text;
  hint.hidden = true;
  follow(() => log.append(element));
  return element;
}

function setRunning(controller) {
  running = controller;
  stop.hidden = !controller;
  send.hidden = Boolean(controller);
  send.disabled = !input.value.trim();
  log.setAttribute("aria-busy", String(Boolean(controller)));
}

/** Write one reply to the conversation as it stands. */
async function reply() {
  const controller = new AbortController();
  const element = add("message assistant writing");
  const began = performance.now();
  let text = "", pieces = 0, note = "", failure = null;
  setRunning(controller);
  status.textContent = "";
  try {
    for await (const piece of ask(messages, controller.signal)) {
      if (piece.finish === "length") note = "The reply was cut: the context is full.";
      if (!piece.text) continue;
      text += piece.text;
      pieces += 1;
      follow(() => { element.textContent = text; });
      const seconds = (performance.now() - began) / 1000;
      if (seconds > 0.2) status.textContent = `${(pieces / seconds).toFixed(0)} pieces/s`;
    }
  } catch (error) {
    if (controller.signal.aborted) note = "Stopped.";
    else failure = error;
  }
  element.classList.remove("writing");
  if (controller !== running) return; // a new chat was begun meanwhile
  setRunning(null);
  if (text) messages.push({ role: "assistant", content: text });
  else element.remove();
  if (note) add("message note", note);
  if (failure || !text) retry(failure ? `${failure.message}` : note || "The model said nothing.");
  input.focus();
}

/** Show what went wrong, with a button that asks again. */
function retry(words) {
  const line = add("message note error", words + " ");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Try again";
  button.addEventListener("click", () => { line.remove(); reply(); });
  follow(() => line.append(button));
}

function submit() {
  const text = input.value.trim();
  if (!text || running) return;
  // An unanswered message is replaced: roles take turns.
  if (messages.at(-1)?.role === "user") messages.pop();
  log.querySelectorAll(".error").forEach((line) => line.remove());
  messages.push({ role: "user", content: text });
  add("message user", text);
  log.scrollTop = log.scrollHeight;
  input.value = "";
  grow();
  reply();
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
  send.disabled = !input.value.trim();
}

function restart() {
  running?.abort();
  setRunning(null);
  messages = [];
  log.replaceChildren(hint);
  hint.hidden = false;
  status.textContent = "";
  input.focus();
}

form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
input.addEventListener("input", grow);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
stop.addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", restart);

fetch("v1/models").then((response) => response.json()).then((told) => { byId("model").textContent = told.data[0].id; }).catch(() => {});
grow();
