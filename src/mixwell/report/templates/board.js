// Tables: sorting, filtering, columns, ticks.
for (const table of document.querySelectorAll(".sortable")) {
  const body = table.tBodies[0];
  for (const head of table.tHead.rows[table.tHead.rows.length - 1].cells) {
    head.querySelector("button").addEventListener("click", () => {
      const opposite = { ascending: "descending", descending: "ascending" };
      const order = opposite[head.getAttribute("aria-sort")] || head.dataset.first;
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const value = row => row.cells[head.cellIndex].dataset.value, sign = order === "ascending" ? 1 : -1;
      const missing = words => words === undefined || words === "nan";
      const compare = (a, b) => missing(a) || missing(b) ? missing(a) - missing(b)
        : sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
    });
  }
  views.push(() => { for (const line of body.rows) line.hidden = !shown.has(rows[line.dataset.row]); });
}
const board = document.getElementById("board");
for (const box of board.querySelectorAll(".tick")) {
  const row = rows[box.closest("tr").dataset.row];
  box.addEventListener("change", () => { tick(row, box.checked); refresh(); });
  views.push(() => { box.checked = slots.has(row); });
}
for (const box of document.querySelectorAll("#columns input")) {
  const apply = () => {
    if (!box.value) board.classList.toggle("intervals", box.checked);
    else for (const cell of board.querySelectorAll(".g-" + box.value)) cell.hidden = !box.checked;
  };
  box.addEventListener("change", apply);
  apply();
}
views.push(() => {
  const total = rows.length, count = shown.size;
  document.getElementById("count").textContent = (count === total ? `${total} recipes` : `${count} of ${total} recipes; the tables and drawings below follow the filters`)
    + (count ? "" : ". Nothing fits the filters: “Show all” clears them.");
  chosenFacets().forEach((word, place) => { for (const cell of document.querySelectorAll(".wide .facet" + place)) cell.hidden = !!word; });
  board.classList.toggle("pinned", rows.filter(row => row.reference && shown.has(row)).length === 1);
  const settings = new Set([...rows].filter(facetsFit).map(row => row.setting));
  for (const block of document.querySelectorAll(".verdict")) block.hidden = !settings.has(block.dataset.setting);
});
