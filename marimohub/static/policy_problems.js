// What the hub found wrong with the policy's text, beside the editor.
import { h } from "./dom.js";

function sentence(problems) {
  const errors = problems.filter(({ severity }) => severity === "error").length;
  const warnings = problems.length - errors;
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  return [errors && count(errors, "error"), warnings && count(warnings, "warning")].filter(Boolean).join(", ");
}

function item({ where, message, severity, line }, onSelect) {
  const place = [where, line ? `line ${line}` : ""].filter(Boolean).join(", ");
  const content = [
    h("span", { class: `mh-severity is-${severity}` }, severity),
    h("span", { class: "mh-where" }, place || "the policy"),
    h("span", { class: "mh-message" }, message),
  ];
  if (!line) return h("li", {}, h("div", { class: "mh-finding" }, ...content));
  const button = h("button", { type: "button", class: "mh-finding" }, ...content);
  button.addEventListener("click", () => onSelect(line));
  return h("li", {}, button);
}

export class Problems {
  // onSelect(line) is called when a problem with a known line is chosen.
  constructor({ summary, list, onSelect }) {
    Object.assign(this, { summary, list, onSelect });
  }

  say(text, look = "") {
    this.summary.textContent = text;
    this.summary.className = `mh-verdict ${look}`;
  }

  busy(text) {
    this.say(text, "is-busy");
    this.list.replaceChildren();
  }

  // about: what the verdict is about, as "The text" or "Revision 3".
  show(problems, about) {
    const errors = problems.some(({ severity }) => severity === "error");
    if (!problems.length) this.say(`${about} has no problems.`, "is-good");
    else this.say(`${about} has ${sentence(problems)}.`, errors ? "is-error" : "is-warning");
    this.list.replaceChildren(...problems.map((problem) => item(problem, this.onSelect)));
  }

  // The text went on: what is listed may be corrected already.
  stale() {
    if (this.list.children.length) this.say("Changed since it was checked. Check it again.");
    else this.say("Not checked yet.");
  }
}
