"""Sign-in, sign-up, set-up of the first administrator, and the administrators' accounts page.

Nothing here changes state on GET: a link in somebody's notebook must not be able to approve an account.
"""

from __future__ import annotations

import time
from typing import Any

from jupyterhub import orm
from jupyterhub.handlers.login import LoginHandler as JupyterHubLoginHandler
from jupyterhub.handlers.login import LogoutHandler
from jupyterhub.scopes import needs_scope
from jupyterhub.utils import url_path_join
from tornado import web
from tornado.httputil import url_concat

from marimohub.auth import first_run, roles
from marimohub.auth.accounts import AccountAuthenticator, AccountError, TooManyAttempts
from marimohub.handlers.base import PageHandler
from marimohub.orm import AuditEntry
from marimohub.permissions import isoformat


class AccountPage(PageHandler):
    """What the account pages share."""

    @property
    def accounts(self) -> AccountAuthenticator:
        found = self.authenticator
        assert isinstance(found, AccountAuthenticator)
        return found

    def url(self, path: str, **query: str) -> str:
        return url_concat(url_path_join(self.hub.base_url, path), query)

    def text(self, name: str) -> str:
        """A form field as it was typed."""
        return str(self.get_body_argument(name, "", strip=False))

    async def show(self, template: str, *, status: int = 200, **values: Any) -> None:
        self.set_status(status)
        self.set_header("Cache-Control", "no-store")
        self.finish(await self.render_template(template, **values))


class LoginHandler(AccountPage, JupyterHubLoginHandler):
    async def get(self) -> None:
        if self.current_user:
            self.redirect(self.get_next_url(self.current_user), permanent=False)
            return
        await self.form()

    async def post(self) -> None:
        data = {"username": self.text("username").strip(), "password": self.text("password")}
        try:
            user = await self.login_user(data)
            error = "" if user else await self._why_not(data)
        except TooManyAttempts as refused:
            await self.form(username=data["username"], error=refused.message, status=429)
            return
        if user:
            self._jupyterhub_user = user
            self.redirect(self.get_next_url(user))
            return
        await self.form(username=data["username"], error=error, status=403)

    async def _why_not(self, data: dict[str, str]) -> str:
        account = self.accounts.get_user(data["username"])
        waits = account is not None and not account.is_authorized
        # told only to somebody who knows the password
        if waits and await self.accounts.password_matches(account, data["password"]):
            return "Your account waits for an administrator's approval."
        return "Invalid user name or password."

    async def form(self, *, username: str = "", error: str | None = None, status: int = 200) -> None:
        next_url = self.get_argument("next", default="")
        ready = self.accounts.has_administrator()
        info = None if ready else "This hub is not set up yet. Its terminal or log shows the link to set it up."
        await self.show(
            "login.html",
            status=status,
            username=username,
            login_error=error,
            next=next_url,
            login_url=self.url("login", next=next_url) if next_url else self.url("login"),
            signup_url=self.url("signup") if self.accounts.enable_signup and ready else None,
            info=info,
        )

    def _render(self, login_error: str | None = None, username: str | None = None, **_ns: Any) -> Any:
        """Called by JupyterHub's error handling of a refused form (an old XSRF token, say)."""
        return self.render_template(
            "login.html",
            sync=True,
            username=username or "",
            login_error=login_error,
            next="",
            login_url=self.url("login"),
            signup_url=None,
            info="Try again: the page was open for too long.",
        )


class SignUpHandler(AccountPage):
    async def get(self) -> None:
        self.check_open()
        await self.form()

    async def post(self) -> None:
        self.check_open()
        try:
            self.accounts.check_sign_up_open(self.request.remote_ip)
            name = self.accounts.check_registration(
                self.text("username"),
                self.text("email"),
                self.text("password"),
                self.text("password_confirmation"),
            )
            await self.accounts.register(name, self.text("password"), self.text("email"))
        except AccountError as error:
            await self.form(error=error.message, status=429 if isinstance(error, TooManyAttempts) else 400)
            return
        await self.hub_services.database.write(_audit, name, "sign_up", name, "")
        await self.form(done=True)

    def check_open(self) -> None:
        if not self.accounts.enable_signup:
            raise web.HTTPError(404, "Sign-up is closed on this hub.")
        if not self.accounts.has_administrator():
            raise web.HTTPError(403, "This hub is not set up yet, so nobody can sign up.")

    async def form(self, *, error: str | None = None, done: bool = False, status: int = 200) -> None:
        await self.show(
            "signup.html",
            status=status,
            error=error,
            done=done,
            username=self.text("username").strip(),
            email=self.text("email").strip(),
            min_password_length=self.accounts.minimum_password_length,
            login_url=self.url("login"),
        )


class SetupHandler(AccountPage):
    """The one-time link: whoever opens it first becomes the administrator."""

    async def get(self) -> None:
        token = self.get_query_argument("token", "")
        if not await self.usable(token):
            await self.form(token="", expired=True, status=403)
            return
        await self.form(token=token)

    async def post(self) -> None:
        token = self.text("token")
        if not await self.usable(token):
            await self.form(token="", expired=True, status=403)
            return
        try:
            name = self.accounts.check_registration(
                self.text("username"),
                self.text("email"),
                self.text("password"),
                self.text("password_confirmation"),
                by_link=True,
            )
            database = self.hub_services.database
            if not await database.write(first_run.consume, token, now=time.time()):
                await self.form(token="", expired=True, status=403)
                return
            await self.accounts.register(name, self.text("password"), self.text("email"), approved=True)
        except AccountError as error:
            await self.form(token=token, error=error.message, status=400)
            return
        user = await self.app._get_or_create_user(name, hint="the set-up link")
        user.admin = True
        self.db.commit()
        orm_admin = orm.Role.find(self.db, "admin")
        if orm_admin not in user.roles:
            user.roles.append(orm_admin)
        self.db.commit()
        self.log.warning("%s became administrator by the set-up link", name)
        wrapped = self.user_from_username(name)
        self.set_login_cookie(wrapped)
        self.redirect(self.url("notebooks"))

    async def usable(self, token: str) -> bool:
        if self.accounts.has_administrator():
            return False
        return await self.hub_services.database.read(first_run.valid, token, now=time.time())

    async def form(self, *, token: str, error: str | None = None, expired: bool = False, status: int = 200) -> None:
        await self.show(
            "setup.html",
            status=status,
            token=token,
            error=error,
            expired=expired,
            username=self.text("username").strip(),
            email=self.text("email").strip(),
            min_password_length=self.accounts.minimum_password_length,
        )


