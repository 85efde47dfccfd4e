// The Notebooks page: which button does what. Rules are the hub's; this asks, shows, and reports.
import { Api } from "./api.js";
import { CompareView } from "./compare.js";
import { ConfirmDialog, NameDialog } from "./dialogs.js";
import { draftActions } from "./draft_actions.js";
import { Drafts } from "./drafts.js";
import { announce, byId, clearError, h, ready, showError } from "./dom.js";
import { Live } from "./live.js";
import { OwnServer } from "./own_server.js";
import { openNotebook } from "./opening.js";
import { SnapshotAge } from "./snapshot_age.js";
import { Table } from "./table.js";
import { VersionsView } from "./versions.js";

const page = JSON.parse(byId("page-data").textContent);
const api = new Api({ base: page.api, xsrf: page.xsrf, workspace: page.listing.workspace });
const now = () => Date.now() + api.clockSkew; // the hub's time
const table = new Table(page.listing, now);
const nameDialog = new NameDialog();
const confirmDialog = new ConfirmDialog();
const compareView = page.listing.can_create && new CompareView({ api, now });
const reveal = (name) => table.reveal(name);
const drafts =
  compareView &&
  new Drafts({
    now,
    actions: draftActions({ api, compareView, nameDialog, confirmDialog, refresh, freeName, reveal }),
  });
const lockState = (name) => table.get(name)?.lock.state;
const versions = compareView && new VersionsView({ api, compareView, now, lockState, refresh });
const snapshotAge = page.listing.can_create && new SnapshotAge({ api, now, report });
const ownServer = page.server && new OwnServer({ api, report, server: page.server });
const MAX_NAME = 100;

// One question to the hub at a time; those that come meanwhile become a single one after it.
let asking = null;
let askAgain = false;
async function refresh() {
  if (asking) {
    askAgain = true;
    return asking;
  }
  asking = ask();
  try {
    await asking;
  } finally {
    asking = null;
  }
  if (askAgain) {
    askAgain = false;
    return refresh();
  }
}

// For events: many changes within a second cost one question.
let soon = null;
function refreshSoon() {
  soon ??= setTimeout(() => {
    soon = null;
    refresh();
  }, 100 + Math.random() * 400);
}

async function ask() {
  let listing;
  try {
    listing = await api.list();
  } catch (error) {
    report(error, { key: "list", prefix: "The list may be out of date", retry: true });
    return;
  }
  clearError("list");
  // Another role has other parts of the page: let the hub render them.
  if (listing.role !== page.listing.role || listing.can_create !== page.listing.can_create) return location.reload();
  table.update(listing);
  if (drafts) drafts.update(listing.drafts);
  if (versions) versions.update();
  for (const notice of listing.notices ?? []) showNotice(notice);
  askWhenLockExpires(listing);
}

// Nobody announces that a lock has run out, so the page asks when the next one would.
let expiry = null;
function askWhenLockExpires(listing) {
  clearTimeout(expiry);
  const times = listing.notebooks.map(({ lock }) => Date.parse(lock.expires ?? "")).filter((time) => time);
  if (!times.length) return;
  const wait = Math.min(...times) - (Date.now() + api.clockSkew) + 1000;
  expiry = setTimeout(refresh, Math.min(Math.max(wait, 5000), 24 * 3600 * 1000));
}

function report(error, { key, prefix = "", retry = false } = {}) {
  if (error.signedOut) {
    live.stop();
    const link = h("a", { href: page.login }, "Sign in again");
    showError(error, { key: "list", action: link });
    return;
  }
  const again = retry && h("button", { type: "button", class: "btn btn-sm btn-quiet" }, "Retry");
  if (again) again.addEventListener("click", refresh);
  showError(error, { key, prefix, action: again });
}

function showNotice({ id = null, text }) {
  const same = (box) => (id === null ? box.firstElementChild.textContent === text : box.dataset.notice === String(id));
  if ([...byId("notices").children].some(same)) return;
  byId("notices").append(
    h(
      "div",
      { class: "mh-alert mh-alert-warning", "data-notice": id },
      h("span", {}, text),
      h("button", { type: "button", class: "mh-dismiss", "aria-label": "Dismiss" }, "✕"),
    ),
  );
}

byId("notices").addEventListener("click", async (event) => {
  if (!event.target.closest(".mh-dismiss")) return;
  const box = event.target.closest(".mh-alert");
  try {
    if (box.dataset.notice) await api.dismissNotice(box.dataset.notice);
    box.remove();
  } catch (error) {
    report(error, { key: "notice" });
  }
});

