"""Which requests of a signed-in browser are its user's own doing.

A cookie says whose browser it is, not which page asked. Three kinds of page can ask: marimo's own page, a page of
another site, and a page of the same origin that is not marimo's (another user's server is `/user/bob/` on the same
host, and its owner can make it answer with anything).

- Another site: `Origin` and `Sec-Fetch-Site` tell. Only top-level navigations by GET are let through.
- The same origin: those headers cannot tell. So marimo's server token (its skew protection, a random value of the
  process that stands in marimo's HTML) has to come with everything that acts or reads by script: as the header
  that marimo's own front end sends, or as a query parameter on WebSockets, which a script added to the page
  appends (see page.py). Another page must then not get at that HTML: it is only given to top-level navigations
  (`Sec-Fetch-Dest: document`), never framed, and cut off from a page that opened it
  (`Cross-Origin-Opener-Policy: noopener-allow-popups`).

Browsers leave `Sec-Fetch-*` out on plain http to anything but localhost. There a same-origin page can read the
HTML with fetch(): serve the hub over https, as for every JupyterHub.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

TOKEN_HEADER = "marimo-server-token"  # noqa: S105 - a name
TOKEN_PARAMETER = "mh_token"  # noqa: S105 - a name
_PORTS = {"http": 80, "https": 443}


class Refused(Exception):
    """The request is not let through. The text is a sentence for the user."""


def public_scheme(connection: HTTPConnection, public_url: str = "") -> str:
    """`https` or `http`, as the browser sees this server."""
    if public_url:
        return urlsplit(public_url).scheme
    forwarded = connection.headers.get("x-forwarded-proto", "").split(",")[0].strip()
    return "https" if forwarded in ("https", "wss") else "http"


def check_site(connection: HTTPConnection, public_url: str = "") -> None:
    """Refuse what a page of another site asked for. Raises Refused."""
    headers = connection.headers
    navigation = (
        connection.scope["type"] == "http"
        and connection.scope["method"] in ("GET", "HEAD")
        and headers.get("sec-fetch-mode", "navigate") == "navigate"
        and headers.get("sec-fetch-dest", "document") == "document"
    )
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not navigation:
        raise Refused("This request came from another site.")
    origin = headers.get("origin")
    if origin is not None and not _is_own_origin(connection, origin, public_url):
        raise Refused("This request came from a page of another origin.")


def check_page(connection: HTTPConnection) -> None:
    """Refuse to give marimo's HTML to anything but a tab. Raises Refused."""
    if connection.headers.get("sec-fetch-dest", "document") != "document":
        raise Refused("This page can only be opened as a tab of its own.")


def needs_server_token(connection: HTTPConnection, path: str) -> bool:
    """Whether a request has to show marimo's server token. `path` is relative to the server's prefix."""
    if connection.scope["type"] == "websocket":
        return True
    if connection.scope["method"] not in ("GET", "HEAD"):
        return True
    # Reading by script. What a browser shows by itself (a download, an image) is not readable for the page
    # that asked, and virtual files have unguessable names.
    by_script = connection.headers.get("sec-fetch-dest", "document") == "empty"
    return by_script and (path.startswith(("api/", "marimohub/")) or path == "sse")


def check_server_token(connection: HTTPConnection, expected: str) -> None:
    """Raises Refused if the request does not carry marimo's server token."""
    if connection.scope["type"] == "websocket":
        given = connection.query_params.get(TOKEN_PARAMETER, "")
    else:
        given = connection.headers.get(TOKEN_HEADER, "")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise Refused("This page is from before the server was restarted. Reload it.")


def _is_own_origin(connection: HTTPConnection, origin: str, public_url: str) -> bool:
    theirs = _split(origin)
    if theirs is None:
        return False
    headers = connection.headers
    scheme = public_scheme(connection, public_url)
    hosts = {headers.get("host", ""), headers.get("x-forwarded-host", "").split(",")[0].strip()}
    own = {_split(f"{scheme}://{host}") for host in hosts if host}
    # A TLS terminator in front of the proxy may not tell that the browser speaks https. The same host by https is
    # no weaker an origin than the one that was named, so it is taken too; the other way round is refused.
    own |= {_split(f"https://{host}") for host in hosts if host}
    if public_url:
        own.add(_split(public_url))
    return theirs in own


def _split(url: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname.lower(), port or _PORTS[parts.scheme]
