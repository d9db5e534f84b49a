// The selection, as sstoken_plugin/selection/scores.py has it. Python works in float32, so each operation is rounded to
// float32 here, in the same order; only the product that gives k is in doubles there too.

const f32 = Math.fround;
const EPSILON = f32(1e-8);

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
  return bytes;
}

// Arrays travel in the byte order of every machine that a browser runs on.
const arrayOf = (Kind, base64) => new Kind(bytesOf(base64).buffer);

// Float32Array, or null for "", which stands for an array of nothing but NaN.
const floatsOf = (base64) => (base64 ? arrayOf(Float32Array, base64) : null);

function bitsOf(base64, count) {
  const bytes = bytesOf(base64);
  return Uint8Array.from({ length: count }, (_, index) => (bytes[index >> 3] >> (index & 7)) & 1);
}

// Lowest and highest finite value, null if there is none.
function rangeOf(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values ?? []) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

function normalise(rel) {
  const [low, high] = rangeOf(rel) ?? [0, 0];
  const width = f32(f32(high - low) + EPSILON);
  return rel.map((value) => f32(value - low) / width);
}

// rel and attention are null where they were not measured: then they count as 0. A single NaN ranks its token last.
function blend(rel, attention, gamma, hasPrompt, count) {
  const scaled = rel ? normalise(rel) : new Float32Array(count);
  if (!hasPrompt) return scaled;
  const mass = attention ?? new Float32Array(count);
  const [one, other] = [f32(gamma), f32(1 - gamma)];
  return scaled.map((value, index) => f32(one * value) + f32(other * mass[index]));
}

// What ranks: no finite score is last.
const keysOf = (score) => score.map((value) => (Number.isFinite(value) ? value : -Infinity));

// Indices, best first: end tokens, then by score; among equals the earlier token.
function rankOrder(score, ends) {
  const key = keysOf(score);
  return Uint32Array.from(score.keys()).sort((a, b) => {
    if (ends[a] !== ends[b]) return ends[b] - ends[a];
    if (key[a] !== key[b]) return key[a] > key[b] ? -1 : 1;
    return a - b;
  });
}

// ends: how many are kept whatever their score.
function keptCount(ratio, count, ends) {
  return Math.max(Math.ceil(ratio * count), Math.min(2 * ends, count));
}

// { score, rank: 1 for the best, kept: 1 where kept, total: how many are kept, of which end tokens are the first }
function selectTop(score, ends, total) {
  return ranked({ score, kept: bestOf(score, ends, total), total }, score, ends);
}

// Give a selection its ranks. They are made when a token is looked at, because ranking is most of the work.
function ranked(selection, score, ends) {
  let rank;
  return Object.defineProperty(selection, "rank", {
    get: () => {
      rank ??= score ? ranksOf(rankOrder(score, ends)) : null;
      return rank;
    },
  });
}

// As the first `total` of the order by rank, but by the lowest score that is kept.
function bestOf(score, ends, total) {
  const key = keysOf(score);
  const kept = Uint8Array.from(ends);
  const others = key.filter((_, index) => !ends[index]);
  let left = total - (key.length - others.length);
  if (left <= 0) return kept;
  const lowest = others.sort()[others.length - left];
  key.forEach((value, index) => {
    if (ends[index] || !(value > lowest)) return;
    kept[index] = 1;
    left--;
  });
  for (let index = 0; left > 0; index++) {
    if (ends[index] || key[index] !== lowest) continue;
    kept[index] = 1;
    left--;
  }
  return kept;
}

function ranksOf(order) {
  const rank = new Uint32Array(order.length);
  order.forEach((index, place) => {
    rank[index] = place + 1;
  });
  return rank;
}
