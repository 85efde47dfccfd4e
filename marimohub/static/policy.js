// The Data policy page: the text in the editor, what the hub says about it, and making it the one that applies.
import { buildComparison } from "./compare.js";
import { ConfirmDialog } from "./dialogs.js";
import { announce, byId, clearError, h, ready, reporter, showMessage } from "./dom.js";
import { compareLines } from "./line_diff.js";
import { Panel } from "./panels.js";
import { PolicyApi } from "./policy_api.js";
import { ApplyDialog, takeAway } from "./policy_apply.js";
import { Editor } from "./policy_editor.js";
import { PolicyHistory } from "./policy_history.js";
import { Problems } from "./policy_problems.js";
import { WarehouseReference } from "./policy_schema.js";
import { timeElement } from "./rows.js";

const page = JSON.parse(byId("page-data").textContent);
const api = new PolicyApi({ base: page.api, xsrf: page.xsrf, workspace: page.workspace });
const now = () => Date.now() + api.clockSkew; // the hub's time
const report = reporter(page.login);
const lines = (text) => text.replaceAll(/\r\n?/g, "\n"); // as a text area gives them

let applied = page.policy; // {revision, author, comment, created, text}
let saved = lines(applied.text); // what the editor's text is compared with to know whether it is unsaved
let asked = 0; // counts checks, so that an answer about an older text is dropped

const editor = new Editor({ textarea: byId("policy-text"), gutter: byId("policy-gutter"), onChange: textChanged });
const problems = new Problems({
  summary: byId("verdict"),
  list: byId("findings"),
  onSelect: (line) => editor.select(line),
});
const applyDialog = new ApplyDialog();
const confirmDialog = new ConfirmDialog();
const comparePanel = new Panel("compare-dialog");
const history = new PolicyHistory({
  api,
  now,
  details: byId("history"),
  box: byId("revisions"),
  load: loadRevision,
  compare: compareWith,
});
new WarehouseReference({ api, details: byId("warehouse"), box: byId("objects"), search: byId("object-search") });

const isUnsaved = () => editor.text !== saved;

function textChanged() {
  asked += 1;
  problems.stale();
  showUnsaved();
}

function showUnsaved() {
  byId("unsaved").hidden = !isUnsaved();
  byId("revert").hidden = !isUnsaved() || !applied.revision;
}

function showState() {
  const { revision, author, comment, created } = applied;
  const state = byId("policy-state");
  state.hidden = !revision;
  state.replaceChildren(
    h("b", {}, `Revision ${revision}`),
    h("span", { class: "mh-soft" }, ` applied by ${author} `, timeElement(created, now())),
    comment && h("span", { class: "mh-comment" }, comment),
  );
}

function showEditor(text) {
  byId("empty").hidden = true;
  byId("workbench").hidden = false;
  if (text !== undefined) editor.text = text;
}

function show(found, about) {
  problems.show(found, about);
  editor.mark(found);
}

async function check() {
  const turn = (asked += 1);
  clearError("check");
  problems.busy("Checking…");
  try {
    const answer = await api.check(editor.text);
    if (turn === asked) show(answer.problems, "The text");
  } catch (error) {
    if (turn === asked) problems.stale();
    report(error, { key: "check", prefix: "The text could not be checked" });
  }
}

// The policy was right when it was applied; the warehouse goes on.
async function checkApplied() {
  const turn = (asked += 1);
  problems.busy(`Comparing revision ${applied.revision} with the warehouse…`);
  try {
    const answer = await api.policy();
    if (turn === asked) show(answer.problems, `Revision ${answer.revision}`);
  } catch (error) {
    if (turn === asked) problems.stale();
    report(error, { key: "check", prefix: "The policy could not be checked" });
  }
}

function apply(opener, expected = applied.revision) {
  applyDialog.ask({
    number: expected + 1,
    opener,
    run: async (comment, revoke) => {
      const text = editor.text;
      try {
        const made = await api.apply(text, comment, expected);
        return () => isApplied(made, revoke);
      } catch (error) {
        if (error.code === "invalid_policy") return () => refused(error);
        if (error.code === "policy_changed") return () => overtaken(opener);
        throw error;
      }
    },
  });
}

