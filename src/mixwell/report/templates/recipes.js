// Drawings of the ticked rows, the comparison of two, and the start.
const key = document.getElementById("key"), add = document.getElementById("add"), grid = document.getElementById("curves");
add.addEventListener("change", () => { if (add.value) tick(rows[add.value], true); refresh(); });
views.push(() => {
  const ticked = drawn(), left = rows.filter(row => facetsFit(row) && !slots.has(row));
  key.replaceChildren(key.firstElementChild, ...ticked.map(row => {
    const slot = slots.get(row), button = node("button", { type: "button", class: "chip", "aria-label": `Do not draw ${label(row)}`, title: "Do not draw" });
    const line = node("svg", { viewBox: "0 0 36 12", "aria-hidden": "true" }, node("path", { class: `curve s${slot % 8}`, "stroke-dasharray": dashes(slot), "stroke-width": 3, d: "M2,6H34" }));
    button.append(line, node("code", {}, label(row)), node("span", { "aria-hidden": "true", class: "soft" }, "×"));
    const fade = on => { for (const line of grid.querySelectorAll("[data-slot]")) line.classList.toggle("faded", on && line.dataset.slot !== String(slot)); };
    button.addEventListener("pointerenter", () => fade(true));
    button.addEventListener("pointerleave", () => fade(false));
    button.addEventListener("click", () => { tick(row, false); refresh(); (key.querySelector("button") || add).focus(); });
    return button;
  }));
  document.getElementById("key-add").hidden = !left.length;
  add.replaceChildren(node("option", { value: "" }, "a recipe …"), ...left.map(row => node("option", { value: rows.indexOf(row) }, label(row))));
});
const known = line => line.points.some(point => point[1] !== null);
const named = row => ({ name: label(row), slot: slots.get(row) });
views.push(() => {
  const ticked = drawn(), charts = [];
  for (const { key, title, share } of data.curves) {
    const series = ticked.filter(row => row.curves[key]).map(row => ({ ...named(row), points: row.curves[key].map((value, i) => [i + 1, value]) })).filter(known);
    if (series.length) charts.push({ title, share, x: "epoch", series });
  }
  const occluded = ticked.filter(row => row.occlusion).map(row => ({ ...named(row), points: row.occlusion[0].map((ratio, i) => [ratio, row.occlusion[1][i]]) }));
  if (occluded.length) charts.push({ title: "Accuracy by the share of the image that is hidden", share: true, digits: 1, whole: true, x: "hidden share", series: occluded });
  const intruded = ticked.filter(row => row.intrusion).map(row => ({ ...named(row), points: row.intrusion })).filter(known);
  if (intruded.length) charts.push({ title: "Intrusion rate by λ", share: true, digits: 2, whole: true, x: "λ", series: intruded });
  grid.replaceChildren(...charts.map(() => node("figure")));  // in place first, so that they know their width
  charts.forEach((chart, place) => lineChart(grid.children[place], chart));
  if (!ticked.length) grid.replaceChildren(node("p", {}, "Tick recipes in the leaderboard, or add them here."));
});

// Reliability
views.push(() => {
  const found = drawn().filter(row => row.reliability), section = document.getElementById("reliability");
  section.hidden = !found.length;
  section.querySelector(".grid").replaceChildren(...found.map(row => {
    const [counts, confidences, accuracies] = row.reliability, bins = counts.length, most = Math.max(...counts), total = counts.reduce((a, b) => a + b, 0);
    const ece = counts.reduce((sum, count, i) => sum + count * Math.abs(confidences[i] - accuracies[i]), 0) / total;
    const told = [], made = node("svg", { viewBox: "0 0 200 218", role: "img" });
    made.append(node("path", { class: "axis", d: "M30,8H190V168H30Z" }));
    counts.forEach((count, i) => {
      if (!count) return;
      const x = fixed(30 + 160 * i / bins + 0.8), width = fixed(160 / bins - 1.6), words = `Confidence ${confidences[i].toFixed(2)}: accuracy ${accuracies[i].toFixed(2)}, ${count} images`;
      told.push(words + ".");
      const bar = node("rect", { class: "bar", x, y: fixed(168 - 160 * accuracies[i]), width, height: fixed(160 * accuracies[i]) });
      bar.addEventListener("pointerenter", event => showTip(words, event));
      bar.addEventListener("pointerleave", hideTip);
      made.append(bar, node("rect", { class: "histogram", x, y: fixed(198 - 26 * count / most), width, height: fixed(26 * count / most) }));
    });
    made.setAttribute("aria-label", `Reliability of ${label(row)}: expected calibration error ${(100 * ece).toFixed(2)}%. ${told.join(" ")}`);
    const say = (x, y, words, anchor = "middle") => made.append(node("text", { class: "ink", x, y, "text-anchor": anchor }, words));
    made.append(node("path", { class: "ideal", d: "M30,168L190,8" }), node("text", { transform: "translate(13 88) rotate(-90)", "text-anchor": "middle" }, "accuracy"));
    say(26, 12, "1", "end"); say(26, 168, "0", "end"); say(30, 214, "0"); say(190, 214, "1"); say(110, 214, "confidence"); say(36, 24, `ECE ${(100 * ece).toFixed(1)}%`, "start");
    return node("figure", {}, node("figcaption", {}, node("h3", {}, node("code", {}, label(row)))), made);
  }));
});

