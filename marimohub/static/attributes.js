// A person's attributes as a form: one field for each that the policy declares.
import { h } from "./dom.js";

const HINTS = { text: "text", number: "number", date: "date", boolean: "yes or no" };

function toText(value) {
  if (value === null || value === undefined) return "";
  return Array.isArray(value) ? value.map(String).join("\n") : String(value);
}

// What cannot be read stays text: the hub says what is wrong with it.
function scalar(type, text) {
  if (type === "boolean") return { true: true, false: false }[text.toLowerCase()] ?? text;
  const value = Number(text);
  const exact = Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value));
  return type === "number" && exact ? value : text;
}

// The value of a field; undefined if it is left empty.
export function fromText({ type, list }, text) {
  if (!list) return text.trim() === "" ? undefined : scalar(type, type === "text" ? text : text.trim());
  const values = text.split("\n").map((line) => line.trim());
  const found = values.filter(Boolean).map((line) => scalar(type, line));
  return found.length ? found : undefined;
}

function control({ type, list }, value, attributes) {
  const text = toText(value);
  if (list) {
    const area = h("textarea", { class: "form-control", rows: "2", spellcheck: "false", ...attributes });
    area.value = text;
    area.rows = Math.min(Math.max(2, text.split("\n").length), 8);
    return area;
  }
  if (type === "boolean") {
    const choices = [["", "not set"], ["true", "yes"], ["false", "no"]];
    const options = choices.map(([key, label]) => h("option", { value: key }, label));
    const select = h("select", { class: "form-select", ...attributes }, ...options);
    select.value = ["true", "false"].includes(text) ? text : "";
    return select;
  }
  const kind = type === "date" ? "date" : "text";
  const input = h("input", { class: "form-control", type: kind, autocomplete: "off", spellcheck: "false", ...attributes });
  if (type === "number") input.inputMode = "decimal";
  input.value = text;
  return input;
}

function field(name, kind, value, unusable, id) {
  const hint = `${kind.list ? `list of ${HINTS[kind.type]}, one per line` : HINTS[kind.type]}`;
  const made = control(kind, value, { id, name, "aria-describedby": `${id}-hint ${id}-problem` });
  const problem = h("p", { class: "mh-problem", id: `${id}-problem`, "aria-live": "polite" });
  if (unusable) problem.textContent = `What is stored (${toText(value)}) does not fit and does not count.`;
  const label = h("label", { class: "form-label", for: id }, name);
  return h("div", { class: "mh-field" }, label, made, h("p", { class: "form-text", id: `${id}-hint` }, hint), problem);
}

// model: the hub's {user, attributes, declared, unusable}. save(values) resolves when they are stored.
export function buildAttributes({ user, attributes, declared, unusable }, save) {
  const kinds = Object.entries(declared);
  const strangers = Object.keys(attributes).filter((name) => !Object.hasOwn(declared, name));
  const heading = h("h2", {}, `Attributes of ${user}`);
  if (!kinds.length && !strangers.length) {
    const text = "The policy declares no attributes. Row filters can compare columns with those it declares.";
    return h("section", { class: "mh-side-card mh-attributes" }, heading, h("p", { class: "mh-soft" }, text));
  }
  const fields = new Map(
    kinds.map(([name, kind], index) => [
      name,
      field(name, kind, Object.hasOwn(attributes, name) ? attributes[name] : null, unusable.includes(name), `attribute-${index}`),
    ]),
  );
  const said = h("span", { class: "mh-soft", id: "attributes-said", role: "status" });
  const problem = h("p", { class: "mh-problem", "aria-live": "assertive" });
  const button = h("button", { type: "submit", class: "btn btn-quiet" }, "Save attributes");
  const dropped =
    strangers.length > 0 &&
    h("p", { class: "mh-note is-warning" }, `Stored, but not declared by the policy: ${strangers.join(", ")}. Saving removes that.`);
  const grid = h("div", { class: "mh-attribute-grid" }, ...fields.values());
  const foot = h("div", { class: "mh-form-foot" }, button, said);
  const form = h("form", { id: "attributes", novalidate: "" }, grid, dropped, problem, foot);

  const valueOf = (name) => fields.get(name).querySelector("input, select, textarea").value;
  form.addEventListener("input", () => (said.textContent = "Not saved yet."));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    for (const each of form.querySelectorAll(".mh-problem")) each.textContent = "";
    for (const each of form.querySelectorAll(".is-invalid")) each.classList.remove("is-invalid");
    button.disabled = true;
    said.textContent = "Saving…";
    const values = kinds.map(([name, kind]) => [name, fromText(kind, valueOf(name))]);
    try {
      await save(Object.fromEntries(values.filter(([, value]) => value !== undefined)));
    } catch (error) {
      said.textContent = "";
      const elsewhere = (error.problems ?? []).filter(({ where }) => !fields.has(where));
      const own = (error.problems ?? []).filter(({ where }) => fields.has(where));
      for (const { where, message } of own) {
        const box = fields.get(where);
        box.querySelector(".mh-problem").textContent = message;
        box.querySelector(".form-control, .form-select").classList.add("is-invalid");
      }
      problem.textContent = own.length ? elsewhere.map(({ message }) => message).join(" ") : error.message;
      (own.length ? fields.get(own[0].where).querySelector("input, select, textarea") : button).focus();
    }
    button.disabled = false;
  });
  return h("section", { class: "mh-side-card mh-attributes" }, heading, form);
}
