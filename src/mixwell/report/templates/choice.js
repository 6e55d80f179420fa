// Which rows are shown (by the filters) and which are drawn (by ticks), and who must know.
const FEW = 8;
const shown = new Set(rows), slots = new Map(), views = [];

const refresh = () => { for (const view of views) view(); };
const drawn = () => [...slots.keys()].filter(row => facetsFit(row)).sort((a, b) => rows.indexOf(a) - rows.indexOf(b));

// A free colour; that of number 0 is for the reference.
function tick(row, on = !slots.has(row)) {
  if (!on) slots.delete(row);
  else if (!slots.has(row)) {
    const taken = new Set(slots.values());
    let slot = row.reference ? 0 : 1;
    while (taken.has(slot) || (slot % 8 === 0) !== row.reference) slot++;
    slots.set(row, slot);
  }
}
// What is drawn before anybody ticks: everything if it is little, else none and the best.
function tickDefaults() {
  const list = rows.filter(row => facetsFit(row));
  const first = list.length <= FEW ? list : list.filter(row => row.reference || row.rank === 1);
  first.forEach(row => tick(row, true));
}

const filters = document.getElementById("filters");
const chosenFacets = () => rows[0].facets.map((_, place) => filters.elements["facet" + place].value);
const facetsFit = row => chosenFacets().every((word, place) => !word || row.facets[place] === word);

// A row's recipe, with its settings as far as the page shows several.
const label = row => [row.recipe, ...row.facets.filter((_, place) => !chosenFacets()[place])].join(" · ");

function filter() {
  const words = filters.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const of = name => filters.elements[name]?.value || "";
  shown.clear();
  for (const row of rows) {
    const told = [row.name, ...row.facets, ...row.sections].join(" ").toLowerCase();
    if (words.every(word => told.includes(word)) && facetsFit(row) && (!of("sections") || row.sections.includes(of("sections")))
      && (!of("axes") || row.axes.includes(of("axes")))) shown.add(row);
  }
  if (!drawn().length) tickDefaults();
  refresh();
}
document.addEventListener("input", event => { if (event.target.form === filters) filter(); });
filters.addEventListener("submit", event => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(filter));

// Settings are not comparable with each other, so that the page begins with the largest.
if (rows[0].facets.length && rows.filter(row => row.setting === rows[0].setting).length > 1)
  rows[0].facets.forEach((word, place) => { filters.elements["facet" + place].value = word; });
