// Elements, axes and tips that all drawings share.
function node(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "rect", "circle", "text", "line"].includes(name);
  const made = svg ? document.createElementNS(document.querySelector("svg").namespaceURI, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const fixed = value => Math.round(value * 10) / 10;
const shorten = (words, most) => words.length > most ? words.slice(0, Math.max(1, most - 1)) + "…" : words;
const MONO = 7.3, SANS = 6.6;  // mean widths of characters at 12 px

function drawing(host, height, label) {
  const width = Math.max(200, host.clientWidth);
  const made = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": label });
  host.replaceChildren(made);
  return { made, width };
}

// Round values that span low … high, at most `most` steps.
function ticks(low, high, most = 5) {
  const span = high - low || Math.abs(high) || 1, power = 10 ** Math.floor(Math.log10(span / most));
  const step = power * [1, 2, 5, 10].find(factor => factor * power * most >= span * (1 - 1e-9));
  const first = Math.floor(low / step + 1e-9), last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return { digits, values: Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step) };
}
function logTicks(low, high) {
  const all = [];
  for (let power = 0.01; power < 1e6; power *= 10) for (const factor of [1, 1.5, 2, 3, 5, 7]) all.push(factor * power);
  const first = all.findLastIndex(value => value <= low * 1.001), last = all.findIndex(value => value >= high * 0.999);
  return { digits: low < 0.1 ? 2 : 1, values: all.slice(Math.max(0, first), last + 1) };
}
// The range of most values: few that lie far from all others would flatten these.
function most(values) {
  const sorted = values.toSorted((a, b) => a - b), at = share => sorted[Math.round(share * (sorted.length - 1))];
  const reach = 4 * (at(0.75) - at(0.25)), near = sorted.filter(value => !reach || (value >= at(0.25) - reach && value <= at(0.75) + reach));
  return [near[0], near.at(-1)];
}
const scale = (from, to, start, end) => value => start + (end - start) * (value - from) / (to - from || 1);

// One tip for the whole page; `at` is an event with a place, or an element.
const tip = document.getElementById("tip");
let anchor = null;
function showTip(words, at) {
  anchor = at instanceof Element ? at : null;
  tip.textContent = words;
  tip.hidden = false;
  const box = anchor ? at.getBoundingClientRect() : { right: at.clientX, left: at.clientX, top: at.clientY };
  const size = tip.getBoundingClientRect();
  const left = box.right + 12 + size.width > innerWidth ? box.left - 12 - size.width : box.right + 12;
  tip.style.left = Math.max(4, Math.min(left, innerWidth - size.width - 4)) + "px";
  tip.style.top = Math.max(4, Math.min(box.top - size.height / 2, innerHeight - size.height - 4)) + "px";
}
const hideTip = () => { tip.hidden = true; };
addEventListener("keydown", event => { if (event.key === "Escape") hideTip(); });
addEventListener("scroll", () => { if (anchor && !tip.hidden) showTip(tip.textContent, anchor); else hideTip(); }, { passive: true });

function tipped(element, words) {
  element.addEventListener("pointerenter", event => showTip(words(), event));
  element.addEventListener("pointerleave", hideTip);
  element.addEventListener("focus", () => showTip(words(), element));
  element.addEventListener("blur", hideTip);
  return element;
}

// Points of which one is in the tab order; arrow keys move among them, Enter and space tick.
function points(elements, act) {
  elements.forEach((element, place) => {
    element.setAttribute("tabindex", place ? -1 : 0);
    element.setAttribute("role", "button");
    element.addEventListener("click", () => act(place));
    element.addEventListener("keydown", event => {
      const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = move ? elements[place + move] : { Home: elements[0], End: elements.at(-1) }[event.key];
      if (event.key === "Enter" || event.key === " ") act(place);
      else if (next) {
        element.setAttribute("tabindex", -1);
        next.setAttribute("tabindex", 0);
        next.focus();
      } else if (!move) return;
      event.preventDefault();
    });
  });
}

