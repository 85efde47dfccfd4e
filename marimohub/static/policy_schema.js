// What is in the warehouse, as a reference beside the editor.
import { h } from "./dom.js";
import { errorText } from "./panels.js";

const number = new Intl.NumberFormat();
const rowsOf = (count) => `${number.format(count)} row${count === 1 ? "" : "s"}`;
const PLAIN = /^[A-Za-z_][A-Za-z0-9_]*$/;
const quoted = (name) => (PLAIN.test(name) ? name : `"${name.replaceAll('"', '""')}"`);

export function displayName({ schema, name }) {
  return `${quoted(schema)}.${quoted(name)}`;
}

function object(found, note) {
  const columns = found.columns.map(({ name, type, generated }) =>
    h("li", {}, h("code", {}, name), h("span", { class: "mh-soft" }, generated ? `${type}, generated` : type)),
  );
  const summary = h("summary", {}, h("code", {}, displayName(found)), h("span", { class: "mh-soft" }, note));
  const made = h("details", { class: "mh-object" }, summary, h("ul", {}, ...columns));
  made.dataset.words = [displayName(found), ...found.columns.map(({ name }) => name)].join("\n").toLowerCase();
  return made;
}

export class WarehouseReference {
  constructor({ api, details, box, search }) {
    Object.assign(this, { api, details, box, search });
    details.addEventListener("toggle", () => details.open && !this.loaded && this.load());
    search.addEventListener("input", () => this.filter());
  }

  async load() {
    this.loaded = true;
    this.box.replaceChildren(h("p", { class: "mh-soft", role: "status" }, "Reading the warehouse…"));
    try {
      const { tables, views, others } = await this.api.schema();
      const made = [
        ...tables.map((table) => object(table, rowsOf(table.rows))),
        ...views.map((view) => object(view, "view")),
      ];
      const never = h("p", { class: "mh-soft" }, `Never in a snapshot: ${others.map(({ name }) => name).join(", ")}.`);
      const empty = h("p", { class: "mh-soft" }, "The warehouse has no tables.");
      this.box.replaceChildren(...(made.length ? made : [empty]), ...(others.length ? [never] : []));
      this.search.hidden = made.length < 2;
      this.filter();
    } catch (error) {
      this.loaded = false; // opening it again tries again
      this.box.replaceChildren(errorText(error));
    }
  }

  filter() {
    const query = this.search.value.trim().toLowerCase();
    for (const each of this.box.querySelectorAll(".mh-object")) each.hidden = !each.dataset.words.includes(query);
  }
}
