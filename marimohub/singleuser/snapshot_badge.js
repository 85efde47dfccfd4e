// A quiet line over the notebook that says how old its data are. It lives in a shadow root: marimo's styles and a
// notebook's own do not reach it, nor it them. `settings` is what page.py hands in.
((settings) => {
const { token, prefix, header } = settings;
const style = `
  :host { position: fixed; left: 50%; bottom: .2rem; transform: translateX(-50%); z-index: 40; }
  div { display: flex; gap: .5rem; align-items: center; font: 12px/1.4 system-ui, sans-serif; white-space: nowrap;
        color: light-dark(#475569, #cbd5e1); background: light-dark(#ffffffe6, #1e293be6); padding: .15rem .3rem .15rem .7rem;
        border: 1px solid light-dark(#e2e8f0, #334155); border-radius: 99px; }
  div.dark { color-scheme: dark } div.light { color-scheme: light }
  button { font: inherit; color: inherit; background: none; border: 0; border-radius: 99px; padding: .15rem .5rem; cursor: pointer; }
  button:hover { background: light-dark(#f1f5f9, #334155); }
  button:focus-visible { outline: 2px solid light-dark(#2563eb, #93c5fd); }
  button:disabled { cursor: default; opacity: .6; }
  @media print { :host { display: none; } }
  @media (max-width: 900px) { :host { bottom: 2.4rem; } }`;
const ago = (iso) => {
  const minutes = Math.floor((Date.now() - new Date(iso)) / 60000);
  if (minutes < 1) return "just now";
  if (minutes < 120) return `${minutes} min ago`;
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ago` : `${Math.floor(minutes / 1440)} days ago`;
};
const start = () => {
  const host = document.createElement("marimohub-snapshot");
  const root = host.attachShadow({ mode: "open" });
  const box = document.createElement("div"), text = document.createElement("span"), button = document.createElement("button");
  const sheet = document.createElement("style");
  sheet.textContent = style;
  text.setAttribute("role", "status");
  button.type = "button";
  button.textContent = "Refresh";
  button.title = "Take a new snapshot of the warehouse. Run the cell that connects again to work with it.";
  box.append(text, button);
  root.append(sheet, box);
  document.body.append(host);
  let snapshot = null, said = "", until = 0;
  const show = () => {
    const dark = document.body.classList.contains("dark") || document.documentElement.classList.contains("dark");
    box.className = dark ? "dark" : "light";
    host.hidden = !snapshot && !said;
    if (Date.now() < until) { text.textContent = said; return; }
    said = "";
    text.textContent = snapshot ? `Data as of ${ago(snapshot.checked)}` : "No snapshot";
    if (snapshot) text.title = `Snapshot of ${new Date(snapshot.created).toLocaleString()}`;
  };
  const say = (words, seconds) => { said = words; until = Date.now() + seconds * 1000; show(); };
  const ask = async (path, method) => {
    const answer = await fetch(`${prefix}marimohub/${path}`, { method, headers: { [header]: token } });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.detail || "The snapshot could not be refreshed.");
    return body;
  };
  const look = async () => {
    try { snapshot = (await ask("snapshot", "GET")).snapshot; } catch { /* signed out or offline: the page says so */ }
    show();
  };
  button.addEventListener("click", async () => {
    button.disabled = true;
    say("Taking a new snapshot …", 3600);
    try {
      const body = await ask("snapshot/refresh", "POST");
      snapshot = body.snapshot;
      say(body.changed ? "New snapshot: run the cell that connects again" : "Nothing newer in the warehouse", 12);
    } catch (error) {
      say(error.message, 15);
    }
    button.disabled = false;
  });
  look();
  setInterval(show, 5000);
  setInterval(look, 60000);
};
document.readyState === "loading" ? addEventListener("DOMContentLoaded", start) : start();
})(SETTINGS)
