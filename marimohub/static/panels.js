// The wide dialogs: a title, a button that closes, and a body that others fill.
import { byId, h } from "./dom.js";

export class Panel {
  constructor(id) {
    this.dialog = byId(id);
    this.title = this.dialog.querySelector("h2");
    this.body = this.dialog.querySelector(".mh-panel-body");
    this.dialog.querySelector("[data-cancel]").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("mousedown", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // the backdrop
    });
    this.dialog.addEventListener("close", () => {
      this.turn = null;
      this.body.replaceChildren();
      if (this.opener?.isConnected) this.opener.focus();
    });
  }

  // Opens with what load() resolves to, elements for the body; an answer that comes after closing is dropped.
  async show({ title, opener, load }) {
    this.opener = opener;
    this.title.textContent = title;
    this.body.replaceChildren(h("p", { class: "mh-soft", role: "status" }, "Loading…"));
    this.dialog.showModal();
    await this.fill(load);
  }

  async fill(load) {
    const turn = {};
    this.turn = turn;
    let content;
    try {
      content = await load();
    } catch (error) {
      content = [errorText(error)];
    }
    if (this.turn !== turn) return;
    this.body.replaceChildren(...content);
  }
}

export function errorText(error) {
  const text = error.signedOut ? `${error.message} Reload this page to sign in again.` : error.message;
  return h("p", { class: "mh-alert mh-alert-error", role: "alert" }, text);
}
