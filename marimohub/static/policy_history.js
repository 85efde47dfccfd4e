// The revisions of the policy: look at one, compare it with the editor, load it there.
import { h } from "./dom.js";
import { errorText, Panel } from "./panels.js";
import { timeElement } from "./rows.js";

function button(label, run, spoken) {
  const made = h("button", { type: "button", class: "btn btn-quiet", "aria-label": spoken ?? label }, label);
  made.addEventListener("click", () => run(made));
  return made;
}

export class PolicyHistory {
  // load(revision) puts a revision into the editor; compare(revision, opener) shows it beside the editor's text.
  constructor({ api, now, details, box, load, compare }) {
    Object.assign(this, { api, now, box, load, compare, details });
    this.panel = new Panel("revision-dialog");
    details.addEventListener("toggle", () => details.open && this.refresh());
  }

  async refresh() {
    if (!this.details.open) return;
    if (!this.box.children.length) this.box.replaceChildren(h("p", { class: "mh-soft", role: "status" }, "Loading…"));
    try {
      const { revisions } = await this.api.history();
      const rows = revisions.map((revision, index) => this.row(revision, index === 0));
      this.box.replaceChildren(
        rows.length ? h("ul", { class: "mh-revisions" }, ...rows) : h("p", { class: "mh-soft" }, "Nothing applied yet."),
      );
    } catch (error) {
      this.box.replaceChildren(errorText(error));
    }
  }

  row({ revision, author, comment, created }, current) {
    const about = `revision ${revision}`;
    return h(
      "li",
      {},
      h(
        "p",
        {},
        h("b", {}, `Revision ${revision}`),
        current && h("span", { class: "mh-tag" }, "applies now"),
        h("span", { class: "mh-soft" }, `by ${author}, `, timeElement(created, this.now())),
      ),
      comment && h("p", { class: "mh-comment" }, comment),
      h(
        "div",
        { class: "row-actions" },
        button("View", (opener) => this.view(revision, opener), `View ${about}`),
        button("Load into editor", (opener) => this.load(revision, opener), `Load ${about} into the editor`),
      ),
    );
  }

  view(number, opener) {
    this.panel.show({
      title: `Revision ${number}`,
      opener,
      load: async () => {
        const { text, author, created, comment } = await this.api.revision(number);
        const about = h("p", { class: "mh-soft" }, `Applied by ${author}, `, timeElement(created, this.now()));
        const compare = button("Compare with the editor", (asked) => this.compare(number, asked));
        const load = button("Load into editor", () => {
          this.panel.dialog.close();
          this.load(number, opener);
        });
        const lines = h("pre", { class: "mh-text", tabindex: "0", "aria-label": `Text of revision ${number}` }, text);
        const said = comment ? h("p", { class: "mh-comment" }, comment) : "";
        return [about, said, h("div", { class: "row-actions" }, compare, load), lines];
      },
    });
  }
}
