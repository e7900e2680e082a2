// Applies the chosen theme before the first paint; without a choice, the system's.
// Invariant: a classic script, because a module runs too late; it defines one global function.

function slmTheme(toggle) {
  "use strict";
  const root = document.documentElement, name = "slm_fn/theme", dark = matchMedia("(prefers-color-scheme: dark)").matches;
  let chosen = null;
  try { chosen = localStorage.getItem(name); } catch { /* storage is not allowed */ }
  if (toggle) chosen = root.dataset.theme ? null : dark ? "light" : "dark";
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  else delete root.dataset.theme;
  try { if (toggle) chosen ? localStorage.setItem(name, chosen) : localStorage.removeItem(name); } catch { /* storage is not allowed */ }
  return root.dataset.theme ? root.dataset.theme === "dark" : dark;
}
slmTheme(false);
