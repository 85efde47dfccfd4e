// Changes by others: a WebSocket while it holds, a question every 15 s while it does not, and one whenever the page
// comes back into view.
const POLL = 15_000;
const FIRST_RETRY = 1_000;
const LAST_RETRY = 60_000;

export class Live {
  // url of the events socket; onEvent(message) for each message; onStale() when the listing may be out of date.
  constructor({ url, onEvent, onStale }) {
    this.url = new URL(url, location.href);
    this.url.protocol = this.url.protocol === "https:" ? "wss:" : "ws:";
    this.onEvent = onEvent;
    this.onStale = onStale;
    this.retry = FIRST_RETRY;
    this.connected = false;
    this.stopped = false;
    this.connect();
    this.poll = setInterval(() => {
      if (!this.connected && !document.hidden) this.onStale();
    }, POLL);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && !this.stopped) this.onStale();
    });
    window.addEventListener("focus", () => !this.stopped && this.onStale());
  }

  connect() {
    this.socket = new WebSocket(this.url);
    this.socket.addEventListener("open", () => {
      this.connected = true;
      this.retry = FIRST_RETRY;
      this.onStale(); // whatever happened between the page's rendering and now
    });
    this.socket.addEventListener("message", ({ data }) => this.onEvent(JSON.parse(data)));
    this.socket.addEventListener("close", () => {
      this.connected = false;
      if (this.stopped) return;
      // Spread out, so that a thousand pages do not return to a restarted hub in the same instant.
      setTimeout(() => !this.stopped && this.connect(), this.retry * (0.5 + Math.random()));
      this.retry = Math.min(this.retry * 2, LAST_RETRY);
    });
  }

  stop() {
    this.stopped = true;
    clearInterval(this.poll);
    this.socket.close();
  }
}
