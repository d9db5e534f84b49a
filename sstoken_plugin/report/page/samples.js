// One card a sample: its text turn by turn. A card is built when it comes near the screen, and painting changes classes
// and shades only.

const cards = [];
const inView = new Set();
// A page with no more tokens is built whole at once, so that a picture of it, and the browser's own search, have it all.
const FEW_TOKENS = 20_000;
const tokensOnPage = samples.reduce((sum, sample) => sum + sample.length, 0);
// Above, what is off the screen stays unbuilt, and a print folds what is long.
const PRINTED_TOKENS = 200_000;
// Of a folded card: response tokens, and characters of a prompt that loses its middle.
const FOLDED_TOKENS = tokensOnPage > FEW_TOKENS ? 300 : 600;
const FOLDED_PROMPT = 1200;
const PROMPT_END = 400;
// Steps of the shade above 0, as samples.css has them.
const SHADES = 16;

function buildCards(parent) {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const index = Number(entry.target.dataset.sample);
        if (entry.isIntersecting) inView.add(index);
        else inView.delete(index);
        if (!entry.isIntersecting) continue;
        if (cards[index].isBuilt) showCard(index);
        else buildSoon();
      }
      // A search may have hidden what comes into view now.
      if (search.words) markFound();
    },
    { rootMargin: "1500px" },
  );
  samples.forEach((sample, index) => {
    const card = buildCard(sample, index);
    cards.push(card);
    parent.append(card.node);
    observer.observe(card.node);
  });
  parent.classList.toggle("many", tokensOnPage > FEW_TOKENS);
  if (tokensOnPage <= FEW_TOKENS) for (const index of cards.keys()) buildText(index);
}

function buildCard(sample, index) {
  const title = `Sample ${visibleLine(sample.name)}`;
  const card = {
    stale: true,
    isBuilt: false,
    isOpen: false,
    // Those on show: the first ones of the response.
    tokens: [],
    count: element("p", { class: "count" }),
    change: element("p", { class: "change note" }),
    scale: element("p", { class: "scale note" }),
    text: element("div", { class: "text" }),
  };
  const link = element("a", { class: "link", href: `#${fragmentOf(index)}`, "aria-label": `Link to ${title}` }, "#");
  card.node = element(
    "article",
    { class: "sample", id: fragmentOf(index), "data-sample": index, "aria-label": title },
    element("header", {}, element("h3", {}, title, " ", link), card.count, card.change, card.scale),
    card.text,
  );
  // Until it is built, about the height that it will have.
  card.node.style.setProperty("--lines", Math.ceil(Math.min(sample.length, FOLDED_TOKENS) / 16) + 8 + moments.length);
  if (!sample.responses)
    card.node.append(element("p", { class: "note" }, "This sample has no response tokens: there is nothing to rank."));
  if (!sample.whole)
    card.node.append(
      element(
        "p",
        { class: "note" },
        `What-if is off for this sample: its response has ${counted(sample.responses, "token")}, ` +
          `the page holds numbers of ${counted(sample.numbers, "token")}.`,
      ),
    );
  return card;
}

// One card a frame, those on the screen first, so that scrolling does not wait.
let building = false;

function buildSoon() {
  if (building) return;
  building = true;
  requestAnimationFrame(() => {
    building = false;
    const waiting = [...inView].filter((index) => !cards[index].isBuilt && !cards[index].node.hidden);
    if (!waiting.length) return;
    const middle = window.innerHeight / 2;
    const distance = (index) => {
      const box = cards[index].node.getBoundingClientRect();
      return Math.max(box.top - middle, middle - box.bottom, 0);
    };
    showCard(waiting.reduce((nearest, index) => (distance(index) < distance(nearest) ? index : nearest)));
    // First, so that a fault in marking leaves no card blank.
    if (waiting.length > 1) buildSoon();
    if (search.words) markFound();
  });
}

// Build a card's text if it is not there, and paint it.
function showCard(index) {
  const card = cards[index];
  if (!card.isBuilt) buildText(index);
  if (card.stale) paintCard(index);
}

function openCard(index) {
  if (cards[index].isOpen) return;
  cards[index].isOpen = true;
  buildText(index);
  paintCard(index);
}

function buildText(index) {
  const [card, sample] = [cards[index], samples[index]];
  if (!card.strips && moments.length > 1 && sample.responses) card.node.append(buildStrips(card, sample, index));
  const wasIn = card.text.contains(document.activeElement);
  card.text.replaceChildren();
  card.tokens = [];
  card.isBuilt = card.stale = true;
  const body = { parent: card.text, last: "", label: null, turn: null };
  let left = card.isOpen ? Infinity : FOLDED_TOKENS;
  for (const [place, run] of sample.runs.entries()) {
    if (run.cut) {
      appendCut(body, `Cut here: ${counted(run.cut, "more token")}`);
      continue;
    }
    if (left === 0) {
      appendFold(
        body,
        index,
        sample.runs.slice(place).reduce((sum, rest) => sum + (rest.cut ?? rest.count), 0),
      );
      break;
    }
    beginTurn(body, run);
    if (run.lengths === undefined) {
      appendPrompt(body, run.text, index, card.isOpen);
      continue;
    }
    const count = Math.min(run.count, left);
    appendTokens(body, run, index, count);
    left -= count;
    if (count < run.count) {
      const rest = sample.runs.slice(place + 1).reduce((sum, later) => sum + (later.cut ?? later.count), 0);
      appendFold(body, index, run.count - count + rest);
      break;
    }
  }
  // The button that opened the text is gone.
  if (wasIn) (card.tokens.at(Math.min(FOLDED_TOKENS, card.tokens.length) - 1)?.node ?? card.node).focus();
}

