// The figures, and what can be said about them.
const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows;
const metricOf = new Map(data.metrics.map(metric => [metric.key, metric]));

// Mean and half the 95% interval of one value per seed; null values are seeds that lack the figure.
function estimate(values) {
  const known = values.filter(value => value !== null), count = known.length;
  if (!count) return null;
  const mean = known.reduce((sum, value) => sum + value, 0) / count;
  if (count < 2) return { mean, margin: null, count };
  const variance = known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (count - 1);
  return { mean, margin: data.quantiles[count - 2] * Math.sqrt(variance / count), count };
}

const figure = (row, key) => estimate(row.values[key] || []);

// The estimate of the differences a − b within the seeds that both have.
function paired(a, b, key) {
  const ours = a.values[key] || [], theirs = b.values[key] || [];
  return estimate(a.seeds.map((seed, place) => {
    const other = theirs[b.seeds.indexOf(seed)], own = ours[place];
    return own == null || other == null ? null : own - other;
  }));
}

// As it is shown: scaled, rounded, without unit.
function text(value, metric, signed = false) {
  const shown = (value * metric.scale).toFixed(metric.digits);
  return (signed && value >= 0 ? "+" : "") + shown.replace("-", "−");
}
function interval(found, metric, signed = false) {
  if (!found) return "–";
  return text(found.mean, metric, signed) + (found.margin === null ? "" : " ± " + text(found.margin, metric));
}
const unit = metric => metric.unit && metric.unit !== "%" && metric.unit !== "×" ? " " + metric.unit : metric.unit;
const titled = metric => metric.name + (metric.unit ? ", " + metric.unit : "");

// Whether a is better than b by this measure.
const better = (metric, a, b) => metric.better === "higher" ? a > b : a < b;
// Best first; rows without the figure are left out.
function ordered(list, metric) {
  return list.map(row => ({ row, found: figure(row, metric.key) })).filter(each => each.found)
    .sort((a, b) => better(metric, a.found.mean, b.found.mean) ? -1 : 1);
}
const referenceOf = row => rows.find(other => other.reference && other.setting === row.setting);
