"""Sign-in with the hub, for the owner of the server and nobody else.

A person comes with a cookie of this server. It stands for a hub token that the hub's login gave to this browser, and
the hub says whose it is. It must be the server's owner, and the token must carry the access scope of this server.
A token in a header counts for nothing: it proves that somebody may make tokens for the owner, not that they are the
owner.

Administrators and people with a server-sharing scope are refused too, although JupyterHub would let them in: a
notebook sees the warehouse as its owner may see it, so a look into another person's server is a look past one's own
masks. There is no super-user that bypasses governance.

The cookie holds a random session id and nothing else; the hub's token stays in this process, so no other path,
page script or notebook can read it. Sessions end with the process: after a restart the browser is sent through the
hub once more, which needs no click, and the pages from before are stale anyway (marimo's server token changed).

A login under way is kept by the browser that started it, in a signed cookie: strangers can start as many as they like
and push out nobody's.

The hub's answers are remembered for FRESH seconds, so a session that the hub revoked ends soon. While the hub does
not answer at all, tokens it vouched for in the last GRACE seconds stay good, so that a restart of the hub disturbs
nobody; anyone else is told to wait. An answer is always obeyed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Literal, TypeVar

from jupyterhub.services.auth import HubOAuth
from starlette.requests import HTTPConnection
from tornado.httputil import url_concat
from tornado.web import HTTPError

log = logging.getLogger("marimohub.singleuser")

FRESH = 30.0  # seconds
GRACE = 3600.0  # seconds
ASK_TIMEOUT = 8.0  # seconds
PAUSE_WHEN_DOWN = 3.0  # seconds without asking again after the hub did not answer
LOGIN_TIME = 600.0  # seconds to come back from the hub's login page
MAX_KEPT = 1000  # sessions, verdicts and finished logins kept, each; the oldest go first
MAX_LOGINS = 8  # logins under way in one browser
MAX_LOGIN_COOKIE = 2500  # bytes; browsers keep 4,096 and requests carry all of them

# How HubOAuth words a 4xx answer of the hub (403 is the second); it gives them all as status 500. A hub that cannot be
# reached is worded otherwise, one that fails has status 502.
_REFUSED_BY_HUB = ("Failed to check authorization", "Permission failure checking authorization")

Verdict = Literal["owner", "other", "unknown"]
V = TypeVar("V")


class NotSignedIn(Exception):
    """No session, or one that the hub does not know any more."""


class NotAllowed(Exception):
    """Somebody else than the owner."""


class HubDown(Exception):
    """The hub does not answer, and this person has not been verified recently."""


class LoginFailed(Exception):
    """The way through the hub's login did not end well. The text is for the user."""


@dataclass(frozen=True)
class Identity:
    """The owner. `token` is the hub token to ask about again later."""

    token: str


@dataclass(frozen=True)
class Started:
    """A login under way: where to send the browser, and the cookie in which it keeps the login.

    `stale` are the names of older logins' cookies that this browser should drop.
    """

    url: str
    cookie: str
    value: str
    stale: list[str]


