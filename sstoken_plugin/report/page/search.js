// Finding a sample: by its text, by how much of it was cut, by a link.

const ORDERS = {
  data: { words: "as in the data", key: null },
  dropped: { words: "most dropped first", key: (index) => droppedShare(index) },
  loss: { words: "most of its loss dropped first", key: (index) => droppedLoss(index) },
  long: { words: "longest response first", key: (index) => samples[index].responses },
};
const MOST_MARKS = 5000;
const search = { words: "", waiting: 0 };

// Lower case as long as the text itself, so that a place in one is that place in the other: of all letters, this one
// alone has a longer lower case.
const lower = (text) => text.replaceAll("\u0130", "i").toLowerCase();

const fragmentOf = (sampleIndex, index) =>
  `sample-${samples[sampleIndex].name}${index === undefined ? "" : `-token-${index + 1}`}`;

function startSearch() {
  find("finder").hidden = samples.length < 2;
  find("order").append(...Object.entries(ORDERS).map(([name, { words }]) => element("option", { value: name }, words)));
  find("order").addEventListener("change", (event) => sortCards(ORDERS[event.target.value].key));
  find("search").addEventListener("input", (event) => {
    // A page of a million tokens is searched once the reader rests.
    clearTimeout(search.waiting);
    search.waiting = setTimeout(() => searchFor(event.target.value), tokensOnPage > FEW_TOKENS ? 150 : 0);
  });
}

// Ascending by minus the key; what has none is last, and equals keep the order of the data.
function sortCards(key) {
  const order = [...cards.keys()];
  if (key) {
    const keys = order.map((index) => (samples[index].responses ? key(index) : -Infinity));
    order.sort((a, b) => keys[b] - keys[a] || a - b);
  }
  find("cards").append(...order.map((index) => cards[index].node));
}

const droppedShare = (index) => 1 - selectionAt(state.moment, index).total / samples[index].responses;

function droppedLoss(index) {
  const { kept } = selectionAt(state.moment, index);
  let [all, dropped] = [0, 0];
  numbersAt(state.moment, index).current?.forEach((loss, place) => {
    if (!Number.isFinite(loss)) return;
    all += loss;
    if (!kept[place]) dropped += loss;
  });
  return all > 0 ? dropped / all : 0;
}

function searchFor(text) {
  search.words = lower(text);
  let [found, times] = [0, 0];
  for (const [index, card] of cards.entries()) {
    const count = search.words ? timesIn(wordsOf(index), search.words) : 0;
    card.node.hidden = Boolean(search.words) && !count;
    found += count > 0;
    times += count;
  }
  buildSoon();
  find("found").textContent = search.words ? `${counted(times, "time")} in ${counted(found, "sample")}` : "";
  markFound();
}

// All of a sample's text that is on the page, folded or not.
function wordsOf(index) {
  const sample = samples[index];
  sample.words ??= lower(sample.runs.map((run) => run.text ?? "").join("\n"));
  return sample.words;
}

function timesIn(text, words) {
  let count = 0;
  for (let place = text.indexOf(words); place >= 0; place = text.indexOf(words, place + words.length)) count++;
  return count;
}

// Mark what was found in the cards near the screen; one where it is folded away is opened.
function markFound() {
  if (!("highlights" in CSS)) return;
  const ranges = [];
  for (const index of search.words ? inView : []) {
    if (cards[index].node.hidden || !cards[index].isBuilt) continue;
    if (
      !cards[index].isOpen &&
      timesIn(lower(cards[index].text.textContent), search.words) < timesIn(wordsOf(index), search.words)
    )
      openCard(index);
    for (const turn of cards[index].text.querySelectorAll(".turn")) ranges.push(...rangesIn(turn));
  }
  CSS.highlights.set("found", new Highlight(...ranges.slice(0, MOST_MARKS)));
}

function rangesIn(turn) {
  const walker = document.createTreeWalker(turn, NodeFilter.SHOW_TEXT);
  const nodes = [];
  let text = "";
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    nodes.push({ node, start: text.length });
    text += node.data;
  }
  text = lower(text);
  const ranges = [];
  let last = 0;
  const at = (place) => {
    while (last + 1 < nodes.length && nodes[last + 1].start <= place) last++;
    return [nodes[last].node, Math.min(place - nodes[last].start, nodes[last].node.length)];
  };
  for (
    let place = text.indexOf(search.words);
    place >= 0;
    place = text.indexOf(search.words, place + search.words.length)
  ) {
    const range = new Range();
    range.setStart(...at(place));
    range.setEnd(...at(place + search.words.length - 1));
    range.setEnd(range.endContainer, range.endOffset + 1);
    ranges.push(range);
  }
  return ranges;
}

function startLinks() {
  window.addEventListener("hashchange", followLink);
  followLink();
}

// Go to the sample, and the token of its response, that the address names.
function followLink() {
  const [, name, number] = /^#sample-(.+?)(?:-token-(\d+))?$/.exec(location.hash) ?? [];
  const sample = samples.findIndex((candidate) => candidate.name === name);
  if (sample < 0) return;
  if (cards[sample].node.hidden) {
    find("search").value = "";
    searchFor("");
  }
  showCard(sample);
  const index = Number(number) - 1;
  if (!(index >= 0 && index < samples[sample].texts)) {
    cards[sample].node.scrollIntoView({ block: "start", behavior: "instant" });
    return;
  }
  const { node } = tokenAt({ sample, index });
  node.scrollIntoView({ block: "center", behavior: "instant" });
  node.focus({ preventScroll: true });
}
