// What was kept and what was dropped, by the value of each signal, over the samples of the page at the moment chosen.

const SIGNALS = [
  { title: "REL", values: (index) => numbersAt(state.moment, index).rel },
  { title: "Attention on the prompt", values: (index) => numbersAt(state.moment, index).attention },
  { title: "Score", values: (index) => selectionAt(state.moment, index).score },
];
const BARS = 40;
// Steps in which a cut is looked for, in each bar.
const FINE = 10;
// Of the values, beyond either end of the drawing, whose last bar has them too: an outlier would leave one bar for all
// others.
const OUTLIERS = 0.005;

const histograms = { isStale: true, isNear: false, waiting: 0 };

function startHistograms() {
  new IntersectionObserver(
    ([entry]) => {
      histograms.isNear = entry.isIntersecting;
      drawHistogramsSoon();
    },
    { rootMargin: "300px" },
  ).observe(find("where"));
  window.addEventListener("beforeprint", drawHistograms);
}

function refreshHistograms() {
  histograms.isStale = true;
  drawHistogramsSoon();
}

// Of a large page once the slider rests, and when they are looked at.
function drawHistogramsSoon() {
  clearTimeout(histograms.waiting);
  if (tokensOnPage <= FEW_TOKENS) drawHistograms();
  else if (histograms.isNear) histograms.waiting = setTimeout(drawHistograms, 200);
}

function drawHistograms() {
  if (!histograms.isStale) return;
  histograms.isStale = false;
  const drawn = SIGNALS.map(buildHistogram).filter(Boolean);
  find("histograms").replaceChildren(...drawn);
  find("histograms-note").hidden = !drawn.length;
}

// null where there is nothing to tell apart.
function buildHistogram({ title, values }) {
  const [kept, dropped] = [[], []];
  for (const index of samples.keys()) {
    const chosen = selectionAt(state.moment, index).kept;
    values(index)?.forEach((value, place) => {
      if (Number.isFinite(value)) (chosen[place] ? kept : dropped).push(value);
    });
  }
  const range = commonest(kept, dropped);
  if (!range) return null;
  const [low, high] = range;
  const binOf = (value) =>
    Math.min(Math.max(Math.floor(((value - low) / (high - low)) * BARS * FINE), 0), BARS * FINE - 1);
  const counts = [kept, dropped].map((group) => {
    const bins = new Uint32Array(BARS * FINE);
    for (const value of group) bins[binOf(value)]++;
    return bins;
  });
  const cut = bestCut(...counts);
  const at = low + ((high - low) * cut.place) / (BARS * FINE);
  const beyond = kept.concat(dropped).filter((value) => value < low || value > high).length;
  const edges = beyond ? ` The bars at the ends hold ${counted(beyond, "token")} from beyond them.` : "";
  const verdict = cut.isSplit
    ? `A cut at ${figure(at, 2)} alone would choose ${percent(cut.alike / (kept.length + dropped.length))} of these tokens alike.`
    : "No cut by this alone is nearer to the choice than keeping, or dropping, all.";
  const words = verdict + edges;
  const bars = counts.map((bins) =>
    Array.from({ length: BARS }, (_, bar) => bins.subarray(bar * FINE, (bar + 1) * FINE).reduce((a, b) => a + b, 0)),
  );
  const scale = scaleOf([
    { steps: [low, high], values: [0, Math.max(...bars[0].map((count, bar) => count + bars[1][bar]))] },
  ]);
  const drawing = svg(
    "svg",
    {
      viewBox: `0 0 ${CHART.width} ${CHART.height}`,
      role: "img",
      "aria-label":
        `${title}: ${counted(kept.length, "kept token")}, median ${figure(median(kept), 2)}; ` +
        `${counted(dropped.length, "dropped token")}, median ${figure(median(dropped), 2)}. ${words}`,
    },
    ...axes(scale),
    ...bars[0].flatMap((count, bar) =>
      barsOf(scale, low + ((high - low) * bar) / BARS, (high - low) / BARS, count, bars[1][bar]),
    ),
  );
  if (cut.isSplit)
    drawing.append(
      svg("line", {
        class: "cut-line",
        x1: scale.x(at),
        x2: scale.x(at),
        y1: CHART.top,
        y2: CHART.height - CHART.bottom,
      }),
    );
  const key = (name) =>
    svg(
      "svg",
      { class: "key", viewBox: "0 0 24 8", "aria-hidden": "true" },
      svg("rect", { class: name, width: 24, height: 8 }),
    );
  return element(
    "figure",
    { class: "chart" },
    element("figcaption", {}, title),
    element(
      "p",
      { class: "chart-legend" },
      element("span", {}, key("bar-kept"), " kept"),
      element("span", {}, key("bar-dropped"), " dropped"),
    ),
    drawing,
    element("p", { class: "note" }, words),
  );
}

// Dropped tokens stand on the kept ones.
function barsOf(scale, start, width, kept, dropped) {
  const [x, right] = [scale.x(start), scale.x(start + width)];
  const bar = (name, from, to) =>
    svg("rect", {
      class: name,
      x,
      width: Math.max(right - x - 0.6, 0.4),
      y: scale.y(to),
      height: scale.y(from) - scale.y(to),
    });
  return [...(kept ? [bar("bar-kept", 0, kept)] : []), ...(dropped ? [bar("bar-dropped", kept, kept + dropped)] : [])];
}

// The range of all but a few values; null where they are one, or none.
function commonest(kept, dropped) {
  const all = Float64Array.from(kept.concat(dropped)).sort();
  const at = (share) => all[Math.round(share * (all.length - 1))];
  const [low, high] = [at(OUTLIERS), at(1 - OUTLIERS)];
  return low < high ? [low, high] : null;
}

// The threshold that agrees with the choice most often: at or above it tokens are kept, below it dropped.
function bestCut(kept, dropped) {
  const total = kept.reduce((a, b) => a + b, 0);
  const all = total + dropped.reduce((a, b) => a + b, 0);
  let alike = total;
  let best = { place: 0, alike };
  for (let bin = 0; bin < kept.length; bin++) {
    alike += dropped[bin] - kept[bin];
    if (alike > best.alike) best = { place: bin + 1, alike };
  }
  return { ...best, isSplit: best.place > 0 && best.place < kept.length && best.alike > Math.max(total, all - total) };
}

const median = (values) => Float64Array.from(values).sort()[values.length >> 1];