class Authenticator:
    """Signs people in through `oauth` and lets only `owner` pass."""

    def __init__(self, oauth: HubOAuth, owner: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._oauth, self._owner, self._clock = oauth, owner, clock
        self._sessions: dict[str, str] = {}
        self._key = secrets.token_bytes(32)
        self._finished: dict[str, None] = {}
        # Apart, so that a flood of bad tokens cannot push the owner's out.
        self._good: dict[str, float] = {}
        self._bad: dict[str, tuple[Verdict, float]] = {}
        self._asking: dict[str, asyncio.Task[Verdict]] = {}
        self._down_until = 0.0

    @property
    def cookie(self) -> str:
        """The session cookie's name: the OAuth client's, so that servers do not share one."""
        return str(self._oauth.oauth_client_id)

    async def identify(self, connection: HTTPConnection) -> Identity:
        """The owner, or NotSignedIn, NotAllowed, HubDown."""
        # A page of the same host can set a cookie of this name for our path too, so every one is looked at.
        for value in _cookies(connection, self.cookie):
            token = self._sessions.get(value)
            if token is not None:
                await self._require_owner(token)
                return Identity(token)
        raise NotSignedIn

    async def still_allowed(self, identity: Identity) -> bool:
        """Whether a connection that is open since long may stay open."""
        try:
            await self._require_owner(identity.token)
        except HubDown:
            return True  # the grace time is over, but cutting off a running page helps nobody
        except (NotSignedIn, NotAllowed):
            return False
        return True

    def start_login(self, connection: HTTPConnection, next_url: str) -> Started:
        """Begin the OAuth flow; afterwards the browser comes back to `next_url`, a path of this server."""
        verifier, challenge, method = self._oauth.generate_pkce_code_challenge()
        state = secrets.token_urlsafe(24)
        login = {"state": state, "verifier": verifier, "next": next_url, "started": self._clock()}
        value = self._sealed(login)
        if len(value) > MAX_LOGIN_COOKIE:
            value = self._sealed({**login, "next": self._oauth.base_url})
        url = url_concat(
            self._oauth.login_url,
            {"state": state, "code_challenge": challenge, "code_challenge_method": method},
        )
        # Browsers send older cookies first (RFC 6265, 5.4).
        stale = [name for name in _cookie_names(connection) if name.startswith(self._login_cookie(""))]
        return Started(url, self._login_cookie(state), value, stale[: -MAX_LOGINS + 1])

    async def finish_login(self, connection: HTTPConnection) -> tuple[str, str, str]:
        """Handle the hub's callback. Returns (session id, url to go to, login cookie to clear).

        Raises LoginFailed, NotAllowed, HubDown.
        """
        query = connection.query_params
        if query.get("error"):
            raise LoginFailed(f"The hub did not sign you in: {query.get('error_description', query['error'])}.")
        state, code = query.get("state", ""), query.get("code", "")
        cookie = self._login_cookie(state)
        found = [login for value in _cookies(connection, cookie) if (login := self._unsealed(value))]
        login = next((login for login in found if login["state"] == state), None)
        if login is None:
            raise LoginFailed(
                "This sign-in was used already, was started in another browser or before the server was started "
                "again, or cookies are blocked."
            )
        if not code or state in self._finished or self._clock() - login["started"] > LOGIN_TIME:
            raise LoginFailed("This sign-in took too long or was used already.")
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                token = await self._oauth.token_for_code(code, code_verifier=login["verifier"], sync=False)
        except HTTPError as error:
            log.warning("login: the hub gave no token: %s", error)
            if _is_refused_code(error):
                raise LoginFailed("The hub did not accept this sign-in. It is only good once.") from error
            raise HubDown from error
        except TimeoutError as error:
            log.warning("login: the hub did not answer in time")
            raise HubDown from error
        _put(self._finished, state, None)
        try:
            await self._require_owner(token)
        except NotSignedIn as error:
            raise LoginFailed("The hub does not know the session it has just made.") from error
        session = secrets.token_urlsafe(32)
        _put(self._sessions, session, token)
        log.info("signed in: %s", self._owner)
        return session, login["next"], cookie

    def _login_cookie(self, state: str) -> str:
        """A name of its own for each login, so that two tabs signing in at once do not disturb each other."""
        return f"{self.cookie}-oauth-{state[:8]}"

    def _sealed(self, login: dict[str, Any]) -> str:
        body = base64.urlsafe_b64encode(json.dumps(login).encode()).decode().rstrip("=")
        return f"{body}.{self._signature(body)}"

    def _unsealed(self, value: str) -> dict[str, Any] | None:
        body, _, signature = value.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(body).encode()):
            return None
        login: dict[str, Any] = json.loads(base64.urlsafe_b64decode(f"{body}=="))
        return login

    def _signature(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()

    async def _require_owner(self, token: str) -> None:
        verdict = await self._verdict(token)
        if verdict == "unknown":
            raise NotSignedIn
        if verdict == "other":
            raise NotAllowed

    async def _verdict(self, token: str) -> Verdict:
        key = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
        verdict, asked = self._remembered(key)
        now = self._clock()
        if now - asked < FRESH:
            return verdict
        try:
            if now < self._down_until:
                raise HubDown
            task = self._asking.get(key)
            if task is None:
                task = self._asking[key] = asyncio.create_task(self._ask(token))
                task.add_done_callback(lambda _: self._asking.pop(key, None))
            verdict = await asyncio.shield(task)
        except HubDown:
            if verdict == "owner" and now - asked < GRACE:
                return verdict
            raise
        self._good.pop(key, None)
        self._bad.pop(key, None)
        if verdict == "owner":
            _put(self._good, key, self._clock())
        else:
            _put(self._bad, key, (verdict, self._clock()))
        return verdict

    def _remembered(self, key: str) -> tuple[Verdict, float]:
        if key in self._good:
            return "owner", self._good[key]
        return self._bad.get(key, ("unknown", float("-inf")))

    async def _ask(self, token: str) -> Verdict:
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                model = await self._oauth.user_for_token(token, use_cache=False, sync=False)
        except (HTTPError, TimeoutError) as error:
            # HubOAuth raises HTTPError for a refused connection and for the hub's own failures alike; a token that
            # the hub refuses comes back as None.
            self._down_until = self._clock() + PAUSE_WHEN_DOWN
            log.warning("the hub does not answer who is asking: %s", error)
            raise HubDown from error
        if model is None:
            return "unknown"
        if model.get("kind") != "user" or model.get("name") != self._owner:
            log.warning("refused %s %r: not the owner", model.get("kind"), model.get("name"))
            return "other"
        if not self._oauth.check_scopes(self._oauth.access_scopes, model):
            log.warning("refused a token of the owner without the scope to access this server")
            return "other"
        return "owner"


def _is_refused_code(error: HTTPError) -> bool:
    return error.status_code == 500 and (error.log_message or "").startswith(_REFUSED_BY_HUB)


def _cookie_pairs(connection: HTTPConnection) -> Iterable[tuple[str, str]]:
    for header in connection.headers.getlist("cookie"):
        for chunk in header.split(";"):
            name, _, value = chunk.strip().partition("=")
            yield name, value


def _cookie_names(connection: HTTPConnection) -> Iterable[str]:
    return (name for name, _ in _cookie_pairs(connection))


def _cookies(connection: HTTPConnection, name: str) -> Iterable[str]:
    """Every value sent for one cookie name."""
    for key, value in _cookie_pairs(connection):
        if key != name:
            continue
        try:
            parsed = SimpleCookie(f"x={value}")
        except CookieError:
            continue
        if "x" in parsed:
            yield parsed["x"].value


def _put(kept: dict[str, V], key: str, value: V) -> None:
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > MAX_KEPT:
        del kept[next(iter(kept))]
