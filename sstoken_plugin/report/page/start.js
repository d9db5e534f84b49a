// Draws the page once.

function start() {
  startVerdict();
  startSamples();
  startTraining();
  find("tables").append(...DATA.tables.map(buildTable));
  find("tables-note").textContent = DATA.counted;
  // An inspection counts the samples that it scores.
  find("tables-note").hidden = !DATA.tables.length || !Object.keys(DATA.series).length;
  // Histograms of a large page come later.
  const hasFigures = find("histograms").childElementCount > 0 || tokensOnPage > FEW_TOKENS;
  find("where").hidden = !DATA.tables.length && !hasFigures;
  for (const heading of document.querySelectorAll("main > section:not([hidden]) > h2"))
    find("nav").append(element("a", { href: `#${heading.parentNode.id}` }, heading.textContent));
}

function startSamples() {
  find("samples").hidden = false;
  if (!samples.length) {
    find("empty").textContent = "No sample was scored, so there is no text to show.";
    for (const id of ["panel", "how"]) find(id).hidden = true;
    find("empty").hidden = false;
    return;
  }
  const missing = [];
  if (!moments.some((moment) => moment.hasRel)) missing.push("REL was not measured: no losses of a history are here.");
  if (!moments.some((moment) => moment.hasAttention)) missing.push("Attention on the prompt was not measured.");
  find("empty").textContent = missing.join(" ");
  // Where nothing could be ranked, each sample says so.
  find("empty").hidden = !missing.length || !samples.some((sample) => sample.responses);
  buildCards(find("cards"));
  listenToTokens(find("cards"));
  startControls();
  startHistograms();
  showAll();
  // An example of what a token tells; on a phone it would cover the text.
  const first = samples.findIndex((sample) => sample.texts);
  if (first >= 0 && !isPhone()) showReadout({ sample: first, index: 0 });
  const theme = matchMedia("(prefers-color-scheme: dark)");
  theme.addEventListener("change", refreshSoon);
  // The strips are drawn in pixels.
  window.addEventListener("resize", refreshSoon);
  window.addEventListener("beforeprint", openAll);
  window.addEventListener("afterprint", closeAgain);
  startSearch();
  startLinks();
}

const opened = [];

// A print shows what is folded on the screen.
function openAll() {
  for (const node of document.querySelectorAll("details:not([open])")) {
    node.open = true;
    opened.push(node);
  }
  for (const [index, card] of cards.entries()) {
    if (tokensOnPage <= PRINTED_TOKENS && !card.isOpen) {
      card.isOpen = true;
      card.isBuilt = false;
    }
    showCard(index);
  }
}

function closeAgain() {
  for (const node of opened.splice(0)) node.open = false;
}

start();
