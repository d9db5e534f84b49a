// A sample at all moments: one row a moment, one cell a response token. Tall cells are kept, low ones dropped.

const ROW_HEIGHT = 14;

function buildStrips(card, sample, index) {
  card.strips = moments.map((moment, momentIndex) => {
    const canvas = element("canvas", { height: ROW_HEIGHT });
    const label = visibleLine(moment.label);
    const row = element(
      "button",
      { type: "button", class: "strip" },
      element("span", { class: "strip-label", title: label }, label),
      canvas,
    );
    row.addEventListener("click", (event) => {
      showMoment(momentIndex);
      const place = placeIn(canvas, event, sample.numbers);
      if (place >= 0 && place < sample.texts && !isPhone()) showReadout({ sample: index, index: place });
    });
    return { row, canvas };
  });
  return element(
    "section",
    { class: "strips" },
    element("h4", {}, "All moments"),
    element(
      "p",
      { class: "note" },
      "A column is a response token; tall: kept, low: dropped. Choose a row to see its moment above.",
    ),
    ...card.strips.map((strip) => strip.row),
  );
}

function placeIn(canvas, event, count) {
  const box = canvas.getBoundingClientRect();
  // A key press has no place.
  if (event.clientX < box.left || event.clientX > box.right) return -1;
  return Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count));
}

function paintStrips(card, index) {
  card.strips?.forEach(({ row, canvas }, momentIndex) => {
    row.setAttribute("aria-pressed", momentIndex === state.moment);
    const selection = selectionAt(momentIndex, index);
    const label = `${moments[momentIndex].label}: ${selection.total} of ${samples[index].responses} kept`;
    row.setAttribute("aria-label", label);
    paintStrip(canvas, selection, shadingAt(momentIndex, index));
  });
}

function paintStrip(canvas, selection, { values, range }) {
  const count = selection.kept.length;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * density));
  canvas.height = Math.round(ROW_HEIGHT * density);
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const [gained, lost] = ["--gained", "--lost"].map((name) => style.getPropertyValue(name));
  const width = canvas.width / count;
  // A gap between cells where there is room for one.
  const gap = width > 5 * density ? density : 0;
  for (let place = 0; place < count; place++) {
    const shade = shadeOf(values?.[place], range);
    const height = selection.kept[place] ? canvas.height : canvas.height / 4;
    context.globalAlpha = 0.16 + 0.84 * Math.abs(shade);
    context.fillStyle = shade < 0 ? lost : gained;
    context.fillRect(place * width, canvas.height - height, Math.max(width - gap, 0.5), height);
  }
}
