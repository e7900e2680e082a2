// The theme chosen on this page, before anything is painted; without a choice the system's is followed.
// Invariant: a classic script, for a module runs too late; it names one function and nothing else.

function slmTheme(toggle) {
  "use strict";
  const root = document.documentElement, name = "slm_fn/theme", dark = matchMedia("(prefers-color-scheme: dark)").matches;
  let chosen = null;
  try { chosen = localStorage.getItem(name); } catch { /* nothing is kept here */ }
  if (toggle) chosen = root.dataset.theme ? null : dark ? "light" : "dark";
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  else delete root.dataset.theme;
  try { if (toggle) chosen ? localStorage.setItem(name, chosen) : localStorage.removeItem(name); } catch { /* the same */ }
  return root.dataset.theme ? root.dataset.theme === "dark" : dark;
}
slmTheme(false);
