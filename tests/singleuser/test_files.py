"""The private folder, the rules for marimo's file operations, and the settings."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from marimohub.singleuser import fileops
from marimohub.singleuser.files import MAX_BYTES, Known, NotANotebook, NotebookFolder, text_hash
from marimohub.singleuser.settings import SECRETS, BadEnvironment, Settings

pytestmark = pytest.mark.unit


@pytest.fixture
def private(tmp_path: Path) -> NotebookFolder:
    return NotebookFolder(tmp_path)


@pytest.mark.parametrize("key", ["n.py", "./n.py", "sub/../n.py"])
def test_a_notebook_is_a_python_file_at_the_top(private: NotebookFolder, key: str) -> None:
    assert private.name_of(key) == "n"
    assert private.name_of(str(private.root / key)) == "n"


@pytest.mark.parametrize(
    "key", ["", ".", "n", "n.md", "sub/n.py", "../n.py", "/etc/n.py", "a-b.py", "a b.py", "__new__x", ".py", "ü.py"]
)
def test_anything_else_is_not(private: NotebookFolder, key: str) -> None:
    assert private.name_of(key) is None


def test_a_write_that_fails_leaves_the_old_text_and_no_rubbish(
    private: NotebookFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    private.write("n", "old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        private.write("n", "new")
    assert private.read("n") == "old"
    assert [path.name for path in private.root.iterdir()] == ["n.py"]


def test_backups_of_one_second_do_not_overwrite_each_other(private: NotebookFolder) -> None:
    for text in ("one", "two"):
        private.write("n", text)
        private.backup("n")
    kept = list((private.root / ".marimohub" / "unpublished").iterdir())
    assert sorted(path.read_text() for path in kept) == ["one", "two"]
    assert (private.root / ".marimohub").stat().st_mode & 0o777 == 0o700


def test_line_ends_and_unicode_come_back_byte_for_byte(private: NotebookFolder) -> None:
    text = "a\r\nb\n\u2028ü\x00"
    private.write("n", text)
    assert private.read("n") == text
    assert text_hash(text) == text_hash(str(private.read("n")))


def put(path: Path, kind: str) -> None:
    """Something that is no notebook's source."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "socket":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.close()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(MAX_BYTES + 1)
    else:
        path.write_bytes(b"\xff\xfe")


KINDS = ["pipe", "folder", "link", "dangling link", "socket", "large", "binary"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_notebook_is_neither_read_nor_waited_for_and_can_be_set_aside(tmp_path: Path, kind: str) -> None:
    private = NotebookFolder(tmp_path)
    put(private.path("n"), kind)
    assert private.stamp("n") is not None
    with pytest.raises(NotANotebook, match="it is "):
        private.read("n")
    kept = private.backup("n")
    assert kept is not None and kept.parent == tmp_path / ".marimohub" / "unpublished" and os.path.lexists(kept)
    private.write("n", "text")
    assert private.read("n") == "text"
    if kind == "link":
        assert kept.is_symlink() and Path("/etc/passwd").stat().st_size


def test_a_text_of_the_largest_size_is_read(private: NotebookFolder) -> None:
    private.write("n", "x" * MAX_BYTES)
    assert len(private.read("n") or "") == MAX_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_file_that_is_none_does_not_stop_the_start(tmp_path: Path, kind: str) -> None:
    (tmp_path / ".marimohub").mkdir()
    put(tmp_path / ".marimohub" / "notebooks.json", kind)
    assert NotebookFolder(tmp_path).known("n") is None


@pytest.mark.parametrize(
    ("operation", "fields", "refused"),
    [
        ("api/kernel/rename", {"filename": "x.py"}, True),
        ("api/kernel/copy", {"destination": "x.py"}, True),
        ("api/kernel/copy", {"destination": "sub/x.py"}, False),
        ("api/files/create", {"path": "", "type": "notebook", "name": "x"}, True),
        ("api/files/create", {"path": "sub", "type": "notebook", "name": "x"}, True),
        ("api/files/create", {"path": ".", "type": "file", "name": "x.py"}, True),
        ("api/files/create", {"path": "sub", "type": "file", "name": "x.py"}, False),
        ("api/files/create", {"path": "", "type": "directory", "name": "sub"}, False),
        ("api/files/delete", {"path": "n.py"}, True),
        ("api/files/delete", {"path": "helper.py"}, False),
        ("api/files/delete", {"path": "data.csv"}, False),
        ("api/files/move", {"path": "n.py", "newPath": "sub/n.py"}, True),
        ("api/files/move", {"path": "helper.py", "newPath": "sub/helper.py"}, False),
        ("api/files/move", {"path": "data.csv", "newPath": "x.py"}, True),
        ("api/files/copy", {"path": "n.py", "newPath": "copy.py"}, True),
        ("api/files/copy", {"path": "n.py", "newPath": "sub/copy.py"}, False),
    ],
)
def test_notebooks_are_managed_on_the_notebooks_page_only(
    private: NotebookFolder, operation: str, fields: dict[str, str], refused: bool
) -> None:
    private.remember("n", Known("0" * 64, 1))
    reason = fileops.refusal(operation, fields, private)
    assert (reason is not None) == refused
    assert reason is None or "Notebooks page" in reason
    assert operation in fileops.GUARDED


def environment(folder: Path, **changes: str) -> dict[str, str]:
    return {
        "JUPYTERHUB_API_TOKEN": "secret",
        "JPY_API_TOKEN": "secret",
        "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
        "JUPYTERHUB_USER": "a@b",
        "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:2/user/a%40b/",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/a%40b/",
        "MARIMOHUB_NOTEBOOK_DIR": str(folder),
        **changes,
    }


def test_taking_the_settings_removes_the_secrets_and_hides_the_token(tmp_path: Path) -> None:
    environ = environment(tmp_path, MARIMOHUB_SNAPSHOT="/x")
    settings = Settings.take(environ)
    assert not set(SECRETS) & set(environ) and environ["MARIMOHUB_SNAPSHOT"] == "/x"
    assert settings.api_token == "secret" and "secret" not in repr(settings)
    assert settings.base_url == "/user/a@b" and settings.prefix == "/user/a%40b/"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JUPYTERHUB_API_TOKEN", ""),
        ("MARIMOHUB_NOTEBOOK_DIR", "/does/not/exist"),
        ("MARIMOHUB_HEARTBEAT_INTERVAL", "often"),
        ("MARIMOHUB_HEARTBEAT_INTERVAL", "0"),
        ("JUPYTERHUB_SERVICE_URL", "https://127.0.0.1:2/"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(BadEnvironment, match=name):
        Settings.take(environment(tmp_path, **{name: value}))
