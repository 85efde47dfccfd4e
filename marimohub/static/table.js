// The table of notebooks: keeps the rows of the page equal to the latest listing, and sorts and searches them.
import { byId } from "./dom.js";
import { buildRow, refreshTime } from "./rows.js";

const LOCK_ORDER = { mine: 0, locked: 1, available: 2 };
const KEYS = {
  name: (notebook) => notebook.name.toLowerCase(),
  author: (notebook) => (notebook.author_email ?? "\uffff").toLowerCase(), // unknown authors last
  modified: (notebook) => notebook.modified ?? "",
  lock: (notebook) => `${LOCK_ORDER[notebook.lock.state]} ${notebook.lock.holder ?? ""}`,
};
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

export class Table {
  // now() gives the hub's time in milliseconds; the rows that the server rendered are taken over as they are.
  constructor(listing, now) {
    this.now = now;
    this.listing = listing;
    this.body = byId("rows");
    this.rows = new Map(); // name -> {element, signature, notebook}
    this.opening = new Map(); // name -> {message, progress} | {url}
    this.sort = { key: "name", direction: "ascending" };
    this.query = "";
    const elements = new Map([...this.body.children].map((element) => [element.dataset.name, element]));
    for (const notebook of listing.notebooks) {
      const element = elements.get(notebook.name);
      if (element) this.rows.set(notebook.name, { element, signature: this.signature(notebook), notebook });
      else this.put(notebook); // of a long list the server renders the beginning
    }
    if (elements.size < this.rows.size) this.arrange();
    this.wire();
    this.tick();
  }

  wire() {
    byId("search").addEventListener("input", (event) => this.search(event.target.value));
    byId("clear-search").addEventListener("click", () => {
      byId("search").value = "";
      this.search("");
      byId("search").focus();
    });
    for (const button of document.querySelectorAll(".mh-sort")) {
      button.addEventListener("click", () => {
        const key = button.dataset.sort;
        const first = key === "modified" ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        this.sortBy(key, this.sort.key === key && this.sort.direction === first ? second : first);
      });
    }
    byId("sort-select").addEventListener("change", (event) => this.sortBy(...event.target.value.split(" ")));
  }

  signature(notebook) {
    return JSON.stringify([notebook, this.listing.role, this.opening.get(notebook.name) ?? null]);
  }

  get(name) {
    return this.rows.get(name)?.notebook;
  }

  update(listing) {
    this.listing = listing;
    const names = new Set(listing.notebooks.map((notebook) => notebook.name));
    for (const [name, { element }] of this.rows) {
      if (!names.has(name)) {
        element.remove();
        this.rows.delete(name);
      }
    }
    for (const notebook of listing.notebooks) this.put(notebook);
    this.arrange();
  }

  // Progress changes several times a second: only its own row is touched.
  setOpening(name, state) {
    if (state) this.opening.set(name, state);
    else this.opening.delete(name);
    const row = this.rows.get(name);
    if (row) this.put(row.notebook);
  }

  put(notebook) {
    const row = this.rows.get(notebook.name);
    const signature = this.signature(notebook);
    if (row?.signature === signature) return;
    const opening = this.opening.get(notebook.name) ?? null;
    const element = buildRow(notebook, { role: this.listing.role, opening, now: this.now() });
    if (row) {
      const focused = row.element.contains(document.activeElement) ? document.activeElement.dataset.action : null;
      element.hidden = row.element.hidden;
      row.element.replaceWith(element);
      if (focused) (element.querySelector(`[data-action="${focused}"]`) ?? element.querySelector("button"))?.focus();
    }
    this.rows.set(notebook.name, { element, signature, notebook });
  }

  sortBy(key, direction) {
    this.sort = { key, direction };
    for (const button of document.querySelectorAll(".mh-sort")) {
      const header = button.closest("th");
      if (button.dataset.sort === key) header.setAttribute("aria-sort", direction);
      else header.removeAttribute("aria-sort");
    }
    byId("sort-select").value = `${key} ${direction}`;
    this.arrange();
  }

  search(query) {
    this.query = query.trim();
    this.filter();
  }

  // Puts the rows in order, moving only what is out of place, so that focus and selection stay where they are.
  arrange() {
    const key = KEYS[this.sort.key];
    const sign = this.sort.direction === "ascending" ? 1 : -1;
    const ordered = [...this.rows.values()]
      .map(({ element, notebook }) => ({ element, key: key(notebook), name: notebook.name.toLowerCase() }))
      .sort((a, b) => sign * compare(a.key, b.key) || compare(a.name, b.name));
    const current = this.body.children;
    if (ordered.some(({ element }, index) => current[index] !== element)) {
      const active = this.body.contains(document.activeElement) ? document.activeElement : null;
      this.body.append(...ordered.map(({ element }) => element));
      active?.focus({ preventScroll: true });
    }
    this.filter();
  }

  filter() {
    const query = this.query.toLowerCase();
    let hits = 0;
    for (const { element, notebook } of this.rows.values()) {
      const text = `${notebook.name}\n${notebook.author_email ?? ""}`.toLowerCase();
      const hit = text.includes(query);
      if (element.hidden === hit) element.hidden = !hit;
      hits += hit;
    }
    const total = this.rows.size;
    const plural = total === 1 ? "" : "s";
    const count = query ? `${hits} of ${total} notebook${plural}` : `${total} notebook${plural}`;
    if (byId("count").textContent !== count) byId("count").textContent = count;
    for (const id of ["tools", "table-card", "lock-note"]) byId(id).hidden = total === 0;
    byId("empty").hidden = total > 0;
    byId("no-hit").hidden = total === 0 || hits > 0;
    byId("no-hit-query").textContent = this.query;
  }

  tick() {
    const now = this.now();
    for (const element of this.body.querySelectorAll("time")) refreshTime(element, now);
  }

  // Brings a row that the user has just made into view, whatever they were searching for.
  reveal(name) {
    const row = this.rows.get(name);
    if (!row) return;
    if (row.element.hidden) {
      byId("search").value = "";
      this.search("");
    }
    row.element.classList.add("is-new");
    row.element.scrollIntoView({ block: "nearest" });
    row.element.querySelector("button")?.focus({ preventScroll: true });
  }
}
