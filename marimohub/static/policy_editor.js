// A text area for YAML with line numbers: Tab indents, Enter keeps the indentation, Escape then Tab leaves.
import { h } from "./dom.js";

const INDENT = "  ";

export class Editor {
  constructor({ textarea, gutter, onChange }) {
    Object.assign(this, { textarea, gutter, onChange });
    this.numbers = h("div", { class: "mh-gutter-lines" });
    this.gutter.append(this.numbers);
    this.marks = new Map();
    this.leaving = false;
    textarea.addEventListener("input", () => this.changed());
    textarea.addEventListener("scroll", () => this.follow());
    textarea.addEventListener("keydown", (event) => this.key(event));
    textarea.addEventListener("blur", () => (this.leaving = false));
    this.draw();
  }

  get text() {
    return this.textarea.value;
  }

  set text(text) {
    this.textarea.value = text;
    this.textarea.setSelectionRange(0, 0);
    this.textarea.scrollTop = 0;
    this.changed();
  }

  changed() {
    this.mark([]);
    this.onChange();
  }

  // Marks the lines of problems: {line, severity}.
  mark(problems) {
    this.marks = new Map();
    for (const { line, severity } of problems) {
      if (line && this.marks.get(line) !== "error") this.marks.set(line, severity);
    }
    this.draw();
  }

  draw() {
    const count = this.text.split("\n").length;
    const marks = [...this.marks.keys()].sort((a, b) => a - b).filter((line) => line <= count);
    const signature = `${count} ${marks.map((line) => `${line}${this.marks.get(line)}`)}`;
    if (signature === this.signature) return;
    this.signature = signature;
    const parts = [];
    let next = 1;
    const plain = (to) => {
      if (next < to) parts.push(Array.from({ length: to - next }, (_, index) => `${next + index}\n`).join(""));
    };
    for (const line of marks) {
      plain(line);
      parts.push(h("span", { class: `is-${this.marks.get(line)}` }, String(line)), "\n");
      next = line + 1;
    }
    plain(count + 1);
    this.numbers.replaceChildren(...parts);
    this.follow();
  }

  follow() {
    this.numbers.style.transform = `translateY(${-this.textarea.scrollTop}px)`;
  }

  // Puts the focus on a line and brings it into view.
  select(line) {
    const lines = this.text.split("\n");
    const from = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
    const height = Number.parseFloat(getComputedStyle(this.textarea).lineHeight);
    this.textarea.focus();
    this.textarea.setSelectionRange(from, from + (lines[line - 1] ?? "").length);
    this.textarea.scrollTop = (line - 1) * height - this.textarea.clientHeight / 3;
    this.textarea.scrollLeft = 0;
  }

  key(event) {
    const { key } = event;
    if (key === "Escape") {
      this.leaving = true;
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || event.isComposing) return;
    if (key === "Tab" && !this.leaving) {
      event.preventDefault();
      this.indent();
    } else if (key === "Enter") {
      event.preventDefault();
      this.insert(`\n${/^[ ]*/.exec(this.lineBefore())[0]}`);
    }
    if (key !== "Tab") this.leaving = false;
  }

  lineBefore() {
    const before = this.text.slice(0, this.textarea.selectionStart);
    return before.slice(before.lastIndexOf("\n") + 1);
  }

  indent() {
    const { selectionStart, selectionEnd } = this.textarea;
    const selected = this.text.slice(selectionStart, selectionEnd);
    if (!selected.includes("\n")) return this.insert(INDENT.slice(this.lineBefore().length % INDENT.length));
    const from = this.text.lastIndexOf("\n", selectionStart - 1) + 1;
    const indented = this.text.slice(from, selectionEnd).replace(/^(?=.)/gm, INDENT);
    this.textarea.setSelectionRange(from, selectionEnd);
    this.insert(indented);
    this.textarea.setSelectionRange(from, from + indented.length);
  }

  // As typed, so that the browser's undo knows it.
  insert(text) {
    if (document.execCommand("insertText", false, text)) return;
    this.textarea.setRangeText(text, this.textarea.selectionStart, this.textarea.selectionEnd, "end");
    this.changed();
  }
}
