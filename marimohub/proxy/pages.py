"""The small pages that Envoy itself answers with when a server or the hub cannot be reached, or refuses a request.

They load nothing: the hub that would serve a style sheet may be the one that is away. What they look like is
static/marimohub.css in short; without a script they follow the system's choice of light and dark.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape

HEADERS = (
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"),
    ("x-content-type-options", "nosniff"),
)
_STYLE = """
:root{color-scheme:light dark;--page:#f6f8f7;--card:#fff;--text:#212529;--soft:#59645f;--line:#dfe4e2;--accent:#0f766e;
--strong:#0b5d57;--focus:#0f6b64}
@media(prefers-color-scheme:dark){:root{--page:#15191a;--card:#1d2223;--text:#e3e8e6;--soft:#a3b0ac;--line:#333b3c;
--accent:#0f7d74;--strong:#0b6a62;--focus:#5fd4c7}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:flex;align-items:center;justify-content:center;padding:1rem;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;background:var(--page);color:var(--text)}
main{width:100%;max-width:34rem;padding:1.5rem;background:var(--card);border:1px solid var(--line);border-radius:.75rem}
h1{font-size:1.5rem;line-height:1.25;font-weight:600;margin:0 0 .75rem;overflow-wrap:anywhere}
p{margin:0 0 .75rem}
.soft{color:var(--soft);margin:0}
a{display:inline-block;margin:.5rem 0 1rem;padding:.5rem 1rem;border-radius:.375rem;background:var(--accent);color:#fff;
text-decoration:none}
a:hover{background:var(--strong)}
a:focus-visible{outline:2px solid var(--focus);outline-offset:2px}
"""


@dataclass(frozen=True)
class Page:
    """One page: what a person reads, and the code and message that a script gets as JSON.

    Attributes:
        status: HTTP status to answer with, or None to keep the one Envoy chose.
        reload: seconds after which the browser asks again, None for never.
        button: text of the link to the Notebooks page, "" for no link.
    """

    code: str
    title: str
    message: str
    status: int | None = None
    reload: int | None = None
    button: str = ""

    def html(self, notebooks_url: str) -> str:
        refresh = f'<meta http-equiv="refresh" content="{self.reload}">' if self.reload else ""
        link = f'<a href="{escape(notebooks_url)}">{escape(self.button)}</a>' if self.button else ""
        again = '<p class="soft"><small>This page looks again by itself.</small></p>' if self.reload else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"{refresh}<title>{escape(self.title)} · MarimoHub</title><style>{_STYLE}</style></head>"
            f"<body><main><h1>{escape(self.title)}</h1><p>{escape(self.message)}</p>{link}{again}</main></body></html>\n"
        )

    def json(self) -> str:
        return json.dumps({"error": {"code": self.code, "message": self.message}}) + "\n"


_TO_NOTEBOOKS = "Go to Notebooks"

HUB_RESTARTING = Page(
    "hub_restarting",
    "The hub is restarting",
    "Notebooks that are open keep running.",
    status=503,
    reload=2,
)
# The hub takes the route away once it noticed, and shows the reason on a page of its own.
SERVER_NOT_RUNNING = Page(
    "server_not_running",
    "Your server is not running",
    "It was stopped, it ended unexpectedly, or it is just starting. What you saved is kept. "
    "If it does not come, open the notebook again from the Notebooks page: that starts it.",
    reload=5,
    button=_TO_NOTEBOOKS,
)
# Not asked again by itself: whatever was asked may have been what ended the server.
SERVER_BROKE_OFF = Page(
    "server_broke_off",
    "Your server broke off",
    "It ended while it was answering, perhaps for want of memory. What you saved is kept. "
    "Open the notebook again from the Notebooks page.",
    button=_TO_NOTEBOOKS,
)
BAD_ADDRESS = Page("bad_address", "This address is not valid", "Check the link you followed.", button=_TO_NOTEBOOKS)
TOO_LARGE = Page(
    "too_large",
    "This is too large",
    "What you sent is larger than the hub accepts. Send less, or ask an administrator to raise the limit.",
    button=_TO_NOTEBOOKS,
)
HEADERS_TOO_LARGE = Page(
    "headers_too_large",
    "Your browser sent too much",
    "The address or the cookies are too large. Delete this site's cookies, and sign in again.",
    button=_TO_NOTEBOOKS,
)
TOO_SLOW = Page("too_slow", "This took too long", "The request did not arrive completely. Send it again.")
OVERLOADED = Page("overloaded", "The hub is very busy", "Try again in a few seconds.", reload=5)
TOO_MANY = Page(
    "too_many_requests", "Too many requests", "Too many came from your network at once. Wait a few seconds.", reload=5
)
REFUSED = Page(
    "refused",
    "This request cannot be answered",
    "There is nothing that could be reached in this way.",
    button=_TO_NOTEBOOKS,
)
