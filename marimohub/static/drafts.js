// "Your drafts" above the table: texts that the hub kept because it could not publish them.
import { byId, h } from "./dom.js";
import { refreshTime, timeElement } from "./rows.js";

const NO_LOCK = "Open the notebook first: replacing needs its lock.";
const GONE = "The notebook has been deleted: save the draft as a copy.";

function button(key, label, draft, why = null) {
  const looks = key === "discard" ? "btn btn-quiet is-danger" : "btn btn-quiet";
  return h(
    "button",
    {
      type: "button",
      class: looks,
      "data-draft-action": key,
      "aria-label": `${label}: draft of ${draft.notebook}`,
      "aria-disabled": why ? "true" : null,
      "aria-description": why,
      "data-why": why,
    },
    label,
  );
}

function buildDraft(draft, now) {
  const gone = draft.notebook_exists ? null : GONE;
  return h(
    "li",
    { class: "mh-draft", "data-draft": draft.id },
    h(
      "div",
      { class: "mh-draft-text" },
      h("b", { class: "name" }, draft.notebook),
      " ",
      h("span", { class: "mh-soft" }, timeElement(draft.created, now)),
      h("p", { class: "mh-soft" }, draft.message),
    ),
    h(
      "div",
      { class: "row-actions" },
      button("compare", "Compare", draft, gone),
      button("copy", "Save as copy", draft),
      button("replace", "Replace", draft, gone ?? (draft.can_replace ? null : NO_LOCK)),
      button("discard", "Discard", draft),
    ),
  );
}

export class Drafts {
  // actions: {compare, copy, replace, discard}, each called with (draft, button).
  constructor({ now, actions }) {
    this.now = now;
    this.section = byId("drafts");
    this.list = byId("draft-list");
    this.drafts = new Map();
    this.signature = "";
    this.list.addEventListener("click", (event) => {
      const found = event.target.closest("[data-draft-action]");
      if (!found || found.getAttribute("aria-disabled") === "true") return;
      const draft = this.drafts.get(found.closest("[data-draft]").dataset.draft);
      actions[found.dataset.draftAction](draft, found);
    });
  }

  update(drafts = []) {
    const signature = JSON.stringify(drafts);
    if (signature === this.signature) return;
    this.signature = signature;
    this.drafts = new Map(drafts.map((draft) => [String(draft.id), draft]));
    const active = this.list.contains(document.activeElement) ? document.activeElement : null;
    this.list.replaceChildren(...drafts.map((draft) => buildDraft(draft, this.now())));
    this.section.hidden = drafts.length === 0;
    if (active) this.focus(active.closest("[data-draft]").dataset.draft, active.dataset.draftAction);
  }

  focus(draft, action) {
    this.list.querySelector(`[data-draft="${draft}"] [data-draft-action="${action}"]`)?.focus({ preventScroll: true });
  }

  tick() {
    for (const element of this.list.querySelectorAll("time")) refreshTime(element, this.now());
  }
}
