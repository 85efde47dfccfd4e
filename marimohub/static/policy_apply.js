// Making the text the policy: the question for a comment, and taking older snapshots away.
import { Dialog } from "./dialogs.js";
import { announce, byId, clearError, showMessage } from "./dom.js";
import { buildOutcomes } from "./revoking.js";

export class ApplyDialog extends Dialog {
  constructor() {
    super("apply-dialog");
    this.text = byId("apply-dialog-text");
    this.comment = byId("apply-comment");
    this.revoke = byId("apply-revoke");
  }

  // run(comment, revoke) resolves to a function to call once the dialog is closed.
  ask({ number, opener, run }) {
    this.text.textContent = `It becomes revision ${number} and decides what everybody sees in their next snapshot.`;
    this.revoke.checked = false;
    this.comment.value = "";
    this.show({ title: "Apply policy", confirm: "Apply", opener, run });
    this.comment.focus();
  }

  submit() {
    this.perform(this.comment.value.trim(), this.revoke.checked);
  }
}

// users: null for everybody whose access has changed. text: what to say before the outcomes.
export async function takeAway({ api, report, users, text }) {
  const key = "apply";
  clearError(key);
  showMessage(`${text} Taking older snapshots away…`, { key });
  try {
    const { people } = await api.revoke(users);
    clearError(key);
    showMessage(text, { key, detail: buildOutcomes(people, users) });
    announce(`${text} ${people.length} ${people.length === 1 ? "person" : "people"} affected.`);
  } catch (error) {
    clearError(key);
    report(error, { key, prefix: `${text} Older snapshots could not be taken away` });
  }
}
