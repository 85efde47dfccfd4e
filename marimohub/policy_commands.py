"""`marimohub policy …`: the policy on the command line, whether the hub runs or not."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from traitlets.config import Application

from marimohub import __version__, policy_text, subjects
from marimohub.commands import fail, load_hub
from marimohub.files import NoSpace
from marimohub.governance import store
from marimohub.governance.attributes import from_text
from marimohub.governance.errors import PolicyError, PolicyInvalid, Problem
from marimohub.governing import NoObject, check_text
from marimohub.notebook_errors import NotebookError
from marimohub.policy_desk import Desk
from marimohub.policy_models import attributes_model, entry_model, policy_model, problem_models
from marimohub.snapshots.errors import SnapshotError
from marimohub.startup import StartupError

# settings of the hub, which traitlets reads; the rest is for argparse
_SETTING = re.compile(r"--([A-Z]\w*\.\w+|config|data-dir|warehouse|db|log-level)=")
_TOLD = (PolicyError, subjects.NoPerson, NoObject, NotebookError, SnapshotError, NoSpace, StartupError)


class Refused(Exception):
    """A command that cannot do what it was asked; the text is for the terminal."""


class PolicyCommands(Application):
    """Check, apply and explain the policy of who sees which data."""

    name = "marimohub-policy"
    version = __version__
    description = __doc__
    aliases = {
        "config": "JupyterHub.config_file",
        "data-dir": "MarimoHub.data_dir",
        "warehouse": "MarimoHub.warehouse",
        "db": "JupyterHub.db_url",
        "log-level": "Application.log_level",
    }

    def parse_command_line(self, argv: Any = None) -> None:
        words = list(argv or [])
        self.options = arguments([word for word in words if not _SETTING.match(word)])
        super().parse_command_line([word for word in words if _SETTING.match(word)])

    def start(self) -> None:
        # the hub's loop runs in this thread already
        with ThreadPoolExecutor(1) as thread:
            try:
                status = thread.submit(self._run).result()
                sys.stdout.flush()
            except (*_TOLD, Refused) as error:
                _tell_problems(error)
                fail(getattr(error, "message", None) or str(error))
            except SQLAlchemyError as error:
                reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
                fail(f"The database cannot be used: {reason}")
            except BrokenPipeError:
                # whoever read the output has seen enough; Python would complain again at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                status = 1
            except Exception as error:
                self.log.debug("marimohub policy failed", exc_info=True)
                fail(f"This did not work ({type(error).__name__}: {error}). --log-level=DEBUG says more.")
        sys.exit(status)

    def _run(self) -> int:
        if self.options.command == "check" and self.options.offline:
            return _show_problems(check_text(_read(self.options.file), None), self.options)
        text = _read(self.options.file) if "file" in self.options else ""
        desk = Desk(load_hub(self))
        try:
            return asyncio.run(_COMMANDS[self.options.command](desk, self.options, text))
        finally:
            desk.close()


def arguments(words: list[str]) -> argparse.Namespace:
    """Read the arguments, without the settings of the hub; ends with status 2 if they are wrong."""
    parser = _parser()
    options = parser.parse_args(words)
    if options.command == "explain" and options.column is not None and options.table is None:
        parser.error("--column needs --table")
    if options.command == "diff":
        both = options.before is not None and options.after is not None
        neither = options.before is None and options.after is None
        if not (neither if options.other is not None else both):
            parser.error("give --other, or --from and --to")
    return options


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="marimohub policy",
        description=PolicyCommands.__doc__,
        epilog="Reads the hub's configuration; --config=FILE, --data-dir=DIR and --Class.setting=VALUE work as for the "
        "hub. Exit status: 0, 1 for a refusal or a policy with errors, 2 for wrong arguments.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary)
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    check = command("check", "say what is wrong with a policy")
    check.add_argument("file", metavar="FILE", help="a file, or - for standard input")
    check.add_argument("--offline", action="store_true", help="look at the text alone, not at the warehouse")
    apply = command("apply", "make a file the policy")
    apply.add_argument("file", metavar="FILE", help="a file, or - for standard input")
    apply.add_argument("--comment", default="", metavar="TEXT", help="why, for the history")
    apply.add_argument("--expect", type=_revision, metavar="N", help="only if revision N applies now (0: none)")
    export = command("export", "print the policy's text")
    export.add_argument("--revision", type=_revision, metavar="N", help="not the one that applies, but this")
    command("history", "list all revisions, newest first")
    explain = command("explain", "say what a person sees, and by which rules")
    explain.add_argument("--user", required=True, metavar="USER")
    explain.add_argument("--table", metavar="TABLE", help="only this table or view")
    explain.add_argument("--column", metavar="COLUMN", help="only this column of the table")
    diff = command("diff", "compare what two people see, or one person under two revisions")
    diff.add_argument("--user", required=True, metavar="USER")
    diff.add_argument("--other", metavar="USER", help="another person")
    diff.add_argument("--from", dest="before", type=_revision, metavar="N", help="a revision; 0: no policy")
    diff.add_argument("--to", dest="after", type=_revision, metavar="N", help="another revision")
    command("draft", "print a first policy for the warehouse, which lets nobody see anything")
    attributes = command("attributes", "show or change what is known about a person")
    attributes.add_argument("user", metavar="USER")
    attributes.add_argument(
        "changes", nargs="*", type=_change, metavar="NAME=VALUE", help="a list as A,B; nothing removes"
    )
    return top


def _revision(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError("give the number of a revision")
    return int(text)


def _change(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


async def _check(desk: Desk, options: argparse.Namespace, text: str) -> int:
    return _show_problems(await desk.governor.check(text, await desk.snapshots.schema()), options)


async def _apply(desk: Desk, options: argparse.Namespace, text: str) -> int:
    if "\0" in options.comment or not options.comment.isprintable():
        raise Refused("The comment holds characters that are no text.")
    stored, problems = await desk.governor.apply(
        desk.workspace_id,
        text,
        await desk.snapshots.schema(),
        author=desk.author,
        comment=options.comment,
        expected=options.expect,
    )
    if options.json:
        return _print_json({**entry_model(stored.entry), "problems": problem_models(problems)})
    print(policy_text.problems(problems), end="", file=sys.stderr)
    print(f"Applied as revision {stored.revision}.")
    return 0


async def _export(desk: Desk, options: argparse.Namespace, _text: str) -> int:
    read = desk.database.read
    if options.revision is None:
        stored = await read(store.current, desk.workspace_id)
        if stored is None:
            raise Refused("There is no policy yet. Make a first one with: marimohub policy draft")
    else:
        stored = await read(store.get, desk.workspace_id, options.revision)
    if options.json:
        return _print_json(policy_model(stored))
    sys.stdout.write(stored.text)
    return 0


async def _history(desk: Desk, options: argparse.Namespace, _text: str) -> int:
    found = [entry_model(entry) for entry in await desk.database.read(store.history, desk.workspace_id)]
    if options.json:
        return _print_json({"revisions": found})
    print(policy_text.history(found))
    return 0


async def _explain(desk: Desk, options: argparse.Namespace, _text: str) -> int:
    subject = desk.subject(options.user)
    explained = await desk.governor.explain(
        desk.workspace_id,
        subject,
        await desk.snapshots.schema(),
        desk.snapshots.count,
        table=options.table,
        column=options.column,
    )
    if options.json:
        return _print_json(explained)
    print(policy_text.explanation(explained))
    return 0


async def _diff(desk: Desk, options: argparse.Namespace, _text: str) -> int:
    one, governor, workspace_id = desk.subject(options.user), desk.governor, desk.workspace_id
    if options.other is not None:
        two = desk.subject(options.other)
        found = await governor.compare_people(workspace_id, one, two, await desk.snapshots.schema())
    else:
        found = await governor.compare_revisions(
            workspace_id, one, options.before, options.after, await desk.snapshots.schema()
        )
    if options.json:
        return _print_json(found)
    print(policy_text.difference(found))
    return 0


async def _draft(desk: Desk, options: argparse.Namespace, _text: str) -> int:
    text = await desk.governor.draft(await desk.snapshots.schema())
    if options.json:
        return _print_json({"text": text})
    sys.stdout.write(text)
    return 0


async def _attributes(desk: Desk, options: argparse.Namespace, _text: str) -> int:
    name = subjects.find_person(desk.hub.db, options.user).name
    found = await desk.governor.attributes(desk.workspace_id, name)
    if options.changes:
        values = dict(found.values)
        for attribute, typed in options.changes:
            values.pop(attribute, None)
            if typed:
                kind = found.declared.get(attribute)
                values[attribute] = from_text(kind, typed) if kind is not None else typed
        found = await desk.governor.set_attributes(desk.workspace_id, name, values, by=desk.author)
    model = attributes_model(name, found)
    if options.json:
        return _print_json(model)
    print(policy_text.attributes(model))
    return 0


_COMMANDS: dict[str, Callable[[Desk, argparse.Namespace, str], Coroutine[Any, Any, int]]] = {
    "check": _check,
    "apply": _apply,
    "export": _export,
    "history": _history,
    "explain": _explain,
    "diff": _diff,
    "draft": _draft,
    "attributes": _attributes,
}


def _read(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.buffer.read().decode()
        with open(name, "rb") as file:
            return file.read().decode()
    except UnicodeDecodeError:
        raise Refused(f"{name} is not text in UTF-8.") from None
    except OSError as error:
        raise Refused(f"{name} cannot be read: {error.strerror}.") from None


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def _show_problems(problems: list[Problem], options: argparse.Namespace) -> int:
    if options.json:
        _print_json({"problems": problem_models(problems)})
    else:
        print(policy_text.problems(problems) or "Nothing is wrong with this policy.\n", end="")
    return 1 if any(problem.severity == "error" for problem in problems) else 0


def _tell_problems(error: Exception) -> None:
    if isinstance(error, PolicyInvalid):
        print(policy_text.problems(error.problems), end="", file=sys.stderr)
