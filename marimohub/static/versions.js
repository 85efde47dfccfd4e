// The versions of one notebook: who saved which text when; compare one with the current text, or restore it.
import { announce, h } from "./dom.js";
import { errorText, Panel } from "./panels.js";
import { timeElement } from "./rows.js";

const KINDS = {
  create: "created",
  copy: "copied",
  save: "saved",
  restore: "restored",
  draft: "replaced by a draft",
  disk: "changed on disk",
};
const NO_LOCK = "To restore a version, open the notebook first: restoring needs its lock.";
const RESTORED = "Restored. Reload the notebook's tab to see it.";

function buildVersion(version, canRestore, now) {
  const when = timeElement(version.created, now);
  const about = `the version of ${when.title}`;
  const compare = h(
    "button",
    { type: "button", class: "btn btn-quiet", "data-compare": version.id, "aria-label": `Compare with current: ${about}` },
    "Compare with current",
  );
  const restore = h(
    "button",
    {
      type: "button",
      class: "btn btn-quiet",
      "data-restore": version.id,
      "aria-label": `Restore ${about}`,
      "aria-disabled": canRestore ? null : "true",
      "aria-description": canRestore ? null : NO_LOCK,
      title: canRestore ? null : NO_LOCK,
    },
    "Restore",
  );
  const buttons = version.current ? [h("span", { class: "mh-tag" }, "current")] : [compare, restore];
  return h(
    "li",
    { class: "mh-version", "data-version": version.id },
    h("span", { class: "mh-version-time" }, when, " ", h("span", { class: "mh-soft" }, when.title)),
    h(
      "span",
      { class: "mh-version-kind" },
      KINDS[version.kind] ?? version.kind,
      version.author && h("span", { class: "mh-soft" }, ` by ${version.author_email ?? version.author}`),
    ),
    h("span", { class: "row-actions" }, ...buttons),
  );
}

export class VersionsView {
  // lockState(name) is "available", "mine" or "locked"; refresh() asks for the listing.
  constructor({ api, compareView, now, lockState, refresh }) {
    Object.assign(this, { api, compareView, now, lockState, refresh });
    this.panel = new Panel("versions-dialog");
    this.panel.body.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button || button.getAttribute("aria-disabled") === "true") return;
      if (button.dataset.compare) this.compare(button);
      if (button.dataset.restore) this.restore(button);
    });
  }

  open(name, opener) {
    this.name = name;
    return this.panel.show({ title: `Versions of ${name}`, opener, load: () => this.load() });
  }

  // The lock may come or go while the dialog is open: the buttons follow it.
  update() {
    if (this.panel.dialog.open && this.mine !== this.hasLock()) this.panel.fill(() => this.load());
  }

  hasLock() {
    return this.lockState(this.name) === "mine";
  }

  async load(...before) {
    const { versions } = await this.api.versions(this.name);
    this.mine = this.hasLock();
    const list = versions.map((version) => buildVersion(version, this.mine, this.now()));
    const note = this.mine ? null : h("p", { class: "mh-soft", id: "restore-note" }, NO_LOCK);
    const empty = list.length ? null : h("p", { class: "mh-soft" }, "There are no versions yet: every save makes one.");
    return [...before, note, empty, h("ul", { class: "mh-versions" }, ...list)].filter(Boolean);
  }

  compare(button) {
    const version = button.dataset.compare;
    const label = button.closest("li").querySelector("time").title;
    this.compareView.open({
      notebook: this.name,
      title: `${this.name}: version of ${label} and current text`,
      left: `version:${version}`,
      right: "current",
      opener: button,
    });
  }

  async restore(button) {
    const name = this.name;
    button.disabled = true;
    let said;
    try {
      await this.api.restore(name, button.dataset.restore);
      said = h("p", { class: "mh-alert mh-alert-info", role: "status" }, RESTORED);
      announce(`A version of ${name} is restored.`);
    } catch (error) {
      said = errorText(error);
    }
    await this.refresh();
    if (!this.panel.dialog.open || this.name !== name) return;
    await this.panel.fill(() => this.load(said));
    this.panel.dialog.querySelector("[data-cancel]").focus();
    this.panel.body.scrollTop = 0;
  }
}
