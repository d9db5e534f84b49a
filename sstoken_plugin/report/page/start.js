// Draws the page once.

function start() {
  find("sentence").textContent = visibleLine(DATA.sentence);
  find("history").textContent = `REL compares with ${visibleLine(DATA.history).replace(/\.$/, "")}.`;
  find("history").hidden = !DATA.history;
  find("warnings").append(...DATA.warnings.map((warning) => element("li", { class: "warning" }, visibleLine(warning))));
  find("warnings").hidden = !DATA.warnings.length;
  find("left-out").textContent = DATA.left_out;
  find("left-out").hidden = !DATA.left_out;
  startSamples();
  startTraining();
  find("tables").append(...DATA.tables.map(buildTable));
  find("where").hidden = !DATA.tables.length;
  find("settings-table").append(...DATA.settings.map(pair));
  find("versions-table").append(...DATA.versions.map(pair));
  find("settings").hidden = !DATA.settings.length && !DATA.versions.length;
  for (const section of document.querySelectorAll("main > section:not([hidden])")) {
    find("nav").append(element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
  }
}

function pair([name, value]) {
  return element("tr", {}, element("th", { scope: "row" }, visibleLine(name)), element("td", {}, visibleLine(value)));
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
  showAll();
  // An example of what a token tells; on a phone it would cover the text.
  const first = cards.findIndex((card) => card.tokens.length);
  if (first >= 0 && !isPhone()) showReadout({ sample: first, index: 0 });
  const theme = matchMedia("(prefers-color-scheme: dark)");
  theme.addEventListener("change", refreshSoon);
  // The strips are drawn in pixels.
  window.addEventListener("resize", refreshSoon);
  window.addEventListener("beforeprint", () => {
    for (const index of cards.keys()) paintCard(index);
  });
}

start();
