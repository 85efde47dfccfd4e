"""The pages this side makes itself, and what is added to marimo's."""

from __future__ import annotations

import html
import json
from importlib import resources

from starlette.responses import HTMLResponse

from marimohub.singleuser.browser import TOKEN_HEADER, TOKEN_PARAMETER

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}<title>{title} · MarimoHub</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; min-height: 100vh; display: grid; place-items: center;
        background: Canvas; color: CanvasText }}
main {{ max-width: 34rem; padding: 2rem }}
h1 {{ font-size: 1.4rem; margin: 0 0 .75rem }}
a {{ display: inline-block; margin: .75rem .75rem 0 0; padding: .5rem 1rem; border-radius: .5rem;
     border: 1px solid #2563eb; background: #2563eb; color: #fff; text-decoration: none }}
a + a {{ background: none; color: inherit; border-color: #888 }}
a:focus-visible {{ outline: 3px solid #93c5fd; outline-offset: 2px }}
</style></head>
<body><main><h1>{title}</h1><p>{message}</p>{links}</main></body></html>
"""


def message_page(
    status: int,
    title: str,
    message: str,
    links: list[tuple[str, str]],
    *,
    reload_after: int | None = None,
) -> HTMLResponse:
    """A page that says what happened. `links` are (text, url); `reload_after` is in seconds."""
    refresh = f'<meta http-equiv="refresh" content="{reload_after}">' if reload_after else ""
    anchors = "".join(f'<a href="{html.escape(url)}">{html.escape(text)}</a>' for text, url in links)
    body = _PAGE.format(refresh=refresh, title=html.escape(title), message=html.escape(message), links=anchors)
    return HTMLResponse(body, status_code=status, headers={"Cache-Control": "no-store"})


# marimo's front end sends its server token with every HTTP request; for WebSockets this does it. A Proxy keeps
# `instanceof`, the constants and subclasses working. The panel with the warehouse's tables is open for a person who
# has not chosen otherwise (marimo keeps that choice in the browser).
_SCRIPT = """<script data-marimohub="true">(() => {
const token = %s, prefix = %s, parameter = %s;
const own = (value) => {
  const url = new URL(value, location.href);
  if (url.protocol.startsWith("http")) url.protocol = url.protocol.replace("http", "ws");
  if (url.host === location.host && url.pathname.startsWith(prefix)) url.searchParams.set(parameter, token);
  return url.href;
};
window.WebSocket = new Proxy(window.WebSocket, {
  construct(target, [url, ...rest], newTarget) {
    return Reflect.construct(target, [own(url), ...rest], newTarget === window.WebSocket ? target : newTarget);
  },
});
try {
  if (!localStorage.getItem("marimo:sidebar")) {
    localStorage.setItem("marimo:sidebar", JSON.stringify({
      selectedPanel: "variables", isSidebarOpen: true,
      isDeveloperPanelOpen: false, selectedDeveloperPanelTab: "errors",
    }));
  }
} catch { /* storage is blocked: nothing to choose */ }
})()</script>"""


_SNAPSHOT_SCRIPT = resources.files("marimohub.singleuser").joinpath("snapshot_badge.js").read_text("utf-8")


def with_scripts(page: bytes, token: str, prefix: str) -> bytes:
    """marimo's HTML with the scripts that send the server token along with WebSockets, and show the snapshot's age."""

    def literal(value: str) -> str:
        return json.dumps(value).replace("<", "\\u003c")

    settings = json.dumps({"token": token, "prefix": prefix, "header": TOKEN_HEADER}).replace("<", "\\u003c")
    badge = _SNAPSHOT_SCRIPT.replace("SETTINGS", settings)
    scripts = _SCRIPT % (literal(token), literal(prefix), literal(TOKEN_PARAMETER))
    scripts += f'<script data-marimohub="snapshot">{badge}</script>'
    head, tag, rest = page.partition(b"<head>")
    return head + tag + scripts.encode() + rest if tag else scripts.encode() + page
