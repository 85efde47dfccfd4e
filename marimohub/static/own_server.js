// One's own notebook server on the Notebooks page: which profile it has, another one, and why it ended if it did.
import { Dialog } from "./dialogs.js";
import { announce, byId, clearError, h } from "./dom.js";

const SAID_FOR = 20_000;
const SOON = 2_000;
const SEEN = "marimohub-ended-seen";
const STATES = { running: "running", starting: "starting", stopping: "stopping", stopped: "not running" };

const sized = ({ title, size }) => [h("b", {}, title), ...(size ? [` · ${size}`] : [])];

class ProfileDialog extends Dialog {
  constructor() {
    super("profile-dialog");
    this.box = byId("profile-choices");
    this.warning = byId("profile-warning");
    this.box.addEventListener("change", () => this.chosen());
  }

  ask({ server, now, ...rest }) {
    Object.assign(this, { server, now });
    for (const old of this.box.querySelectorAll(".mh-choice")) old.remove();
    this.box.append(...server.profiles.map((profile) => this.choice(profile)));
    // what runs may not be offered any more: then nothing of the list is kept
    (this.box.querySelector("input:checked") ?? this.box.querySelector("input")).checked = true;
    this.show({ title: "Your notebook server", confirm: "Use it", ...rest });
    this.chosen();
    this.box.querySelector("input:checked").focus();
  }

  choice(profile) {
    const { running } = this.server;
    const input = h("input", { type: "radio", name: "profile", value: profile.name });
    input.checked = profile.name === this.now;
    const tags = [
      running?.name === profile.name && h("span", { class: "mh-tag" }, "running"),
      this.server.default === profile.name && h("span", { class: "mh-tag" }, "default"),
    ];
    return h(
      "label",
      { class: "mh-choice" },
      input,
      h(
        "span",
        {},
        h("span", { class: "mh-choice-head" }, h("b", {}, profile.title), ...tags),
        profile.size && h("span", { class: "mh-choice-size" }, profile.size),
        profile.description && h("span", { class: "mh-soft" }, profile.description),
      ),
    );
  }

  get value() {
    return this.box.querySelector("input:checked").value;
  }

  chosen() {
    const { running, profiles } = this.server;
    const { title } = profiles.find(({ name }) => name === this.value);
    const restart = running && running.name !== this.value;
    this.label = restart ? `Restart as ${title}` : this.value === this.now ? `Keep ${title}` : `Use ${title}`;
    this.confirm.textContent = this.label;
    this.warning.hidden = !restart;
    this.warning.textContent = restart
      ? `Your server runs as ${running.title}, so it has to restart. The values in your open notebooks are lost; what ` +
        "you saved stays. Reload their tabs afterwards."
      : "";
    this.say("");
  }

  submit() {
    if (this.value === this.now) this.dialog.close();
    else this.perform(this.value);
  }
}

export class OwnServer {
  // report(error, {key, prefix}) shows an error above the table; server: as the API gives it.
  constructor({ api, report, server }) {
    Object.assign(this, { api, report });
    this.said = byId("server-said");
    this.button = byId("choose-profile");
    this.dialog = new ProfileDialog();
    this.turn = 0;
    this.button.addEventListener("click", () => this.choose());
    document.addEventListener("visibilitychange", () => !document.hidden && this.load());
    this.show(server);
  }

  async load() {
    const turn = (this.turn += 1);
    let server;
    try {
      server = await this.api.profiles();
    } catch (error) {
      if (error.signedOut) this.report(error, { key: "server" });
      return; // what is shown may be out of date; the next question tells
    }
    if (turn === this.turn) this.show(server);
  }

  // What runs, or what the next start takes.
  get current() {
    const { running, chosen, default: standard } = this.server;
    return running?.name ?? chosen ?? standard;
  }

  show(server) {
    this.server = server;
    const { profiles, running, chosen, state } = server;
    byId("server-line").hidden = profiles.length < 2;
    const own = profiles.find(({ name }) => name === this.current) ?? running;
    const next = running && chosen !== running.name && profiles.find(({ name }) => name === chosen);
    const then = next ? `, ${next.title} from the next start` : "";
    if (own) byId("server-text").replaceChildren("Your server: ", ...sized(own), ` · ${STATES[state]}${then}`);
    clearTimeout(this.again);
    if (state === "starting" || state === "stopping") this.again = setTimeout(() => this.load(), SOON);
    this.showEnd();
  }

  choose() {
    clearError("server");
    const { profiles } = this.server;
    this.dialog.ask({
      server: this.server,
      now: this.current,
      opener: this.button,
      run: async (name) => {
        this.turn += 1; // an older answer must not come after this one
        const restart = this.server.state !== "stopped";
        this.show(await (restart ? this.api.restartServer(name) : this.api.chooseProfile(name)));
        const { title } = profiles.find((profile) => profile.name === name);
        return () => {
          this.say(restart ? `Restarted as ${title}` : "Taken when you open a notebook");
          announce(restart ? `Your server runs as ${title}.` : `Your server will start as ${title}.`);
        };
      },
    });
  }

  // Until it is dismissed, or a server runs again.
  showEnd() {
    const { ended } = this.server;
    const old = document.querySelector("[data-ended]");
    if (old?.dataset.ended === ended?.at) return;
    old?.remove();
    if (!ended || localStorage.getItem(SEEN) === ended.at) return;
    const hint = "What you saved is kept. Opening a notebook starts it again.";
    const text = h("span", {}, h("strong", {}, ended.because), ` ${hint}`);
    const close = h("button", { type: "button", class: "mh-dismiss", "aria-label": "Dismiss" }, "✕");
    close.addEventListener("click", () => localStorage.setItem(SEEN, ended.at));
    byId("notices").append(h("div", { class: "mh-alert mh-alert-warning", "data-ended": ended.at }, text, close));
  }

  say(text) {
    clearTimeout(this.silence);
    this.said.textContent = text;
    if (text) this.silence = setTimeout(() => this.say(""), SAID_FOR);
  }
}
