// Drawings of all rows that the filters leave.
function options(select, list, value) {
  select.replaceChildren(...list.map(([key, words]) => node("option", { value: key }, words)));
  if (list.some(([key]) => key === value)) select.value = value;
  select.addEventListener("change", refresh);
}
const measures = data.metrics.filter(metric => metric.better), list = () => rows.filter(row => shown.has(row));
const asOptions = metrics => metrics.map(metric => [metric.key, metric.name]);
function markOf(row, x, y, r, beyond = 0) {
  const name = "mark" + (row.reference ? " d0" : slots.has(row) ? ` d${slots.get(row) % 8}` : ""), wide = r + 1.5;
  if (beyond) return node("path", { class: name, d: `M${x},${fixed(y + beyond * r)}l${-r},${-beyond * 2 * r}h${2 * r}z` });
  if (row.reference) return node("path", { class: name, d: `M${x},${fixed(y - wide)}l${wide},${wide}l${-wide},${wide}l${-wide},${-wide}z` });
  return node("circle", { class: name, cx: x, cy: y, r });
}

// Accuracy and cost
const costs = measures.filter(metric => ["Cost", "Training time"].includes(metric.group));
const trade = document.getElementById("trade");
if (trade && costs.length) {
  trade.hidden = false;
  const selectX = document.getElementById("trade-x"), selectY = document.getElementById("trade-y");
  options(selectX, asOptions(costs), costs.some(metric => metric.key === "relative_time") ? "relative_time" : "relative_epoch");
  options(selectY, asOptions(measures.filter(metric => !costs.includes(metric))), "accuracy");
  views.push(() => {
    const x = metricOf.get(selectX.value), y = metricOf.get(selectY.value), host = trade.querySelector(".plot");
    const known = list().map(row => ({ row, x: figure(row, x.key), y: figure(row, y.key) })).filter(each => each.x && each.y)
      .sort((a, b) => a.x.mean - b.x.mean || (better(y, a.y.mean, b.y.mean) ? -1 : 1));
    if (!known.length) return host.replaceChildren(node("p", {}, "Nothing to draw: no recipe that is shown has both figures."));
    const HEIGHT = Math.max(300, Math.min(480, host.clientWidth * 0.6)), LEFT = 58, RIGHT = 16, TOP = 14, BOTTOM = 44;
    const { made, width } = drawing(host, HEIGHT, `${y.name} by ${x.name}, ${known.length} recipes`);
    const xs = known.map(each => each.x.mean * x.scale), ys = known.map(each => each.y.mean * y.scale);
    const log = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 3, turn = log ? Math.log : value => value;
    const gridX = (log ? logTicks : ticks)(Math.min(...xs), Math.max(...xs)), gridY = ticks(...most(ys), 6);
    const across = scale(turn(gridX.values[0]), turn(gridX.values.at(-1)), LEFT, width - RIGHT);
    const up = scale(gridY.values[0], gridY.values.at(-1), HEIGHT - BOTTOM, TOP);
    const exact = each => fixed(up(each.y.mean * y.scale)), level = each => Math.max(TOP, Math.min(HEIGHT - BOTTOM, exact(each)));
    const beyond = each => Math.sign(exact(each) - level(each));
    let free = -Infinity;
    for (const value of gridX.values) {
      const at = fixed(across(turn(value))), words = String(+value.toFixed(4));
      made.append(node("path", { class: "axis", d: `M${at},${TOP}V${HEIGHT - BOTTOM}` }));
      if (at > free) made.append(node("text", { x: at, y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, words));
      if (at > free) free = at + 34;
    }
    for (const value of gridY.values) {
      const at = fixed(up(value));
      made.append(node("path", { class: "axis", d: `M${LEFT},${at}H${width - RIGHT}` }));
      made.append(node("text", { x: LEFT - 7, y: at, "text-anchor": "end", "dominant-baseline": "central" }, value.toFixed(gridY.digits)));
    }
    made.append(node("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, titled(x) + (log ? " (logarithmic)" : "")));
    made.append(node("text", { transform: `translate(12 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, titled(y)));
    // Front of each setting: nobody cheaper is as good.
    const front = [];
    for (const setting of new Set(known.map(each => each.row.setting))) {
      let best = null, path = "";
      for (const each of known.filter(one => one.row.setting === setting)) {
        if (best !== null && !better(y, each.y.mean, best)) continue;
        const [h, v] = [fixed(across(turn(each.x.mean * x.scale))), level(each)];
        path += path ? `H${h}V${v}` : `M${h},${v}`;
        best = each.y.mean;
        front.push(each);
      }
      made.append(node("path", { class: "front", d: path + `H${width - RIGHT}` }));
    }
    const places = known.map(each => [fixed(across(turn(each.x.mean * x.scale))), level(each)]);
    const marks = known.map((each, i) => {
      const [h, v] = places[i], margin = each.y.margin;
      if (margin !== null) {
        const [low, high] = [each.y.mean - margin, each.y.mean + margin].map(value => fixed(Math.max(TOP, Math.min(HEIGHT - BOTTOM, up(value * y.scale)))));
        made.append(node("path", { class: "whisker", d: `M${h},${low}V${high}` }));
      }
      const words = `${label(each.row)}\n${y.name}: ${interval(each.y, y)}${unit(y)}\n${x.name}: ${interval(each.x, x)}${unit(x)}`;
      const mark = node("g", { class: "point" + (front.includes(each) ? " on-front" : ""), "aria-label": words.replaceAll("\n", ", "),
        "aria-pressed": String(slots.has(each.row)) }, node("circle", { cx: h, cy: v, r: 9, fill: "transparent" }), markOf(each.row, h, v, front.includes(each) ? 5 : 4, beyond(each)));
      return tipped(mark, () => words);
    });
    // The reference, the front and what lies beyond are named as far as there is room, of few points all.
    const taken = places.map(([h, v]) => [h - 5, v - 5, h + 5, v + 5]);
    const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    for (const each of new Set([...known.filter(one => one.row.reference), ...front.toReversed(), ...known.filter(beyond), ...(known.length > 12 ? [] : known)])) {
      const [h, v] = places[known.indexOf(each)], words = shorten(label(each.row), width < 500 ? 20 : 34), long = words.length * SANS;
      const spots = [["end", -8, -9], ["start", 8, -9], ["start", 8, 15], ["end", -8, 15], ["start", 24, -26], ["start", 24, 34], ["end", -24, -26], ["start", 40, -52], ["start", 40, 60]];
      for (const [anchor, along, down] of spots) {
        const at = h + along, base = v + down, left = anchor === "end" ? at - long : at;
        const box = [left, base - 10, left + long, base + 3];
        if (box[0] < LEFT || box[2] > width - 2 || box[1] < 2 || taken.some(other => meets(box, other))) continue;
        taken.push(box);
        if (Math.abs(along) > 8) made.append(node("path", { class: "whisker", d: `M${h},${v}L${at - Math.sign(along) * 2},${base - 4}` }));
        made.append(node("text", { class: "ink", x: at, y: base, "text-anchor": anchor }, words));
        break;
      }
    }
    made.append(...marks);
    points(marks, place => tickAndStay(known[place].row, () => trade.querySelectorAll(".point")[place]));
  });
}
function tickAndStay(row, again) {
  tick(row);
  refresh();
  again()?.focus();
}

// By measure
const FIRST = 15;  // rows that are drawn before all are asked for, besides none and the ticked ones
function part(sorted, all) {
  return all ? sorted : sorted.filter((each, place) => place < FIRST || each.row.reference || slots.has(each.row));
}
function more(button, all, total) {
  button.hidden = total <= FIRST;
  button.textContent = all ? `Show the best ${FIRST}` : `Show all ${total}`;
}
document.querySelectorAll("#dots figure").forEach((host, number) => {
  const select = host.querySelector("select"), button = host.querySelector("button");
  let all = false;
  options(select, asOptions(measures), number ? (metricOf.has("corruption_error") ? "corruption_error" : "nll") : "accuracy");
  button.addEventListener("click", () => { all = !all; refresh(); });
  views.push(() => {
    const metric = metricOf.get(select.value), sorted = ordered(list(), metric), picked = part(sorted, all), place = host.querySelector(".plot");
    more(button, all, sorted.length);
    if (!picked.length) return place.replaceChildren(node("p", {}, "No recipe that is shown has this figure."));
    const narrow = place.clientWidth < 480, STEP = narrow ? 38 : 22, TOP = 24;
    const longest = Math.max(...picked.map(each => label(each.row).length)) * MONO;
    const { made, width } = drawing(place, TOP + picked.length * STEP + 6, `${titled(metric)}, best first, ${picked.length} recipes`);
    const LEFT = narrow ? 8 : Math.min(longest + 14, width * 0.45), RIGHT = 108;
    const reach = picked.flatMap(({ found }) => [found.mean - (found.margin || 0), found.mean + (found.margin || 0)]).map(value => value * metric.scale);
    const centre = picked.map(({ found }) => found.mean * metric.scale), span = Math.max(...centre) - Math.min(...centre) || Math.abs(centre[0]) || 1;
    // Whiskers that are much longer than the means' spread are cut, lest they flatten it.
    const grid = ticks(Math.max(Math.min(...reach), Math.min(...centre) - span / 2), Math.min(Math.max(...reach), Math.max(...centre) + span / 2), narrow ? 4 : 5);
    const across = scale(grid.values[0], grid.values.at(-1), LEFT, width - RIGHT), inside = value => fixed(Math.max(LEFT, Math.min(width - RIGHT, across(value * metric.scale))));
    for (const value of grid.values) {
      made.append(node("path", { class: "axis", d: `M${fixed(across(value))},${TOP - 4}V${TOP + picked.length * STEP}` }));
      made.append(node("text", { x: fixed(across(value)), y: 12, "text-anchor": "middle" }, value.toFixed(grid.digits)));
    }
    const plain = picked.find(each => each.row.reference);
    if (plain) made.append(node("path", { class: "reference-line", d: `M${inside(plain.found.mean)},${TOP - 4}V${TOP + picked.length * STEP}` }));
    const marks = picked.map(({ row, found }, i) => {
      const y = TOP + i * STEP + (narrow ? 27 : STEP / 2), words = `${label(row)}\n${metric.name}: ${interval(found, metric)}${unit(metric)}`;
      made.append(node("text", { class: "ink mono", x: narrow ? LEFT : LEFT - 10, y: narrow ? y - 14 : y, "text-anchor": narrow ? "start" : "end", "dominant-baseline": "central" },
        shorten(label(row), Math.floor((narrow ? width - 12 : LEFT - 10) / MONO))));
      if (found.margin !== null) made.append(node("path", { class: `curve s${(slots.get(row) || 0) % 8}`, d: `M${inside(found.mean - found.margin)},${y}H${inside(found.mean + found.margin)}`, opacity: 0.6 }));
      made.append(node("text", { x: width - 2, y, "text-anchor": "end", "dominant-baseline": "central" }, interval(found, metric)));
      const mark = node("g", { class: "point", "aria-label": words.replace("\n", ", "), "aria-pressed": String(slots.has(row)) },
        node("circle", { cx: inside(found.mean), cy: y, r: 9, fill: "transparent" }), markOf(row, inside(found.mean), y, 4.5));
      return tipped(mark, () => words);
    });
    made.append(...marks);
    points(marks, i => tickAndStay(picked[i].row, () => host.querySelectorAll(".point")[i]));
  });
});

// Corruptions
if (data.corruptions.length) {
  const section = document.getElementById("corruptions"), severity = document.getElementById("severity"), kind = document.getElementById("heat-kind");
  const button = document.getElementById("heat-more"), levels = Math.max(...rows.flatMap(row => (row.corruptions || []).map(errors => errors?.length || 0)));
  let all = false;
  section.hidden = false;
  options(severity, [["", "mean of all"], ...Array.from({ length: levels }, (_, i) => [String(i), String(i + 1)])], "");
  if (!rows.some(row => row.reference && row.corruptions)) kind.lastElementChild.remove();
  kind.addEventListener("change", refresh);
  button.addEventListener("click", () => { all = !all; refresh(); });
  const mean = values => values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  const one = errors => !errors ? null : severity.value ? errors[severity.value] ?? null : mean(errors);
  views.push(() => {
    const lines = list().filter(row => row.corruptions).map(row => {
      const plain = kind.value === "difference" ? referenceOf(row)?.corruptions : null;
      const errors = row.corruptions.map((each, i) => {
        const own = one(each), other = plain ? one(plain[i]) : 0;
        return own === null || other === null || (kind.value === "difference" && !plain) ? null : own - other;
      });
      return { row, errors, mean: mean(errors.filter(value => value !== null)) };
    }).filter(line => line.mean !== null).sort((a, b) => a.mean - b.mean);
    const picked = part(lines, all), every = lines.flatMap(line => line.errors).filter(value => value !== null);
    more(button, all, lines.length);
    const low = Math.min(...every), high = Math.max(...every), most = Math.max(1e-9, ...every.map(Math.abs));
    const colour = value => kind.value === "difference" ? `color-mix(in srgb, var(--c${value < 0 ? 1 : 2}) ${fixed(50 * Math.abs(value) / most)}%, var(--paper))`
      : `color-mix(in srgb, var(--c2) ${fixed(4 + 46 * (value - low) / (high - low || 1))}%, var(--paper))`;
    const words = value => value === null ? "–" : ((kind.value === "difference" && value >= 0 ? "+" : "") + (100 * value).toFixed(1)).replace("-", "−");
    const head = name => node("th", { scope: "col" }, node("span", {}, name.replaceAll("_", " ")));
    section.querySelector(".heat").replaceChildren(node("table", { class: "wide" },
      node("thead", {}, node("tr", {}, node("th", { scope: "col", class: "name" }, "Recipe"), head("mean"), ...data.corruptions.map(head))),
      node("tbody", {}, ...picked.map(({ row, errors, mean }) => node("tr", { class: row.reference ? "reference" : null },
        node("th", { scope: "row", class: "name" }, node("code", {}, label(row))), node("td", { class: "mean" }, words(mean)),
        ...errors.map(value => node("td", value === null ? {} : { style: `background:${colour(value)}` }, words(value))))))));
  });
}
