// The chat page: one conversation, streamed. What the model says goes through textContent alone, so it is never markup.

const byId = (id) => document.getElementById(id);
const log = byId("log"), hint = byId("hint"), form = byId("form"), input = byId("input"), send = byId("send");
const stop = byId("stop"), latest = byId("latest"), speed = byId("speed"), status = byId("status");

let messages = []; // what the server is told: system, user and assistant in turn
let running = null; // the AbortController of the reply being written
let context = Infinity; // tokens the model can keep in mind
let tokensPerCharacter = 0; // of this conversation, as far as the server has counted it

// ---- the wire ----

/** The JSON behind each `data:` of a stream of server-sent events. One decoder, so no character is split. */
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (!block.startsWith("data: ")) continue; // a comment that keeps the connection open
        if (block === "data: [DONE]") return;
        yield JSON.parse(block.slice(6));
      }
      if (done) throw new Error("The connection ended before the reply did.");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Ask for a reply; yields `{text}`, `{finish}` and `{usage}` as they come. Throws an Error fit to be shown. */
async function* ask(conversation, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages: conversation, stream: true, stream_options: { include_usage: true } }),
    signal,
  }).catch((error) => {
    throw signal.aborted ? error : new Error("The server cannot be reached. Is it still running?");
  });
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    const error = new Error(told?.error?.message ?? `The server answered with status ${response.status}.`);
    error.tooLong = told?.error?.code === "context_length_exceeded";
    throw error;
  }
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) yield { usage: event.usage };
    const choice = event.choices[0];
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
  }
}

// ---- the page ----

const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 32;

function toEnd() {
  log.scrollTop = log.scrollHeight;
  latest.hidden = true;
}

/** Change the log; it follows its end only while the reader is there. */
function change(what) {
  const following = atEnd();
  what();
  if (following) toEnd();
  else latest.hidden = false;
}

function add(kind, text = "") {
  const element = document.createElement("div");
  element.className = kind;
  element.textContent = text;
  change(() => { hint.hidden = true; log.append(element); });
  return element;
}

function setRunning(controller) {
  running = controller;
  const hadFocus = document.activeElement === stop;
  stop.hidden = !controller;
  send.hidden = Boolean(controller);
  log.setAttribute("aria-busy", String(Boolean(controller))); // a reader hears the reply once, when it is whole
  if (hadFocus) input.focus();
  grow();
}

/** Fit the field to its text. */
function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  send.disabled = !input.value.trim();
}

function showSpeed(tokens, milliseconds) {
  speed.textContent = milliseconds > 100 ? `${tokens} tokens, ${Math.round((tokens * 1000) / milliseconds)}/s` : "";
}

/** A line below a message, with a button that asks again if there is something to repeat. */
function note(words, { error = false, again = null } = {}) {
  const line = add(error ? "note error" : "note", words);
  status.textContent = words;
  if (!again) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Try again";
  button.addEventListener("click", () => { line.remove(); again(); input.focus(); });
  change(() => line.append(button));
}

// ---- a conversation ----

/** Forget the oldest exchanges until a quarter of the context should be free for the reply; says whether any went. */
function forget() {
  const before = messages.length;
  const size = () => messages.reduce((sum, { content }) => sum + content.length, 0) * tokensPerCharacter;
  while (messages.length > 1 && size() > context * 0.75) messages.splice(0, 2);
  return messages.length < before;
}

/** The reply to the conversation, with less and less of it as long as the server finds it too long. */
async function* answer(signal) {
  let forgot = forget();
  for (;;) {
    if (forgot) yield { forgot };
    try {
      return yield* ask(messages, signal);
    } catch (error) {
      if (!error.tooLong || messages.length < 2) throw error;
      forgot = messages.splice(0, 2);
    }
  }
}

/** Let the model answer the conversation as it stands. */
async function reply() {
  const controller = new AbortController();
  const element = add("message assistant writing");
  let text = "", tokens = 0, began = 0, finish = null, forgot = false, failure = null;
  setRunning(controller);
  speed.textContent = "";
  status.textContent = "";
  try {
    for await (const piece of answer(controller.signal)) {
      if (controller !== running) return; // another conversation has begun
      finish ??= piece.finish;
      forgot ||= piece.forgot;
      if (piece.usage) {
        showSpeed(piece.usage.completion_tokens, performance.now() - began);
        const characters = messages.reduce((sum, { content }) => sum + content.length, text.length);
        tokensPerCharacter = piece.usage.total_tokens / Math.max(1, characters);
      }
      if (!piece.text) continue;
      began ||= performance.now();
      tokens += 1; // one event a token, nearly; the usage at the end is exact
      text += piece.text;
      change(() => { element.textContent = text; });
      showSpeed(tokens, performance.now() - began);
    }
  } catch (error) {
    failure = error;
  }
  if (controller !== running) return;
  setRunning(null);
  element.classList.remove("writing");
  const again = () => { element.remove(); reply(); };
  if (failure && !controller.signal.aborted) return note(failure.message, { error: true, again: failure.tooLong ? null : again });
  if (!text) {
    element.remove();
    return note(failure ? "Stopped." : "The model said nothing.", { again });
  }
  messages.push({ role: "assistant", content: text });
  if (failure) note("Stopped.");
  else if (finish === "length") note("Cut short: the model's context is full.");
  else if (forgot) note("The beginning of the conversation was left out: the model's context is full.");
}

function submit() {
  const text = input.value.trim();
  if (!text || running) return;
  log.querySelectorAll(".error, .note:has(button)").forEach((line) => line.remove());
  if (messages.at(-1)?.role === "user") messages.pop(); // it stayed without an answer, and roles take turns
  messages.push({ role: "user", content: text });
  add("message user", text);
  toEnd();
  input.value = "";
  reply();
}

function restart() {
  running?.abort();
  setRunning(null);
  messages = [];
  tokensPerCharacter = 0;
  log.replaceChildren(hint);
  hint.hidden = false;
  speed.textContent = "";
  toEnd();
  input.focus();
}

form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
input.addEventListener("input", grow);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
stop.addEventListener("click", () => running?.abort());
latest.addEventListener("click", () => { toEnd(); input.focus(); });
log.addEventListener("scroll", () => { if (atEnd()) latest.hidden = true; }, { passive: true });
byId("new").addEventListener("click", restart);

fetch("v1/models")
  .then((response) => response.json())
  .then(({ data: [model] }) => {
    byId("model").textContent = model.id;
    context = model.max_model_len;
  })
  .catch(() => {});
grow();
