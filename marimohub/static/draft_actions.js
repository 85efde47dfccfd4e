// What the buttons of a draft do.
import { announce, byId, showMessage } from "./dom.js";

const RELOAD = "Reload the notebook's tab to see it.";

// refresh() asks for the listing; freeName(name, ending) proposes a name that is free; reveal(name) shows a row.
export function draftActions({ api, compareView, nameDialog, confirmDialog, refresh, freeName, reveal }) {
  function compare(draft, opener) {
    compareView.open({
      notebook: draft.notebook,
      title: `${draft.notebook}: current text and your draft`,
      left: "current",
      right: `draft:${draft.id}`,
      opener,
    });
  }

  function copy(draft, opener) {
    nameDialog.ask({
      title: "Save draft as a copy",
      detail: `A new notebook of yours with the text of the draft. ${draft.notebook} stays as it is.`,
      proposal: freeName(draft.notebook, "_draft"),
      confirm: "Save",
      opener,
      run: async (name) => {
        await api.copyDraft(draft.id, name);
        await refresh();
        return () => {
          reveal(name);
          announce(`${name} is created and ready to open.`);
        };
      },
    });
  }

  function replace(draft, opener) {
    confirmDialog.ask({
      title: "Replace by draft",
      text: `The draft becomes the text of ${draft.notebook}. The text it has now stays among its versions.`,
      confirm: "Replace",
      danger: false,
      opener,
      run: async () => {
        await api.replaceByDraft(draft.id);
        await refresh();
        return () => showMessage(`${draft.notebook} has the text of your draft. ${RELOAD}`, { key: "draft" });
      },
    });
  }

  function discard(draft, opener) {
    confirmDialog.ask({
      title: "Discard draft",
      text: `Are you sure you want to discard your draft of ${draft.notebook}? This cannot be undone.`,
      confirm: "Discard",
      opener,
      run: async () => {
        await api.discardDraft(draft.id);
        await refresh();
        return () => {
          announce(`The draft of ${draft.notebook} is discarded.`);
          byId("search").focus({ preventScroll: true });
        };
      },
    });
  }

  return { compare, copy, replace, discard };
}
