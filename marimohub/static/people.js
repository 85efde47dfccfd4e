// "What people see" for administrators, and "My data" for everybody: the hub's explanation as tables.
import { buildAttributes } from "./attributes.js";
import { buildDifference } from "./difference.js";
import { ConfirmDialog } from "./dialogs.js";
import { announce, byId, clearError, h, ready, reporter } from "./dom.js";
import { buildExplanation } from "./explanation.js";
import { errorText } from "./panels.js";
import { PolicyApi } from "./policy_api.js";
import { takeAway } from "./policy_apply.js";

const page = JSON.parse(byId("page-data").textContent);
const api = new PolicyApi({ base: page.api, xsrf: page.xsrf, workspace: page.workspace });
const report = reporter(page.login);
const box = byId("explanation");
let user = page.user;
let turn = 0;
let differenceTurn = 0;

const waiting = () => h("p", { class: "mh-soft mh-waiting", role: "status" }, "Asking the hub…");

// keep: the old answer stays until the new one is there.
async function explain({ keep = false } = {}) {
  const mine = (turn += 1);
  clearError("explain");
  box.setAttribute("aria-busy", "true");
  if (!keep) box.replaceChildren(waiting());
  const [explained, attributes] = await Promise.allSettled([
    api.explain(page.own ? null : user),
    page.own ? null : api.attributes(user),
  ]);
  if (mine !== turn) return;
  box.setAttribute("aria-busy", "false");
  if (explained.status === "rejected") {
    box.replaceChildren();
    return report(explained.reason, { key: "explain", action: again(explain) });
  }
  const form = attributes.value ? buildAttributes(attributes.value, saveAttributes) : null;
  const failed = attributes.status === "rejected" ? errorText(attributes.reason) : null;
  box.replaceChildren(...buildExplanation(explained.value, { own: page.own, attributes: form ?? failed }));
}

function again(run) {
  const button = h("button", { type: "button", class: "btn btn-sm btn-quiet" }, "Try again");
  button.addEventListener("click", () => run());
  return button;
}

async function saveAttributes(values) {
  const name = user;
  await api.setAttributes(name, values);
  announce(`The attributes of ${name} are saved.`);
  if (name !== user) return;
  await explain({ keep: true });
  byId("attributes-said").textContent = "Saved. It counts from their next snapshot on.";
  byId("attributes").querySelector("[type=submit]").focus({ preventScroll: true });
  compare();
}

async function compare() {
  const mine = (differenceTurn += 1);
  const other = byId("other")?.value;
  clearError("difference");
  byId("difference").hidden = !other;
  if (!other || !user) return;
  byId("difference-title").textContent = `${other} compared with ${user}`;
  byId("difference-body").replaceChildren(waiting());
  let content;
  try {
    content = buildDifference(await api.difference(user, other), { user, other });
  } catch (error) {
    content = [errorText(error)];
  }
  if (mine === differenceTurn) byId("difference-body").replaceChildren(...content);
}

function choose(name) {
  user = name;
  byId("restart").hidden = false;
  const address = new URL(location.href);
  address.searchParams.set("user", name);
  history.replaceState(null, "", address);
  clearError("apply");
  explain();
  compare();
}

function restart(opener) {
  const name = user;
  confirmDialog.ask({
    title: `Restart ${name} on new data`,
    text:
      `The snapshot of ${name} is taken away. A notebook server that runs ends, with the values in its notebooks, ` +
      "and starts again on a new snapshot. Texts that were saved stay.",
    confirm: "Restart",
    opener,
    run: async () => () => takeAway({ api, report, users: [name], text: `New data for ${name}.` }),
  });
}

let confirmDialog = null;
if (!page.own) {
  confirmDialog = new ConfirmDialog();
  byId("person").addEventListener("change", (event) => choose(event.target.value));
  byId("other").addEventListener("change", compare);
  byId("restart").addEventListener("click", (event) => restart(event.currentTarget));
  byId("restart").hidden = !user;
}
if (user) {
  explain();
} else {
  box.setAttribute("aria-busy", "false");
  if (page.asked) report({ message: `There is nobody called “${page.asked}”.` }, { key: "explain" });
}
ready();
