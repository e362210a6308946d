"use strict";
// The button in a heading sorts its column: numbers by value and first descending, missing values always last.
const number = (text) => { const n = parseFloat(text.replace(/,/g, "").replace(/^\[/, "")); return Number.isNaN(n) ? null : n; };
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), row = heading.parentElement, table = heading.closest("table");
    const column = [...row.children].indexOf(heading), body = table.tBodies[0];
    const lines = [...body.rows], texts = new Map(lines.map((line) => [line, line.cells[column].textContent.trim()]));
    const numeric = !heading.classList.contains("left") && [...texts.values()].some((text) => number(text) !== null);
    const was = heading.getAttribute("aria-sort");
    const up = was ? was === "descending" : !numeric;
    lines.sort((a, b) => {
      const [x, y] = [texts.get(a), texts.get(b)].map((text) => (numeric ? number(text) : text === "-" ? null : text));
      if (x === null || y === null) return (x === null) - (y === null);
      const order = numeric ? x - y : x.localeCompare(y);
      return up ? order : -order;
    });
    body.append(...lines);
    for (const other of row.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    document.getElementById("sorted").textContent = `sorted by ${button.textContent}, ${up ? "ascending" : "descending"}`;
  });
}
// Open all details for printing.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
