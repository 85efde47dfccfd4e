// Opening a notebook in a new tab. The tab is opened at once, while the click still counts as one, because browsers
// block tabs that a script opens later; until the server is ready it shows the progress.
import { h } from "./dom.js";

class OpeningTab {
  constructor(name) {
    this.window = window.open("", "_blank");
    if (this.window) this.draw(name);
  }

  get usable() {
    return Boolean(this.window) && !this.window.closed;
  }

  draw(name) {
    const page = this.window.document;
    page.title = `Opening ${name}…`;
    page.documentElement.lang = "en";
    page.documentElement.dataset.bsTheme = document.documentElement.dataset.bsTheme ?? "light";
    for (const sheet of document.querySelectorAll("link[rel=stylesheet], link[rel=icon]")) {
      const link = page.importNode(sheet);
      link.href = sheet.href;
      page.head.append(link);
    }
    page.head.append(h("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }));
    this.message = h("p", { role: "status" }, "Asking for the lock…");
    this.bar = h("progress", { max: "100", value: "0", "aria-label": "Progress" });
    this.hint = h("p", { class: "mh-soft" }, "The notebook appears in this tab when it is ready.");
    const logo = document.querySelector(".mh-logo").cloneNode(true);
    const heading = h("h1", {}, `Opening ${name}…`);
    page.body.append(h("main", { class: "mh-opening" }, logo, heading, this.message, this.bar, this.hint));
  }

  progress({ message, progress }) {
    if (!this.usable) return;
    this.message.textContent = message;
    this.bar.value = progress;
  }

  // The notebook runs other people's code: it gets no way back to this page.
  go(url) {
    if (!this.usable) return false;
    try {
      this.window.opener = null;
    } catch {
      return false; // its user has meanwhile gone to another site in it
    }
    this.window.location.replace(url);
    return true;
  }

  close() {
    if (this.usable) this.window.close();
  }

  orphan() {
    if (!this.usable) return;
    this.bar.remove();
    this.message.textContent = "The Notebooks page was left before the notebook was ready.";
    const link = h("a", { href: location.href }, "Notebooks page");
    this.hint.replaceChildren("Close this tab and open the notebook again from the ", link, ".");
    this.window = null; // the request that now fails with the page must not close it unread
  }
}

const starting = new Set();

window.addEventListener("pagehide", () => {
  for (const tab of starting) tab.orphan();
});

// Only http(s): the address comes from the hub, but it is put into a window, so nothing else may pass.
function checked(url) {
  const target = new URL(url, location.href);
  if (!/^https?:$/.test(target.protocol)) throw new Error("The hub gave an address that cannot be opened.");
  return target.href;
}

// Resolves to null when the tab shows the notebook, or to its address when no tab could be used. Call it directly in
// the click handler. onProgress({message, progress}); throws ApiError.
export async function openNotebook(api, name, onProgress) {
  const tab = new OpeningTab(name);
  starting.add(tab);
  try {
    const ready = await api.open(name, (event) => {
      tab.progress(event);
      onProgress(event);
    });
    const url = checked(ready.marimo_url);
    return tab.go(url) ? null : url;
  } catch (error) {
    tab.close();
    throw error;
  } finally {
    starting.delete(tab);
  }
}
