// Values under the cursor, and runs shown or hidden. The page is whole without it: curves and table are in the HTML.
"use strict";
const told = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();

const number = (value) => {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumFractionDigits: size < 1 ? 5 : size < 100 ? 4 : 1 });
};

const nearest = (xs, x) => {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
};

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

for (const button of document.querySelectorAll(".runs button")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const run = Number(button.dataset.run), shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    if (shown) hidden.delete(run); else hidden.add(run);
    for (const path of document.querySelectorAll(`path[data-run="${run}"]`)) path.classList.toggle("off", !shown);
  });
}

document.querySelectorAll(".frame").forEach((frame, place) => {
  const chart = told.charts[place];
  const rule = frame.appendChild(make("div", "rule off"));
  const tip = frame.appendChild(make("div", "tip off"));
  const hide = () => { rule.classList.add("off"); tip.classList.add("off"); };

  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const want = chart.low + share * (chart.high - chart.low);
    const curves = chart.curves.filter((curve) => !hidden.has(curve.run));
    if (!curves.length) return hide();
    const lines = curves.filter((curve) => curve.kind === "smooth");
    const closest = (lines.length ? lines : curves).map((curve) => curve.x[nearest(curve.x, want)])
      .reduce((a, b) => (Math.abs(a - want) <= Math.abs(b - want) ? a : b));
    tip.replaceChildren(make("b", "", `${number(closest)} ${chart.label}`));
    for (const curve of curves) {
      const at = nearest(curve.x, closest);
      const reach = (chart.high - chart.low) / (curve.kind === "points" ? 25 : 50);
      if (Math.abs(curve.x[at] - closest) > reach) continue;
      const row = tip.appendChild(make("span"));
      row.style.setProperty("--own", `var(--c${curve.run % told.colours})`);
      row.append(make("i"), make("em", "", curve.kind === "points" ? `${told.runs[curve.run]}, validation`
        : told.runs[curve.run]), make("output", "", number(curve.y[at])));
    }
    const left = (closest - chart.low) / (chart.high - chart.low) * box.width;
    rule.style.left = `${left}px`;
    rule.classList.remove("off");
    tip.classList.remove("off");
    const wide = tip.offsetWidth, beside = left > box.width / 2 ? left - wide - 12 : left + 12;
    tip.style.left = `${Math.max(-40, Math.min(beside, box.width - wide))}px`;
    tip.style.top = "8px";
  });
  frame.addEventListener("pointerleave", hide);
});
