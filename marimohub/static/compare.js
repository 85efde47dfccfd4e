// Two texts side by side: which lines went (−), which came (+), and unchanged stretches folded.
import { h } from "./dom.js";
import { Panel } from "./panels.js";
import { timeElement } from "./rows.js";

const LONGEST_UNCHANGED = 6;
const CONTEXT = 3;
const TRUNCATED = "These texts are too long to be shown in full: lines are left off at the end or cut.";

// Rows of the hub's comparison as stretches: {rows} to show, or {folded} to hide behind a button.
export function stretches(rows) {
  const result = [];
  let start = 0;
  while (start < rows.length) {
    const equal = rows[start].op === "equal";
    let end = start;
    while (end < rows.length && (rows[end].op === "equal") === equal) end += 1;
    const from = start === 0 ? start : start + CONTEXT;
    const to = end === rows.length ? end : end - CONTEXT;
    if (equal && end - start > LONGEST_UNCHANGED && to > from) {
      result.push({ rows: rows.slice(start, from) }, { folded: rows.slice(from, to) }, { rows: rows.slice(to, end) });
    } else {
      result.push({ rows: rows.slice(start, end) });
    }
    start = end;
  }
  return result;
}

function cells(side, line, mark) {
  const [number, text] = line ?? ["", ""];
  const look = line ? `side-${side}` : `side-${side} is-absent`;
  return [
    h("td", { class: `c-number ${look}` }, String(number)),
    h("td", { class: `c-mark ${look}` }, line ? mark : ""),
    h("td", { class: `c-line ${look}` }, text),
  ];
}

function buildRow({ op, left, right }) {
  const same = op === "equal";
  return h("tr", { class: `op-${op}` }, ...cells("left", left, same ? "" : "−"), ...cells("right", right, same ? "" : "+"));
}

function buildFold(rows) {
  const plural = rows.length === 1 ? "" : "s";
  const button = h("button", { type: "button", class: "mh-unfold" }, `… ${rows.length} unchanged line${plural}`);
  const row = h("tr", { class: "is-fold" }, h("td", { colspan: "6" }, button));
  button.addEventListener("click", () => {
    const shown = rows.map(buildRow);
    row.replaceWith(...shown);
    shown[0].tabIndex = -1;
    shown[0].focus({ preventScroll: true });
  });
  return row;
}

function head({ label, created }, mark, now) {
  return h(
    "th",
    { scope: "colgroup", colspan: "3" },
    h("b", { "aria-hidden": "true" }, mark),
    ` ${label} `,
    created === undefined ? null : h("span", { class: "mh-soft" }, timeElement(created, now)),
  );
}

export function buildComparison({ left, right, rows, truncated }, now) {
  if (!truncated && rows.every(({ op }) => op === "equal")) {
    return [h("p", { class: "mh-soft", role: "status" }, "Both texts are the same.")];
  }
  const parts = stretches(rows).flatMap((part) => (part.folded ? [buildFold(part.folded)] : part.rows.map(buildRow)));
  const table = h(
    "table",
    { class: "mh-compare", "aria-label": `${left.label} and ${right.label}, line by line` },
    h("thead", {}, h("tr", {}, head(left, "−", now), head(right, "+", now))),
    h("tbody", {}, ...parts),
  );
  return [truncated ? h("p", { class: "mh-alert mh-alert-warning" }, TRUNCATED) : null, table].filter(Boolean);
}

export class CompareView {
  constructor({ api, now }) {
    this.api = api;
    this.now = now;
    this.panel = new Panel("compare-dialog");
  }

  // left and right: "current", "version:ID" or "draft:ID".
  open({ notebook, title, left, right, opener }) {
    return this.panel.show({
      title,
      opener,
      load: async () => buildComparison(await this.api.compare(notebook, left, right), this.now()),
    });
  }
}
