// The data of the page and what the reader has chosen to see of it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const { samples, moments } = DATA;
for (const sample of samples) {
  sample.whole = sample.numbers === sample.responses;
  // Response tokens whose text is here.
  sample.texts = sample.runs.reduce((sum, run) => sum + (run.lengths === undefined ? 0 : run.count), 0);
  sample.endMarks = new Uint8Array(sample.numbers);
  for (const index of sample.ends) sample.endMarks[index] = 1;
}
const historyOf = (record, sampleIndex) => record.history ?? samples[sampleIndex].history;
// Where REL is the difference of the losses to the last bit, it does not travel.
const isMeasured = (record, sampleIndex) => record.rel ?? (record.current && historyOf(record, sampleIndex));
for (const moment of moments) {
  moment.hasRel = moment.records.some(isMeasured);
  moment.hasAttention = moment.records.some((record) => record.attention);
}

const state = {
  moment: moments.length - 1,
  shade: "score",
  // null: as the training had it.
  ratio: null,
  gamma: null,
};

const isWhatIf = () => state.ratio !== null || state.gamma !== null;

// What the sliders say at a moment. Where no blend ranked, the settings give what the blend would take.
function ratioAt(moment) {
  return state.ratio ?? (moment.readsRatio ? moment.ratio : (DATA.ratio ?? moment.ratio));
}

function gammaAt(moment) {
  return state.gamma ?? (moment.blends ? moment.gamma : (DATA.gamma ?? 0.5));
}

// Arrays by response token of a sample at a moment; null where nothing was measured.
function numbersAt(momentIndex, sampleIndex) {
  const record = moments[momentIndex].records[sampleIndex];
  if (!record.arrays) {
    const [current, history] = [floatsOf(record.current), floatsOf(historyOf(record, sampleIndex))];
    record.arrays = {
      current,
      history,
      rel: "rel" in record ? floatsOf(record.rel) : difference(history, current),
      attention: floatsOf(record.attention),
      score: floatsOf(record.score),
      kept: bitsOf(record.selected, samples[sampleIndex].numbers),
    };
  }
  return record.arrays;
}

const difference = (history, current) =>
  history && current ? history.map((loss, index) => f32(loss - current[index])) : null;

// The training's own selection.
function recordedAt(momentIndex, sampleIndex) {
  const record = moments[momentIndex].records[sampleIndex];
  if (!record.recorded) {
    const sample = samples[sampleIndex];
    const { score, kept } = numbersAt(momentIndex, sampleIndex);
    record.recorded = ranked({ score, kept, total: record.kept }, sample.whole ? score : null, sample.endMarks);
  }
  return record.recorded;
}

// What the page shows: the training's selection until a slider is touched.
function selectionAt(momentIndex, sampleIndex) {
  const sample = samples[sampleIndex];
  if (!isWhatIf() || !sample.whole) return recordedAt(momentIndex, sampleIndex);
  const moment = moments[momentIndex];
  const [ratio, gamma] = [ratioAt(moment), gammaAt(moment)];
  const record = moment.records[sampleIndex];
  if (record.whatIf?.ratio !== ratio || record.whatIf?.gamma !== gamma) {
    const { rel, attention } = numbersAt(momentIndex, sampleIndex);
    const nothing = () => new Float32Array(sample.responses).fill(NaN);
    const score = blend(
      // An array is null too where each of its numbers is missing, though the moment was measured.
      rel ?? (moment.hasRel ? nothing() : null),
      attention ?? (moment.hasAttention ? nothing() : null),
      gamma,
      sample.prompt,
      sample.responses,
    );
    const chosen = selectTop(score, sample.endMarks, keptCount(ratio, sample.responses, sample.ends.length));
    record.whatIf = Object.assign(chosen, { ratio, gamma });
  }
  return record.whatIf;
}

// What the selection shown is compared with: the training's own, or the moment before. null: nothing.
function comparedAt(momentIndex, sampleIndex) {
  if (isWhatIf()) return recordedAt(momentIndex, sampleIndex);
  return momentIndex > 0 ? recordedAt(momentIndex - 1, sampleIndex) : null;
}

function changes(now, before) {
  let [added, removed] = [0, 0];
  for (let index = 0; index < now.kept.length; index++) {
    if (now.kept[index] > before.kept[index]) added++;
    if (now.kept[index] < before.kept[index]) removed++;
  }
  return { added, removed };
}

// The values that shade a sample's tokens, and their scale. REL and attention have one scale for all moments, so that
// growth shows; scores of different rules do not compare, so each moment has its own.
function shadingAt(momentIndex, sampleIndex) {
  if (state.shade === "score") {
    const values = selectionAt(momentIndex, sampleIndex).score;
    return { values, range: rangeOf(values) };
  }
  return { values: numbersAt(momentIndex, sampleIndex)[state.shade], range: commonRange(sampleIndex) };
}

function commonRange(sampleIndex) {
  const sample = samples[sampleIndex];
  sample.ranges ??= {};
  const { ranges } = sample;
  if (!(state.shade in ranges)) {
    const arrays = moments.map((_, index) => numbersAt(index, sampleIndex)[state.shade]);
    if (state.shade === "rel") {
      // One outlier must not leave all others pale: full colour begins at the 97th percentile.
      const sizes = arrays.flatMap((values) => Array.from(values ?? [], Math.abs)).filter(Number.isFinite);
      const limit = sizes.sort((a, b) => a - b)[Math.floor(0.97 * (sizes.length - 1))];
      ranges.rel = sizes.length ? [-limit, limit] : null;
    } else {
      ranges[state.shade] = arrays.reduce((whole, values) => {
        const range = rangeOf(values);
        return range && whole ? [Math.min(whole[0], range[0]), Math.max(whole[1], range[1])] : (range ?? whole);
      }, null);
    }
  }
  return ranges[state.shade];
}

// Strength of a shade, 0 to 1; below 0 for a loss in REL.
function shadeOf(value, range) {
  if (!range || !Number.isFinite(value)) return 0;
  if (state.shade === "rel") return range[1] > 0 ? Math.max(-1, Math.min(1, value / range[1])) : 0;
  return range[1] > range[0] ? (value - range[0]) / (range[1] - range[0]) : value > 0 ? 1 : 0;
}
