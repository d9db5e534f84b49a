// Text that nobody vetted: what would hide, reorder or overprint other text becomes a visible mark. Only textContent
// is ever set, so no text is markup.

// Characters that show nothing or act on others: controls, formats, unassigned ones, lone surrogates, blank letters.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Zl}\p{Zp}\u115f\u1160\u3164\uffa0\u2800]|\u034f/u;
// Formats of Arabic and Kaithi that are drawn.
const DRAWN = /[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u{110bd}\u{110cd}]/u;
// Where joiners shape the text: inside emoji, and in scripts whose letters join.
const JOINS = /[\p{Extended_Pictographic}\p{Emoji_Modifier}\p{M}]|(?=\P{Script=Latin})\p{L}/u;

// Most text: nothing in it needs a look.
const PLAIN = /^[\x20-\x7e]+$/;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// As screens.css has it.
const isPhone = () => matchMedia("(max-width: 60rem)").matches;

const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

// null for a character that can stand as it is.
function markOf(character, before) {
  if (character === "\n" || character === "\t" || !INVISIBLE.test(character) || DRAWN.test(character)) return null;
  if ((character === "\u200c" || character === "\u200d") && JOINS.test(before)) return null;
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  return code === 0x7f ? "\u2421" : `[${codePoint(character)}]`;
}

// Append a text to a parent. `before` is the character that precedes it; returns its last character.
function appendText(parent, text, before = "") {
  if (PLAIN.test(text)) {
    parent.append(text);
    return text.at(-1);
  }
  let plain = "";
  const flush = () => {
    if (plain) parent.append(plain);
    plain = "";
  };
  for (const character of text) {
    const mark = markOf(character, before);
    before = character;
    if (mark !== null) {
      flush();
      parent.append(element("span", { class: "mark" }, mark));
    } else if (character === "\n" || character === "\t") {
      flush();
      // The sign for it is drawn by the style, so that copied text stays the text.
      parent.append(element("span", { class: character === "\n" ? "newline" : "tab" }, character));
    } else {
      plain += character;
    }
  }
  flush();
  return before;
}

// One line of text, for labels: white space that would not be seen is drawn.
function visibleLine(text) {
  if (!text) return "(empty)";
  let line = "";
  for (const character of text)
    line += { "\n": "↵", "\t": "⇥" }[character] ?? markOf(character, line.slice(-1)) ?? character;
  return line.replace(/^ +| +$| {2,}/g, (spaces) => "␣".repeat(spaces.length));
}

// A number for reading, to so many significant digits.
function figure(value, digits = 4) {
  if (value === undefined || value === null || Number.isNaN(value)) return "not measured";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2);
  return value.toLocaleString("en", {
    maximumFractionDigits: Math.max(0, digits - 1 - Math.floor(Math.log10(size))),
    useGrouping: size >= 1e5,
  });
}

const grouped = (count) => count.toLocaleString("en");
const counted = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
const tokensChange = (count) => `${counted(count, "token")} change${count === 1 ? "s" : ""}`;

// A share in percent, as sstoken_plugin/base/numbers.py has it.
function percent(share) {
  const rounded = (digits) => Math.floor(100 * share * 10 ** digits + 0.5) / 10 ** digits;
  let digits = share > 0 && share < 0.0995 ? 1 : 0;
  while (share > 0 && share < 1 && !(rounded(digits) > 0 && rounded(digits) < 100) && digits < 15) digits++;
  return `${rounded(digits).toFixed(digits)}\u00a0%`;
}
