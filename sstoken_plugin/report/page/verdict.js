// The head of the page: four questions and their answers, and what was run.

function startVerdict() {
  find("facts").append(...DATA.facts.map(([name, value]) => element("span", { title: name }, visibleLine(value))));
  find("facts").append(element("span", {}, `this page: ${DATA.size}`));
  find("findings").append(...DATA.verdict.map(buildFinding));
  find("sentence").textContent = visibleLine(DATA.sentence);
  find("history").textContent = `REL compares with ${visibleLine(DATA.history).replace(/\.$/, "")}.`;
  find("history").hidden = !DATA.history;
  find("left-out").textContent = DATA.left_out;
  find("left-out").hidden = !DATA.left_out;
  for (const name of ["facts", "settings", "versions"]) find(`${name}-table`).append(...DATA[name].map(pair));
}

function buildFinding({ question, answer, sentences, tone }) {
  // On a phone the answers come first; a warning is never folded.
  const node = element("details", { class: `finding ${tone}`, open: tone === "warning" || !isPhone() });
  const list = sentences.map((sentence) => element("li", {}, ...withCode(visibleLine(sentence))));
  node.append(
    element("summary", {}, element("h2", {}, question), " ", element("b", {}, answer)),
    element("ul", {}, ...list),
  );
  return node;
}

// What stands between two ` is code.
const withCode = (text) => text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));

function pair([name, value]) {
  return element("tr", {}, element("th", { scope: "row" }, visibleLine(name)), element("td", {}, visibleLine(value)));
}
