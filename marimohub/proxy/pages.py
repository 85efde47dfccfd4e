"""The small pages that Envoy itself answers with when a server or the hub cannot be reached.

They load nothing: the hub that would serve a style sheet may be the one that is away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape

_STYLE = """
:root{color-scheme:light dark}
body{margin:0;min-height:100vh;display:flex;align-items:center;justify-content:center;
font:16px/1.5 system-ui,sans-serif;background:Canvas;color:CanvasText}
main{max-width:30rem;padding:2rem;text-align:center}
h1{font-size:1.4rem;margin:0 0 .5rem}
p{margin:.5rem 0;opacity:.8}
a{display:inline-block;margin-top:1rem;padding:.5rem 1.1rem;border-radius:.4rem;background:#1c7361;color:#fff;
text-decoration:none}
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
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"{refresh}<title>{escape(self.title)}</title><style>{_STYLE}</style></head>"
            f"<body><main><h1>{escape(self.title)}</h1><p>{escape(self.message)}</p>{link}</main></body></html>\n"
        )

    def json(self) -> str:
        return json.dumps({"error": {"code": self.code, "message": self.message}}) + "\n"


HUB_RESTARTING = Page(
    "hub_restarting",
    "The hub is restarting",
    "This page reloads by itself. Notebooks that are open keep running.",
    status=503,
    reload=2,
)
SERVER_NOT_RUNNING = Page(
    "server_not_running",
    "Your server is not running",
    "It was stopped, or it ended unexpectedly. What you saved is kept. Open the notebook again to start it.",
    button="Go to Notebooks",
)
BAD_ADDRESS = Page("bad_address", "This address is not valid", "Check the link you followed.", button="Go to Notebooks")
TOO_LARGE = Page(
    "too_large",
    "This is too large",
    "What you sent is larger than the hub accepts. Send less, or ask an administrator to raise the limit.",
    button="Go to Notebooks",
)
TOO_SLOW = Page("too_slow", "This took too long", "The request did not arrive completely. Send it again.")
OVERLOADED = Page("overloaded", "The hub is very busy", "This page tries again by itself in a few seconds.", reload=5)
