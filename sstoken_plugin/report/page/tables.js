// Breakdowns: how much of what was kept, with the overall share as a mark in every bar.

// A table with more rows than this is shown by its two ends.
const LONG_TABLE = 40;
const END_ROWS = 15;
const SEEN_STEPS = [100, 50, 20, 10, 5, 2, 1];

function buildTable(breakdown) {
  const { title, note, rows, seen, kept } = breakdown;
  const overall = seen ? kept / seen : 0;
  const figureNode = element("section", { class: "breakdown" }, element("h3", {}, visibleLine(title)));
  figureNode.append(
    element("p", { class: "note" }, `${note} Overall ${percent(overall)} were kept: the line in each bar.`.trim()),
  );
  if (breakdown.left_out)
    figureNode.append(
      element(
        "p",
        { class: "note" },
        `Of ${counted(rows.length + breakdown.left_out, "row")}, the ${rows.length} seen most often are here.`,
      ),
    );
  if (rows.length <= LONG_TABLE) figureNode.append(sortableTable(rows, overall));
  else appendEnds(figureNode, rows, overall);
  return figureNode;
}

const shareOf = ([, seen, kept]) => (seen ? kept / seen : 0);

function appendEnds(parent, rows, overall) {
  // Seen often enough for a share to mean something, as long as both ends can be filled.
  const least = SEEN_STEPS.find((step) => rows.filter((row) => row[1] >= step).length >= 2 * END_ROWS) ?? 0;
  const often = rows.filter((row) => row[1] >= least).sort((a, b) => shareOf(b) - shareOf(a) || b[1] - a[1]);
  const seen = least > 1 ? ` of the ${often.length} seen at least ${least} times` : "";
  parent.append(
    element(
      "div",
      { class: "ends" },
      element("div", {}, element("h4", {}, `Most kept${seen}`), plainTable(often.slice(0, END_ROWS), overall)),
      element(
        "div",
        {},
        element("h4", {}, `Most dropped${seen}`),
        plainTable(often.slice(-END_ROWS).reverse(), overall),
      ),
    ),
  );
  const all = element("details", {}, element("summary", {}, `All ${rows.length} rows`));
  all.addEventListener("toggle", () => all.querySelector("table") ?? all.append(sortableTable(rows, overall)), {
    once: true,
  });
  parent.append(all);
}

function plainTable(rows, overall) {
  const head = ["", "seen", "kept"].map((name) => element("th", { scope: "col" }, name));
  return element(
    "table",
    { class: "shares" },
    element("thead", {}, element("tr", {}, ...head)),
    tableBody(rows, overall),
  );
}

function tableBody(rows, overall) {
  return element("tbody", {}, ...rows.map((row) => tableRow(row, overall)));
}

function tableRow(row, overall) {
  const share = shareOf(row);
  const bar = element("span", { class: "bar" }, element("i"), element("b"));
  bar.style.setProperty("--share", share);
  bar.style.setProperty("--overall", overall);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, element("bdi", {}, visibleLine(row[0]))),
    element("td", {}, grouped(row[1])),
    element("td", { title: `${grouped(row[2])} of ${grouped(row[1])}` }, bar, element("span", {}, percent(share))),
  );
}

function sortableTable(rows, overall) {
  const table = element("table", { class: "shares" });
  const columns = [
    ["", (row) => row[0]],
    ["seen", (row) => -row[1]],
    ["kept", (row) => -shareOf(row)],
  ];
  const heads = columns.map(([name, key], column) => {
    const button = element("button", { type: "button" }, name || "name");
    const head = element("th", { scope: "col" }, button);
    button.addEventListener("click", () => {
      // Once: biggest first; twice: smallest first; three times: as given.
      const next = { none: "descending", descending: "ascending", ascending: "none" }[
        head.getAttribute("aria-sort") ?? "none"
      ];
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next !== "none") head.setAttribute("aria-sort", next);
      const compare = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);
      const sorted =
        next === "none" ? rows : [...rows].sort((a, b) => (next === "descending" ? compare(a, b) : compare(b, a)));
      table.tBodies[0].replaceWith(tableBody(sorted, overall));
    });
    head.dataset.column = column;
    return head;
  });
  table.append(element("thead", {}, element("tr", {}, ...heads)), tableBody(rows, overall));
  return table;
}
