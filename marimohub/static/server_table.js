// The table of servers: rows stay where they are and only their values change, so that focus and reading do not jump.
import { announce, byId, h } from "./dom.js";
import { refreshTime } from "./rows.js";
import { bytes, of } from "./sizes.js";

const LOOKS = {
  running: ["status-available", "Running"],
  starting: ["status-mine", "Starting"],
  stopping: ["status-mine", "Stopping"],
  failed: ["status-failed", "Did not start"],
  ended: ["status-failed", "Ended by itself"],
};
const HIGH = 0.85; // of a limit: about to be reached
const number = new Intl.NumberFormat("en");
const cores = (count) => number.format(Math.round(count * 100) / 100);
const MEASURES = {
  cpu: {
    label: "CPU",
    limit: "cpu_limit",
    text: (used, most) => (most ? `${cores(used)} of ${cores(most)}` : cores(used)),
  },
  memory: { label: "Memory", limit: "memory_limit", text: (used, most) => (most ? of(used, most) : bytes(used)) },
  processes: {
    label: "Processes",
    limit: "process_limit",
    text: (used, most) => (most ? `${number.format(used)} of ${number.format(most)}` : number.format(used)),
  },
  disk: { label: "Disk", limit: "disk_limit", text: (used, most) => (most ? of(used, most) : bytes(used)) },
};
const gone = ({ state }) => state === "failed" || state === "ended";

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

class Measure {
  constructor(key) {
    this.key = key;
    this.text = h("span", { class: "mh-amount" });
    this.bar = h("i");
    this.meter = h("span", { class: "mh-meter", "aria-hidden": "true" }, this.bar);
    const { label } = MEASURES[key];
    this.cell = h("td", { class: `c-${key}`, "data-label": label }, h("span", {}, this.text, this.meter));
  }

  update(server) {
    const { limit, text } = MEASURES[this.key];
    const used = server[this.key];
    const most = server[limit];
    setText(this.text, used === null ? "…" : text(used, most));
    this.meter.hidden = used === null || !most;
    if (this.meter.hidden) return;
    const part = Math.min(used / most, 1);
    this.bar.style.width = `${Math.max(part * 100, 1.5)}%`;
    this.meter.classList.toggle("is-high", part >= HIGH);
  }
}

function button(action, label, server, look) {
  const name = `${label}: ${server.server ? `${server.user}, ${server.server}` : server.user}`;
  return h("button", { type: "button", class: `btn ${look}`, "data-action": action, "aria-label": name }, label);
}

class Row {
  constructor(server, { canStop, canLog }) {
    this.pill = h("span", {});
    this.status = h("span", { class: "status" }, this.pill);
    this.time = h("time", { datetime: "" });
    this.verb = h("span", {});
    this.since = h("span", { class: "mh-since" }, this.verb, this.time);
    this.profile = h("span", { class: "mh-soft mh-profile-name" });
    this.measures = Object.keys(MEASURES).map((key) => new Measure(key));
    this.why = h("td", { class: "c-why" });
    this.stop = canStop && button("stop", "Stop", server, "btn-quiet is-danger");
    const log = canLog && !server.server && button("log", "Log", server, "btn-quiet");
    const name = h("span", { class: "name" }, server.user, server.server ? ` · ${server.server}` : "");
    this.element = h(
      "tr",
      { "data-key": Row.key(server) },
      h("th", { scope: "row", class: "c-user" }, name, this.profile),
      h("td", { class: "c-since", "data-label": "State" }, h("span", {}, this.status, this.since)),
      ...this.measures.map(({ cell }) => cell),
      this.why,
      h("td", { class: "c-actions" }, h("div", { class: "row-actions" }, log, this.stop)),
    );
  }

  static key({ user, server }) {
    return JSON.stringify([user, server]);
  }

  update(server, now) {
    this.server = server;
    const [look, word] = LOOKS[server.state] ?? ["", server.state];
    this.status.className = `status ${look}`;
    setText(this.pill, word);
    this.since.hidden = !server.since;
    setText(this.verb, gone(server) ? "" : "started ");
    if (this.time.dateTime !== (server.since ?? "")) {
      this.time.dateTime = server.since ?? "";
      delete this.time.dataset.local;
    }
    refreshTime(this.time, now);
    setText(this.profile, server.profile?.title ?? "");
    this.element.classList.toggle("is-gone", gone(server));
    for (const measure of this.measures) {
      measure.cell.hidden = gone(server);
      measure.update(server);
    }
    this.why.hidden = !gone(server);
    setText(this.why, server.message ?? "");
    if (this.stop) this.stop.hidden = server.state !== "running";
  }
}

export class ServerTable {
  // now() gives the hub's time in milliseconds.
  constructor({ now, canStop, canLog }) {
    Object.assign(this, { now, canStop, canLog });
    this.body = byId("servers-rows");
    this.rows = new Map();
    this.sort = { key: "user", direction: "ascending" };
    for (const header of document.querySelectorAll(".is-servers .mh-sort")) {
      header.addEventListener("click", () => this.sortBy(header.dataset.sort));
    }
  }

  get(key) {
    return this.rows.get(key).server;
  }

  update({ servers, cores: all }) {
    const keys = new Set(servers.map(Row.key));
    for (const [key, { element }] of this.rows) {
      if (keys.has(key)) continue;
      element.remove();
      this.rows.delete(key);
    }
    for (const server of servers) {
      const key = Row.key(server);
      if (!this.rows.has(key)) this.rows.set(key, new Row(server, this));
      this.rows.get(key).update(server, this.now());
    }
    this.arrange();
    byId("servers-card").hidden = !servers.length;
    byId("servers-empty").hidden = servers.length > 0;
    const running = servers.filter((server) => !gone(server));
    const sum = (key) => running.reduce((total, server) => total + (server[key] ?? 0), 0);
    setText(byId("servers-count"), `${running.length} server${running.length === 1 ? "" : "s"}`);
    const sums = `${bytes(sum("memory"))} memory · ${cores(sum("cpu"))} of ${all} CPUs`;
    setText(byId("servers-sum"), running.length ? ` · ${sums}` : "");
  }

  sortBy(key) {
    const first = key === "user" || key === "since" ? "ascending" : "descending";
    const second = first === "ascending" ? "descending" : "ascending";
    const direction = this.sort.key === key && this.sort.direction === first ? second : first;
    this.sort = { key, direction };
    for (const header of document.querySelectorAll(".is-servers .mh-sort")) {
      if (header.dataset.sort === key) header.closest("th").setAttribute("aria-sort", direction);
      else header.closest("th").removeAttribute("aria-sort");
    }
    this.arrange();
    announce(`Sorted by ${key === "user" ? "person" : key}, ${direction}.`);
  }

  // Moves only what is out of place; what did not start or has ended comes last.
  arrange() {
    const { key, direction } = this.sort;
    const sign = direction === "ascending" ? 1 : -1;
    const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const value = (server) => server[key] ?? (key === "since" ? "" : -1);
    const ordered = [...this.rows.values()].sort(
      (a, b) =>
        compare(gone(a.server), gone(b.server)) ||
        sign * compare(value(a.server), value(b.server)) ||
        compare(Row.key(a.server), Row.key(b.server)),
    );
    if (ordered.every(({ element }, index) => this.body.children[index] === element)) return;
    const active = this.body.contains(document.activeElement) ? document.activeElement : null;
    this.body.append(...ordered.map(({ element }) => element));
    active?.focus({ preventScroll: true });
  }
}
