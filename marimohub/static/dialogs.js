// Dialogs that ask for something. The browser's own <dialog> gives the focus trap, Esc, and the inert page behind.
import { byId } from "./dom.js";

const MAX_NAME = 100;

// What is wrong with a name as far as its form goes ("" when nothing is); whether it is free, the hub decides.
export function nameProblem(name) {
  const bad = name.match(/[^A-Za-z0-9_]/u);
  if (bad) {
    const what = /\s/u.test(bad[0]) ? "A space" : `“${bad[0]}”`;
    return `${what} is not possible in a name: use letters, numbers, and underscores only.`;
  }
  if (name.length > MAX_NAME) return `Use at most ${MAX_NAME} characters; this name has ${name.length}.`;
  return "";
}

export class Dialog {
  constructor(id) {
    this.dialog = byId(id);
    this.form = this.dialog.querySelector("form");
    this.title = this.dialog.querySelector("h2");
    this.confirm = this.dialog.querySelector("[data-confirm]");
    this.problem = this.dialog.querySelector(".mh-problem");
    this.busy = false;
    this.dialog.querySelector("[data-cancel]").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("cancel", (event) => {
      if (this.busy) event.preventDefault();
    });
    this.dialog.addEventListener("mousedown", (event) => {
      if (event.target === this.dialog && !this.busy) this.dialog.close(); // the backdrop
    });
    this.dialog.addEventListener("close", () => {
      if (this.opener?.isConnected) this.opener.focus();
      this.done?.();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.busy) this.submit();
    });
  }

  show({ title, confirm, opener, run }) {
    this.opener = opener;
    this.run = run;
    this.done = null;
    this.title.textContent = title;
    this.confirm.textContent = confirm;
    this.label = confirm;
    this.say("");
    this.dialog.showModal();
  }

  say(text) {
    this.problem.textContent = text;
  }

  // Runs the action; closes on success, and shows the hub's sentence here when it refuses.
  async perform(...values) {
    this.setBusy(true);
    this.say("");
    try {
      this.done = await this.run(...values);
      this.setBusy(false);
      this.dialog.close();
    } catch (error) {
      this.setBusy(false);
      this.say(error.signedOut ? `${error.message} Reload this page to sign in again.` : error.message);
      this.onRefused?.();
    }
  }

  setBusy(busy) {
    this.busy = busy;
    this.dialog.setAttribute("aria-busy", String(busy));
    for (const button of this.form.querySelectorAll("button")) button.disabled = busy;
    this.confirm.textContent = busy ? "Working…" : this.label;
  }
}

export class NameDialog extends Dialog {
  constructor() {
    super("name-dialog");
    this.input = byId("notebook-name");
    this.detail = byId("name-dialog-detail");
    this.input.addEventListener("input", () => this.say(nameProblem(this.input.value)));
  }

  // run(name) resolves to a function to call once the dialog is closed, or nothing.
  ask({ detail, proposal = "", ...rest }) {
    this.detail.textContent = detail;
    this.input.value = proposal;
    this.show(rest);
    this.input.focus();
    this.input.select();
  }

  say(text) {
    super.say(text);
    this.input.classList.toggle("is-invalid", Boolean(text));
    this.input.setAttribute("aria-invalid", String(Boolean(text)));
  }

  submit() {
    const name = this.input.value.trim();
    const problem = name ? nameProblem(name) : "Enter a name.";
    if (problem) {
      this.say(problem);
      this.input.focus();
    } else {
      this.perform(name);
    }
  }

  onRefused() {
    this.input.focus();
  }
}

export class ConfirmDialog extends Dialog {
  constructor() {
    super("confirm-dialog");
    this.text = byId("confirm-dialog-text");
  }

  // The safe button has the focus: Enter alone never deletes.
  ask({ text, danger = true, ...rest }) {
    this.text.textContent = text;
    this.confirm.classList.toggle("btn-danger", danger);
    this.confirm.classList.toggle("btn-primary", !danger);
    this.show(rest);
    this.dialog.querySelector("[data-cancel]").focus();
  }

  submit() {
    this.perform();
  }
}
