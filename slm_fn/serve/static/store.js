// Browser storage: one key per conversation, and settings; in memory if storage is not allowed.
// Invariant: every value is validated when read, since any script of this origin may have written it.

const CHAT = "slm_fn/chat/", SETTINGS = "slm_fn/settings", KEY = "slm_fn/key";

/** Sampling parameters with their ranges; empty ones use the model's defaults. */
export const SAMPLING = {
  temperature: { label: "Temperature", min: 0, max: 5, step: 0.1, hint: "0 always takes the most likely token" },
  top_p: { label: "Top-p", min: 0.01, max: 1, step: 0.01, hint: "probability mass kept" },
  top_k: { label: "Top-k", min: 0, max: 100000, step: 1, hint: "tokens kept, 0 for all" },
  min_p: { label: "Min-p", min: 0, max: 1, step: 0.01, hint: "minimum, relative to the most likely token" },
  max_tokens: { label: "Max tokens", min: 1, max: 1000000, step: 1, hint: "length of a reply", empty: "as many as fit" },
  seed: { label: "Seed", min: 0, max: 2 ** 48, step: 1, hint: "the same seed, the same reply", empty: "random" },
};

/** Storage in memory, until the page is closed. */
class Memory {
  #map = new Map();
  get length() { return this.#map.size; }
  key(i) { return [...this.#map.keys()][i] ?? null; }
  getItem(name) { return this.#map.get(name) ?? null; }
  setItem(name, value) { this.#map.set(name, value); }
  removeItem(name) { this.#map.delete(name); }
}

/** `localStorage` or `sessionStorage` if the browser allows it, else memory. */
export function storage(kind) {
  try {
    const found = window[kind];
    found.setItem(`${CHAT}?`, ""); // throws if storage is full or forbidden
    found.removeItem(`${CHAT}?`);
    return found;
  } catch {
    return new Memory();
  }
}

function read(place, name) {
  try {
    return JSON.parse(place.getItem(name));
  } catch {
    return null;
  }
}

function write(place, name, value) {
  try {
    place.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false; // full
  }
}

const isText = (value) => typeof value === "string";

/** The value if it is a valid conversation, else null. */
function conversation(value) {
  const sound = isText(value?.id) && isText(value.title) && Number.isFinite(value.changed) && Array.isArray(value.messages)
    && value.messages.every((message) => ["user", "assistant"].includes(message?.role) && isText(message.content));
  return sound ? value : null;
}

/** Conversations and settings in a storage. `put` and `set` return whether they were stored. */
export function open(place) {
  const names = () => Array.from({ length: place.length }, (_, i) => place.key(i)).filter((name) => name.startsWith(CHAT));
  return {
    all: () => names().map((name) => conversation(read(place, name))).filter(Boolean).sort((a, b) => b.changed - a.changed),
    get: (id) => conversation(read(place, CHAT + id)),
    put: (chat) => write(place, CHAT + chat.id, chat),
    remove: (id) => place.removeItem(CHAT + id),
    settings: () => settings(read(place, SETTINGS)),
    set: (chosen) => write(place, SETTINGS, chosen),
  };
}

/** `{system, sampling}` with only values that the server accepts. */
export function settings(value) {
  const numbers = Object.entries(SAMPLING).map(([name, { min, max, step }]) => [name, number(value?.sampling?.[name], min, max, step)]);
  return {
    system: isText(value?.system) ? value.system : "",
    sampling: Object.fromEntries(numbers.filter(([, chosen]) => chosen !== null)),
  };
}

function number(value, min, max, step) {
  const chosen = typeof value === "number" || (isText(value) && value.trim()) ? Number(value) : NaN;
  return chosen >= min && chosen <= max && (step !== 1 || Number.isInteger(chosen)) ? chosen : null;
}

/** The API key, stored until this tab is closed. */
export const key = {
  get: () => storage("sessionStorage").getItem(KEY) ?? "",
  set: (value) => (value ? storage("sessionStorage").setItem(KEY, value) : storage("sessionStorage").removeItem(KEY)),
};
