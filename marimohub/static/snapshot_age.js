// "Your data: as of 12 min ago" on the Notebooks page, and the button that takes a newer snapshot.
import { byId, clearError, h } from "./dom.js";

const UNITS = [
  [86400, "day"],
  [3600, "hour"],
  [60, "min"],
];
const SAID_FOR = 20_000;
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// "12 min ago" for an ISO 8601 time; `now` in milliseconds.
export function age(iso, now) {
  const seconds = (now - Date.parse(iso)) / 1000;
  for (const [size, unit] of UNITS) {
    const count = Math.floor(seconds / size);
    if (count >= 1) return `${count} ${unit}${count === 1 || unit === "min" ? "" : "s"} ago`;
  }
  return "just now";
}

export class SnapshotAge {
  // report(error, {key, prefix}) shows an error above the table.
  constructor({ api, now, report }) {
    Object.assign(this, { api, now, report });
    this.snapshot = undefined; // not known yet; null: there is none
    this.turn = 0;
    this.text = byId("data-age");
    this.button = byId("refresh-snapshot");
    this.said = byId("data-said");
    this.button.addEventListener("click", () => this.refresh());
    document.addEventListener("visibilitychange", () => !document.hidden && this.load());
    this.load();
  }

  async load() {
    if (this.busy) return;
    const turn = (this.turn += 1);
    let snapshot;
    try {
      ({ snapshot } = await this.api.snapshot());
    } catch (error) {
      if (error.signedOut) this.report(error, { key: "snapshot" });
      else if (turn === this.turn) this.text.textContent = "Your data: its age is not known just now.";
      return;
    }
    if (turn === this.turn) this.show(snapshot);
  }

  show(snapshot) {
    this.snapshot = snapshot;
    if (!snapshot) {
      this.text.replaceChildren("A snapshot is taken when you open a notebook.");
    } else {
      const time = h("time", { datetime: snapshot.checked, title: exact.format(new Date(snapshot.checked)) });
      const stale = h("span", { class: "mh-stale" }, "What you may see has changed; open a notebook again.");
      this.text.replaceChildren("Your data: as of ", time, ...(snapshot.current ? [] : [" ", stale]));
    }
    this.button.hidden = false;
    this.tick();
  }

  tick() {
    const time = this.text.querySelector("time");
    const text = time && age(time.dateTime, this.now());
    if (time && time.textContent !== text) time.textContent = text;
  }

  async refresh() {
    if (this.busy) return;
    this.setBusy(true);
    this.say("");
    clearError("snapshot");
    this.turn += 1; // an older answer must not come after this one
    try {
      const { snapshot, changed } = await this.api.refreshSnapshot();
      this.show(snapshot);
      this.say(changed ? "New snapshot: taken just now" : "Nothing newer: the warehouse has not changed");
    } catch (error) {
      this.report(error, { key: "snapshot", prefix: "No new snapshot" });
    }
    this.setBusy(false);
    this.load();
  }

  // aria-disabled and not disabled: the button keeps the focus.
  setBusy(busy) {
    this.busy = busy;
    this.button.setAttribute("aria-disabled", String(busy));
    this.button.classList.toggle("is-busy", busy);
    this.button.querySelector("span").textContent = busy ? "Taking a snapshot…" : "Refresh snapshot";
  }

  say(text) {
    clearTimeout(this.silence);
    this.said.textContent = text;
    if (text) this.silence = setTimeout(() => this.say(""), SAID_FOR);
  }
}
