// Two texts line by line, in the form of the hub's comparison of notebooks (marimohub/compare.py).

// Cells of the table of common subsequences; beyond it everything between the equal ends counts as changed.
const MOST_CELLS = 4_000_000;

function common(a, b) {
  const width = b.length + 1;
  const lengths = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const below = lengths[(i + 1) * width + j];
      const right = lengths[i * width + j + 1];
      lengths[i * width + j] = a[i] === b[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(below, right);
    }
  }
  return (i, j) => lengths[i * width + j];
}

// Indexes of equal lines as pairs, in order.
function pairs(a, b) {
  if ((a.length + 1) * (b.length + 1) > MOST_CELLS) return [];
  const length = common(a, b);
  const found = [];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) found.push([i++, j++]);
    else if (length(i + 1, j) >= length(i, j + 1)) i += 1;
    else j += 1;
  }
  return found;
}

// Rows {op, left, right} with left and right as [number, text] or null.
export function compareLines(left, right) {
  const [a, b] = [left.split("\n"), right.split("\n")];
  let start = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
  const middle = pairs(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const equal = [
    ...Array.from({ length: start }, (_, index) => [index, index]),
    ...middle.map(([i, j]) => [i + start, j + start]),
    ...Array.from({ length: end }, (_, index) => [a.length - end + index, b.length - end + index]),
    [a.length, b.length],
  ];
  const rows = [];
  let [i, j] = [0, 0];
  for (const [toI, toJ] of equal) {
    while (i < toI || j < toJ) {
      const before = i < toI ? [i + 1, a[i++]] : null;
      const after = j < toJ ? [j + 1, b[j++]] : null;
      rows.push({ op: before && after ? "change" : before ? "delete" : "insert", left: before, right: after });
    }
    if (i < a.length && j < b.length) rows.push({ op: "equal", left: [i + 1, a[i++]], right: [j + 1, b[j++]] });
  }
  return rows;
}
