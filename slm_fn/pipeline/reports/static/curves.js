// Shows values under the cursor, and hides or shows runs. Without it the curves and the table are still complete.
"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const hiddenRuns = new Set();

const formatNumber = (value) => {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumFractionDigits: size < 1 ? 5 : size < 100 ? 4 : 1 });
};

// The index of the value of a sorted array that is closest to x.
const nearestIndex = (xs, x) => {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
};

const makeElement = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

for (const button of document.querySelectorAll(".runs button")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const run = Number(button.dataset.run);
    const isShown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", isShown);
    if (isShown) hiddenRuns.delete(run); else hiddenRuns.add(run);
    for (const path of document.querySelectorAll(`path[data-run="${run}"]`)) path.classList.toggle("off", !isShown);
  });
}

document.querySelectorAll(".frame").forEach((frame, chartIndex) => {
  const chart = page.charts[chartIndex];
  const range = chart.high - chart.low;
  const rule = frame.appendChild(makeElement("div", "rule off"));
  const tooltip = frame.appendChild(makeElement("div", "tip off"));
  const hide = () => { rule.classList.add("off"); tooltip.classList.add("off"); };

  const addRow = (curve, value) => {
    const isValidation = curve.kind === "points";
    const name = page.runs[curve.run];
    const row = tooltip.appendChild(makeElement("span"));
    row.style.setProperty("--own", `var(--c${curve.run % page.colours})`);
    row.append(makeElement("i"), makeElement("em", "", isValidation ? `${name}, validation` : name),
      makeElement("output", "", formatNumber(value)));
  };

  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect();
    const fraction = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const cursorX = chart.low + fraction * range;
    const curves = chart.curves.filter((curve) => !hiddenRuns.has(curve.run));
    if (!curves.length) return hide();
    const lines = curves.filter((curve) => curve.kind === "smooth");
    const x = (lines.length ? lines : curves).map((curve) => curve.x[nearestIndex(curve.x, cursorX)])
      .reduce((a, b) => (Math.abs(a - cursorX) <= Math.abs(b - cursorX) ? a : b));
    tooltip.replaceChildren(makeElement("b", "", `${formatNumber(x)} ${chart.label}`));
    for (const curve of curves) {
      const index = nearestIndex(curve.x, x);
      const maxDistance = range / (curve.kind === "points" ? 25 : 50);
      if (Math.abs(curve.x[index] - x) <= maxDistance) addRow(curve, curve.y[index]);
    }
    const left = (x - chart.low) / range * box.width;
    rule.style.left = `${left}px`;
    rule.classList.remove("off");
    tooltip.classList.remove("off");
    const width = tooltip.offsetWidth;
    const tooltipLeft = left > box.width / 2 ? left - width - 12 : left + 12;
    tooltip.style.left = `${Math.max(-40, Math.min(tooltipLeft, box.width - width))}px`;
    tooltip.style.top = "8px";
  });
  frame.addEventListener("pointerleave", hide);
});
