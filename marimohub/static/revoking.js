// What became of people whose snapshots were taken away.
import { h } from "./dom.js";

const WORDS = {
  restarted: ["status-available", "restarted", "Their server runs on a new snapshot."],
  stopped: ["status-mine", "taken away", "The snapshot is gone; the next opening takes a new one."],
  failed: ["status-locked", "failed", "It could not be taken away."],
};

const NOBODY = "Nobody's snapshot had to go: nobody's access has changed since they got it.";

// users: who was asked about by name, null for everybody.
export function buildOutcomes(people, users = null) {
  if (!people.length) return [h("p", {}, users ? `${users.join(", ")} has no snapshot to take away.` : NOBODY)];
  const rows = people.map(({ user, outcome, message }) => {
    const [look, word, meaning] = WORDS[outcome] ?? ["", outcome, ""];
    return h(
      "li",
      { class: "mh-outcome", "data-outcome": outcome },
      h("b", {}, user),
      h("span", { class: `status ${look}` }, h("span", {}, word)),
      h("span", { class: "mh-soft" }, message || meaning),
    );
  });
  return [h("ul", { class: "mh-outcomes" }, ...rows)];
}
