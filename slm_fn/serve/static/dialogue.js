// A conversation as data: what the server is told of it, and how it is made to fit the model's context.
// Invariant: nothing here touches the page; messages that were left out stay in the conversation itself.

import { ask, Failure } from "./stream.js";

const REPLY_SHARE = 0.25; // of the context, kept free for the reply

/** A conversation without a word yet. */
export const fresh = () => ({ id: newId(), title: "", changed: 0, messages: [] });

// Not crypto.randomUUID: that is missing where the page came without TLS.
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Turns as the model knows them: user and assistant by turns; a question that stayed without an answer is left out. */
export function turns(messages) {
  return messages
    .filter(({ role }, i) => role !== "user" || messages[i + 1]?.role !== "user")
    .map(({ role, content }) => ({ role, content }));
}

/** What a title can be made of: the first question's first line. */
export function title({ title: given, messages }) {
  const line = given || messages.find(({ role }) => role === "user")?.content.trim().split("\n")[0] || "New chat";
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

/** The conversation as a Markdown text. */
export function asMarkdown(conversation) {
  const parts = conversation.messages.map(({ role, content }) => `**${role === "user" ? "You" : "Model"}**\n\n${content}`);
  return `# ${title(conversation)}\n\n${parts.join("\n\n---\n\n")}\n`;
}

/** How much the model keeps in mind: tokens, and how many of them a character takes, as far as the server has counted. */
export const limits = () => ({ context: Infinity, perCharacter: 0 });

const characters = (messages) => messages.reduce((sum, { content }) => sum + content.length, 0);

/** Learn from the server's count what a character costs. */
export function learn(limits, messages, text, usage) {
  limits.perCharacter = usage.total_tokens / Math.max(1, characters(messages) + text.length);
}

/**
 * The reply to a conversation, piece by piece; `{told, forgot}` comes first, once more for every shorter attempt.
 * The oldest exchanges are left out until the rest should fit, then as long as the server finds it too long.
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
