// What two people see differently, in sentences.
import { h } from "./dom.js";

const code = (name) => h("code", { class: "name" }, name);

function names(list) {
  return list.flatMap((name, index) => (index ? [", ", code(name)] : [code(name)]));
}

const quoted = (list) => (list.length ? list.map((name) => `“${name}”`).join(", ") : "none");

function rowsText(change, { user, other }) {
  const { no_rows_before: before, no_rows_after: after } = change;
  if (before && !after) return `Rows: ${other} sees some, ${user} none (${before})`;
  if (after && !before) return `Rows: ${user} sees some, ${other} none (${after})`;
  return `Rows are chosen differently. Filters for ${user}: ${quoted(change.filters_before)}; for ${other}: ${quoted(change.filters_after)}`;
}

function changedTable(change, people) {
  const { user, other } = people;
  const items = [
    change.columns_added.length > 0 && h("li", {}, `Only ${other} sees `, ...names(change.columns_added)),
    change.columns_removed.length > 0 && h("li", {}, `Only ${user} sees `, ...names(change.columns_removed)),
    ...change.masks.map(({ column, before, after }) =>
      h("li", {}, code(column), `: ${before ?? "unmasked"} for ${user}, ${after ?? "unmasked"} for ${other}`),
    ),
    change.rows && h("li", {}, rowsText(change, people)),
  ];
  return h("li", {}, code(change.table), h("ul", {}, ...items));
}

function group(title, list) {
  return list.length ? h("li", {}, `${title} `, ...names(list)) : null;
}

// difference: the hub's, of `other` as seen from `user`.
export function buildDifference(difference, people) {
  const { user, other } = people;
  if (difference.same) return [h("p", { class: "mh-same" }, `${user} and ${other} see exactly the same.`)];
  const items = [
    group(`Tables only ${other} sees:`, difference.tables_added),
    group(`Tables only ${user} sees:`, difference.tables_removed),
    group(`Views only ${other} sees:`, difference.views_added),
    group(`Views only ${user} sees:`, difference.views_removed),
    group("Views of different texts:", difference.views_changed),
    ...difference.changed.map((change) => changedTable(change, people)),
  ].filter(Boolean);
  return [h("ul", { class: "mh-differences" }, ...items)];
}
