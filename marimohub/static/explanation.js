// One person's access as the hub explains it: facts, tables with their columns, views, and what is left out.
import { h } from "./dom.js";

const number = new Intl.NumberFormat();
const OPEN_AT_MOST = 4; // more tables start folded
const SEARCH_FROM = 6;
const counted = (count, word) => `${number.format(count)} ${word}${count === 1 ? "" : "s"}`;

function pill(look, text) {
  return h("span", { class: `status ${look}` }, h("span", {}, text));
}

function seen({ visible, mask }) {
  if (!visible) return pill("status-hidden", "hidden");
  return mask === null ? pill("status-available", "visible") : pill("status-masked", `masked: ${mask}`);
}

function columnRow(column) {
  const { name, type, level, tags, rule, reason, granted_by: granted } = column;
  const marks = tags.map((tag) => h("span", { class: "mh-tag" }, tag));
  const rules = [rule && `rule “${rule}”`, granted && `grant “${granted}”`].filter(Boolean).join(", ");
  return h(
    "tr",
    { class: column.visible ? "" : "is-hidden" },
    h("th", { scope: "row", class: "c-name" }, h("code", { class: "name" }, name), h("span", { class: "mh-type" }, type)),
    h("td", { "data-label": "Seen as" }, seen(column)),
    h(
      "td",
      { "data-label": "Level, tags" },
      h("span", { class: "mh-marks" }, level === null ? "—" : h("span", {}, level), ...marks),
    ),
    h("td", { "data-label": "Why" }, h("span", {}, reason, rules && h("span", { class: "mh-rule" }, rules))),
  );
}

function rowsKept({ rows, visible_rows: kept, filters, no_rows: none, visible }) {
  if (!visible) return "no column is visible";
  if (none) return rows === null ? "no rows" : `no rows of ${number.format(rows)}`;
  if (rows === null) return counted(kept ?? 0, "row");
  if (kept === null || kept === undefined || !filters.length) return `all ${counted(rows, "row")}`;
  return `${number.format(kept)} of ${counted(rows, "row")}`;
}

function buildTable(table, open) {
  const shown = table.columns.filter(({ visible }) => visible);
  const masked = shown.filter(({ mask }) => mask !== null).length;
  const facts = [
    h("span", { class: "mh-fact" }, rowsKept(table)),
    h("span", { class: "mh-fact" }, `${shown.length} of ${counted(table.columns.length, "column")}`),
    masked > 0 && h("span", { class: "mh-fact" }, `${masked} masked`),
  ];
  const notes = [
    table.no_rows && h("p", { class: "mh-note is-warning" }, `No rows: ${table.no_rows}`),
    table.filters.length > 0 &&
      h("p", { class: "mh-note" }, "Row filters: ", ...table.filters.map((name) => h("span", { class: "mh-tag" }, name))),
  ];
  const head = ["Column", "Seen as", "Level, tags", "Why"].map((title) => h("th", { scope: "col" }, title));
  const columns = h(
    "table",
    { class: "mh-table is-columns", "aria-label": `Columns of ${table.display}` },
    h("thead", {}, h("tr", {}, ...head)),
    h("tbody", {}, ...table.columns.map(columnRow)),
  );
  const made = h(
    "details",
    { class: table.visible ? "mh-access" : "mh-access is-hidden" },
    h("summary", {}, h("code", { class: "name" }, table.display), h("span", { class: "mh-facts" }, ...facts)),
    ...notes,
    columns,
  );
  made.open = open;
  made.dataset.words = [table.display, ...table.columns.map(({ name }) => name)].join("\n").toLowerCase();
  return made;
}

function listed(values) {
  return values.length ? values.join(", ") : "none";
}

function attributeText({ held, value }) {
  if (!held && (value === null || value === undefined)) return "not set";
  const text = Array.isArray(value) ? listed(value.map(String)) : String(value);
  return held ? text : `${text} (does not count)`;
}

function buildFacts(explained, own) {
  const facts = [
    ["Role", explained.role ?? "none"],
    ["Groups", listed(explained.groups)],
    ["Clearance", explained.revision ? explained.clearance : "none"],
    ["Policy", explained.revision ? `revision ${explained.revision}` : "none yet"],
  ];
  if (own) {
    for (const [name, held] of Object.entries(explained.attributes)) facts.push([name, attributeText(held)]);
  }
  const parts = facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  return h("dl", { class: "mh-person" }, ...parts);
}

function buildTables(tables, own) {
  const visible = tables.filter(({ visible: any }) => any).length;
  const built = tables.map((table) => buildTable(table, table.visible && tables.length <= OPEN_AT_MOST));
  const head = h("div", { class: "mh-section-head" }, h("h2", {}, "Tables"));
  if (!tables.length) {
    const text = own ? "You see no tables." : "No tables.";
    return [head, h("p", { class: "mh-soft" }, `${text} The policy names none that are in the warehouse.`)];
  }
  head.append(h("span", { class: "mh-soft" }, `${visible} of ${counted(tables.length, "table")} visible`));
  if (tables.length >= SEARCH_FROM) {
    const search = h("input", {
      type: "search",
      class: "form-control form-control-sm",
      placeholder: "Search tables and columns",
      "aria-label": "Search tables and columns",
    });
    search.addEventListener("input", () => {
      const query = search.value.trim().toLowerCase();
      for (const each of built) each.hidden = !each.dataset.words.includes(query);
    });
    head.append(search);
  }
  return [head, ...built];
}

function buildOmitted(omitted) {
  const rows = omitted.map(({ kind, name, reason }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", class: "c-name" }, h("code", { class: "name" }, name)),
      h("td", { "data-label": "Kind" }, h("span", {}, kind)),
      h("td", { "data-label": "Why" }, h("span", {}, reason)),
    ),
  );
  const head = ["Name", "Kind", "Why"].map((title) => h("th", { scope: "col" }, title));
  const table = h(
    "table",
    { class: "mh-table is-omitted", "aria-label": "What is not there" },
    h("thead", {}, h("tr", {}, ...head)),
    h("tbody", {}, ...rows),
  );
  const summary = h("summary", {}, "Not there", h("span", { class: "mh-facts" }, counted(omitted.length, "thing")));
  return h("details", { class: "mh-access is-plain" }, summary, table);
}

// attributes: an element to show after the facts, or null.
export function buildExplanation(explained, { own, attributes }) {
  const parts = [buildFacts(explained, own)];
  if (!explained.revision) {
    const text = own
      ? "No policy has been applied yet, so you see no data. An administrator has to give access first."
      : "No policy has been applied yet, so nobody sees any data.";
    return [...parts, h("p", { class: "mh-alert mh-alert-warning" }, h("span", {}, text))];
  }
  if (attributes) parts.push(attributes);
  if (!own && explained.warnings.length) {
    const text = `The policy has ${counted(explained.warnings.length, "warning")}. The Data policy page lists them.`;
    parts.push(h("p", { class: "mh-alert mh-alert-warning" }, h("span", {}, text)));
  }
  parts.push(...buildTables(explained.tables, own));
  if (explained.views.length) {
    const views = explained.views.map((name) => h("li", {}, h("code", { class: "name" }, name)));
    parts.push(h("h2", {}, "Views"), h("ul", { class: "mh-views" }, ...views));
    parts.push(h("p", { class: "mh-soft" }, "A view shows what comes of the tables above, with their masks and filters."));
  }
  if (explained.omitted.length) parts.push(buildOmitted(explained.omitted));
  return parts;
}
