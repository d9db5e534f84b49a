// A token's numbers: on hover, tap and keyboard focus. One token of a sample is in the tab order; arrows reach others.

let shown = null;
let pinned = null;
const find = (id) => document.getElementById(id);

// A token that a reader looks at; its text is built and opened as far as that takes.
function tokenAt({ sample, index }) {
  showCard(sample);
  if (index >= cards[sample].tokens.length) openCard(sample);
  return cards[sample].tokens[index];
}
const placeOf = (target) => target.closest?.(".t")?.place ?? null;

function listenToTokens(parent) {
  parent.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse") return;
    const place = placeOf(event.target) ?? pinned;
    if (place) showReadout(place);
  });
  parent.addEventListener("click", (event) => {
    const place = placeOf(event.target);
    if (place) tokenAt(place).node.focus({ preventScroll: true });
  });
  parent.addEventListener("focusin", (event) => {
    const place = placeOf(event.target);
    if (!place) return;
    pinned = place;
    for (const token of cards[place.sample].tokens) token.node.tabIndex = -1;
    tokenAt(place).node.tabIndex = 0;
    showReadout(place);
    uncover(tokenAt(place).node);
  });
  parent.addEventListener("keydown", (event) => {
    const place = placeOf(event.target);
    if (!place) return;
    if (event.key === "Escape") return closeReadout();
    const target = neighbour(place, event.key);
    if (target === null) return;
    event.preventDefault();
    cards[place.sample].tokens[target].node.focus();
  });
  find("readout-close").addEventListener("click", closeReadout);
}

function neighbour({ sample, index }, key) {
  const { tokens } = cards[sample];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (step) return Math.min(Math.max(index + step, 0), tokens.length - 1);
  if (key === "Home") return 0;
  if (key === "End") return tokens.length - 1;
  if (key === "ArrowDown" || key === "ArrowUp") return onNextLine(tokens, index, key === "ArrowDown" ? 1 : -1);
  return null;
}

// The token nearest to this one's left edge on the next line of text in a direction.
function onNextLine(tokens, from, step) {
  const [start] = tokens[from].node.getClientRects();
  let best = from;
  let line = null;
  for (let index = from + step; index >= 0 && index < tokens.length; index += step) {
    const [box] = tokens[index].node.getClientRects();
    if (!box || Math.abs(box.top - start.top) < box.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > box.height / 2) break;
    const [was] = tokens[best].node.getClientRects();
    if (best === from || Math.abs(box.left - start.left) < Math.abs(was.left - start.left)) best = index;
  }
  return best;
}

function showReadout(place) {
  if (shown) tokenAt(shown).node.classList.remove("shown");
  shown = place;
  const token = tokenAt(place);
  token.node.classList.add("shown");
  const facts = factsOf(place);
  const list = element("dl");
  for (const [name, value] of facts.numbers)
    list.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  const text = element("p", { class: "token-text", dir: "auto" });
  if (token.text) appendText(text, token.text);
  else text.append(element("span", { class: "note" }, "(inside the character before)"));
  find("readout-body").replaceChildren(
    text,
    element("p", { class: `verdict ${facts.kept ? "kept" : "dropped"}` }, facts.verdict),
    list,
    ...facts.lines.map((line) => element("p", { class: "note" }, line)),
    element("a", { class: "note", href: `#${fragmentOf(place.sample, place.index)}` }, "Link to this token"),
  );
  find("readout-body").hidden = false;
  find("readout-hint").hidden = true;
  find("readout").classList.add("open");
  token.node.setAttribute(
    "aria-label",
    [spoken(token.text), facts.verdict, ...facts.numbers.map((pair) => pair.join(" "))].join(", "),
  );
}

// On a phone the numbers rise over the text: bring the token out from below them.
function uncover(node) {
  if (!isPhone()) return;
  const hidden = node.getBoundingClientRect().bottom + 12 - find("readout").getBoundingClientRect().top;
  if (hidden > 0) window.scrollBy({ top: hidden, behavior: "instant" });
}

function closeReadout() {
  if (shown) tokenAt(shown).node.classList.remove("shown");
  shown = pinned = null;
  find("readout-body").hidden = true;
  find("readout-hint").hidden = false;
  find("readout").classList.remove("open");
}

function factsOf({ sample: sampleIndex, index }) {
  const sample = samples[sampleIndex];
  const token = cards[sampleIndex].tokens[index];
  const now = selectionAt(state.moment, sampleIndex);
  const before = comparedAt(state.moment, sampleIndex);
  const measured = numbersAt(state.moment, sampleIndex);
  const kept = Boolean(now.kept[index]);
  const word = kept ? "kept" : "dropped";
  const rel = measured.rel?.[index];
  const lines = [
    `Token ${grouped(token.at + 1)} of ${grouped(sample.length)}, ` +
      `response token ${grouped(index + 1)} of ${grouped(sample.responses)}, id ${token.id}`,
  ];
  if (sample.endMarks[index]) lines.push("Ends a turn: such tokens rank first.");
  if (before && Boolean(before.kept[index]) !== kept) {
    const other = isWhatIf() ? "the training" : visibleLine(moments[state.moment - 1].label);
    lines.push(`Changed: ${kept ? "dropped" : "kept"} ${isWhatIf() ? "by" : "at"} ${other}.`);
  }
  if (moments.length > 1) {
    const history = moments.map((_, momentIndex) => selectionAt(momentIndex, sampleIndex).kept[index]);
    const times = history.filter(Boolean).length;
    lines.push(
      `Kept at ${times} of ${counted(moments.length, "moment")}: ` +
        history.map((there) => (there ? "■" : "□")).join(""),
    );
  }
  return {
    kept,
    verdict: now.rank ? `rank ${grouped(now.rank[index])} of ${grouped(sample.responses)}, ${word}` : word,
    numbers: [
      ["current loss", figure(measured.current?.[index])],
      ["history loss", figure(measured.history?.[index])],
      ["REL", figure(rel) + (rel > 0 ? ", gained" : rel < 0 ? ", lost" : "")],
      ["attention", figure(measured.attention?.[index])],
      ["score", figure(now.score?.[index])],
    ],
    lines,
  };
}