async function open(notebook) {
  const { name } = notebook;
  clearError(`open ${name}`);
  table.setOpening(name, { message: "Asking for the lock…", progress: 0 });
  try {
    const show = ({ message, progress }) => table.setOpening(name, { message, progress });
    const url = await openNotebook(api, name, show);
    table.setOpening(name, url && { url });
    if (snapshotAge) snapshotAge.load();
    announce(url ? `${name} is ready. Use the link in its row to open it.` : `${name} is open in a new tab.`);
  } catch (error) {
    table.setOpening(name, null);
    report(error, { key: `open ${name}`, prefix: `${name} could not be opened` });
  }
  if (ownServer) ownServer.load();
  await refresh();
}

async function release(notebook) {
  clearError(`release ${notebook.name}`);
  try {
    await api.release(notebook.name);
    table.setOpening(notebook.name, null);
    announce(`The lock on ${notebook.name} is released.`);
  } catch (error) {
    report(error, { key: `release ${notebook.name}`, prefix: `The lock on ${notebook.name} was not released` });
  }
  await refresh();
}

function create(template, title, opener) {
  nameDialog.ask({
    title: "New notebook",
    detail: `Template: ${title}`,
    confirm: "Create",
    opener,
    run: async (name) => {
      await api.create(name, template);
      await refresh();
      return () => {
        table.reveal(name);
        announce(`${name} is created and ready to open.`);
      };
    },
  });
}

function freeName(name, word) {
  for (let number = 1; ; number += 1) {
    const ending = number === 1 ? word : `${word}_${number}`;
    const proposal = name.slice(0, MAX_NAME - ending.length) + ending;
    if (!table.get(proposal)) return proposal;
  }
}

function copy(notebook, opener) {
  nameDialog.ask({
    title: `Copy ${notebook.name}`,
    detail: "The copy is yours, with its own name and no lock.",
    proposal: freeName(notebook.name, "_copy"),
    confirm: "Copy",
    opener,
    run: async (name) => {
      await api.copy(notebook.name, name);
      await refresh();
      return () => {
        table.reveal(name);
        announce(`${name} is created and ready to open.`);
      };
    },
  });
}

function remove(notebook, opener) {
  confirmDialog.ask({
    title: "Delete notebook",
    text: `Are you sure you want to delete ${notebook.name}? This cannot be undone.`,
    confirm: "Delete",
    opener,
    run: async () => {
      await api.delete(notebook.name);
      await refresh();
      return () => {
        announce(`${notebook.name} is deleted.`);
        byId("search").focus({ preventScroll: true });
      };
    },
  });
}

function forceUnlock(notebook, opener) {
  confirmDialog.ask({
    title: "Force unlock",
    text:
      `${notebook.lock.holder} is editing ${notebook.name}. Their lock ends at once and they are told. ` +
      "What they save after that is kept as their draft.",
    confirm: "Force Unlock",
    opener,
    run: async () => {
      await api.forceUnlock(notebook.name);
      await refresh();
      return () => announce(`${notebook.name} is unlocked.`);
    },
  });
}

function showVersions(notebook, opener) {
  versions.open(notebook.name, opener);
}

const ACTIONS = { open, release, copy, delete: remove, force_unlock: forceUnlock, versions: showVersions };

byId("rows").addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (!button || button.getAttribute("aria-disabled") === "true") return;
  const notebook = table.get(button.closest("tr").dataset.name);
  ACTIONS[button.dataset.action](notebook, button);
});

byId("rows").addEventListener("click", (event) => {
  const link = event.target.closest("[data-ready]");
  if (link) setTimeout(() => table.setOpening(link.dataset.ready, null)); // after the browser has followed it
});

for (const button of document.querySelectorAll("[data-new]")) {
  const toggle = button.closest(".dropdown")?.querySelector("[data-bs-toggle]");
  button.addEventListener("click", () => create(button.dataset.new, button.dataset.title, toggle ?? button));
}

const live = new Live({
  url: api.url("events"),
  onStale: refresh,
  onEvent: (message) => {
    if (message.event === "server_ended") return ownServer && ownServer.load();
    if (message.event === "notebook_lock_revoked") {
      const text = `Your lock on "${message.notebook}" has been revoked by an administrator.`;
      showNotice(message.notice ?? { text });
    }
    return refreshSoon();
  },
});

setInterval(() => {
  if (document.hidden) return;
  table.tick();
  if (drafts) drafts.tick();
  if (snapshotAge) snapshotAge.tick();
}, 30_000);
if (drafts) drafts.update(page.listing.drafts);
askWhenLockExpires(page.listing);
ready();
