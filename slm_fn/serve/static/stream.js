// The HTTP client: requests replies from the server and reads their server-sent events.
// Invariant: one TextDecoder reads a complete stream, so no character is split; a key is sent to its own origin only.

/** An error with a message for the user. `kind`: unreachable, key, busy, long, broken or refused. */
export class Failure extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

const BROKEN = "The connection ended before the reply did.";

/** The payload of each event of a stream, for all line ends and chunk sizes. */
export async function* payloads(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const lines = rest.split(/\r\n|\n|\r(?!$)/); // a final carriage return may be the first half of a line end
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) yield data.splice(0).join("\n");
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The JSON of each event up to `[DONE]`. Throws a Failure when the stream ends before it. */
export async function* events(body) {
  for await (const payload of payloads(body)) {
    if (payload === "[DONE]") return;
    let event;
    try {
      event = JSON.parse(payload);
    } catch {
      throw new Failure("broken", "The server sent something that is not JSON.");
    }
    if (event.error) throw new Failure("broken", event.error.message ?? "The server failed.");
    yield event;
  }
  throw new Failure("broken", BROKEN);
}

function headers(server, key) {
  const own = key && server.origin === location.origin;
  return { "Content-Type": "application/json", ...(own && { Authorization: `Bearer ${key}` }) };
}

/** One request; no cookies, no redirects. Throws a Failure, or an AbortError if `signal` ended it. */
async function request(url, key, signal, body) {
  const options = { headers: headers(url, key), credentials: "omit", redirect: "error", signal };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const response = await fetch(url, options).catch((error) => {
    if (signal?.aborted) throw error;
    throw new Failure("unreachable", "The server cannot be reached. Is it still running?");
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const told = (await response.json().catch(() => null))?.error;
  const said = told?.message ?? `The server answered with status ${response.status}.`;
  if (response.status === 401) return new Failure("key", "The server requires an API key.");
  if (told?.code === "context_length_exceeded") return new Failure("long", said);
  if (response.status !== 429 && response.status !== 503) return new Failure("refused", said);
  const seconds = Number(response.headers.get("Retry-After")) || 0;
  return new Failure("busy", `The server is busy: ${said}` + (seconds > 1 ? ` (in ${seconds} seconds)` : ""));
}

/** The first model the server has: `{id, max_model_len}`. */
export async function model(server, key) {
  const { data } = await (await request(new URL("v1/models", server), key)).json();
  return data[0];
}

/** Request a reply; yields `{text}`, `{finish}` and `{usage}` as they arrive. */
export async function* ask(server, key, body, signal) {
  const whole = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request(new URL("v1/chat/completions", server), key, signal, whole);
  try {
    for await (const event of events(response.body)) {
      if (event.usage) yield { usage: event.usage };
      const choice = event.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { finish: choice.finish_reason };
    }
  } catch (error) {
    throw error instanceof Failure || signal.aborted ? error : new Failure("broken", BROKEN);
  }
}
