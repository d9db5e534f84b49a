// Logged numbers by step: small charts, those that belong together in one.

const GROUPS = [
  ...DATA.losses.map(([title, name, words]) => ({ title, series: { [name]: words } })),
  {
    title: "Loss on kept and on dropped tokens",
    series: { "sstoken/loss_selected": "kept", "sstoken/loss_unselected": "dropped" },
  },
  { title: "Mean REL", series: { "sstoken/rel_mean": "REL" } },
  { title: "Mean attention on the prompt", series: { "sstoken/attention_mean": "attention" } },
  {
    title: "Overlaps",
    unit: true,
    series: {
      "sstoken/signal_overlap": "REL with attention",
      "sstoken/position_overlap": "selection with first tokens",
    },
  },
  { title: "End-of-turn tokens kept", unit: true, series: { "sstoken/eos_selected": "share kept" } },
  {
    title: "Ratio and gamma",
    unit: true,
    series: { "sstoken/selected_ratio": "share kept", "sstoken/gamma": "gamma" },
  },
];
const MAIN = (name) => name.startsWith("sstoken/") || name === "learning_rate" || name === "grad_norm";
// User units of a chart; it is scaled to the width that it gets.
const CHART = { width: 380, height: 200, left: 48, right: 12, top: 10, bottom: 26 };

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function startTraining() {
  const grouped = new Set(GROUPS.flatMap((group) => Object.keys(group.series)));
  const single = Object.keys(DATA.series).filter((name) => !grouped.has(name) && name !== "epoch");
  const main = [...GROUPS, ...single.filter(MAIN).map(alone)].map(buildChart).filter(Boolean);
  const more = single
    .filter((name) => !MAIN(name))
    .map(alone)
    .map(buildChart)
    .filter(Boolean);
  find("thinned").textContent = DATA.thinned;
  find("charts").append(...main);
  find("more-charts")
    .querySelector(".charts")
    .append(...more);
  find("more-charts").hidden = !more.length;
  find("training").hidden = !main.length && !more.length;
}

const alone = (name) => ({ title: name, series: { [name]: "" } });

