"use strict";

/* Tables: a head's button sorts by its column, numbers as numbers; what is missing ("-") comes last. */
function sortBy(head) {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const descending = head.getAttribute("aria-sort") === "descending" ? false : head.getAttribute("aria-sort") === "ascending" || column > 0;
  for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const text = row => row.cells[column].textContent;
  const value = row => parseFloat(text(row).replace(/,/g, ""));
  const rows = [...body.rows].filter(row => row.dataset.class !== "-1");
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (column === 0) return text(a).localeCompare(text(b), undefined, { numeric: true }) * (descending ? -1 : 1);
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return descending ? y - x : x - y;
  });
  body.append(...rows);
}
for (const button of document.querySelectorAll("table.sortable thead button"))
  button.addEventListener("click", () => sortBy(button.closest("th")));

/* The score threshold: what counts from it on was counted for 0.00, 0.01 ... 1.00 when the page was made. */
const number = value => value.toLocaleString("en-US");
const ratio = (part, whole) => whole > 0 ? (part / whole).toFixed(3) : "-";

/* Labels where there is room: what is wrong or missed first, then the higher scores; none on another, all on a fifth at most. */
const MAX_COVERED = 0.2, places = new Map();
function label(svg) {
  const { width, height } = svg.viewBox.baseVal, taken = [];
  const rank = text => text.parentNode.matches(".wrong, .missed") * 2 + Number(text.parentNode.dataset.score);
  let room = MAX_COVERED * width * height;
  for (const text of [...svg.querySelectorAll("text")].sort((a, b) => rank(b) - rank(a))) {
    const place = places.get(text);
    const fits = !text.parentNode.classList.contains("below") && place.width * place.height <= room && taken.every(other =>
      place.x >= other.x + other.width || other.x >= place.x + place.width
      || place.y >= other.y + other.height || other.y >= place.y + place.height);
    text.classList.toggle("hidden", !fits);
    if (fits) taken.push(place), room -= place.width * place.height;
  }
}
for (const text of document.querySelectorAll(".pair text")) {  // while all of them are shown
  const right = text.ownerSVGElement.viewBox.baseVal.width - text.getBBox().width;
  text.setAttribute("x", Math.max(0, Math.min(text.getAttribute("x"), right)));
  places.set(text, text.getBBox());
}

function follow(part) {
  const slider = part.querySelector("input[type=range]");
  const data = JSON.parse(part.querySelector("script[type='application/json']").textContent);
  const sum = (table, at) => table.reduce((total, row) => total + row[at], 0);
  const rows = [...part.querySelectorAll("tr[data-class]")], errors = part.querySelectorAll("tr[data-error]");
  const sizes = part.querySelectorAll("tr[data-size]"), figures = part.querySelectorAll(".pictures figure");
  function update() {
    const at = Number(slider.value), threshold = at / 100;
    part.querySelector(".threshold output").textContent = threshold.toFixed(2);
    for (const row of rows) {
      const place = Number(row.dataset.class), all = place < 0;
      const objects = all ? data.objects.reduce((a, b) => a + b, 0) : data.objects[place];
      const right = all ? sum(data.right, at) : data.right[place][at], wrong = all ? sum(data.wrong, at) : data.wrong[place][at];
      const cells = [objects, right, wrong, objects - right].map(number);
      cells.push(ratio(right, right + wrong), ratio(right, objects), ratio(2 * right, objects + right + wrong));
      cells.forEach((text, column) => { row.cells[column + 2].textContent = text; });
    }
    for (const row of errors) row.cells[1].textContent = number(data.errors[row.dataset.error][at]);
    for (const row of sizes) {
      const found = data.size_right[row.dataset.size][at];
      row.cells[3].textContent = number(found);
      row.cells[4].textContent = ratio(found, data.size_objects[row.dataset.size]);
    }
    for (const figure of figures) {
      for (const box of figure.querySelectorAll("g[data-score]")) {
        const below = Number(box.dataset.score) < threshold;
        if (box.classList.contains("object")) box.classList.toggle("missed", below);
        else box.classList.toggle("below", below && !box.classList.contains("crowd"));
      }
      const wrong = {}, shown = kind => figure.querySelectorAll(kind);
      for (const box of shown(".wrong:not(.below)")) wrong[box.dataset.kind] = (wrong[box.dataset.kind] || 0) + 1;
      const kinds = Object.entries(wrong).map(([kind, count]) => `${count} ${kind}`);
      figure.querySelector(".verdict").textContent = " " + [
        `${shown(".right:not(.below)").length} right`, ...kinds, `${shown(".missed").length} not found`].join(", ");
      for (const svg of shown("svg")) label(svg);
    }
  }
  const key = `threshold ${part.dataset.run}`;
  if (document.body.dataset.live) slider.value = sessionStorage.getItem(key) ?? slider.value;  // a page that is loaded again
  slider.addEventListener("input", () => { sessionStorage.setItem(key, slider.value); update(); });
  update();
}
document.querySelectorAll(".evaluated").forEach(follow);

/* A page that `rfdetr report --serve` shows asks now and then whether there is more, and loads again. */
if (document.body.dataset.live)
  setInterval(async () => {
    const answer = await fetch("/state").catch(() => null);
    if (answer && answer.ok && await answer.text() !== document.body.dataset.live) location.reload();
  }, 2000);
