// A conversation as data: which messages are sent, and how they are made to fit the model's context.
// Invariant: no function changes the page; messages that were left out stay in the conversation.

import { ask, Failure } from "./stream.js";

const REPLY_SHARE = 0.25; // of the context, kept free for the reply

/** An empty conversation. */
export const fresh = () => ({ id: newId(), title: "", changed: 0, messages: [] });

// Not crypto.randomUUID, which does not exist on pages without TLS.
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** The messages in the template's order, user and assistant in turn; unanswered ones are left out. */
export function turns(messages) {
  return messages
    .filter(({ role }, i) => role !== "user" || messages[i + 1]?.role !== "user")
    .map(({ role, content }) => ({ role, content }));
}

/** The title: the given one, or the first line of the first message. */
export function title({ title: given, messages }) {
  const line = given || messages.find(({ role }) => role === "user")?.content.trim().split("\n")[0] || "New chat";
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

/** The conversation as Markdown. */
export function asMarkdown(conversation) {
  const parts = conversation.messages.map(({ role, content }) => `**${role === "user" ? "You" : "Model"}**\n\n${content}`);
  return `# ${title(conversation)}\n\n${parts.join("\n\n---\n\n")}\n`;
}

/** The model's context in tokens, and the average tokens per character from the server's counts. */
export const limits = () => ({ context: Infinity, perCharacter: 0 });

const characters = (messages) => messages.reduce((sum, { content }) => sum + content.length, 0);

/** Update the tokens per character from the usage that the server reported. */
export function learn(limits, messages, text, usage) {
  limits.perCharacter = usage.total_tokens / Math.max(1, characters(messages) + text.length);
}

/**
 * The reply to a conversation as a stream of deltas; `{told, forgot}` comes first, again for every shorter attempt.
 * The oldest exchanges are left out until the estimate fits, then as long as the server rejects the length.
 */
export async function* answer({ server, key, settings, limits, signal }, messages) {
  const { system, sampling } = settings;
  const head = system ? [{ role: "system", content: system }] : [];
  const told = turns(messages);
  const room = limits.context * (1 - REPLY_SHARE);
  let forgot = false;
  while (told.length > 1 && characters([...head, ...told]) * limits.perCharacter > room) forgot = told.splice(0, 2);
  for (;;) {
    const asked = [...head, ...told];
    yield { told: asked, forgot: Boolean(forgot) };
    try {
      return yield* ask(server, key, { messages: asked, ...sampling }, signal);
    } catch (error) {
      if (!(error instanceof Failure) || error.kind !== "long" || told.length < 2) throw error;
      forgot = told.splice(0, 2);
    }
  }
}