// null where there are fewer than two points to draw.
function buildChart(group) {
  const lines = Object.entries(group.series)
    .map(([name, label]) => ({
      name,
      label,
      steps: DATA.series[name]?.[0] ?? [],
      values: DATA.series[name]?.[1] ?? [],
    }))
    .filter((line) => line.steps.length > 0);
  if (!lines.some((line) => new Set(line.steps).size > 1)) return null;
  const scale = scaleOf(lines, group.unit);
  scale.xTicks = scale.xTicks.filter(Number.isInteger);
  const cursor = svg("line", { class: "cursor", y1: CHART.top, y2: CHART.height - CHART.bottom });
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${CHART.width} ${CHART.height}`, tabindex: 0, role: "img" },
    ...axes(scale),
    cursor,
  );
  const legend = element("p", { class: "chart-legend" });
  lines.forEach((line, index) => {
    const points = line.steps.map(
      (step, place) => `${scale.x(step).toFixed(1)},${scale.y(line.values[place]).toFixed(1)}`,
    );
    line.dot = svg("circle", { class: `dot line-${index}`, r: 3.5 });
    drawing.append(svg("polyline", { class: `line line-${index}`, points: points.join(" ") }), line.dot);
    line.value = element("b");
    const key = svg(
      "svg",
      { class: "key", viewBox: "0 0 24 8", "aria-hidden": "true" },
      svg("line", { class: `line line-${index}`, x1: 1, x2: 23, y1: 4, y2: 4 }),
    );
    legend.append(element("span", {}, key, ` ${line.label} `, line.value), " ");
  });
  const step = element("span", { class: "step" });
  legend.append(step);
  const chart = {
    title: visibleLine(group.title),
    legend,
    lines,
    scale,
    cursor,
    drawing,
    step,
    steps: [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b),
  };
  listenToChart(chart);
  readChart(chart, chart.steps.length - 1, false);
  const notes = lines
    .filter((line) => DATA.notes[line.name])
    .map((line) =>
      element(
        "p",
        { class: "note" },
        `${line.label && lines.length > 1 ? `${line.label}: ` : ""}${DATA.notes[line.name]}`,
      ),
    );
  return element(
    "figure",
    { class: "chart" },
    element("figcaption", {}, visibleLine(group.title)),
    legend,
    drawing,
    ...notes,
  );
}

function scaleOf(lines, unit) {
  const [first, last] = rangeOf(lines.flatMap((line) => line.steps));
  let [low, high] = rangeOf(lines.flatMap((line) => line.values));
  if (unit) [low, high] = [Math.min(low, 0), Math.max(high, 1)];
  if (low === high) [low, high] = low === 0 ? [-1, 1] : [low - Math.abs(low) / 10, high + Math.abs(low) / 10];
  const yTicks = ticks(low, high, 4);
  [low, high] = [Math.min(low, yTicks[0]), Math.max(high, yTicks.at(-1))];
  const width = CHART.width - CHART.left - CHART.right;
  const height = CHART.height - CHART.top - CHART.bottom;
  return {
    x: (step) => CHART.left + (width * (step - first)) / (last - first),
    y: (value) => CHART.top + (height * (high - value)) / (high - low),
    xTicks: ticks(first, last, 5).filter((tick) => tick >= first && tick <= last),
    yTicks: yTicks.filter((tick) => tick >= low && tick <= high),
    zero: low < 0 && high > 0,
  };
}

// Round numbers that span low to high in about so many steps.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let index = Math.floor(low / step); index <= Math.ceil(high / step - 1e-9); index++)
    found.push(Number((index * step).toPrecision(12)));
  return found;
}

function axes(scale) {
  const right = CHART.width - CHART.right;
  const bottom = CHART.height - CHART.bottom;
  return [
    ...scale.yTicks.flatMap((tick) => [
      svg("line", {
        class: tick === 0 && scale.zero ? "grid zero" : "grid",
        x1: CHART.left,
        x2: right,
        y1: scale.y(tick),
        y2: scale.y(tick),
      }),
      svg("text", { class: "tick", x: CHART.left - 6, y: scale.y(tick) + 4, "text-anchor": "end" }, tickText(tick)),
    ]),
    ...scale.xTicks.map((tick) =>
      svg("text", { class: "tick", x: scale.x(tick), y: bottom + 18, "text-anchor": "middle" }, tickText(tick)),
    ),
  ];
}

const tickText = (value) =>
  value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) ? value.toExponential() : String(value);

function listenToChart(chart) {
  const { drawing, steps } = chart;
  const last = steps.length - 1;
  const follow = (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * CHART.width;
    readChart(chart, nearest(steps.map(chart.scale.x), at), true);
  };
  drawing.addEventListener("pointermove", follow);
  drawing.addEventListener("pointerdown", follow);
  drawing.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && readChart(chart, last, false));
  drawing.addEventListener("focus", () => readChart(chart, chart.at ?? last, true));
  drawing.addEventListener("blur", () => readChart(chart, last, false));
  drawing.addEventListener("keydown", (event) => {
    const target = { ArrowLeft: chart.at - 1, ArrowRight: chart.at + 1, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    readChart(chart, Math.min(Math.max(target, 0), last), true);
  });
}

function nearest(values, target) {
  let best = 0;
  values.forEach((value, index) => {
    if (Math.abs(value - target) < Math.abs(values[best] - target)) best = index;
  });
  return best;
}

// Write the values at a step into the legend; `pointed` draws where.
function readChart(chart, at, pointed) {
  chart.at = at;
  const step = chart.steps[at];
  chart.step.textContent = `step ${grouped(step)}`;
  for (const line of chart.lines) {
    // Lines of a chart may be logged at different steps.
    const place = nearest(line.steps, step);
    line.value.textContent = figure(line.values[place]);
    line.dot.setAttribute("cx", chart.scale.x(line.steps[place]));
    line.dot.setAttribute("cy", chart.scale.y(line.values[place]));
  }
  chart.cursor.setAttribute("x1", chart.scale.x(step));
  chart.cursor.setAttribute("x2", chart.scale.x(step));
  chart.drawing.classList.toggle("pointed", pointed);
  chart.drawing.setAttribute("aria-label", `${chart.title}: ${chart.legend.textContent}`);
}