// Two recipes
const compare = document.getElementById("compare");
if (compare) {
  const [first, second] = ["a", "b"].map(letter => document.getElementById("compare-" + letter));
  const start = rows.filter(row => facetsFit(row)), plain = start.find(row => row.reference) || start[1] || rows[1];
  for (const [select, row] of [[first, start.find(row => row !== plain)], [second, plain]])
    options(select, rows.map((each, place) => [String(place), [each.recipe, ...each.facets].join(" · ")]), String(rows.indexOf(row)));
  views.push(() => {
    const a = rows[first.value], b = rows[second.value], shared = a.seeds.filter(seed => b.seeds.includes(seed));
    const notes = [a === b ? "These are the same recipe." : "", a.setting !== b.setting ? "The recipes were trained in different settings, which also makes a difference." : "",
      shared.length === 0 ? "They have no seed in common, so that there are no differences to show." : shared.length === 1
        ? `They share one seed (${shared[0]}): no interval can be given, and any difference may be chance.` : `They share ${shared.length} seeds: ${shared.join(", ")}.`];
    document.getElementById("compare-note").textContent = notes.filter(Boolean).join(" ");
    compare.querySelector("tbody").replaceChildren(...data.metrics.map(metric => {
      const difference = paired(a, b, metric.key), own = figure(a, metric.key), other = figure(b, metric.key);
      if (!own && !other) return "";
      const known = difference && difference.margin !== null, sure = known && Math.abs(difference.mean) > difference.margin && metric.better;
      const wins = sure && better(metric, difference.mean, 0), flip = metric.better === "lower" ? -1 : 1, drawn = node("svg", { viewBox: "0 0 144 34", "aria-hidden": "true" });
      drawn.append(node("path", { class: "cursor", d: "M72,0V34" }));
      if (difference && metric.better) {
        const most = Math.abs(difference.mean) + (difference.margin || 0) || 1, at = value => fixed(72 + 66 * flip * value / most), style = sure ? (wins ? 1 : 2) : 0;
        if (known) drawn.append(node("path", { class: `curve s${style}`, d: `M${at(difference.mean - difference.margin)},17H${at(difference.mean + difference.margin)}` }));
        drawn.append(node("circle", { class: `d${style}`, cx: at(difference.mean), cy: 17, r: 4 }));
      }
      const so = sure ? (wins ? ["up", "▲ A", " better"] : ["down", "▼ B", " better"]) : ["even", !known || !metric.better ? "" : "≈ unclear", ""];
      const cell = words => node("td", { class: "number" }, words);
      return node("tr", {}, node("th", { scope: "row", title: metric.hint }, titled(metric)), cell(difference ? interval(difference, metric, true) : "–"),
        node("td", {}, drawn), node("td", { class: so[0] }, so[1], node("span", { class: "long" }, so[2])), cell(interval(own, metric)), cell(interval(other, metric)));
    }).filter(Boolean));
  });
}

// The start
filter();
document.getElementById("contents").append(...[...document.querySelectorAll("main section")].filter(section => !section.hidden)
  .map(section => node("li", {}, node("a", { href: "#" + section.querySelector("h2").id }, section.dataset.title))));
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; refresh(); } });
