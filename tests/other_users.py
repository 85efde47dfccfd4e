"""Acting as another user of this machine, and folders that other users can get to."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners.identities import IdentityError
from marimohub.spawners.job import Identity

NOBODY = Identity(65534, 65534)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as others")


@contextmanager
def open_folder(mode: int = 0o711) -> Iterator[Path]:
    """A new folder that everybody can pass through, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="marimohub-test-"))
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_person(identity: Identity, act: Callable[[], Any]) -> Any:
    """What `act` returns (as JSON) in a process of that user; raises the OSError or IdentityError that it raised there.

    Without root it acts as the user who runs the tests.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups(identity.groups)
                os.setresgid(identity.gid, identity.gid, identity.gid)
                os.setresuid(identity.uid, identity.uid, identity.uid)
            try:
                answer = {"is": act()}
            except IdentityError as error:
                answer = {"identity_error": error.message}
            except OSError as error:
                answer = {"errno": error.errno}
            os.write(writing, json.dumps(answer).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    answer = json.loads(text)
    if "identity_error" in answer:
        raise IdentityError(answer["identity_error"])
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    return answer["is"]
