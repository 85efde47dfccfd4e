"""Accounts with a name and a password: sign-up, approval by an administrator, sign-in.

NativeAuthenticator keeps the accounts and their passwords (bcrypt). What it does that is not safe here is not used: its
handlers change state on GET, it hashes in the event loop, it counts failed sign-ins after they were made, and it lets
whoever first registers a name from `admin_users` in as an administrator.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bcrypt
from jupyterhub import orm
from jupyterhub.utils import new_token
from nativeauthenticator import NativeAuthenticator
from nativeauthenticator.orm import UserInfo
from traitlets import Bool, Integer

from marimohub.auth.throttle import Throttle

MAX_EMAIL_LENGTH = 128  # what NativeAuthenticator's column holds
MAX_PASSWORD_BYTES = 72  # what bcrypt reads
# of random bytes that nobody knows: what an unknown name is compared with
_NO_PASSWORD = b"$2b$12$Q/Fq.AIRWIEyFD/NuO1IgOCmtxR2Fwd1PWwVId02zr5UIP7Hrz1hS"
_USERNAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,62}")


class AccountError(Exception):
    """A sentence that tells somebody why an account cannot be made or changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TooManyAttempts(AccountError):
    """Somebody should try again later."""


class AccountAuthenticator(NativeAuthenticator):
    """Sign-in with an account of this hub."""

    allow_all = Bool(True, help="Every approved account may sign in; approval is what is checked.").tag(config=True)
    minimum_password_length = Integer(10, help="Shortest password that is accepted, in characters.").tag(config=True)
    check_common_password = Bool(True, help="Refuse passwords from a list of common ones.").tag(config=True)
    allowed_failed_logins = Integer(
        10,
        help="Failed sign-ins to one account from one address before it has to wait, and ten times as many from "
        "all addresses together; 0 for no limit.",
    ).tag(config=True)
    seconds_before_next_try = Integer(60, help="The time in which they are counted, in seconds.").tag(config=True)
    sign_ups_per_hour = Integer(50, help="Sign-ups from one address in an hour; 0 for no limit.").tag(config=True)
    max_pending_accounts = Integer(200, help="How many sign-ups may wait for approval at a time.").tag(config=True)
    max_waiting_passwords = Integer(
        20, help="How many passwords may wait to be hashed or compared; more are told to try again."
    ).tag(config=True)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        window = self.seconds_before_next_try
        self._by_address = Throttle(self.allowed_failed_logins, window)
        self._by_account = Throttle(10 * self.allowed_failed_logins, window)
        self._sign_ups = Throttle(self.sign_ups_per_hour, 3600)
        # bcrypt is slow on purpose: one thread of its own, so that a flood of passwords holds nothing else up
        self._hasher = ThreadPoolExecutor(1, "marimohub-bcrypt")
        self._hashing = 0

    @property
    def db(self) -> Any:
        """JupyterHub's session, where NativeAuthenticator keeps the accounts; JupyterHub's own property of this name
        warns at every start."""
        return self._deprecated_db_session

    def get_handlers(self, app: Any) -> list[Any]:
        """None: the hub's own pages (marimohub.handlers.accounts) take their place."""
        return []

    def get_authed_users(self) -> set[str]:
        """Nobody is approved by their mere name."""
        return set()

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        """The name of the account if name and password are right and it is approved, else None.

        Raises:
            TooManyAttempts: counted before the comparison, so that simultaneous guesses count, too.
        """
        username = self.normalize_username(data.get("username", ""))
        here = (username, handler.request.remote_ip)
        if not self._by_address.take(here) or not self._by_account.take(username):
            raise TooManyAttempts(f"Too many attempts. Wait {self.seconds_before_next_try} seconds, then try again.")
        account = self.get_user(username)
        if not await self.password_matches(account, data.get("password", "")):
            return None
        self._by_address.forgive(here)
        self._by_account.forgive(username)
        return username if account.is_authorized else None

    async def password_matches(self, account: UserInfo | None, password: str) -> bool:
        """Compare in a worker thread; takes as long for an account that does not exist.

        Raises:
            TooManyAttempts: too many others wait for it.
        """
        stored = account.password if account is not None else _NO_PASSWORD
        if len(password.encode("utf-8", "replace")) > MAX_PASSWORD_BYTES:
            return False
        matches: bool = await self._hash(bcrypt.checkpw, password.encode("utf-8", "replace"), stored)
        return matches and account is not None

    async def _hash(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._hashing >= self.max_waiting_passwords:
            raise TooManyAttempts("Too many people are signing in at this moment. Try again in a few seconds.")
        self._hashing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._hasher, function, *args)
        finally:
            self._hashing -= 1

    def has_administrator(self) -> bool:
        """Whether an approved account is an administrator, so that no set-up link is needed."""
        names = self.db.query(UserInfo.username).filter(UserInfo.is_authorized.is_(True))
        found = self.db.query(orm.User.id).filter(orm.User.admin.is_(True), orm.User.name.in_(names))
        return self.db.query(found.exists()).scalar()

    def check_registration(
        self, username: str, email: str, password: str, confirmation: str, *, by_link: bool = False
    ) -> str:
        """Check what somebody wants to register, and return the name as it will be stored.

        Args:
            by_link: set-up of the first administrator, the only way to a name from `admin_users`.

        Raises:
            AccountError: says what to change.
        """
        name = self.normalize_username(username.strip())
        if not _USERNAME.fullmatch(name) or not self.validate_username(name):
            raise AccountError(
                "Choose a user name of at most 63 letters, numbers and . _ - @ +, beginning with a letter or number."
            )
        if name in self.admin_users and not by_link:
            raise AccountError(f'The name "{name}" is reserved for an administrator. Choose another one.')
        if self.user_exists(name) or (orm.User.find(self.db, name) is not None and not by_link):
            raise AccountError(f'The name "{name}" is taken. Choose another one.')
        if len(email) > MAX_EMAIL_LENGTH:
            raise AccountError(f"The e-mail address may have at most {MAX_EMAIL_LENGTH} characters.")
        if email.strip():
            try:
                UserInfo(username=name, email=email.strip())
            except AssertionError as error:
                raise AccountError("This does not look like an e-mail address.") from error
        self.check_password(password, confirmation)
        return name

    def check_password(self, password: str, confirmation: str) -> None:
        """Raises AccountError if it cannot be a password, saying why."""
        if password != confirmation:
            raise AccountError("The two passwords are not the same.")
        if len(password) < self.minimum_password_length:
            raise AccountError(f"The password must have at least {self.minimum_password_length} characters.")
        if len(password.encode("utf-8", "replace")) > MAX_PASSWORD_BYTES:
            raise AccountError(f"The password may have at most {MAX_PASSWORD_BYTES} bytes.")
        if self.check_common_password and self.is_password_common(password):
            raise AccountError("This password is on the list of common ones. Choose another.")

    def check_sign_up_open(self, address: str) -> None:
        """Raises AccountError if nobody, or nobody from this address, can sign up now."""
        waiting = self.db.query(UserInfo).filter(UserInfo.is_authorized.is_(False)).count()
        if waiting >= self.max_pending_accounts:
            raise TooManyAttempts("Too many sign-ups wait for approval already. Ask an administrator to look at them.")
        if not self._sign_ups.take(address):
            raise TooManyAttempts("Too many sign-ups came from your address. Try again in an hour.")

    async def register(self, name: str, password: str, email: str, *, approved: bool = False) -> UserInfo:
        """Store a checked account.

        Raises:
            AccountError: somebody took the name meanwhile.
        """
        hashed = await self._hash(bcrypt.hashpw, password.encode(), bcrypt.gensalt())
        if self.user_exists(name):
            raise AccountError(f'The name "{name}" is taken. Choose another one.')
        account = UserInfo(username=name, password=hashed, email=email.strip() or None, is_authorized=approved)
        self.db.add(account)
        self.db.commit()
        return account

    async def set_password(self, account: UserInfo, password: str) -> None:
        """Store a checked new password."""
        account.password = await self._hash(bcrypt.hashpw, password.encode(), bcrypt.gensalt())
        self.db.commit()

    def email_of(self, name: str) -> str | None:
        """The e-mail address that an account was registered with."""
        account = self.get_user(name)
        return account.email if account is not None else None

    def emails(self) -> dict[str, str]:
        """All addresses by account name, in one query: for lists of many people."""
        query = self.db.query(UserInfo.username, UserInfo.email).filter(UserInfo.email.is_not(None))
        return {name: address for name, address in query if address}

    def approve(self, name: str) -> None:
        """Let an account in."""
        account = self.get_user(name)
        if account is None:
            raise AccountError(f'There is no account "{name}".')
        account.is_authorized = True
        self.db.commit()

    def end_sessions(self, user: orm.User, *, keep_tokens: set[str]) -> None:
        """Make every cookie and token of a user worthless.

        Args:
            keep_tokens: tokens that stay, those of running servers.
        """
        kept = {token.id for token in (orm.APIToken.find(self.db, text) for text in keep_tokens) if token}
        for token in list(user.api_tokens):
            if token.id not in kept:
                self.db.delete(token)
        user.cookie_id = new_token()
        self.db.commit()

    def reject(self, name: str) -> None:
        """Remove an account that was never approved."""
        account = self.get_user(name)
        if account is None or account.is_authorized:
            raise AccountError(f'There is no account "{name}" that waits for approval.')
        self.db.delete(account)
        self.db.commit()

    def accounts(self) -> list[UserInfo]:
        """All accounts, by name."""
        return list(self.db.query(UserInfo).order_by(UserInfo.username))
