// Elements without markup strings: text is always text, so a notebook's name or a log line can never become HTML.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

// The page's module has attached its handlers: a click that came before is done now (early_clicks.js).
export const ready = () => window.marimohubReady();

// Speaks to screen readers; the eye sees the table change.
export function announce(text) {
  byId("announce").textContent = text;
}

// An error above the table that stays until dismissed or replaced by a newer one under the same key.
export function showError(error, { key = "error", prefix = "", action = null, detail = [] } = {}) {
  clearError(key);
  const body = h("div", {}, h("span", {}, prefix ? `${prefix}: ${error.message}` : error.message));
  if (action) body.append(" ", action);
  body.append(...detail);
  if (error.problems?.length) {
    const texts = error.problems.map(({ where, message }) => h("li", {}, where ? `${where}: ${message}` : message));
    body.append(h("ul", { class: "mh-reasons" }, ...texts));
  }
  if (error.log) {
    const lines = h("pre", { tabindex: "0" }, error.log.join("\n"));
    body.append(h("details", {}, h("summary", {}, "Server log (administrators)"), lines));
  }
  const close = h("button", { type: "button", class: "mh-dismiss", "aria-label": "Dismiss" }, "✕");
  const box = h("div", { class: "mh-alert mh-alert-error", role: "alert", "data-key": key }, body, close);
  close.addEventListener("click", () => box.remove());
  byId("alerts").prepend(box);
}

// As an error, for something that went well and that the eye has to see.
export function showMessage(text, { key, detail = [] }) {
  showError({ message: text }, { key, detail });
  const [box] = byId("alerts").children;
  box.classList.replace("mh-alert-error", "mh-alert-info");
  box.setAttribute("role", "status");
}

export function clearError(key) {
  for (const box of byId("alerts").children) if (box.dataset.key === key) box.remove();
}

// How a page without a list reports errors: who is signed out gets the way to sign in again.
export function reporter(login) {
  return (error, { key = "error", prefix = "", action = null } = {}) => {
    if (!error.signedOut) return showError(error, { key, prefix, action });
    return showError(error, { key: "signed out", action: h("a", { href: login }, "Sign in again") });
  };
}
