// What keeps servers apart and holds them to their limits, above the table of servers.
import { h } from "./dom.js";

const NAMES = { memory: "Memory", cpu: "CPU", processes: "Processes", disk: "Disk" };
const HOW = {
  cgroup: ["cgroup", "The kernel holds a whole server to it."],
  rlimit: ["rlimit", "The kernel holds each process or person to it."],
  affinity: ["affinity", "A server may run on that many cores and on no others."],
  watch: ["watch", "A guard measures twice a second and ends what is over it."],
  none: ["not held", "This machine has nothing that holds servers to it."],
};
const OFF = "Whoever may edit can do on this machine what the user who runs the servers can.";
const REMEDY = "To confine them, remove sandbox = \"off\" from the configuration and restart the hub.";

const icon = (name) => h("i", { class: `fa ${name}`, "aria-hidden": "true" });

function limits(found) {
  const items = Object.entries(NAMES).flatMap(([key, name]) => {
    const [word] = HOW[found[key]] ?? [found[key]];
    return [" ", h("span", { class: found[key] === "none" ? "is-none" : "" }, `${name} `, h("b", {}, word))];
  });
  const used = Object.keys(HOW).filter((how) => Object.values(found).includes(how));
  const meanings = used.flatMap((how) => [h("dt", {}, HOW[how][0]), h("dd", {}, HOW[how][1])]);
  return h(
    "details",
    { class: "mh-fold" },
    h(
      "summary",
      {},
      h("span", { class: "mh-fold-head" }, "Limits are held by"),
      h("span", { class: "mh-fold-list" }, ...items),
    ),
    h("dl", {}, ...meanings),
  );
}

function uncovered(problems) {
  const items = problems.map((problem) => h("li", {}, problem));
  const head = h("span", { class: "mh-fold-head" }, `What confinement does not cover here (${problems.length})`);
  return h("details", { class: "mh-fold" }, h("summary", {}, head), h("ul", {}, ...items));
}

// found: null if the hub's spawner does not tell.
export function buildConfinement(found) {
  if (!found || found.sandbox === "unknown") {
    const text = "The spawner of this hub does not tell how it keeps servers apart.";
    return [h("p", { class: "mh-confined is-unknown" }, icon("fa-circle-question"), h("span", {}, text))];
  }
  const parts = [];
  if (found.sandbox === "off") {
    const why = found.problems.length ? found.problems.join(" ") : OFF;
    const words = h("div", {}, h("strong", {}, "Notebooks are not confined."), ` ${why} ${REMEDY}`);
    const box = { class: "mh-alert mh-alert-error mh-off", role: "alert" };
    parts.push(h("div", box, icon("fa-triangle-exclamation"), words));
  } else {
    const text = found.text || "Each person’s notebooks are confined to their own files.";
    parts.push(h("p", { class: "mh-confined" }, icon("fa-shield-halved"), h("span", {}, text)));
    if (found.problems.length) parts.push(uncovered(found.problems));
  }
  parts.push(limits(found.limits));
  return parts;
}
