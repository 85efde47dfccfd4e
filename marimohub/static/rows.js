// One row of the Notebooks table. templates/notebook_row.html builds the same markup: change both together.
import { h } from "./dom.js";

const LABELS = { open: "Open", release: "Release Lock", copy: "Copy", force_unlock: "Force Unlock", delete: "Delete" };
const MISSING = "The .py file has been deleted from disk. Create a new notebook with the same name to replace it.";
const UNITS = [
  [365 * 86400, "y"],
  [30 * 86400, "mo"],
  [86400, "d"],
  [3600, "h"],
  [60, "m"],
];

// "2h ago" for an ISO 8601 time; `now` in milliseconds.
export function ago(iso, now) {
  if (!iso) return "—";
  const seconds = (now - Date.parse(iso)) / 1000;
  for (const [size, unit] of UNITS) if (seconds >= size) return `${Math.floor(seconds / size)}${unit} ago`;
  return "just now";
}

const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// Writes the relative text and, as title, the exact time in the reader's own time zone.
export function refreshTime(element, now) {
  const iso = element.getAttribute("datetime");
  const text = ago(iso, now);
  if (element.textContent !== text) element.textContent = text;
  if (!element.dataset.local && iso) {
    element.title = exact.format(new Date(iso));
    element.dataset.local = "yes";
  }
}

// A time as the page shows it: relative, with the exact time on hover.
export function timeElement(iso, now) {
  const element = h("time", { datetime: iso ?? "" });
  refreshTime(element, now);
  return element;
}

function lockStatus(lock, now) {
  if (lock.state === "mine") {
    return h("span", { class: "status status-mine" }, h("span", {}, "Editing (", timeElement(lock.since, now), ")"));
  }
  if (lock.state === "locked") {
    return h("span", { class: "status status-locked" }, h("span", {}, `Locked by ${lock.holder_email ?? lock.holder}`));
  }
  return h("span", { class: "status status-available" }, h("span", {}, "Available"));
}

function action(key, notebook) {
  const why = key === "delete" ? notebook.delete_blocked : null;
  const looks = { open: "btn btn-primary", delete: "btn btn-quiet is-danger" }[key] ?? "btn btn-quiet";
  return h(
    "button",
    {
      type: "button",
      class: looks,
      "data-action": key,
      "aria-label": `${LABELS[key]} ${notebook.name}`,
      "aria-disabled": why ? "true" : null,
      "aria-description": why,
      "data-why": why,
    },
    LABELS[key],
  );
}

function name(notebook, role, busy) {
  const mine = notebook.lock.state === "mine";
  const opens = !busy && (notebook.actions.includes("open") || (mine && notebook.file_exists && role !== "viewer"));
  if (!opens) return h("span", { class: "name" }, notebook.name);
  const title = mine ? "Continue editing" : "Open";
  return h("button", { type: "button", class: "name-link", "data-action": "open", title }, notebook.name);
}

function modified(notebook, role, now) {
  const label = `Versions of ${notebook.name}`;
  const icon = h("i", { class: "fa fa-clock-rotate-left", "aria-hidden": "true" });
  const looks = { class: "mh-icon", "data-action": "versions", "aria-label": label, title: label };
  const button = role === "viewer" ? null : h("button", { type: "button", ...looks }, icon);
  return h("span", { class: "modified" }, timeElement(notebook.modified, now), button);
}

// opening: null, {message, progress} while it starts, or {url} when it is ready but its tab could not be opened.
function actions(notebook, opening) {
  if (opening && !opening.url) {
    return h(
      "div",
      { class: "row-progress", role: "status" },
      h("span", {}, opening.message),
      h("progress", { max: "100", value: opening.progress, "aria-label": `Opening ${notebook.name}` }),
    );
  }
  const buttons = Object.keys(LABELS).filter((key) => notebook.actions.includes(key) && !(opening && key === "open"));
  const box = h("div", { class: "row-actions" }, ...buttons.map((key) => action(key, notebook)));
  if (opening) {
    const link = { href: opening.url, target: "_blank", rel: "noopener", "data-ready": notebook.name };
    box.prepend(h("a", { class: "btn btn-primary", ...link }, `Open ${notebook.name}`));
  }
  return box;
}

export function buildRow(notebook, { role, opening = null, now }) {
  const row = h(
    "tr",
    { "data-name": notebook.name },
    h(
      "th",
      { scope: "row", class: "c-name" },
      name(notebook, role, opening && !opening.url),
      notebook.file_exists ? null : h("span", { class: "badge-missing", title: MISSING }, "missing file"),
    ),
    h("td", { class: "c-author", "data-label": "Author" }, h("span", {}, notebook.author_email || "—")),
    h("td", { class: "c-modified", "data-label": "Last Modified" }, modified(notebook, role, now)),
    h("td", { class: "c-lock", "data-label": "Lock Status" }, lockStatus(notebook.lock, now)),
  );
  if (role !== "viewer") row.append(h("td", { class: "c-actions" }, actions(notebook, opening)));
  return row;
}
