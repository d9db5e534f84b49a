// One card a sample: its text turn by turn. Cards are built once; painting changes classes and shades only.

const cards = [];
const inView = new Set();

function buildCards(parent) {
  // Only cards near the screen are painted at once: there may be tens of thousands of tokens.
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const index = Number(entry.target.dataset.sample);
        if (entry.isIntersecting) inView.add(index);
        else inView.delete(index);
        if (entry.isIntersecting && cards[index].stale) paintCard(index);
      }
    },
    { rootMargin: "600px" },
  );
  samples.forEach((sample, index) => {
    const card = buildCard(sample, index);
    cards.push(card);
    parent.append(card.node);
    observer.observe(card.node);
  });
}

function buildCard(sample, index) {
  const title = `Sample ${visibleLine(sample.name)}`;
  const card = {
    stale: true,
    tokens: [],
    count: element("p", { class: "count" }),
    change: element("p", { class: "change note" }),
    scale: element("p", { class: "scale note" }),
  };
  const text = element("div", { class: "text" });
  const body = { parent: text, last: "", label: null, turn: null, place: 0 };
  for (const run of sample.runs) {
    if (run.cut) {
      appendCut(body, run.cut);
    } else {
      beginTurn(body, run);
      if (run.tokens) appendTokens(body, run, index, card.tokens);
      else for (const piece of run.text) body.last = appendText(body.turn, piece, body.last);
      body.place = run.start + (run.tokens ?? run.text).length;
    }
  }
  card.node = element(
    "article",
    { class: "sample", "data-sample": index, "aria-label": title },
    element("header", {}, element("h3", {}, title), card.count, card.change, card.scale),
    text,
  );
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
  if (moments.length > 1 && sample.responses) card.node.append(buildStrips(card, sample, index));
  return card;
}

function beginTurn(body, run) {
  // The rest of a prompt after a cut goes on in its turn.
  if (body.label !== run.label) {
    body.turn = element("div", { class: "turn" });
    body.parent.append(
      element(
        "section",
        { class: run.tokens ? "run response" : "run prompt" },
        element("h4", {}, run.label),
        body.turn,
      ),
    );
    body.label = run.label;
    body.last = "";
  }
}

function appendCut(body, count) {
  const parent = body.turn ?? body.parent;
  parent.append(element("span", { class: "cut" }, `Cut here: ${grouped(count)} more token${count === 1 ? "" : "s"}`));
  body.place += count;
  body.last = "";
}

function appendTokens(body, run, sampleIndex, tokens) {
  run.tokens.forEach((text, offset) => {
    const node = element("span", { class: "t", role: "button", tabindex: tokens.length ? -1 : 0 });
    // Bytes of a character that an earlier token began: only the style draws something.
    const base = text ? "t" : "t part";
    body.last = appendText(node, text, body.last);
    node.place = { sample: sampleIndex, index: tokens.length };
    tokens.push({ node, base, text, id: run.ids[offset], at: run.start + offset });
    body.turn.append(node);
  });
}

// Mark every card for painting, and paint those near the screen.
function refresh() {
  for (const card of cards) card.stale = true;
  inView.forEach(paintCard);
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
    token.node.className = `${token.base} ${kept ? "kept" : "dropped"} ${change} ${shade < 0 ? "lost" : ""}`;
    token.node.style.setProperty("--shade", Math.abs(shade).toFixed(3));
  });
  if (shown?.sample === index) card.tokens[shown.index].node.classList.add("shown");
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