function beginTurn(body, run) {
  // The rest of a prompt after a cut goes on in its turn.
  if (body.label !== run.label) {
    body.turn = element("div", { class: "turn" });
    body.parent.append(
      element(
        "section",
        { class: run.lengths !== undefined ? "run response" : "run prompt" },
        element("h4", {}, run.label),
        body.turn,
      ),
    );
    body.label = run.label;
    body.last = "";
  }
}

function appendCut(body, ...content) {
  const parent = body.turn ?? body.parent;
  parent.append(element("span", { class: "cut" }, ...content));
  body.last = "";
}

function appendFold(body, index, count, noun = "token") {
  const button = element("button", { type: "button", class: "unfold" }, `Show ${counted(count, `more ${noun}`)}`);
  button.addEventListener("click", () => openCard(index));
  appendCut(body, button);
}

function appendPrompt(body, text, index, isOpen) {
  if (isOpen || text.length <= FOLDED_PROMPT) {
    body.last = appendText(body.turn, text, body.last);
    return;
  }
  const [head, tail] = [PROMPT_END, text.length - PROMPT_END].map((place) => wholeAt(text, place));
  appendText(body.turn, text.slice(0, head), body.last);
  appendFold(body, index, tail - head, "character");
  body.last = appendText(body.turn, text.slice(tail), body.last);
}

// A place in a text that is not inside of a character.
const wholeAt = (text, place) => place - (/[\udc00-\udfff]/.test(text[place]) ? 1 : 0);

function appendTokens(body, run, sampleIndex, count) {
  const { tokens } = cards[sampleIndex];
  run.arrays ??= { lengths: arrayOf(Uint16Array, run.lengths), ids: arrayOf(Int32Array, run.ids) };
  const { lengths, ids } = run.arrays;
  let start = 0;
  for (let offset = 0; offset < count; offset++) {
    const text = run.text.slice(start, start + lengths[offset]);
    start += lengths[offset];
    const node = element("span", { class: "t", role: "button", tabindex: tokens.length ? -1 : 0 });
    // Bytes of a character that an earlier token began: only the style draws something.
    const base = text ? "t" : "t part";
    body.last = appendText(node, text, body.last);
    node.place = { sample: sampleIndex, index: tokens.length };
    tokens.push({ node, base, text, id: ids[offset], at: run.start + offset });
    body.turn.append(node);
  }
}

// Mark every card for painting, and paint those near the screen.
function refresh() {
  for (const card of cards) card.stale = true;
  inView.forEach(showCard);
}

function paintCard(index) {
  const card = cards[index];
  const sample = samples[index];
  const now = selectionAt(state.moment, index);
  const before = comparedAt(state.moment, index);
  const { values, range } = shadingAt(state.moment, index);
  card.tokens.forEach((token, place) => {
    const kept = now.kept[place];
    const changed = before && before.kept[place] !== kept;
    const shade = shadeOf(values?.[place], range);
    const change = changed ? (kept ? "added" : "removed") : "";
    // A class, since styles that many elements share are computed once.
    const step = `s${Math.round(SHADES * Math.abs(shade))}`;
    token.node.className = `${token.base} ${step} ${kept ? "kept" : "dropped"} ${change} ${shade < 0 ? "lost" : ""}`;
    token.node.setAttribute("aria-label", `${spoken(token.text)}, ${kept ? "kept" : "dropped"}`);
  });
  if (shown?.sample === index) card.tokens[shown.index]?.node.classList.add("shown");
  card.count.textContent = `${grouped(now.total)} of ${counted(sample.responses, "response token")} kept`;
  card.change.textContent = changeInWords(index, now, before);
  card.scale.textContent = scaleInWords(sample, range);
  card.stale = false;
  paintStrips(card, index);
}

function changeInWords(index, now, before) {
  const sample = samples[index];
  if (!before || !sample.responses || (isWhatIf() && !sample.whole)) return "";
  const { added, removed } = changes(now, before);
  if (isWhatIf()) {
    const moment = moments[state.moment];
    const changed = added + removed;
    const [ratio, gamma] = [ratioAt(moment), gammaAt(moment)].map((value) => value.toFixed(2));
    const kept = `keeps ${grouped(now.total)} of ${grouped(sample.responses)}`;
    return `What if ratio ${ratio}, gamma ${gamma}: ${kept}; ${tokensChange(changed)} in this sample`;
  }
  const label = visibleLine(moments[state.moment - 1].label);
  return added + removed
    ? `Since ${label}: ${added} newly kept, ${removed} newly dropped`
    : `Nothing changed since ${label}`;
}

function scaleInWords(sample, range) {
  if (!sample.responses) return "";
  const name = { score: "Score", rel: "REL", attention: "Attention" }[state.shade];
  if (!range) return `${name} was not measured`;
  if (state.shade === "rel")
    return range[1] > 0 ? `REL: full colour from ±${figure(range[1], 2)}` : "REL is 0 everywhere";
  return `${name}: ${figure(range[0], 2)} to ${figure(range[1], 2)}`;
}

// A token's text for a screen reader, which says no white space.
const spoken = (text) => (text ? visibleLine(text.trim() || text) : "part of a character");