class PasswordHandler(AccountPage):
    @web.authenticated
    async def get(self) -> None:
        await self.form()

    @web.authenticated
    async def post(self) -> None:
        user = self.current_user
        account = self.accounts.get_user(user.name)
        error = None
        try:
            right = await self.accounts.authenticate(
                self, {"username": user.name, "password": self.text("current_password")}
            )
            if account is None or not right:
                raise AccountError("Your current password is not right.")
            self.accounts.check_password(self.text("new_password"), self.text("new_password_confirmation"))
            await self.accounts.set_password(account, self.text("new_password"))
        except AccountError as refused:
            error = refused.message
        else:
            # whoever else is signed in as this person is not any more; their running server goes on
            running = {spawner.api_token for spawner in user.spawners.values() if spawner.active and spawner.api_token}
            self.accounts.end_sessions(user.orm_user, keep_tokens=running)
            self.set_login_cookie(user)
        await self.form(error=error, done=error is None)

    async def form(self, *, error: str | None = None, done: bool = False) -> None:
        shown = {"error": error, "done": done, "min_password_length": self.accounts.minimum_password_length}
        await self.show("change_password.html", status=400 if error else 200, **shown)


class AccountsHandler(AccountPage):
    """Administrators approve accounts and give roles."""

    @needs_scope("admin:users")
    async def get(self, name: str = "") -> None:
        await self.form()

    @needs_scope("admin:users")
    async def post(self, name: str = "") -> None:
        action, role = self.text("action"), self.text("role")
        try:
            message = await self._act(name, action, role)
        except AccountError as error:
            await self.form(error=error.message, status=400)
            return
        await self.hub_services.database.write(_audit, self.viewer.user, f"account_{action}", name, role)
        await self.form(message=message)

    async def _act(self, name: str, action: str, role: str) -> str:
        if action == "reject":
            self.accounts.reject(name)
            return f"The request of {name} was rejected."
        if action not in ("approve", "set_role") or role not in roles.ROLES:
            raise AccountError("Choose what to do, and a role.")
        if self.accounts.get_user(name) is None:
            raise AccountError(f'There is no account "{name}".')
        user = await self.app._get_or_create_user(name, hint="an approved account")
        if user.admin and role != "admin":
            raise AccountError(f"{name} is an administrator of the hub. Take that away on the Admin page first.")
        self._give_role(user, role)
        if action == "approve":
            self.accounts.approve(name)
            return f"{name} can sign in now, as {role}."
        return f"{name} is {role} now."

    def _give_role(self, user: orm.User, role: str) -> None:
        wanted = roles.GROUPS[role]
        for group_name in roles.GROUPS.values():
            group = orm.Group.find(self.db, group_name)
            if group is None:
                raise AccountError(f'The group "{group_name}" is missing. Restart the hub to have it made again.')
            if group_name == wanted and user not in group.users:
                group.users.append(user)
            elif group_name != wanted and user in group.users:
                group.users.remove(user)
        self.db.commit()

    async def form(self, *, message: str | None = None, error: str | None = None, status: int = 200) -> None:
        pending, accounts = [], []
        asked = await self.hub_services.database.read(_sign_ups)
        for account in self.accounts.accounts():
            entry: dict[str, Any] = {"username": account.username, "email": account.email}
            if not account.is_authorized:
                pending.append({**entry, "requested": asked.get(account.username)})
                continue
            user = orm.User.find(self.db, account.username)
            groups = {group.name for group in user.groups} if user else set()
            held = [role for role in reversed(roles.ROLES) if roles.GROUPS[role] in groups]
            hub_admin = bool(user and user.admin)
            entry |= {
                "role": "admin" if hub_admin else (held[0] if held else self.app.default_role),
                "is_self": account.username == self.viewer.user,
                "hub_admin": hub_admin,
            }
            accounts.append(entry)
        await self.show(
            "accounts.html",
            status=status,
            pending=pending,
            accounts=accounts,
            roles=list(roles.ROLES),
            message=message,
            error=error,
        )


def _audit(session: Any, actor: str, action: str, target: str, detail: str) -> None:
    session.add(AuditEntry(created=time.time(), actor=actor, action=action, target=target, detail=detail))


def _sign_ups(session: Any) -> dict[str, str]:
    """When each name was last signed up."""
    entries = session.query(AuditEntry).filter(AuditEntry.action == "sign_up").order_by(AuditEntry.created)
    return {entry.target: isoformat(entry.created) for entry in entries}


handlers: list[tuple[Any, ...]] = [
    (r"/login", LoginHandler),
    (r"/logout", LogoutHandler),
    (r"/signup", SignUpHandler),
    (r"/setup", SetupHandler),
    (r"/change-password", PasswordHandler),
    (r"/accounts", AccountsHandler),
    (r"/accounts/([^/]+)", AccountsHandler),
]