// Lines over x. series: [{ name, slot, points: [[x, y], …] }], y null where there is none.
function lineChart(host, { title, share = false, digits = null, x, whole = false, series }) {
  const LEFT = 50, RIGHT = 10, TOP = 8, BOTTOM = 38, HEIGHT = 270;
  const place = node("div", { class: "plot" });
  host.replaceChildren(node("figcaption", {}, node("h3", {}, title)), place);
  const { made, width } = drawing(place, HEIGHT, `${title} by ${x}. Arrow keys read it; the figures are in the table below.`);
  const xs = [...new Set(series.flatMap(line => line.points.map(point => point[0])))].sort((a, b) => a - b);
  const all = series.flatMap(line => line.points.filter(point => point[1] !== null));
  const early = whole ? -Infinity : xs[Math.floor(xs.length / 5)], late = all.filter(point => point[0] >= early);
  const ys = (late.length ? late : all).map(point => point[1] * (share ? 100 : 1));
  const grid = ticks(Math.min(...ys), Math.max(...ys));
  const across = scale(xs[0], xs.at(-1), LEFT, width - RIGHT);
  const up = scale(grid.values[0], grid.values.at(-1), HEIGHT - BOTTOM, TOP);
  const label = (value, more) => (share ? value * 100 : value).toFixed(Math.min(6, grid.digits + more)) + (share ? "%" : "");
  for (const value of grid.values) {
    const y = fixed(up(value));
    made.append(node("path", { class: "axis", d: `M${LEFT},${y}H${width - RIGHT}` }));
    made.append(node("text", { x: LEFT - 6, y, "text-anchor": "end", "dominant-baseline": "central" }, label(share ? value / 100 : value, 0)));
  }
  const apart = Math.max(1, Math.ceil(xs.length / Math.max(2, Math.floor((width - LEFT) / 55))));
  xs.forEach((value, i) => {
    if (i === 0 || (digits === null ? value % apart === 0 : i % apart === 0))
      made.append(node("text", { x: fixed(across(value)), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, digits === null ? value : value.toFixed(digits)));
  });
  made.append(node("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, x));
  const box = [LEFT - 4, TOP - 4, width - LEFT - RIGHT + 8, HEIGHT - TOP - BOTTOM + 8];
  const frame = node("svg", { x: box[0], y: box[1], width: box[2], height: box[3], viewBox: box.join(" ") });
  const cursor = node("path", { class: "cursor", d: "" });
  frame.append(cursor);
  for (const line of series) {
    const known = line.points.filter(point => point[1] !== null).map(([at, value]) => [fixed(across(at)), fixed(up(value * (share ? 100 : 1)))]);
    const group = node("g", { "data-slot": line.slot }, node("path", { class: `curve s${line.slot % 8}`, "stroke-dasharray": dashes(line.slot), d: "M" + known.map(point => point.join()).join("L") }));
    if (known.length <= 30) for (const [cx, cy] of known) group.append(node("circle", { class: `d${line.slot % 8}`, cx, cy, r: 2.3 }));
    frame.append(group);
  }
  made.append(frame);
  const value = (line, at) => line.points.find(point => point[0] === at)?.[1] ?? null;
  let current = xs.length - 1;
  const read = at => {
    cursor.setAttribute("d", `M${fixed(across(xs[current]))},${TOP}V${HEIGHT - BOTTOM}`);
    const known = series.filter(line => value(line, xs[current]) !== null);
    known.sort((a, b) => value(b, xs[current]) - value(a, xs[current]));
    showTip([`${x} ${digits === null ? xs[current] : xs[current].toFixed(digits)}`, ...known.map(line => `${label(value(line, xs[current]), 1)}  ${line.name}`)].join("\n"), at);
  };
  const leave = () => { hideTip(); cursor.setAttribute("d", ""); };
  made.setAttribute("tabindex", 0);
  made.addEventListener("pointermove", event => {
    const inside = event.clientX - made.getBoundingClientRect().left;
    current = xs.reduce((best, at, i) => Math.abs(across(at) - inside) < Math.abs(across(xs[best]) - inside) ? i : best, 0);
    read(event);
  });
  made.addEventListener("pointerleave", leave);
  made.addEventListener("focus", () => { if (made.matches(":focus-visible")) read(made); });
  made.addEventListener("blur", leave);
  made.addEventListener("keydown", event => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    current = Math.max(0, Math.min(xs.length - 1, current + move));
    read(made);
    event.preventDefault();
  });
  const figures = node("details", {}, node("summary", {}, "Figures"));
  figures.addEventListener("toggle", () => {
    if (figures.children.length > 1) return;
    const cell = words => node("td", { class: "number" }, words);
    figures.append(node("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Figures of ${title}` }, node("table", {},
      node("thead", {}, node("tr", {}, node("th", { scope: "col" }, x), ...series.map(line => node("th", { scope: "col", class: "number" }, line.name)))),
      node("tbody", {}, ...xs.map(at => node("tr", {}, node("th", { scope: "row" }, digits === null ? at : at.toFixed(digits)),
        ...series.map(line => cell(value(line, at) === null ? "" : label(value(line, at), 1)))))))));
  });
  host.append(figures);
}
const dashes = slot => slot < 8 ? null : `${2 + 2 * Math.floor(slot / 8)} 4`;