async function isApplied(made, revoke) {
  asked += 1;
  applied = made;
  saved = lines(made.text);
  for (const key of ["check", "apply", "changed"]) clearError(key);
  showState();
  showUnsaved();
  show(made.problems, `Revision ${made.revision}`);
  history.refresh();
  const text = `Revision ${made.revision} applies now.`;
  announce(text);
  if (revoke) await takeAway({ api, report, users: null, text });
  else showMessage(`${text} Each person gets data by it when they next open a notebook.`, { key: "apply" });
}

function refused(error) {
  show(error.problems, "The text");
  report({ message: error.message, problems: [] }, { key: "apply" });
  byId("findings").querySelector("button")?.focus();
}

// Somebody else was quicker: both texts are there to be compared, and nothing is lost.
async function overtaken(opener) {
  let theirs;
  try {
    theirs = await api.policy();
  } catch (error) {
    return report(error, { key: "apply" });
  }
  const action = (label, run) => {
    const made = h("button", { type: "button", class: "btn btn-sm btn-quiet" }, label);
    made.addEventListener("click", () => run(made));
    return made;
  };
  const goOn = async (button) => {
    applied = theirs;
    saved = lines(theirs.text);
    showState();
    showUnsaved();
    apply(button);
  };
  const box = h("div", { class: "row-actions" });
  box.append(
    action("Compare with mine", (button) => compareWith(theirs.revision, button)),
    action("Apply mine over it…", goOn),
    action("Load theirs into the editor", (button) => loadRevision(theirs.revision, button)),
  );
  const message = `${theirs.author ?? "Somebody"} applied revision ${theirs.revision} in the meantime. Your text is kept.`;
  report({ message }, { key: "changed", action: box });
  history.refresh();
  box.firstElementChild.focus();
}

function compareWith(revision, opener) {
  comparePanel.show({
    title: `Revision ${revision} and the text in the editor`,
    opener,
    load: async () => {
      const { text, created } = await api.revision(revision);
      const rows = compareLines(lines(text), editor.text);
      return buildComparison({ left: { label: `Revision ${revision}`, created }, right: { label: "Editor" }, rows }, now());
    },
  });
}

async function loadRevision(revision, opener) {
  const load = async () => {
    const found = await api.revision(revision);
    return () => {
      if (revision > applied.revision) applied = found;
      if (revision === applied.revision) saved = lines(found.text);
      showState();
      clearError("changed");
      showEditor(lines(found.text));
      byId("policy-text").focus();
      announce(`The text of revision ${revision} is in the editor.`);
    };
  };
  if (isUnsaved()) return replaceUnsaved(`Load revision ${revision}`, load, opener);
  try {
    (await load())();
  } catch (error) {
    report(error, { key: "history", prefix: `Revision ${revision} could not be loaded` });
  }
}

function replaceUnsaved(title, run, opener) {
  const text = "The text in the editor has not been applied. It is replaced and cannot be brought back.";
  confirmDialog.ask({ title, text, confirm: "Replace", opener, run });
}

async function startFromDraft(button) {
  clearError("draft");
  button.disabled = true;
  button.textContent = "Reading the warehouse…";
  try {
    const { text } = await api.draft();
    showEditor(lines(text));
    byId("policy-text").focus();
    announce("The draft is in the editor.");
  } catch (error) {
    report(error, { key: "draft", prefix: "No draft could be made" });
  }
  button.disabled = false;
  button.textContent = "Start from a draft";
}

byId("check").addEventListener("click", check);
byId("apply").addEventListener("click", (event) => apply(event.currentTarget));
byId("revert").addEventListener("click", (event) => {
  const back = async () => () => {
    showEditor(saved);
    byId("policy-text").focus();
  };
  replaceUnsaved(`Go back to revision ${applied.revision}`, back, event.currentTarget);
});
byId("draft").addEventListener("click", (event) => startFromDraft(event.currentTarget));
byId("blank").addEventListener("click", () => {
  showEditor("version: 1\n");
  byId("policy-text").focus();
});
window.addEventListener("beforeunload", (event) => {
  if (isUnsaved()) event.preventDefault();
});
setInterval(() => {
  for (const element of byId("policy-state").querySelectorAll("time")) element.replaceWith(timeElement(element.dateTime, now()));
}, 60_000);

showState();
if (applied.revision) {
  showEditor(saved);
  checkApplied();
}
ready();
