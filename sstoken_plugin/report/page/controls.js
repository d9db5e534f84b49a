// Moment, shading and what-if: each change repaints the samples and says what it did.

let waiting = false;
let summing = 0;

// Sliders fire faster than the screen draws.
function refreshSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    showAll();
  });
}

function showAll() {
  describeMoment();
  describeShade();
  describeWhatIf();
  refresh();
  refreshHistograms();
  if (shown) showReadout(shown);
}

function showMoment(index) {
  find("moment").value = index;
  state.moment = index;
  refreshSoon();
}

function startControls() {
  // On a phone the text comes first.
  find("controls").open = !isPhone();
  find("moment-box").hidden = moments.length < 2;
  find("moment").max = moments.length - 1;
  find("moment").value = state.moment;
  find("moment").addEventListener("input", (event) => showMoment(Number(event.target.value)));
  find("shades").addEventListener("change", (event) => {
    state.shade = event.target.value;
    refreshSoon();
  });
  for (const name of ["ratio", "gamma"]) {
    find(name).addEventListener("input", (event) => {
      state[name] = Number(event.target.value);
      refreshSoon();
    });
  }
  find("reset").addEventListener("click", () => {
    state.ratio = state.gamma = null;
    refreshSoon();
  });
}

function describeMoment() {
  const moment = moments[state.moment];
  const label = visibleLine(moment.label);
  find("moment-label").textContent = label;
  find("moment").setAttribute("aria-valuetext", label);
  const where = moments.length > 1 ? "At this moment" : `${label}:`;
  const share = moment.readsRatio ? `; ${figure(100 * moment.ratio)}\u00a0% of each response was kept` : "";
  find("rule").textContent = `${where} tokens were ranked by ${visibleLine(moment.rule)}${share}.`;
}

function describeShade() {
  const words = {
    score: ["lowest in the sample", "highest", "What ranks a token; scaled for each sample and moment."],
    rel: ["lost", "gained", "What the model gained on a token over its history, in nats. Pale: no change."],
    attention: [
      "lowest in the sample",
      "highest",
      "Attention that a token pays to the prompt; scaled for each sample.",
    ],
  }[state.shade];
  find("legend").className = `legend ${state.shade}`;
  [find("legend-low").textContent, find("legend-high").textContent, find("shade-note").textContent] = words;
}

function describeWhatIf() {
  const moment = moments[state.moment];
  for (const [name, value] of [
    ["ratio", ratioAt(moment)],
    ["gamma", gammaAt(moment)],
  ]) {
    // The slider has steps of 0.01; the number says what counts.
    find(name).value = value;
    find(`${name}-value`).textContent = String(Number(value.toFixed(4)));
  }
  find("reset").disabled = !isWhatIf();
  const keeping = moment.readsRatio ? "" : " and keeps a share of each response";
  const blended = moment.blends
    ? ""
    : ` The training ranked by ${visibleLine(moment.rule)}; ` +
      `what-if ranks by gamma × REL + (1 − gamma) × attention${keeping} all the same.`;
  const missing = [
    moment.hasRel ? "" : " REL was not measured and counts as 0.",
    moment.hasAttention ? "" : " Attention was not measured and counts as 0.",
  ].join("");
  // Of a large page the sum waits until the slider rests.
  clearTimeout(summing);
  const isLarge = tokensOnPage > FEW_TOKENS;
  if (isWhatIf() && isLarge) summing = setTimeout(() => describe(wholeChange()), 200);
  describe(isWhatIf() && isLarge ? "Adding up ..." : null);

  function describe(sum) {
    find("what-if-note").textContent =
      (isWhatIf()
        ? (sum ?? wholeChange())
        : "Shown is the training's own selection. Move a slider to select anew from the same numbers.") +
      (blended || missing ? blended + missing : "");
  }
}

function wholeChange() {
  let [kept, responses, changed] = [0, 0, 0];
  samples.forEach((sample, index) => {
    if (!sample.whole) return;
    const now = selectionAt(state.moment, index);
    const { added, removed } = changes(now, recordedAt(state.moment, index));
    kept += now.total;
    responses += sample.responses;
    changed += added + removed;
  });
  return `Keeps ${grouped(kept)} of ${grouped(responses)}; ${tokensChange(changed)} against the training's selection.`;
}
