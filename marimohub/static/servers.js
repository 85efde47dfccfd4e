// "Notebook servers" on the Admin page: asks the hub every few seconds while the page is in view.
import { Api } from "./api.js";
import { buildConfinement } from "./confinement.js";
import { ConfirmDialog } from "./dialogs.js";
import { announce, byId, clearError, h, ready, reporter } from "./dom.js";
import { Panel } from "./panels.js";
import { ServerTable } from "./server_table.js";

const EVERY = 4_000;
const FIRST = 1_300; // processor time is told from the second answer on
const AFTER_FAILURE = 15_000;

const page = JSON.parse(byId("page-data").textContent);
const api = new Api({ base: page.api, xsrf: page.xsrf, workspace: "default" });
const now = () => Date.now() + api.clockSkew; // the hub's time
const report = reporter(page.login);
const confirmDialog = new ConfirmDialog();
const logPanel = new Panel("log-dialog");
const table = new ServerTable({ now, canStop: page.can_stop, canLog: page.can_log });
let confinement = "";
let timer = null;
let asking = null;
let answers = 0;

// One question at a time; who asks meanwhile gets the answer to a later one.
async function refresh() {
  while (asking) await asking;
  clearTimeout(timer);
  asking = ask();
  const wait = await asking;
  asking = null;
  clearTimeout(timer);
  if (wait) timer = setTimeout(() => !document.hidden && refresh(), wait);
}

async function ask() {
  try {
    show(await api.servers());
    clearError("servers");
    answers += 1;
    return answers === 1 ? FIRST : EVERY;
  } catch (error) {
    byId("servers-waiting").hidden = true;
    const again = h("button", { type: "button", class: "btn btn-sm btn-quiet" }, "Try again");
    again.addEventListener("click", refresh);
    report(error, { key: "servers", prefix: "What runs is not known just now", action: again });
    return error.signedOut ? 0 : AFTER_FAILURE;
  }
}

function show(found) {
  byId("servers-waiting").hidden = true;
  const text = JSON.stringify(found.confinement);
  if (text !== confinement) byId("confinement").replaceChildren(...buildConfinement(found.confinement));
  confinement = text;
  table.update(found);
}

const whose = ({ user, server }) => {
  const owner = user === page.user ? "your" : `${user}’s`;
  return server ? `${owner} server “${server}”` : `${owner} server`;
};

function stop(server, opener) {
  const own = server.user === page.user;
  confirmDialog.ask({
    title: `Stop ${whose(server)}`,
    text:
      `The notebooks that ${own ? "you have" : `${server.user} has`} open stop. The values in them are lost; ` +
      `what was saved stays. ${own ? "You" : "They"} can start it again at any time.`,
    confirm: "Stop server",
    opener,
    run: async () => {
      await api.stopServer(server.user, server.server);
      await refresh();
      return () => {
        announce(`The server of ${server.user} is stopped.`);
        byId("servers-title").focus({ preventScroll: true });
      };
    },
  });
}

function showLog(server, opener) {
  logPanel.show({
    title: `Log of ${whose(server)}`,
    opener,
    load: async () => {
      const { lines } = await api.serverLog(server.user);
      const note = h("p", { class: "mh-soft" }, "The last lines that it wrote since its last start.");
      if (!lines.length) return [h("p", { class: "mh-soft" }, "It has written nothing since its last start.")];
      return [note, h("pre", { class: "mh-log-lines", tabindex: "0" }, lines.join("\n"))];
    },
  });
}

byId("servers-title").tabIndex = -1;
byId("servers-rows").addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (!button || button.getAttribute("aria-disabled") === "true") return;
  const server = table.get(button.closest("tr").dataset.key);
  if (button.dataset.action === "stop") stop(server, button);
  else showLog(server, button);
});
document.addEventListener("visibilitychange", () => !document.hidden && refresh());

refresh();
ready();
