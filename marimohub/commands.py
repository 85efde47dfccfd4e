"""Subcommands of `marimohub`. JupyterHub's own build a plain JupyterHub, so they are made anew for MarimoHub."""

from __future__ import annotations

import copy
import sys
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from jupyterhub import app as jupyterhub_app
from jupyterhub import orm
from traitlets import Bool, Unicode
from traitlets.config import Application

from marimohub import __version__
from marimohub.startup import StartupError


def load_hub(parent: Application) -> Any:
    """The hub that the configuration describes, not started. The command line goes before the file."""
    from marimohub.app import MarimoHub  # the hub names these classes as its subcommands

    given = copy.deepcopy(parent.config)
    hub = MarimoHub(parent=parent)
    hub.load_config_file(hub.config_file)
    hub.update_config(given)
    return hub


def fail(message: str) -> NoReturn:
    """End with a sentence on the terminal and status 1."""
    print(f"marimohub: {message}", file=sys.stderr)
    sys.exit(1)


class Init(Application):
    """Write a commented configuration file."""

    name = "marimohub-init"
    version = __version__
    description = "Write a commented marimohub_config.py into this folder.\n\nUsage: marimohub init [FILE]"
    aliases = {"log-level": "Application.log_level"}
    flags = {"y": ({"Init": {"overwrite": True}}, "overwrite an existing file")}

    overwrite = Bool(False, help="Overwrite an existing file.").tag(config=True)
    path = Unicode("marimohub_config.py")

    def parse_command_line(self, argv: Any = None) -> None:
        super().parse_command_line(argv)
        if len(self.extra_args) > 1:
            fail("Give at most one file name.")
        if self.extra_args:
            self.path = self.extra_args[0]

    def start(self) -> None:
        text = resources.files("marimohub.config").joinpath("marimohub_config.py.in").read_text()
        try:
            with open(self.path, "w" if self.overwrite else "x") as file:
                file.write(text)
        except FileExistsError:
            fail(f"{self.path} exists already. Use -y to overwrite it.")
        except OSError as error:
            fail(f"{self.path} cannot be written: {error.strerror}.")
        print(f"Wrote {Path(self.path).absolute()}. Start the hub in this folder with: marimohub")


class NewToken(jupyterhub_app.NewToken):
    """Generate an API token for a user."""

    name = "marimohub-token"
    version = __version__
    description = "Generate and print an API token of a user.\n\nUsage: marimohub token [USER]"
    examples = "    marimohub token ann"

    def start(self) -> None:
        try:
            hub = load_hub(self)
            if not hub.data_path.is_dir():
                raise StartupError(f"There is no data folder {hub.data_path}. Start the hub once first.")
            hub.init_db()
        except StartupError as error:
            fail(str(error))
        user = orm.User.find(hub.db, self.name)
        if user is None:
            fail(f"There is no user {self.name!r}; users appear at their first sign-in.")
        print(user.new_api_token(note="made on the command line"))


class UpgradeDB(jupyterhub_app.UpgradeDB):
    """Migrate the hub's database to this version."""

    name = "marimohub-upgrade-db"
    version = __version__
    description = "Migrate the hub's database to this version. Make a backup first.\n\nUsage: marimohub upgrade-db"

    def start(self) -> None:
        from marimohub.app import upgrade

        try:
            upgrade(load_hub(self))
        except StartupError as error:
            fail(str(error))
        print("The database is up to date.")
